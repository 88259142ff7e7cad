"""The command ``dela summary``: a training run as a page of curves."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def summary(
    run: Annotated[Path, typer.Argument(help="Run folder of `dela train`.")],
) -> Path:
    """Draw the curves, the confusion matrix and the classes of a run into its summary.html.

    Examples:

    $ dela summary runs/rooms
    $ dela summary runs/mine
    """
    from dela.training.run.folder import RunFolder
    from dela.training.run.summary import write_summary

    page = write_summary(RunFolder(run))
    print(page)
    return page
