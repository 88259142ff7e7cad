"""The command ``dela predict``: scans in, labelled scans out."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from dela.cli.console import ProgressBar, console, note, print_json
from dela.cli.options import CodeMap, Columns, Device, Json, Overwrite, code_aliases
from dela.cloud.formats import FORMATS, find_scans, format_of, read_cloud, write_cloud
from dela.cloud.formats.columns import column_list
from dela.cloud.point_cloud import PointCloud
from dela.errors import DelaError, InputError, name_file_in_errors
from dela.files import check_writable
from dela.model.contract import ClassInfo
from dela.runtime.backends.base import load_backend
from dela.runtime.cli.options import (
    BackendChoice,
    DropInvalid,
    GpuPyramid,
    MaxGraphs,
    MaxPoints,
    Model,
    NoGraphs,
    Tf32,
    Threads,
    Truth,
    WarmUp,
    warm_up,
)
from dela.runtime.predict.labelled import (
    check_target,
    classes_of_codes,
    column_of,
    score,
    with_prediction,
)
from dela.runtime.predict.predictor import MAX_POINTS, Prediction, Predictor
from dela.scan.context import ContextFiles
from dela.scan.tiles import context_width
from dela.scores.confusion import Confusion
from dela.text import cut

LABELLED = "_labelled"
_TOLD_CODES = 8

Scans = Annotated[list[Path], typer.Argument(help="Scans, or folders of them.")]
Output = Annotated[
    Path | None,
    typer.Option(
        "-o", "--output", help="A file for one scan, else a folder; beside the input else."
    ),
]
Context = Annotated[
    list[Path] | None,
    typer.Option(
        help="Neighboring scans, or folders of them, whose nearest points each scan is seen "
        "with; repeatable."
    ),
]
Votes = Annotated[
    int, typer.Option(min=1, help="Runs on turned and resampled input whose answers are added.")
]
Picture = Annotated[bool, typer.Option("--picture", help="Draw each result as a PNG.")]
NoKernels = Annotated[
    bool, typer.Option("--no-kernels", help="Run the file's own function bodies (slower).")
]


def predict(
    scans: Scans,
    model: Model,
    output: Output = None,
    columns: Columns = None,
    backend: BackendChoice = None,
    context: Context = None,
    max_points: MaxPoints = MAX_POINTS,
    votes: Votes = 1,
    truth: Truth = None,
    map_codes: CodeMap = None,
    picture: Picture = False,
    drop_invalid: DropInvalid = False,
    no_kernels: NoKernels = False,
    threads: Threads = None,
    device: Device = None,
    no_cuda_graphs: NoGraphs = False,
    graphs: MaxGraphs = None,
    warm: WarmUp = None,
    tf32: Tf32 = False,
    gpu_pyramid: GpuPyramid = None,
    overwrite: Overwrite = False,
    json: Json = False,
) -> list[dict[str, Any]]:
    """Label every point of scans with a trained network.

    Each result keeps all of its input's points, attributes and coordinate reference, and gains
    classification (LAS, LAZ) or label (PLY, NPZ ...) and confidence.

    Examples:

    $ dela predict scan.laz -m model.onnx
    $ dela predict scans/ -m model.onnx -o labelled/ --context scans/ --votes 4
    """
    jobs = _targets(scans, output)
    aliases = code_aliases(map_codes)
    names = None if columns is None else column_list(columns)
    loaded = load_backend(
        model,
        backend.value if backend else None,
        kernels=not no_kernels,
        threads=threads,
        device=device,
        graphs=not no_cuda_graphs,
        max_graphs=graphs,
        tf32=tf32,
    )
    warm_up(loaded, warm)
    predictor = Predictor(loaded, gpu_pyramid=gpu_pyramid)
    if output is not None and output not in (target for _, target in jobs):
        _make_folder(output)
    beside = ContextFiles(_unlabelled(context), names) if context else None
    passes = {"max_points": max_points, "votes": votes, "drop_invalid": drop_invalid}
    done = _Labelling(model, predictor, names, passes, beside, truth, aliases, picture, overwrite)
    done.label(jobs)
    done.show(json)
    if done.failures:
        raise InputError(f"{len(done.failures)} of {len(jobs)} scans failed; the others are done")
    return done.results


@dataclass
class _Labelling:
    """Labels scans one after the other, as the command line says, and keeps what came of each."""

    model: Path
    predictor: Predictor
    columns: Sequence[str] | None
    passes: dict[str, Any]
    context: ContextFiles | None
    truth: str | None
    aliases: Mapping[int, int]
    picture: bool
    overwrite: bool
    results: list[dict[str, Any]] = field(default_factory=list)
    failures: list[dict[str, str]] = field(default_factory=list)
    scores: Confusion | None = None

    def label(self, jobs: Sequence[tuple[Path, Path]]) -> None:
        """Label the scans; one that fails is noted, unless it is the only one.

        Raises:
            DelaError: the only scan failed.
        """
        for scan, target in jobs:
            try:
                with name_file_in_errors(scan, target):
                    self.results.append(self._label(scan, target))
            except DelaError as error:
                if len(jobs) == 1:
                    raise
                note(cut(f"error: {error}"))
                self.failures.append({"input": str(scan), "error": str(error)})

    def _label(self, scan: Path, target: Path) -> dict[str, Any]:
        drawing = target.with_suffix(".png") if self.picture else None
        for path in (target, drawing):
            if path is not None:
                check_writable(path, self.overwrite, inputs=(scan, self.model))
        start = time.perf_counter()
        cloud = read_cloud(scan, self.columns)
        read = time.perf_counter() - start
        classes = self.predictor.config.classes
        check_target(cloud, classes, target, self.passes["drop_invalid"])
        known = self._known(scan, cloud)
        prediction = self._predict(scan, cloud)
        start = time.perf_counter()
        write_cloud(target, with_prediction(cloud, prediction, target), self.overwrite)
        write = time.perf_counter() - start
        result = _result(scan, target, prediction, classes)
        result["seconds"] = {"read": read, **prediction.seconds, "write": write}
        if known is not None:
            result["scores"] = self._score(known, prediction)
            result["unscored"] = int(np.count_nonzero(known < 0))
        if drawing is not None:
            title = scan.name
            _draw(drawing, title, cloud, (known, prediction.classes), classes, self.overwrite)
            result["picture"] = str(drawing)
        return result

    def _known(self, scan: Path, cloud: PointCloud) -> np.ndarray | None:
        """[N] true class of each point, -1 for none, where a column of them was named."""
        if self.truth is None:
            return None
        codes = column_of(cloud, self.truth)
        known = classes_of_codes(codes, self.predictor.config.classes, self.aliases)
        unknown = codes[known < 0]
        if len(unknown):
            found = np.unique(unknown)
            told = ", ".join(map(str, found[:_TOLD_CODES].tolist()))
            more = ", ..." if len(found) > _TOLD_CODES else ""
            note(
                f"note: {scan}: {len(unknown):,} points are not scored: no class has their true "
                f"code ({told}{more}); --map FROM=TO gives them one"
            )
        return known

    def _predict(self, scan: Path, cloud: PointCloud) -> Prediction:
        around = None
        if self.context is not None:
            width = context_width(self.predictor.config)
            around = self.context.points(scan, cloud, width)
        with ProgressBar(scan.name, percent=True) as bar:
            return self.predictor.predict(cloud, around=around, progress=bar.update, **self.passes)

    def _score(self, known: np.ndarray, prediction: Prediction) -> dict[str, Any]:
        classes = self.predictor.config.classes
        found = score(known, prediction.classes, len(classes))
        self.scores = found if self.scores is None else self.scores + found
        return found.to_dict([info.name for info in classes])

    def show(self, as_json: bool) -> None:
        """Print what came of the scans."""
        if as_json:
            print_json(
                {"model": str(self.model), "results": self.results, "failures": self.failures}
            )
            return
        if self.results:
            _show(self.results, self.scores)
        if self.failures:
            from dela.runtime.cli.tables import failures_table

            console().print(failures_table(self.failures))


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
        answers = format_of(output).answers
        if answers:
            raise InputError(f"-o {output}: a {output.suffix} holds no labels; give a {answers}")
        return [(found[0], output)]
    if output is not None and not output.is_dir() and (output.exists() or _is_file_name(output)):
        raise InputError(
            f"-o {output} has no suffix of a scan ({', '.join(FORMATS)}) and is no folder"
            + ("" if output.exists() else "; make the folder first if you mean one")
        )
    targets: dict[Path, Path] = {}
    for scan in found:
        answers = format_of(scan).answers
        name = f"{scan.stem}{answers}" if answers else f"{scan.stem}{LABELLED}{scan.suffix}"
        target = (output or scan.parent) / name
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
    from dela.runtime.cli.tables import classes_table, predictions_table

    screen = console()
    screen.print(predictions_table(results))
    screen.print()
    screen.print(classes_table(results, scores))
    if scores is not None:
        screen.print(
            f"mIoU {100 * scores.miou:.2f} %, overall accuracy {100 * scores.oa:.2f} %, "
            f"mean accuracy {100 * scores.macc:.2f} % on {scores.points:,} points with a true label"
        )
    screen.print()
    for result in results:
        for path in (result["output"], result.get("picture")):
            if path:
                screen.print(f"written: {path}", soft_wrap=True)


def _draw(
    path: Path,
    title: str,
    cloud: PointCloud,
    labels: tuple[np.ndarray | None, np.ndarray],
    classes: Sequence[ClassInfo],
    overwrite: bool,
) -> None:
    """Draws a scan with its true classes, where they are known, and those predicted."""
    from dela.runtime.cli.view import label_panels
    from dela.runtime.picture import PictureStyle, draw_panels

    panels = label_panels(cloud, *labels, classes)
    draw_panels(path, cloud.points, panels, classes, PictureStyle(title), overwrite)
