"""The README's GPU table: latency and parity of the S3DIS network on every backend of this machine,
and how fast it trains.

``make gpu`` runs the GPU tests and then this. Weights are random, which changes no latency; parity
of networks whose every branch counts is what the tests look at. Backends that cannot run here are
listed with the reason, and so are rows that fail, such as for lack of GPU memory.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

import dela
from dela.cloud.point_cloud import PointCloud
from dela.errors import DelaError, MissingDependencyError
from dela.export.engine import BuildRequest, build_engine
from dela.export.onnx_export import export_onnx
from dela.model.parity import TOLERANCES
from dela.pyramid.cpu import Pyramid
from dela.runtime import Backend, load_backend
from dela.runtime.bench import MeasureOptions, made_up_clouds, measure
from dela.scan.attributes import compute_attributes
from dela.scan.voxels import Voxels
from dela.training.run.loop import train
from dela.training.settings.train import load_config

CONFIG = dela.PRESETS["s3dis"]


@dataclass
class Row:
    """One line of the table; milliseconds."""

    backend: str
    dtype: str
    points: int
    network: float
    p90: float
    on_device: float | None
    preprocess: float
    gpu_preprocess: float | None
    error: float
    passed: bool


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--points", type=int, nargs="+", default=[30_000, 120_000])
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--cpu", action="store_true", help="the CPU backends, too")
    parser.add_argument("--json", action="store_true", help="print the results as JSON")
    arguments = parser.parse_args()

    rows: list[Row] = []
    missing: dict[str, str] = {}
    failed: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        scans = [made_up_clouds(CONFIG, size)[0] for size in arguments.points]
        pyramids = [pyramid_of(scan) for scan in scans]
        files = write_network(Path(folder), pyramids)
        reference = load_backend(files["checkpoint"])
        expected = [reference.run(pyramid) for pyramid in pyramids]
        most = max(len(pyramid.points) for pyramid in pyramids)
        for name, dtype, load in candidates(files, most, arguments.cpu):
            try:
                backend = load()
            except MissingDependencyError as error:
                missing[name] = str(error)
                continue
            except (DelaError, RuntimeError) as error:
                missing[f"{name}, {dtype}"] = first_line(error)
                continue
            for scan, pyramid, logits in zip(scans, pyramids, expected, strict=True):
                try:
                    rows.append(run(name, dtype, backend, scan, pyramid, logits, arguments.repeats))
                except (DelaError, RuntimeError) as error:
                    what = f"{name}, {dtype}, {len(pyramid.points):,} points"
                    failed[what] = first_line(error)
            # What PyTorch keeps for itself, and this backend's memory, are the next one's.
            del backend
            torch.cuda.empty_cache()
        rates: dict[str, float] = {}
        if torch.cuda.is_available():
            try:
                rates = training_rates(Path(folder))
            except (DelaError, RuntimeError) as error:
                failed["training"] = first_line(error)
    machine = describe_machine()
    if arguments.json:
        print(
            json.dumps(
                {
                    "machine": machine,
                    "rows": [asdict(row) for row in rows],
                    "training": rates,
                    "missing": missing,
                    "failed": failed,
                },
                indent=2,
            )
        )
    else:
        print_table(machine, rows, missing | failed)
        for where, rate in rates.items():
            print(f"- training, pyramids built on the {where}: {rate:.2f} steps/s")
    if not all(row.passed for row in rows):
        raise SystemExit("a backend does not give PyTorch's answer: see the error column")
    if failed:
        raise SystemExit(f"not measured: {'; '.join(failed)}")


def first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]


def pyramid_of(scan: PointCloud) -> Pyramid:
    attributes = compute_attributes(scan, CONFIG.input_columns)
    voxels = Voxels.of(scan, attributes, CONFIG)
    (tile,) = voxels.cut(CONFIG, len(voxels.points))
    return voxels.inputs(tile, CONFIG)


def write_network(folder: Path, pyramids: list[Pyramid]) -> dict[str, Path]:
    """The checkpoint, and its export per dtype."""
    distances = dela.measure_neighbor_distances(pyramids[:1], CONFIG)
    files = {"checkpoint": folder / "model.pt"}
    dela.save_checkpoint(files["checkpoint"], dela.create_model("s3dis", distances, seed=0))
    for dtype in ("fp32", "fp16"):
        files[dtype] = folder / f"model_{dtype}.onnx"
        export_onnx(files["checkpoint"], files[dtype], dtype, check=False)
    return files


def candidates(files: dict[str, Path], most: int, cpu: bool) -> Iterator[tuple[str, str, Any]]:
    """Name, dtype and how to load it, of every backend that is tried."""
    for device in (*(["cpu"] if cpu else []), "cuda"):
        yield (
            f"PyTorch, {device}",
            "fp32",
            lambda device=device: load_backend(files["checkpoint"], device=device),
        )
        for dtype in ("fp32", "fp16"):
            yield (
                f"ONNX Runtime, {device}",
                dtype,
                lambda device=device, dtype=dtype: load_backend(files[dtype], device=device),
            )
    for flavour in ("tensorrt", "tensorrt-rtx"):
        for dtype in ("fp32", "fp16"):
            for graphs in (False, True):
                yield (
                    flavour + (", CUDA graphs" if graphs else ""),
                    dtype,
                    lambda flavour=flavour, dtype=dtype, graphs=graphs: load_engine(
                        files[dtype], flavour, most, graphs
                    ),
                )


def load_engine(model: Path, flavour: str, most: int, graphs: bool) -> Backend:
    """Builds the engine at its first use."""
    from dela.plugins.cuda.driver import CudaUnavailable, Device

    path = model.with_name(f"{model.stem}_{flavour}.engine")
    if not path.exists():
        try:
            capability = ".".join(map(str, Device().compute_capability))
        except CudaUnavailable as error:
            raise MissingDependencyError(str(error)) from error
        request = BuildRequest(
            backend=flavour,
            profiles=[f"1:{min(30_000, most)}:{most}"],
            compute_capabilities=[capability] if flavour == "tensorrt-rtx" else [],
        )
        build_engine(model, path, request)
    return load_backend(path, graphs=graphs)


def run(
    name: str,
    dtype: str,
    backend: Backend,
    scan: PointCloud,
    pyramid: Pyramid,
    expected: np.ndarray,
    repeats: int,
) -> Row:
    options = MeasureOptions(max_points=pyramid.rows, gpu_pyramid=False)
    latency = measure(backend, [scan], options, repeats=repeats)
    error = float(np.abs(backend.run(pyramid) - expected).max() / np.abs(expected).max())
    return Row(
        name,
        dtype,
        len(pyramid.points),
        1000 * latency.median("network"),
        1000 * latency.p90("network"),
        on_device(backend, pyramid, repeats),
        1000 * latency.median("preprocess"),
        gpu_preprocess(backend, scan, len(pyramid.points), repeats),
        error,
        error <= TOLERANCES[dtype].error,
    )


def on_device(backend: Backend, pyramid: Pyramid, repeats: int) -> float | None:
    """Milliseconds of an engine whose input lies on the GPU and whose logits stay there."""
    stream = getattr(backend, "stream", None)
    if stream is None:
        return None
    from dela.plugins.cuda.arrays import DeviceArray

    def up(array: Any) -> DeviceArray:
        return DeviceArray.from_host(np.asarray(array), stream)

    there = pyramid.each(up)
    seconds = []
    for _ in range(repeats + 3):
        start = time.perf_counter()
        backend.run(there, "device")  # type: ignore[call-arg]
        seconds.append(time.perf_counter() - start)
    return 1000 * float(np.median(seconds[3:]))


def gpu_preprocess(backend: Backend, scan: PointCloud, points: int, repeats: int) -> float | None:
    """Milliseconds of an engine's voxels and neighbors found on its own GPU."""
    if getattr(backend, "stream", None) is None:
        return None
    latency = measure(
        backend, [scan], MeasureOptions(max_points=points, gpu_pyramid=True), repeats=repeats
    )
    return 1000 * latency.median("preprocess")


