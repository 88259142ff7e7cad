"""Whole lidar scans a second, from points in memory to the label of every point.

    python benchmarks/end_to_end.py                          # on a GPU: engines, fp32 and fp16
    python benchmarks/end_to_end.py --cpu --scans 5          # ONNX Runtime on the CPU, too
    python benchmarks/end_to_end.py model.engine             # a network of your own

Scans are made up: a street seen by a sensor that drives along it, with the beams, angles and range
of the sensors of nuScenes and SemanticKITTI, so with about as many points in about the same places.
Each is another one, as on the road. Weights are random unless a model is given, which changes no
latency: the network is that of configs/semantickitti.toml. Times hold attributes, voxels,
neighbors, network and labels; reading files is left out. Published rates beside ours are of other
networks on an RTX 4090, preprocessing included (arXiv:2510.06876); another GPU's do not compare.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dela.cloud.point_cloud import PointCloud
from dela.errors import DelaError, InputError, MissingDependencyError
from dela.runtime import Backend, Predictor, load_backend

RECIPE = Path(__file__).parents[1] / "configs" / "semantickitti.toml"
# Scans a second on an RTX 4090 with nuScenes and with SemanticKITTI; None: not published.
PUBLISHED: dict[str, tuple[float, float | None]] = {
    "PTv3": (4.1, None),
    "MinkowskiNet": (21.2, 14.1),
    "FRNet": (12.2, 11.6),
    "HARP-NeXt": (100.0, 76.9),
}


@dataclass(frozen=True)
class Sensor:
    """A rotating lidar.

    Attributes:
        beams, columns: of one turn.
        lowest, highest: angles of the beams above the horizon, degrees.
        height: above the ground, meters.
        reach: meters; a beam that meets nothing nearer gives no point.
    """

    beams: int
    columns: int
    lowest: float
    highest: float
    height: float
    reach: float

    def directions(self) -> np.ndarray:
        """[beams * columns, 3] unit vectors."""
        up = np.radians(np.linspace(self.lowest, self.highest, self.beams))[:, None]
        turn = np.linspace(0, 2 * np.pi, self.columns, endpoint=False)[None]
        parts = (np.cos(up) * np.cos(turn), np.cos(up) * np.sin(turn), np.sin(up) + 0 * turn)
        return np.stack(parts, axis=-1).reshape(-1, 3)


SENSORS = {
    "nuScenes": Sensor(32, 1090, -30.7, 10.7, 1.84, 80.0),
    "SemanticKITTI": Sensor(64, 2000, -24.8, 2.0, 1.73, 80.0),
}


@dataclass
class Rate:
    """Labelled scans of one sensor with one backend.

    Attributes:
        points, voxels: of a scan, mean.
        rate: scans a second, one after the other.
        median, p99: milliseconds a scan.
        replayed: share of scans whose last run replayed a CUDA graph; None where none are captured.
    """

    backend: str
    sensor: str
    points: int
    voxels: int
    rate: float
    median: float
    p99: float
    replayed: float | None


def street(seed: int = 0) -> np.ndarray:
    """[boxes, 2, 3] lowest and highest corners, meters: houses, cars, trunks and crowns."""
    generator = np.random.default_rng(seed)
    boxes = []
    for side in (-1, 1):
        along = -120.0
        while along < 220:
            length = generator.uniform(8, 25)
            front = side * generator.uniform(9, 16)
            far = front + side * 12
            boxes.append([[along, min(front, far), 0], [along + length, max(front, far), 9]])
            along += length + generator.uniform(0, 6)
        for along in np.arange(-118, 220, 9.0):
            x, y = along + generator.uniform(0, 4), side * generator.uniform(3.5, 5)
            boxes.append([[x, y - 0.9, 0.2], [x + 4.2, y + 0.9, 1.5]])
            x, y = along + generator.uniform(4, 8), side * generator.uniform(6.5, 8)
            boxes.append([[x - 0.15, y - 0.15, 0], [x + 0.15, y + 0.15, 3]])
            boxes.append([[x - 1.5, y - 1.5, 3], [x + 1.5, y + 1.5, 6]])
    return np.array(boxes)


def seen_from(sensor: Sensor, position: float, boxes: np.ndarray, seed: int) -> np.ndarray:
    """[N, 3] points, meters, of one turn from ``position`` along the street, with 2 cm of noise."""
    rays = sensor.directions()
    origin = np.array([position, 0.0, sensor.height])
    with np.errstate(divide="ignore"):
        inverse = 1 / np.where(rays == 0, 1e-12, rays)
    distance = np.where(rays[:, 2] < 0, -origin[2] * inverse[:, 2], np.inf)
    near = np.abs(boxes.mean(axis=1)[:, 0] - position) < sensor.reach + 15
    for low, high in boxes[near]:
        ends = (low - origin) * inverse, (high - origin) * inverse
        enter, leave = np.minimum(*ends).max(axis=1), np.maximum(*ends).min(axis=1)
        hit = (enter <= leave) & (enter > 0) & (enter < distance)
        distance[hit] = enter[hit]
    found = distance < sensor.reach
    generator = np.random.default_rng(seed)
    there = distance[found] + generator.normal(0, 0.02, np.count_nonzero(found))
    return origin + rays[found] * there[:, None]


def drive(sensor: Sensor, count: int, config: Any) -> list[PointCloud]:
    """Scans a meter from each other, with columns of random values that a network wants."""
    boxes, scans = street(), []
    for number in range(count):
        points = seen_from(sensor, float(number % 100), boxes, number)
        generator = np.random.default_rng(number)
        infos = (*config.attributes, *config.directions)
        columns = {info.name: info.raw(generator.uniform(0, 1, len(points))) for info in infos}
        scans.append(PointCloud(points, columns))
    return scans


def label(
    name: str, backend: Backend, sensor: str, scans: Sequence[PointCloud], warmups: int
) -> Rate:
    """Labels scans one after the other; the first ``warmups`` of them are not counted.

    Where the backend is an engine everything happens on its GPU.
    """
    on_gpu = hasattr(backend, "stream")
    predictor = Predictor(backend, gpu_pyramid=on_gpu)
    seconds, voxels, kinds = [], [], []
    for number, scan in enumerate(scans):
        start = time.perf_counter()
        found = predictor.predict(scan)
        if number >= warmups:
            seconds.append(time.perf_counter() - start)
            voxels.append(found.voxels)
            kinds.append(getattr(backend, "latest_run", "plain"))
    graphs = [kind == "replayed" for kind in kinds if kind != "plain"]
    return Rate(
        name,
        sensor,
        round(np.mean([len(scan) for scan in scans[warmups:]])),
        round(np.mean(voxels)),
        len(seconds) / sum(seconds),
        1000 * float(np.median(seconds)),
        1000 * float(np.percentile(seconds, 99)),
        float(np.mean(graphs)) if graphs else None,
    )


def write_network(folder: Path) -> dict[str, Path]:
    """The recipe's network with random weights: dtype -> exported file."""
    import dela
    from dela.export.onnx_export import export_onnx
    from dela.scan.attributes import compute_attributes
    from dela.scan.voxels import Voxels
    from dela.training.optimize.network import stage_ratios
    from dela.training.settings.train import load_config

    config = load_config(RECIPE).model
    inputs = []
    for sensor in SENSORS.values():
        (scan,) = drive(sensor, 1, config)
        voxels = Voxels.of(scan, compute_attributes(scan, config.input_columns), config)
        inputs.append(voxels.inputs(voxels.cut(config, len(scan))[0], config))
    model = dela.create_model(config, seed=0)
    dela.save_checkpoint(folder / "model.pt", model, {"stage_ratios": stage_ratios(inputs)})
    return {
        dtype: export_onnx(folder / "model.pt", folder / f"model_{dtype}.onnx", dtype, check=False)
        for dtype in ("fp32", "fp16")
    }


