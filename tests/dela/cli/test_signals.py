"""A command that is ended from outside leaves nothing half-written, and says so in a word."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

# A command in the middle of writing a file, which a signal reaches there.
WRITING = """
import os, signal, sys, time
import dela.cli.main as cli
from dela.files import atomic_path

def write():
    with atomic_path("out.ply") as temporary:
        temporary.write_text("half")
        os.kill(os.getpid(), signal.{name})
        time.sleep(5)
    print("went on")

cli.main = write
from dela.__main__ import main
main()
"""


def run(name, folder, **options):
    return subprocess.run(
        [sys.executable, "-c", WRITING.format(name=name)],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
        **options,
    )


@pytest.mark.parametrize(
    ("name", "said", "code"), [("SIGTERM", "terminated", 143), ("SIGHUP", "hung up", 129)]
)
def test_a_signal_ends_a_command_and_leaves_no_hidden_file(tmp_path, name, said, code):
    done = run(name, tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (code, "", f"{said}\n")
    assert list(tmp_path.iterdir()) == []


def test_a_signal_that_is_ignored_from_the_start_stays_so(tmp_path):
    """As under nohup."""
    done = run("SIGHUP", tmp_path, preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))
    assert (done.returncode, done.stdout) == (0, "went on\n")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
@pytest.mark.parametrize("suffix", [".ply", ".laz", ".npz"])
def test_a_pipe_is_refused_before_it_blocks(tmp_path, suffix):
    pipe = tmp_path / f"scan{suffix}"
    os.mkfifo(pipe)
    done = subprocess.run(
        [sys.executable, "-m", "dela", "view", str(pipe)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    assert "is a pipe or a device; write what it gives into a file first" in done.stderr
