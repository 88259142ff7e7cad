"""``python -m dela`` and the installed ``dela``: Ctrl-C is answered in a word from the start on."""

import sys


def main() -> None:
    """Entry point of ``dela``."""
    _run("main")


def export_main() -> None:
    """Entry point of ``dela-export``: ``dela export`` under its own name."""
    _run("export_main")


def _run(name: str) -> None:
    """A function of :mod:`dela.cli.main`, whose import takes long enough to be interrupted."""
    try:
        from dela.cli import main as cli

        getattr(cli, name)()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