def candidates(files: dict[str, Path], cpu: bool) -> Iterator[tuple[str, Callable[[], Backend]]]:
    """Name, and how to load it, of every backend that is tried."""
    if cpu:
        yield "ONNX Runtime, cpu, fp32", lambda: load_backend(files["fp32"])
    for dtype, path in files.items():
        yield (
            f"ONNX Runtime, cuda, {dtype}",
            lambda path=path: load_backend(path, device="cuda"),
        )
    for flavour in ("tensorrt", "tensorrt-rtx"):
        for dtype, path in files.items():
            yield (
                f"{flavour}, {dtype}",
                lambda path=path, flavour=flavour: load_backend(build(path, flavour)),
            )


def build(model: Path, flavour: str) -> Path:
    """An engine for the GPU at hand.

    Raises:
        MissingDependencyError: no GPU.
    """
    from dela.export.engine import BuildRequest, build_engine
    from dela.plugins.cuda.driver import CudaUnavailable, Device

    try:
        capability = ".".join(map(str, Device().compute_capability))
    except CudaUnavailable as error:
        raise MissingDependencyError(str(error)) from error
    path = model.with_name(f"{model.stem}_{flavour}.engine")
    capabilities = [capability] if flavour == "tensorrt-rtx" else []
    request = BuildRequest(
        backend=flavour, profiles=["1:60000:150000"], compute_capabilities=capabilities
    )
    build_engine(model, path, request)
    return path


