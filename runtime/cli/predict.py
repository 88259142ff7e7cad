"""The command ``dela predict``: scans in, labelled scans out."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from dela.cloud.formats import FORMATS, find_scans, read_cloud, write_cloud
from dela.cloud.point_cloud import PointCloud
from dela.errors import DelaError, InputError
from dela.files import check_writable
from dela.model.contract import ClassInfo
from dela.runtime.backends.base import load_backend
from dela.runtime.cli import report
from dela.runtime.cli.options import (
    BackendName,
    CodeMap,
    Device,
    DropInvalid,
    GpuPyramid,
    Json,
    MaxPoints,
    Model,
    NoGraphs,
    Overwrite,
    Threads,
    Truth,
    code_aliases,
)
from dela.runtime.predict.labelled import classes_of_codes, column_of, score, with_prediction
from dela.runtime.predict.predictor import MAX_POINTS, Prediction, Predictor
from dela.scan.context import Neighborhood
from dela.scan.tiles import context_width
from dela.scores.confusion import Confusion

LABELLED = "_labelled"


def predict(
    scans: Annotated[list[Path], typer.Argument(help="Scans, or folders of them.")],
    model: Model,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o", "--output", help="A file for one scan, else a folder; beside the input else."
        ),
    ] = None,
    backend: Annotated[
        BackendName | None, typer.Option(help="Chosen by the model's suffix when left out.")
    ] = None,
    context: Annotated[
        list[Path] | None,
        typer.Option(
            help="Neighbouring scans, or folders of them, whose nearest points each scan is seen "
            "with; repeatable."
        ),
    ] = None,
    max_points: MaxPoints = MAX_POINTS,
    votes: Annotated[
        int, typer.Option(min=1, help="Runs on turned and resampled input whose answers are added.")
    ] = 1,
    truth: Truth = None,
    map_codes: CodeMap = None,
    picture: Annotated[bool, typer.Option("--picture", help="Draw each result as a PNG.")] = False,
    drop_invalid: DropInvalid = False,
    no_kernels: Annotated[
        bool, typer.Option("--no-kernels", help="Run the file's own function bodies (slower).")
    ] = False,
    threads: Threads = None,
    device: Device = None,
    no_cuda_graphs: NoGraphs = False,
    gpu_pyramid: GpuPyramid = False,
    overwrite: Overwrite = False,
    json: Json = False,
) -> list[dict[str, Any]]:
    """Label every point of scans with a trained network.

    Each result keeps all of its input's points, attributes and coordinate reference, and gains
    classification (LAS, LAZ) or label (PLY, NPZ ...) and confidence.
    """
    jobs = _targets(scans, output)
    aliases = code_aliases(map_codes)
    predictor = Predictor(
        load_backend(
            model,
            backend.value if backend else None,
            kernels=not no_kernels,
            threads=threads,
            device=device,
            graphs=not no_cuda_graphs,
        ),
        gpu_pyramid=gpu_pyramid,
    )
    if output is not None and output not in (target for _, target in jobs):
        _make_folder(output)
    classes = predictor.config.classes
    neighborhood = Neighborhood(_unlabelled(context)) if context else None
    results: list[dict[str, Any]] = []
    failures: list[dict[str, str]] = []
    scores: Confusion | None = None
    for scan, target in jobs:
        try:
            with report.naming(scan, target):
                drawing = target.with_suffix(".png") if picture else None
                for path in (target, drawing):
                    if path is not None:
                        check_writable(path, overwrite, inputs=(scan, model))
                start = time.perf_counter()
                cloud = read_cloud(scan)
                read = time.perf_counter() - start
                known = None
                if truth is not None:
                    known = classes_of_codes(column_of(cloud, truth), classes, aliases)
                around = None
                if neighborhood is not None:
                    around = neighborhood.around(scan, cloud, context_width(predictor.config))
                with report.progress_bar(scan.name) as update:
                    prediction = predictor.predict(
                        cloud,
                        around=around,
                        max_points=max_points,
                        votes=votes,
                        drop_invalid=drop_invalid,
                        progress=update,
                    )
                start = time.perf_counter()
                write_cloud(target, with_prediction(cloud, prediction, target), overwrite)
                write = time.perf_counter() - start
                result = _result(scan, target, prediction, classes)
                result["seconds"] = {"read": read, **prediction.seconds, "write": write}
                if known is not None:
                    found = score(known, prediction.classes, len(classes))
                    result["scores"] = found.to_dict([info.name for info in classes])
                    scores = found if scores is None else scores + found
                if drawing is not None:
                    _draw(drawing, scan, cloud, known, prediction, classes, overwrite)
                    result["picture"] = str(drawing)
        except DelaError as error:
            if len(jobs) == 1:
                raise
            print(f"error: {error}", file=sys.stderr)
            failures.append({"input": str(scan), "error": str(error)})
            continue
        results.append(result)
    if json:
        report.print_json({"model": str(model), "results": results, "failures": failures})
    elif results:
        _show(results, scores)
    if failures:
        raise InputError(f"{len(failures)} of {len(jobs)} scans failed; the others are done")
    return results


def _targets(scans: Sequence[Path], output: Path | None) -> list[tuple[Path, Path]]:
    """Each scan with the file its result goes to.

    Scans found in a folder that are results themselves (``*_labelled``) are passed over.

    Raises:
        InputError: nothing found, a file name for several scans, a name that is neither a scan's
            nor a folder's, or two results of one name.
    """
    found = _unlabelled(scans)
    if not found:
        raise InputError(
            f"no scan to label in {', '.join(str(path) for path in scans)}; "
            f"suffixes read: {', '.join(sorted(FORMATS))}"
        )
    if output is not None and output.suffix.lower() in FORMATS and not output.is_dir():
        if len(found) > 1:
            raise InputError(f"-o {output} names one file for {len(found)} scans; give a folder")
        return [(found[0], output)]
    if output is not None and not output.is_dir() and (output.exists() or _is_file_name(output)):
        raise InputError(
            f"-o {output} has no suffix of a scan ({', '.join(FORMATS)}) and is no folder"
            + ("" if output.exists() else "; make the folder first if you mean one")
        )
    targets: dict[Path, Path] = {}
    for scan in found:
        target = (output or scan.parent) / f"{scan.stem}{LABELLED}{scan.suffix}"
        if target in targets:
            raise InputError(
                f"{targets[target]} and {scan} would both be written to {target}; label them apart "
                "or leave out -o"
            )
        targets[target] = scan
    return [(scan, target) for target, scan in targets.items()]


def _unlabelled(scans: Sequence[Path]) -> list[Path]:
    """The scans named and those in folders, without the results an earlier run left there."""
    named = {path for path in scans if not path.is_dir()}
    return [path for path in find_scans(scans) if path in named or not path.stem.endswith(LABELLED)]


def _is_file_name(path: Path) -> bool:
    """Whether a name ends like a file's: ``a.obj``, but not ``v1.2`` or ``tiles``."""
    return path.suffix[1:].isalpha()


