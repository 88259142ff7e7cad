"""How many scans replay a CUDA graph, and how much padding that costs: docs/runtime.md's table.

    python benchmarks/ladder.py ../shared/data/ign_lidar_hd

Counts alone: random square crops of scans have as many points at each stage as their voxels say,
and rows are chosen as an engine chooses them. No network runs and no GPU is needed.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import dela
from dela.artifacts.metadata import ModelMetadata
from dela.cloud.formats import find_scans, read_cloud
from dela.export.profiles import parse_profile
from dela.geometry.cpu import voxel_grid
from dela.runtime.backends.graphs import MAX_GRAPHS
from dela.runtime.backends.ladder import Ladder, spread, waste
from dela.runtime.backends.profiles import bucket

# Voxels of the airborne lidar's recipe (configs/ign_lidar.toml), meters.
GRID = (0.25, 0.55, 1.2, 2.6)
SIDES = (15.0, 35.0)

Rows = tuple[int, ...]


@dataclass(frozen=True)
class Figures:
    """What came of a sequence of scans.

    Attributes:
        replayed, later: share of scans that replayed a graph: of all, and of the later ones.
        padding: mean of :func:`dela.runtime.backends.ladder.waste`.
        more_rows: rows of all stages and scans over their points, less 1.
        captures: graphs that were captured, one that gave way and came back twice.
    """

    replayed: float
    later: float
    padding: float
    more_rows: float
    captures: int


def crop_counts(tiles: Sequence[np.ndarray], count: int, seed: int) -> np.ndarray:
    """[count, S] points per stage of random square crops of ``tiles``, [N, 3] each."""
    generator = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        points = tiles[generator.integers(len(tiles))]
        low, high = points[:, :2].min(axis=0), points[:, :2].max(axis=0)
        side = generator.uniform(*SIDES)
        corner = generator.uniform(low, high - side)
        inside = ((points[:, :2] >= corner) & (points[:, :2] < corner + side)).all(axis=1)
        stage = (points[inside] - points[inside].min(axis=0)).astype(np.float32)
        counts = []
        for size in GRID:
            stage = stage[voxel_grid(stage, size).kept]
            counts.append(len(stage))
        found.append(counts)
    return np.array(found)


def network_of(counts: np.ndarray) -> ModelMetadata:
    """The recipe's network as if it had been trained on scans of these counts, [crops, S]."""
    shares = (counts / counts[:, :1]).T
    config = dataclasses.replace(
        dela.PRESETS["s3dis"], grid=GRID, spread=tuple(6.4 * size for size in GRID)
    )
    ratios = tuple(
        {"min": float(s.min()), "mean": float(s.mean()), "max": float(s.max())} for s in shares
    )
    return ModelMetadata(config, "fp32", stage_ratios=ratios)


def ladder_rows(
    metadata: ModelMetadata, graphs: int, warm: Sequence[int] = ()
) -> tuple[Callable[[Rows], Rows], list[Rows]]:
    """A new engine's choice of rows, and the rows captured before its first scan.

    Args:
        metadata: of the network.
        graphs: that are kept.
        warm: sizes to warm up.
    """
    ladder = Ladder([parse_profile("1:20000:60000", metadata)], most=graphs)
    ready = [ladder.keep(number, rows) for number, rows in ladder.likely(warm, metadata)]
    return functools.partial(ladder.rows, 0), ready


def replay(
    counts: np.ndarray,
    rows_of: Callable[[Rows], Rows],
    graphs: int,
    ready: Sequence[Rows] = (),
    first: int = 100,
) -> Figures:
    """Scans of [N, S] ``counts`` one after the other, a graph being captured when its rows return.

    Args:
        counts: points per stage.
        rows_of: rows that they are padded to.
        graphs: that are kept; the one unused for longest gives way.
        ready: rows whose graphs are captured already.
        first: scans that do not count as later ones.
    """
    met, kept = set(ready), list(ready)
    replayed, used, made = [], [], len(kept)
    for row in counts.tolist():
        rows = rows_of(tuple(row))
        replayed.append(rows in kept)
        made += rows in met and rows not in kept
        if rows in met:
            kept = [*(other for other in kept if other != rows), rows][-graphs:]
        met.add(rows)
        used.append(rows)
    return Figures(
        float(np.mean(replayed)),
        float(np.mean(replayed[first:])),
        float(np.mean([waste(rows, row) for rows, row in zip(used, counts, strict=True)])),
        float(np.sum(used) / counts.sum() - 1),
        made,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("scans", type=Path, help="folder of scans, such as lidar tiles")
    parser.add_argument("--crops", type=int, default=300, help="scans in a sequence")
    parser.add_argument("--sequences", type=int, default=3, help="averaged")
    arguments = parser.parse_args()
    tiles = [np.asarray(read_cloud(path).points) for path in find_scans([arguments.scans])]
    rows: dict[str, list[Figures]] = {}
    for seed in range(arguments.sequences):
        crops = crop_counts(tiles, 2 * arguments.crops, seed)
        crops, others = np.split(crops, 2)
        metadata = network_of(others)

        def add(name: str, *how, crops=crops) -> None:
            rows.setdefault(name, []).append(replay(crops, *how))

        add("each stage by itself", lambda counts: tuple(map(bucket, counts)), MAX_GRAPHS)
        for graphs in (8, 16, 24, 32):
            choose, ready = ladder_rows(metadata, graphs)
            add(f"{graphs} graphs", choose, graphs, ready)
        ends = int(others[:, 0].min()), int(others[:, 0].max())
        choose, ready = ladder_rows(metadata, MAX_GRAPHS, spread(*ends, MAX_GRAPHS // 2))
        add(f"{MAX_GRAPHS} graphs, warmed up", choose, MAX_GRAPHS, ready)
    heads = "| | replayed | after 100 | padding, mean of the stages | more rows | captures |"
    print(f"{heads}\n|---|---|---|---|---|---|")
    for name, found in rows.items():
        mean = np.mean([dataclasses.astuple(figures) for figures in found], axis=0)
        cells = [f"{100 * value:.0f} %" for value in mean[:4]]
        print(f"| {name} | {' | '.join(cells)} | {mean[4]:.0f} |")


if __name__ == "__main__":
    main()