def training_rates(folder: Path, steps: int = 40) -> dict[str, float]:
    """Steps a second of the S3DIS network on generated rooms, by where pyramids are built."""
    rates = {}
    for where, there in (("CPU", "false"), ("GPU", "true")):
        config = load_config(
            Path(__file__).parents[1] / "configs" / "rooms.toml",
            [
                "data.train_rooms=8",
                "data.val_rooms=0",
                "train.epochs=1",
                f"train.steps_per_epoch={steps}",
                "train.batch_size=8",
                "train.norm_batches=0",
                f"train.workers={min(8, os.cpu_count() or 1)}",
                f"train.gpu_pyramid={there}",
            ],
        )
        model = dataclasses.replace(
            CONFIG, classes=config.model.classes, attributes=config.model.attributes
        )
        ends: list[float] = []
        train(
            dataclasses.replace(config, model=model),
            folder / where,
            device="cuda",
            log=lambda _: None,
            after_step=lambda step, loss, ends=ends: ends.append(time.perf_counter()),
        )
        first = steps // 4  # by then kernels are loaded and memory is there
        rates[where] = (len(ends) - 1 - first) / (ends[-1] - ends[first])
    return rates


def describe_machine() -> str:
    from dela.plugins.cuda.driver import CudaUnavailable, Device

    try:
        device = Device()
    except CudaUnavailable:
        return "no GPU"
    return f"{device.name}, compute capability {'.'.join(map(str, device.compute_capability))}"


def print_table(machine: str, rows: list[Row], missing: dict[str, str]) -> None:
    heads = ["backend", "dtype", "points", "network", "p90", "on device", "points/s"]
    heads += ["preprocess, CPU", "GPU", "error"]
    print(f"\nS3DIS network on {machine}; milliseconds, medians\n")
    print(f"| {' | '.join(heads)} |\n|{'---|' * len(heads)}")
    for row in rows:
        times = (row.network, row.p90, row.on_device)
        cells = [row.backend, row.dtype, f"{row.points:,}", *map(milliseconds, times)]
        cells += [f"{1000 * row.points / row.network:,.0f}"]
        cells += [milliseconds(row.preprocess), milliseconds(row.gpu_preprocess)]
        cells += [f"{row.error:.0e}{'' if row.passed else ' MISSED'}"]
        print(f"| {' | '.join(cells)} |")
    print(
        "\nnetwork: from arrays on the host to logits on the host; on device: both on the GPU; "
        "preprocess: from the scan to the network's input; error: largest of a logit, as a share "
        "of PyTorch's largest on the CPU."
    )
    for name, reason in missing.items():
        print(f"- not measured: {name}: {reason}")


def milliseconds(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


if __name__ == "__main__":
    main()