def _make_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot make the folder {path}: {error.strerror}") from error


def _result(
    scan: Path, target: Path, prediction: Prediction, classes: Sequence[ClassInfo]
) -> dict[str, Any]:
    counts = np.bincount(prediction.classes[prediction.classes >= 0], minlength=len(classes))
    values = {info.name: int(count) for info, count in zip(classes, counts, strict=True)}
    if prediction.invalid:
        values["(not finite)"] = prediction.invalid
    return {
        "input": str(scan),
        "output": str(target),
        "points": len(prediction.classes),
        "voxels": prediction.voxels,
        "tiles": prediction.tiles,
        "mean_confidence": float(prediction.confidence.mean()),
        "classes": values,
    }


def _show(results: Sequence[dict[str, Any]], scores: Confusion | None) -> None:
    console = report.console()
    console.print(report.predictions_table(results))
    console.print()
    console.print(report.classes_table(results, scores))
    if scores is not None:
        console.print(
            f"mIoU {100 * scores.miou:.2f} %, overall accuracy {100 * scores.oa:.2f} %, "
            f"mean accuracy {100 * scores.macc:.2f} % on {scores.points:,} points with a true label"
        )
    console.print()
    for result in results:
        for path in (result["output"], result.get("picture")):
            if path:
                console.print(f"written: {path}", soft_wrap=True, markup=False)


def _draw(
    path: Path,
    scan: Path,
    cloud: PointCloud,
    truth: np.ndarray | None,
    prediction: Prediction,
    classes: Sequence[ClassInfo],
    overwrite: bool,
) -> None:
    from dela.runtime.cli.view import label_panels
    from dela.runtime.picture import draw_panels

    draw_panels(
        path,
        cloud.points,
        label_panels(cloud, truth, prediction.classes, classes),
        classes,
        title=scan.name,
        overwrite=overwrite,
    )
