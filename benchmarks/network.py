"""Times the S3DIS network on a room-like cloud: native operators against plain PyTorch.

    python benchmarks/network.py --points 30000

Every case runs in a process of its own, so that its peak memory is its own: what the process grew
by over the loaded network and cloud. "Naive" operators are the plain PyTorch formulation that
materialises [N, k, C]. Timings are the best of several runs. With glibc's own settings naive
PyTorch spends about half its time in page faults, since every large temporary tensor is new memory;
``--keep-memory`` tells glibc to keep what is freed, which helps the naive rows most.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np

CASES = {
    "naive-inference": "naive operators, inference",
    "native-inference": "native operators, inference",
    "frozen-inference": "native operators, frozen network, inference",
    "onnx-inference": "ONNX Runtime with native operators, inference",
    "naive-training": "naive operators, training step",
    "native-training": "native operators, training step",
}
KEEP_MEMORY = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(2**40),
    "MALLOC_TOP_PAD_": str(2**26),
}


def room_cloud(count: int, grid: float, seed: int = 0) -> np.ndarray:
    """[count, 3] float32 points, one per voxel: floor, walls and furniture-like boxes."""
    from dela.geometry.cpu import voxel_grid

    rng = np.random.default_rng(seed)
    side = max(1.5, 3.2 * (count / 30_000) ** 0.5)  # meters; wide enough for twice `count`
    boxes = [np.array([[0.0, 0.0, 0.0], [side, side, 2.8]])]
    for _ in range(int(3 * side * side)):
        size = rng.uniform([0.2, 0.2, 0.3], [0.9, 0.9, 1.2])
        corner = np.append(rng.uniform(0, side - size[:2]), 0.0)
        boxes.append(np.stack([corner, corner + size]))
    faces = []
    for low, high in boxes:
        for axis in range(3):
            for bound in (low, high):
                across = np.delete(high - low, axis)
                face = rng.uniform(low, high, (int(across.prod() * 4 / grid**2), 3))
                face[:, axis] = bound[axis]
                faces.append(face)
    points = np.concatenate(faces)
    points = (points + rng.normal(0, 0.004, points.shape)).astype(np.float32)
    points = points[voxel_grid(points, grid).kept]
    if len(points) < count:
        raise SystemExit(f"the room has {len(points)} voxels, fewer than {count}")
    distance = np.linalg.norm(points[:, :2] - side / 2, axis=1)
    return points[np.sort(np.argsort(distance, kind="stable")[:count])]


def naive_spse(points, neighbors, weight, epsilon, directions=0):
    import torch

    index, channels = neighbors.long(), weight.shape[1]
    matrix, center = weight[:9].t().reshape(channels, 3, 3), weight[9:12].t()
    offset = points[index][..., :3] - points[:, None, :3]
    axes = torch.einsum("nki,cio->nkco", offset, matrix)
    squared = (axes - torch.einsum("ci,cio->co", center, matrix)).square().sum(-1)
    if weight.shape[0] > 12:
        squared = squared + (points[index][:, :, None, 3:] - weight[12:].t()).square().sum(-1)
    return (squared.min(1)[0] + epsilon).sqrt()


def naive_spamp(features, points, neighbors, weight, centers=None):
    import torch

    index = neighbors.long()
    rows = torch.arange(len(index)) if centers is None else centers.long()
    offset = points[index] - points[rows][:, None]
    squared = (offset[:, :, None] - weight[:3].t()).square().sum(-1) + 1e-8
    falloff = torch.exp(-weight[3] * squared).repeat_interleave(4, -1)
    return ((features[index] - features[rows][:, None]) * falloff).max(1)[0]


def make_pyramid(points: int):
    """Pyramid of a room-like cloud and the network's neighbor distances."""
    import dela

    config = dela.PRESETS["s3dis"]
    cloud = room_cloud(points, config.grid[0])
    attributes = np.random.default_rng(0).random(
        (points, len(config.input_columns)), dtype=np.float32
    )
    pyramid = dela.build_pyramid(cloud, attributes, config)
    return pyramid, dela.measure_neighbor_distances([pyramid], config)


