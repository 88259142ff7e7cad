"""``python tests/cuda_emulator/run.py PROGRAM ARGUMENTS...``: a program on the emulated driver.

A PROGRAM that ends in .py is run by this Python. The exit status is the program's own.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from cuda_emulator import build


def main() -> None:
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    reason = build.missing()
    if reason:
        sys.exit(reason)
    command = sys.argv[1:]
    if command[0].endswith(".py"):
        command.insert(0, sys.executable)
    os.execvpe(command[0], command, build.environment())


if __name__ == "__main__":
    main()
