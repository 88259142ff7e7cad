"""The command line: what it lists, how it fails, and what it imports before it has a task."""

from __future__ import annotations

import importlib
import os
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import typer

import dela
from dela.cli import main as cli
from dela.errors import DelaError


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of one command line."""
    with pytest.raises(SystemExit) as ended:
        cli.main([str(word) for word in words])
    captured = capsys.readouterr()
    return ended.value.code, captured.out, captured.err


def assert_short_error(error: str) -> None:
    lines = error.strip().splitlines()
    assert 1 <= len(lines) <= 2, error
    assert "Traceback" not in error


def test_help_lists_every_command_with_its_line(capsys):
    code, out, _ = run(capsys, "--help")
    assert code == 0
    for name in cli.COMMANDS:
        assert name in out
    assert run(capsys)[1] == out


def test_help_imports_nothing_heavy():
    script = (
        "import sys\n"
        "from dela.cli import main as cli\n"
        "try:\n    cli.main(['--help'])\n"
        "except SystemExit:\n    pass\n"
        "heavy = {'numpy', 'torch', 'onnx', 'onnxruntime', 'laspy', 'PIL'} & set(sys.modules)\n"
        "sys.exit(f'imported: {heavy}' if heavy else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", list(cli.COMMANDS))
def test_every_command_of_the_table_has_help(capsys, name):
    target, _ = cli.COMMANDS[name]
    module, _, function = target.partition(":")
    assert callable(getattr(importlib.import_module(module), function))
    code, out, _ = run(capsys, name, "--help")
    assert code == 0 and f"dela {name}" in out


def leaves(name: str) -> dict[str, Any]:
    """The commands under a name of the table: one, or those of a group."""
    application: Any = typer.main.get_command(cli._application(requested=name))
    command = application.commands[name]
    if not hasattr(command, "commands"):
        return {name: command}
    return {f"{name} {each}": below for each, below in command.commands.items()}


@pytest.mark.parametrize("name", list(cli.COMMANDS))
def test_the_help_of_every_command_ends_with_examples_it_understands(capsys, name):
    for path, command in leaves(name).items():
        text, marker, examples = command.help.partition("\n\nExamples:\n\n")
        lines = examples.splitlines()
        assert marker and text, f"dela {path}: no examples"
        assert len(lines) >= 2 and all(line.startswith(f"$ dela {path}") for line in lines), lines
        for line in lines:
            words = shlex.split(line.removeprefix(f"$ dela {path}"))
            command.make_context(path, words)  # a usage error raises
        _, shown, _ = run(capsys, *path.split(), "--help")
        assert all(line in " ".join(shown.split()) for line in lines), shown


def test_an_example_that_is_no_command_line_would_be_noticed():
    with pytest.raises(Exception, match="--no-such-option"):
        leaves("info")["info"].make_context("info", ["model.onnx", "--no-such-option"])


def test_version(capsys):
    assert run(capsys, "--version")[:2] == (0, f"dela {dela.__version__}\n")


@pytest.mark.parametrize(
    "words", [["nonsense"], ["predict"], ["predict", "x.ply"], ["info"], ["info", "a", "--nope"]]
)
def test_usage_errors_are_two_lines_and_code_2(capsys, words):
    code, _, error = run(capsys, *words)
    assert code == 2
    assert_short_error(error)
    assert "--help" in error


def fail_with(error: Exception):
    def command() -> None:
        raise error

    return command


def put_command(monkeypatch: pytest.MonkeyPatch, function) -> None:
    monkeypatch.setitem(cli.COMMANDS, "doctor", ("somewhere:function", "fails"))
    monkeypatch.setattr(cli, "_resolve", lambda target: function)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (DelaError("the scan is empty"), "error: the scan is empty\n"),
        (ModuleNotFoundError("no torch", name="torch"), "pip install 'dela[train]'"),
        (ModuleNotFoundError("no ort", name="onnxruntime.capi"), "pip install 'dela[onnxruntime]'"),
        (RuntimeError("first line\nsecond line\nthird"), "error: RuntimeError: first line\n"),
    ],
)
def test_failures_are_short_and_code_1(capsys, monkeypatch, error, expected):
    put_command(monkeypatch, fail_with(error))
    code, _, text = run(capsys, "doctor")
    assert code == 1
    assert expected in text
    assert_short_error(text)


def test_debug_anywhere_shows_where_an_error_comes_from(monkeypatch):
    put_command(monkeypatch, fail_with(DelaError("deep down")))
    for words in (["--debug", "doctor"], ["doctor", "--debug"]):
        with pytest.raises(DelaError, match="deep down"):
            cli.main(words)


def test_interruption_is_code_130(capsys, monkeypatch):
    put_command(monkeypatch, fail_with(KeyboardInterrupt()))
    assert run(capsys, "doctor") == (130, "", "interrupted\n")


@pytest.mark.usefixtures("ctrl_c")
@pytest.mark.parametrize("entry", ["main", "export_main"])
def test_an_interruption_while_the_command_is_imported_is_code_130(entry):
    """Ctrl-C comes just as the first package beyond Python's own is looked for."""
    script = (
        "import os, signal, sys\n"
        "class Press:\n"
        "    def find_spec(self, name, path, target=None):\n"
        "        if name == 'typer':\n"
        "            os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.meta_path.insert(0, Press())\n"
        f"from dela.__main__ import {entry}\n"
        f"{entry}()\n"
    )
    done = subprocess.run([sys.executable, "-c", script, "--help"], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "interrupted\n")