def export(path: str, distances) -> None:
    """Writes the network as an ONNX file."""
    import dela
    from dela.export.onnx_export import export_onnx

    export_onnx(dela.create_model("s3dis", distances, seed=0).eval(), path, check=False)


def run_case(case: str, points: int, repeats: int) -> dict[str, float]:
    """Seconds (best) and bytes of one case, in this process."""
    import torch

    import dela
    from dela import ops
    from dela.families.dela import freeze

    operators, job = case.split("-")
    folder = tempfile.TemporaryDirectory()
    onnx_file = Path(folder.name) / "network.onnx"
    # In another process, so that its temporary memory does not count here.
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as other:
        pyramid, distances = other.submit(make_pyramid, points).result()
        if operators == "onnx":
            other.submit(export, str(onnx_file), distances).result()
    model = dela.create_model("s3dis", distances, seed=0)
    if operators == "naive":
        ops.spse, ops.spamp = naive_spse, naive_spamp

    step: Callable[[], object]
    if operators == "onnx":
        from dela.runtime.backends.onnx_runtime import OnnxRuntimeBackend

        backend = OnnxRuntimeBackend(onnx_file, threads=torch.get_num_threads())

        def step():
            backend.run(pyramid)
    elif job == "inference":
        network = freeze(model) if operators == "frozen" else model.eval()
        tensors = pyramid.to_tensors()

        def step():
            with torch.inference_mode():
                network(tensors)
    else:
        tensors = pyramid.to_tensors()
        labels = torch.from_numpy(np.arange(points) % model.config.num_classes)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

        def step():
            optimizer.zero_grad()
            logits, coordinate_loss = model(tensors)
            (torch.nn.functional.cross_entropy(logits, labels) + coordinate_loss).backward()
            optimizer.step()

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - start)
    folder.cleanup()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"seconds": min(seconds), "peak_bytes": (peak - before) * 1024}


def measure(case: str, points: int, repeats: int, keep_memory: bool) -> dict[str, float]:
    """:func:`run_case` in a process of its own."""
    command = [sys.executable, __file__, "--case", case, "--points", str(points)]
    done = subprocess.run(
        [*command, "--repeats", str(repeats)],
        env=os.environ | (KEEP_MEMORY if keep_memory else {}),
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"case {case} ended with exit code {done.returncode}")
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--points", type=int, default=30_000, help="points of stage 0")
    parser.add_argument("--repeats", type=int, default=7, help="runs of each native case")
    parser.add_argument("--naive-repeats", type=int, default=2, help="runs of each naive case")
    parser.add_argument("--onnx", action="store_true", help="also ONNX Runtime")
    parser.add_argument(
        "--keep-memory", action="store_true", help="glibc keeps freed memory: no page faults"
    )
    parser.add_argument("--skip-training", action="store_true", help="inference alone")
    parser.add_argument("--json", action="store_true", help="print the results as JSON")
    parser.add_argument("--case", choices=CASES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.case:
        print(json.dumps(run_case(arguments.case, arguments.points, arguments.repeats)))
        return

    results = {}
    for case, title in CASES.items():
        if (case == "onnx-inference" and not arguments.onnx) or (
            case.endswith("training") and arguments.skip_training
        ):
            continue
        naive = case.startswith("naive")
        repeats = arguments.naive_repeats if naive else arguments.repeats
        results[case] = measure(case, arguments.points, repeats, arguments.keep_memory)
        base = results[f"naive-{case.split('-')[1]}"]
        results[case]["speedup"] = base["seconds"] / results[case]["seconds"]
        results[case]["memory_ratio"] = base["peak_bytes"] / max(1, results[case]["peak_bytes"])
        if not arguments.json:
            row = results[case]
            print(
                f"{title:46} {row['seconds'] * 1e3:9.0f} ms {row['speedup']:6.1f}x"
                f" {row['peak_bytes'] / 2**20:8.0f} MiB {row['memory_ratio']:5.1f}x less",
                flush=True,
            )
    if arguments.json:
        print(json.dumps({"points": arguments.points, "cases": results}, indent=2))


if __name__ == "__main__":
    main()
