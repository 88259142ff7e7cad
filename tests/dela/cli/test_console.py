"""What commands show: bars on a terminal only, JSON that parses, tables of whole numbers."""

from __future__ import annotations

import contextlib
import io
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import pytest

from dela.cli import console


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@contextlib.contextmanager
def terminal(monkeypatch) -> Iterator[Callable[..., str]]:
    """Stderr is a terminal; gives what waits until its last frame holds some words."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    stream = Terminal()

    def wait(*words: str) -> str:
        end = time.monotonic() + 10
        while time.monotonic() < end:
            frame = "outer" + stream.getvalue().rpartition("outer")[2]
            if all(word in frame for word in words):
                return frame
            time.sleep(0.02)
        pytest.fail(f"never drawn: {words}; but {stream.getvalue()[-500:]!r}")

    with contextlib.redirect_stderr(stream):
        yield wait


def test_a_bar_shows_its_work_and_the_parts_of_it_until_they_are_closed(monkeypatch):
    with terminal(monkeypatch) as shown, console.ProgressBar("outer", total=4) as bar:
        inner = bar.nested("part", total=7)
        inner.update(3)
        bar.update(1)
        shown("1/4", "part", "3/7")
        inner.close()
        bar.update(2)
        assert "part" not in shown("2/4")


def test_a_bar_can_show_a_share_and_learn_its_total_late(monkeypatch):
    with terminal(monkeypatch) as shown, console.ProgressBar("outer", percent=True) as bar:
        bar.update(1, 4)
        shown("25%")


def test_without_a_terminal_nothing_is_drawn_and_rich_is_not_imported():
    script = (
        "import sys\n"
        "from dela.cli.console import ProgressBar, note, print_json, warn\n"
        "with ProgressBar('outer', total=2) as bar:\n"
        "    inner = bar.nested('part', 3)\n"
        "    inner.update(1)\n"
        "    inner.close()\n"
        "    bar.update(2)\n"
        "note('done')\n"
        "warn('odd')\n"
        "print_json({'a': 1}, indent=None)\n"
        "sys.exit('rich' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "done\nwarning: odd\n")
    assert json.loads(done.stdout) == {"a": 1} and done.stdout.count("\n") == 1


def test_tables_keep_numbers_in_a_line_and_square_brackets_as_they_are(capsys):
    drawn = console.table("file", "points")
    drawn.add_row("[red]scan.laz", "1,234,567")
    console.console().print(drawn)
    head, row = capsys.readouterr().out.splitlines()
    assert head.split() == ["file", "points"]
    assert row.split() == ["[red]scan.laz", "1,234,567"]


def test_what_steers_a_terminal_is_written_out_everywhere(capsys):
    name = "\x1b]0;title\x07ground"
    drawn = console.table(name, "points")
    drawn.add_row(name, "1")
    console.console().print(drawn)
    console.console().print(name)
    console.say(name)
    console.note(name)
    captured = capsys.readouterr()
    assert "\x1b" not in captured.out + captured.err and "\x07" not in captured.out + captured.err
    assert captured.out.count("\\x1b]0;title\\x07ground") == 4
    assert captured.err == "\\x1b]0;title\\x07ground\n"


def test_a_bar_shows_a_file_name_with_brackets_as_it_is(monkeypatch):
    with terminal(monkeypatch) as shown, console.ProgressBar("outer [red]a[/] \x1b[2J", total=2):
        assert "\x1b[2J" not in shown("[red]a[/] \\x1b[2J")
