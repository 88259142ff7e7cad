"""``python -m dela`` and the installed ``dela``: signals are answered in a word from the start."""

import signal
import sys
from types import FrameType

# What ends a process from outside; the command then leaves no temporary files.
_ENDINGS = {"SIGTERM": "terminated", "SIGHUP": "hung up"}


def main() -> None:
    """Entry point of ``dela``."""
    _run("main")


def export_main() -> None:
    """Entry point of ``dela-export``: ``dela export`` under its own name."""
    _run("export_main")


def _run(name: str) -> None:
    """A function of :mod:`dela.cli.main`, whose import takes long enough to be interrupted."""
    try:
        _hear_endings()
        from dela.cli import main as cli

        getattr(cli, name)()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


def _hear_endings() -> None:
    """Have signals that end the process unwind it; one that it was started to ignore stays so."""
    for name in _ENDINGS:
        number = getattr(signal, name, None)  # Windows knows no SIGHUP
        if number is not None and signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, _end)


def _end(number: int, _: FrameType | None) -> None:
    print(_ENDINGS[signal.Signals(number).name], file=sys.stderr)
    raise SystemExit(128 + number)


if __name__ == "__main__":
    main()
