"""The command ``dela view``: a labelled scan as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from dela.cli.options import CodeMap, Columns, Overwrite, code_aliases
from dela.cloud.formats import LABEL_COLUMNS, format_of, read_cloud
from dela.cloud.point_cloud import PointCloud
from dela.errors import InputError, name_file_in_errors
from dela.files import check_writable
from dela.model.contract import ClassInfo, generic_classes
from dela.runtime.backends.base import load_backend
from dela.runtime.picture import (
    Camera,
    Panel,
    PictureStyle,
    class_colors,
    draw_panels,
    error_colors,
    natural_colors,
)
from dela.runtime.predict.labelled import (
    CONFIDENCE,
    KEPT_PREFIX,
    classes_of_codes,
    column_of,
    score,
)

Scan = Annotated[Path, typer.Argument(help="The scan to draw.")]
Output = Annotated[
    Path | None, typer.Option("-o", "--output", help="The PNG; beside the scan else.")
]
Model = Annotated[
    Path | None, typer.Option("-m", "--model", help="Gives classes their names and colors.")
]
Label = Annotated[
    str | None, typer.Option(metavar="COLUMN", help="Column of predicted label codes.")
]
Truth = Annotated[str | None, typer.Option(metavar="COLUMN", help="Column of true label codes.")]
Title = Annotated[str | None, typer.Option(help="Heading; the scan's name else.")]
Subtitle = Annotated[str, typer.Option(help="A line under the heading.")]
Azimuth = Annotated[float, typer.Option(min=-360, max=360, help="Viewing direction, degrees.")]
Elevation = Annotated[float, typer.Option(min=-90, max=90, help="Degrees.")]
Width = Annotated[int, typer.Option(min=200, max=16000, help="Pixels.")]
Whole = Annotated[bool, typer.Option("--whole", help="Keep the ceiling and near walls of a room.")]


def view(
    scan: Scan,
    output: Output = None,
    columns: Columns = None,
    model: Model = None,
    label: Label = None,
    truth: Truth = None,
    map_codes: CodeMap = None,
    title: Title = None,
    subtitle: Subtitle = "",
    azimuth: Azimuth = -62.0,
    elevation: Elevation = 40.0,
    width: Width = 1600,
    whole: Whole = False,
    overwrite: Overwrite = False,
) -> Path:
    """Draw a scan as a PNG: its colors, labels, true labels and errors, as far as it has them.

    Without --label and --truth the columns that dela predict writes are found by themselves.

    Examples:

    $ dela view scan_labelled.laz -m model.onnx
    $ dela view room.ply --truth classification --whole -o room.png
    """
    target = output or scan.with_suffix(".png")
    if target.suffix.lower() != ".png":
        raise InputError(f"{target}: pictures are written as .png")
    check_writable(target, overwrite)
    aliases = code_aliases(map_codes)
    cloud = read_cloud(scan, columns)
    if label is None and truth is None:
        label, truth = _found_labels(cloud, scan)
    with name_file_in_errors(scan, target, model):
        codes = [column_of(cloud, name) for name in (truth, label) if name is not None]
        classes = load_backend(model).config.classes if model else _numbered_classes(codes)
        known = _classes(cloud, truth, classes, aliases)
        predicted = _classes(cloud, label, classes, aliases)
        heading = scan.name if title is None else title
        style = PictureStyle(heading, subtitle, width, Camera(azimuth, elevation), whole)
        draw_panels(
            target,
            cloud.points,
            label_panels(cloud, known, predicted, classes),
            classes,
            style,
            overwrite,
        )
    print(target)
    return target


def label_panels(
    cloud: PointCloud,
    truth: np.ndarray | None,
    predicted: np.ndarray | None,
    classes: Sequence[ClassInfo],
) -> list[Panel]:
    """The scan in its own colors, then truth, prediction and errors, as far as they are known.

    Args:
        truth, predicted: [N] class index, -1 unlabelled.
    """
    panels = [Panel("Scan", natural_colors(cloud.points, cloud.columns), f"{len(cloud):,} points")]
    if truth is not None:
        panels.append(Panel("Truth", class_colors(truth, classes), classes=truth))
    if predicted is not None:
        remark = ""
        if truth is not None:
            scores = score(truth, predicted, len(classes))
            remark = f"mIoU {100 * scores.miou:.1f} %" if scores.points else ""
        panels.append(Panel("Prediction", class_colors(predicted, classes), remark, predicted))
    if truth is not None and predicted is not None:
        share = float(np.mean((truth != predicted)[truth >= 0])) if (truth >= 0).any() else 0.0
        panels.append(
            Panel("Errors", error_colors(truth, predicted), f"{100 * share:.1f} % of the points")
        )
    return panels


def _found_labels(cloud: PointCloud, path: Path) -> tuple[str | None, str | None]:
    """Columns of prediction and truth: a file with confidence was written by ``dela predict``."""
    name = format_of(path).label_column
    if CONFIDENCE not in cloud.columns:
        return None, next((c for c in LABEL_COLUMNS if c in cloud.columns), None)
    kept = (KEPT_PREFIX + name, *(c for c in LABEL_COLUMNS if c != name))
    return name, next((column for column in kept if column in cloud.columns), None)


def _classes(
    cloud: PointCloud,
    column: str | None,
    classes: Sequence[ClassInfo],
    aliases: dict[int, int],
) -> np.ndarray | None:
    if column is None:
        return None
    return classes_of_codes(column_of(cloud, column), classes, aliases)


def _numbered_classes(codes: Sequence[np.ndarray]) -> Sequence[ClassInfo]:
    """Classes for a file without a model: one per label code, by number."""
    highest = max((int(values.max(initial=0)) for values in codes), default=0)
    if highest > 255:
        raise InputError(f"a label code is {highest}; name the model with -m to draw its classes")
    return generic_classes(highest + 1)
