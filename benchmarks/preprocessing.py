"""Times voxel grid, neighbor search, sampling and the whole pyramid against well-kept libraries.

    python benchmarks/preprocessing.py
    OMP_NUM_THREADS=1 python benchmarks/preprocessing.py --isa v3 --json

A generated room of 1,000,000 points; every library uses the same cores in the same process and the
results are checked against each other. Times are the best of several runs. ``cpu`` adds up the
time of all threads, so it holds on a busy machine, where wall-clock times of two threads do not.
A library that is not installed is left out. Peak memory is what the process grew by in a
separate run of that step alone, inputs excluded.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import multiprocessing
import os
import platform
import resource
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from dela.families.dela.config import PRESETS
from dela.geometry.cpu import farthest_point_sampling, knn, voxel_grid
from dela.plugins import native
from dela.pyramid.cpu import build_pyramid

GRID = (0.04, 0.08, 0.16, 0.32)
NEIGHBORS = (24, 32, 32, 32)


def room(count: int, seed: int = 0) -> np.ndarray:
    """[count, 3] float32: the six sides of a room and of eight boxes in it, with 3 mm of noise."""
    rng = np.random.default_rng(seed)
    size = np.array([5.2, 4.2, 2.8])

    def sides(low: np.ndarray, high: np.ndarray, points: int) -> np.ndarray:
        across = high - low
        areas = np.repeat(across.prod() / across, 2)
        side = rng.choice(6, points, p=areas / areas.sum())
        on = low + rng.random((points, 3)) * across
        on[np.arange(points), side // 2] = np.where(side % 2, high[side // 2], low[side // 2])
        return on

    parts = [sides(np.zeros(3), size, count - count // 5)]
    for number in range(8):
        low = np.append(rng.uniform(0, size[:2] - 1), 0)
        points = count // 5 // 8 + (count // 5 % 8 if number == 0 else 0)
        parts.append(sides(low, low + rng.uniform(0.3, 1, 3), points))
    points = np.concatenate(parts)
    points += rng.normal(0, 0.003, points.shape)
    return rng.permutation(points).astype(np.float32)


def voxels_by_unique(points: np.ndarray, size: float) -> tuple[np.ndarray, np.ndarray]:
    """The usual numpy voxel grid: kept rows and the voxel of every point."""
    cells = np.floor((points - points.min(axis=0)) / size).astype(np.int64)
    span = cells.max(axis=0) + 1
    keys = (cells[:, 0] * span[1] + cells[:, 1]) * span[2] + cells[:, 2]
    _, kept, voxel_of_point = np.unique(keys, return_index=True, return_inverse=True)
    return kept, voxel_of_point


def levels_of(points: np.ndarray) -> list[np.ndarray]:
    levels = []
    for size in GRID:
        # One thread: OpenMP's threads would not survive the forks of peak_growth.
        points = points[voxel_grid(points, size, threads=1).kept]
        levels.append(points)
    return levels


def each_level(levels: list[np.ndarray], search: Callable[[np.ndarray, int], np.ndarray]) -> list:
    return [search(points, k) for points, k in zip(levels, NEIGHBORS, strict=True)]


def optional(name: str) -> Any:
    try:
        return __import__(name, fromlist=["*"])
    except ImportError:
        return None


def voxel_cases(points: np.ndarray) -> dict[str, Callable[[], Any]]:
    cases: dict[str, Callable[[], Any]] = {
        "dela": lambda: voxel_grid(points, GRID[0]),
        "np.unique": lambda: voxels_by_unique(points, GRID[0]),
    }
    open3d = optional("open3d")
    if open3d:
        cloud = open3d.geometry.PointCloud(open3d.utility.Vector3dVector(points.astype(float)))
        low, high = cloud.get_min_bound(), cloud.get_max_bound()
        cases["Open3D"] = lambda: cloud.voxel_down_sample_and_trace(GRID[0], low, high)
    return cases


def neighbor_cases(levels: list[np.ndarray], threads: int) -> dict[str, Callable[[], list]]:
    cases: dict[str, Callable[[], list]] = {"dela": lambda: each_level(levels, knn)}
    scipy, pykdtree = optional("scipy.spatial"), optional("pykdtree.kdtree")
    nanoflann, gicp = optional("pynanoflann"), optional("small_gicp")
    if scipy:
        cases["scipy"] = lambda: each_level(
            levels, lambda p, k: scipy.cKDTree(p).query(p, k, workers=threads)[1]
        )
    if pykdtree:
        cases["pykdtree"] = lambda: each_level(
            levels, lambda p, k: pykdtree.KDTree(p).query(p, k)[1]
        )
    if nanoflann:

        def by_nanoflann(points: np.ndarray, k: int) -> np.ndarray:
            tree = nanoflann.KDTree(n_neighbors=k)
            tree.fit(points)
            return tree.kneighbors(points, n_jobs=threads)[1]

        cases["nanoflann"] = lambda: each_level(levels, by_nanoflann)
    if gicp:
        cases["small_gicp"] = lambda: each_level(
            levels,
            lambda p, k: gicp.KdTree(p.astype(float), num_threads=threads).batch_knn_search(
                p.astype(float), k, num_threads=threads
            )[0],
        )
    return cases


def sampling_cases(clouds: np.ndarray, count: int) -> dict[str, Callable[[], Any]]:
    packed, lengths = clouds.reshape(-1, 3), [clouds.shape[1]] * len(clouds)
    cases: dict[str, Callable[[], Any]] = {
        "dela": lambda: farthest_point_sampling(packed, count, lengths)
    }
    fpsample = optional("fpsample")
    if fpsample:
        cases["fpsample"] = lambda: np.stack(
            [fpsample.fps_sampling(cloud, count, start_idx=0) for cloud in clouds]
        )
    return cases


def measure(call: Callable[[], Any], repeats: int) -> dict[str, float]:
    """Milliseconds, best of ``repeats``: wall clock and CPU time of all threads."""
    wall = cpu = float("inf")
    for _ in range(repeats):
        start, start_cpu = time.perf_counter(), time.process_time()
        call()
        wall = min(wall, time.perf_counter() - start)
        cpu = min(cpu, time.process_time() - start_cpu)
    return {"wall_ms": 1e3 * wall, "cpu_ms": 1e3 * cpu}


def peak_growth(call: Callable[[], Any]) -> float:
    """Megabytes that the peak of a forked process grows by."""
    receive, send = multiprocessing.Pipe(duplex=False)

    def run() -> None:
        ctypes.CDLL(None).malloc_trim(0)  # memory freed earlier would be used again unseen
        with open("/proc/self/clear_refs", "w") as handle:
            handle.write("5")  # starts the peak anew from what is resident now
        with open("/proc/self/statm") as handle:
            before = int(handle.read().split()[1]) * resource.getpagesize()
        call()
        with open("/proc/self/status") as handle:
            peak = next(int(line.split()[1]) for line in handle if line.startswith("VmHWM"))
        send.send(max(0.0, peak * 1024 - before) / 1e6)

    process = multiprocessing.get_context("fork").Process(target=run)
    process.start()
    process.join()
    return float(receive.recv()) if process.exitcode == 0 else float("nan")


def check_neighbors(levels: list[np.ndarray], tables: list, reference: list) -> None:
    for points, table, other in zip(levels, tables, reference, strict=True):
        found, best = (
            np.linalg.norm(points[rows.astype(np.int64)] - points[:, None], axis=2)
            for rows in (table, other)
        )
        if not np.allclose(found, best, rtol=1e-5, atol=1e-6):
            raise SystemExit("the neighbor tables of dela and scipy differ")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--points", type=int, default=1_000_000)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--isa", default="auto", choices=("auto", *native.ISA_NAMES))
    parser.add_argument("--no-memory", action="store_true", help="skip the peak memory runs")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    native.set_isa(arguments.isa)
    threads = int(os.environ.get("OMP_NUM_THREADS", len(os.sched_getaffinity(0))))

    points = room(arguments.points)
    levels = levels_of(points)
    clouds = np.random.default_rng(0).random((32, 2048, 3), dtype=np.float32)
    config = PRESETS["s3dis"]
    attributes = np.zeros((len(levels[0]), len(config.input_columns)), np.float32)
    steps: dict[str, dict[str, Callable[[], Any]]] = {
        "voxel grid": voxel_cases(points),
        "neighbors, four levels": neighbor_cases(levels, threads),
        "farthest points, 32 x 2048 -> 1024": sampling_cases(clouds, 1024),
        "whole pyramid": {"dela": lambda: build_pyramid(levels[0], attributes, config)},
    }

    # Memory first, before this process has started threads.
    memory: dict[tuple[str, str], float] = {}
    if not arguments.no_memory and platform.system() == "Linux":
        for step, cases in steps.items():
            for name, call in cases.items():
                memory[step, name] = peak_growth(call)
    if "scipy" in steps["neighbors, four levels"]:
        search = steps["neighbors, four levels"]
        check_neighbors(levels, search["dela"](), search["scipy"]())

    results: dict[str, Any] = {
        "isa": native.active_isa(),
        "threads": threads,
        "points": len(points),
        "voxels": [len(level) for level in levels],
        "steps": {},
    }
    for step, cases in steps.items():
        rows = {name: measure(call, arguments.repeats) for name, call in cases.items()}
        for name, row in rows.items():
            row["wall_ratio"] = row["wall_ms"] / rows["dela"]["wall_ms"]
            row["cpu_ratio"] = row["cpu_ms"] / rows["dela"]["cpu_ms"]
            if (step, name) in memory:
                row["peak_mb"] = memory[step, name]
        results["steps"][step] = rows

    if arguments.json:
        print(json.dumps(results, indent=2))
        return
    voxels = " / ".join(f"{count:,}" for count in results["voxels"])
    print(f"{len(points):,} points -> {voxels} voxels; {threads} threads, {results['isa']}")
    for step, rows in results["steps"].items():
        print(f"\n{step}\n  {'':12}{'wall ms':>10}{'ratio':>8}{'cpu ms':>10}{'ratio':>8}{'MB':>8}")
        for name, row in rows.items():
            print(
                f"  {name:12}{row['wall_ms']:10.1f}{row['wall_ratio']:8.1f}"
                f"{row['cpu_ms']:10.1f}{row['cpu_ratio']:8.1f}{row.get('peak_mb', 0):8.0f}"
            )


if __name__ == "__main__":
    main()