def measure(
    backends: Iterator[tuple[str, Callable[[], Backend]]], scans: int, warmups: int
) -> tuple[list[Rate], dict[str, str]]:
    """Rates of every backend with every sensor, and why a backend has none."""
    rates: list[Rate] = []
    missing = {}
    for name, load in backends:
        try:
            backend = load()
            if backend.config.task != "segmentation":
                raise InputError("it names whole clouds; give a segmentation network")
            for sensor, kind in SENSORS.items():
                seen = drive(kind, warmups + scans, backend.config)
                rates.append(label(name, backend, sensor, seen, warmups))
        except (DelaError, RuntimeError) as error:
            missing[name] = str(error).partition("\n")[0]
    return rates, missing


def table(rates: Sequence[Rate], machine: str) -> str:
    """Markdown: scans a second of both sensors, ours and those published."""
    lines = [f"| network | on | {' | '.join(SENSORS)} | median, p99 | replayed |", f"|{'---|' * 6}"]
    for name in dict.fromkeys(rate.backend for rate in rates):
        own = {rate.sensor: rate for rate in rates if rate.backend == name}
        found = [own.get(sensor) for sensor in SENSORS]
        cells = [f"{rate.rate:.1f}" if rate else "-" for rate in found]
        spread = [f"{rate.median:.1f}, {rate.p99:.1f} ms" if rate else "-" for rate in found]
        shares = [rate.replayed for rate in found if rate and rate.replayed is not None]
        graphs = [f"{100 * share:.0f} %" for share in shares]
        words = [f"dela, {name}", machine, *cells, " / ".join(spread), " / ".join(graphs)]
        lines.append(f"| {' | '.join(words)} |")
    for name, published in PUBLISHED.items():
        cells = ["-" if rate is None else f"{rate:.1f}" for rate in published]
        lines.append(f"| {name}, published | RTX 4090 | {' | '.join(cells)} | | |")
    return "\n".join(lines)


def machine_name() -> str:
    from dela.plugins.cuda.driver import CudaUnavailable, Device

    try:
        return str(Device().name)
    except CudaUnavailable:
        return "CPU"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("models", type=Path, nargs="*", help="files to time; a random network else")
    parser.add_argument("--scans", type=int, default=50, help="timed, of each sensor")
    parser.add_argument("--warmup", type=int, default=20, help="scans before them")
    parser.add_argument("--cpu", action="store_true", help="ONNX Runtime on the CPU, too")
    parser.add_argument("--json", action="store_true", help="print the results as JSON")
    arguments = parser.parse_args()
    if arguments.scans < 1 or arguments.warmup < 0:
        parser.error("--scans must be at least 1 and --warmup at least 0")
    with tempfile.TemporaryDirectory() as folder:
        if arguments.models:
            backends = (
                (path.name, lambda path=path: load_backend(path)) for path in arguments.models
            )
        else:
            backends = candidates(write_network(Path(folder)), arguments.cpu)
        rates, missing = measure(backends, arguments.scans, arguments.warmup)
    machine = machine_name()
    if arguments.json:
        found = {"machine": machine, "rates": [asdict(rate) for rate in rates], "missing": missing}
        print(json.dumps(found, indent=2))
    else:
        print(f"\nWhole scans a second, preprocessing included\n\n{table(rates, machine)}\n")
        for name, reason in missing.items():
            print(f"- not measured: {name}: {reason}")
    if arguments.models and missing:
        raise SystemExit(f"not measured: {'; '.join(missing)}")


if __name__ == "__main__":
    main()