def test_the_installed_commands_start_behind_that_guard():
    text = (Path(__file__).parents[3] / "pyproject.toml").read_text(encoding="utf-8")
    assert tomllib.loads(text)["project"]["scripts"] == {
        "dela": "dela.__main__:main",
        "dela-export": "dela.__main__:export_main",
    }


@pytest.mark.parametrize("encoding", ["utf-8:strict", "ascii:strict"])
def test_file_names_that_are_no_text_can_be_printed(tmp_path, encoding):
    folder = os.fsencode(tmp_path / "r") + b"\xe9sum"
    scan = folder + b"/t\xff.xyz"
    os.mkdir(folder)
    with open(scan, "wb") as file:
        file.write(b"0 0 0\n1 1 1\n")
    done = subprocess.run(
        [sys.executable, "-m", "dela", "info", scan],
        capture_output=True,
        env=os.environ | {"PYTHONIOENCODING": encoding},
    )
    assert done.returncode == 0, done.stderr
    assert b"points" in done.stdout


def test_help_texts_break_at_the_terminal_width_alone(capsys, monkeypatch):
    def command() -> None:
        """Does it.

        Words up to here, where the source
        breaks the line, then more.
        """

    put_command(monkeypatch, command)
    _, out, _ = run(capsys, "doctor", "--help")
    assert "Words up to here, where the source breaks the line, then more." in out


def test_run_command_returns_what_the_command_returns(monkeypatch):
    def command(name: str, times: int = typer.Option(1)) -> list[str]:
        return [name] * times

    put_command(monkeypatch, command)
    assert cli.run_command(["doctor", "word", "--times", "2"]) == ["word", "word"]
    with pytest.raises(SystemExit) as ended:
        cli.run_command(["doctor"])
    assert ended.value.code == 2


def test_export_has_its_own_entry(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["dela-export", "--help"])
    with pytest.raises(SystemExit) as ended:
        cli.export_main()
    assert ended.value.code == 0
    assert "ONNX" in capsys.readouterr().out


def test_public_names_resolve_and_others_do_not():
    for name in dela.__all__:
        assert getattr(dela, name) is not None
    assert set(dela.__all__) <= set(dir(dela))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        dela.nothing  # noqa: B018


def test_importing_dela_is_light():
    script = "import sys, dela, dela.runtime; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script]).returncode == 0


def test_import_checkpoint_writes_a_checkpoint_that_loads(capsys, tmp_path):
    import torch

    from published_network import fabricate, published_shapes

    shapes = published_shapes((16, 32), (1, 2), classes=5, head_dim=16)
    torch.save({"model": fabricate(shapes)}, tmp_path / "best.pt")
    words = ["import-checkpoint", tmp_path / "best.pt", "--preset", "s3dis"]
    words += ["-o", tmp_path / "model.pt", "--set", "neighbors=[6,7]"]
    code, out, error = run(capsys, *words)
    assert code == 0, error
    assert "2 stages" in out and "5 classes" in out
    config = dela.load_checkpoint(tmp_path / "model.pt").config
    assert config.neighbors == (6, 7) and config.dims == (16, 32)
    code, _, error = run(capsys, *words)
    assert code == 1 and "exists" in error
    assert_short_error(error)


def test_import_checkpoint_refuses_what_does_not_fit(capsys, tmp_path):
    import torch

    torch.save({"model": {"stage.nothing": torch.zeros(3)}}, tmp_path / "best.pt")
    words = ["import-checkpoint", tmp_path / "best.pt", "--preset", "s3dis"]
    code, _, error = run(capsys, *words, "-o", tmp_path / "model.pt")
    assert code == 1 and not (tmp_path / "model.pt").exists()
    assert_short_error(error)
    code, _, error = run(capsys, *words, "-o", tmp_path / "model.pt", "--set", "neighbors")
    assert code == 2 and "--set neighbors: give KEY=VALUE" in error


def test_room_writes_the_same_room_for_a_seed(capsys, tmp_path):
    for name in ("a.ply", "b.ply"):
        words = ["room", "-o", tmp_path / name, "--seed", 5, "--points", 3000]
        code, out, error = run(capsys, *words)
        assert code == 0, error
        assert "room 5, 3,000 points" in out
    assert (tmp_path / "a.ply").read_bytes() == (tmp_path / "b.ply").read_bytes()
    code, _, error = run(capsys, *words)
    assert code == 1 and "exists" in error
    assert run(capsys, "room", "-o", tmp_path / "c.ply", "--seed", -1)[0] == 2
    code, out, error = run(capsys, "room", "-o", tmp_path / "d.foo")
    assert code == 1 and "suffix '.foo'" in error
