"""SemanticKITTI (Behley et al., "SemanticKITTI: A Dataset for Semantic Scene Understanding").

Raw layout: ``sequences/<XX>/velodyne/<scan>.bin`` (float32 x y z remission) and
``sequences/<XX>/labels/<scan>.label`` (uint32; the lower 16 bits are the class). Single scans, the
19 classes of the benchmark.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from dela.errors import InputError
from dela.model.contract import ClassInfo
from dela.scores.confusion import IGNORED
from dela.training.prepare.plan import Options, Plan, Unit
from dela.training.prepare.store import Record

TITLE = "SemanticKITTI (bin and label)"
KIND = "scenes"
GRID = 0.05

# name, label ids that count as it (moving things as their kind), the benchmark's color
LABELS: tuple[tuple[str, tuple[int, ...], tuple[int, int, int]], ...] = (
    ("car", (10, 252), (100, 150, 245)),
    ("bicycle", (11,), (100, 230, 245)),
    ("motorcycle", (15,), (30, 60, 150)),
    ("truck", (18, 258), (80, 30, 180)),
    ("other-vehicle", (20, 13, 16, 256, 257, 259), (0, 0, 255)),
    ("person", (30, 254), (255, 30, 30)),
    ("bicyclist", (31, 253), (255, 40, 200)),
    ("motorcyclist", (32, 255), (150, 30, 90)),
    ("road", (40, 60), (255, 0, 255)),
    ("parking", (44,), (255, 150, 255)),
    ("sidewalk", (48,), (75, 0, 75)),
    ("other-ground", (49,), (175, 0, 75)),
    ("building", (50,), (255, 200, 0)),
    ("fence", (51,), (255, 120, 50)),
    ("vegetation", (70,), (0, 175, 0)),
    ("trunk", (71,), (135, 60, 0)),
    ("terrain", (72,), (150, 240, 80)),
    ("pole", (80,), (255, 240, 150)),
    ("traffic-sign", (81,), (255, 0, 0)),
)
CLASSES = tuple(ClassInfo(name, ids[0], color) for name, ids, color in LABELS)
# unlabeled, outlier, other-structure, other-object
IGNORED_LABELS = (0, 1, 52, 99)
SEQUENCES = {"val": (8,), "test": tuple(range(11, 22))}


def plan(raw: Path, options: Options) -> Plan:
    """A unit per scan: sequence 08 validates, 11 .. 21 (unlabelled) test, the others train.

    Raises:
        InputError: no ``sequences`` folder.
    """
    folder = next(
        (
            path
            for path in (raw / "sequences", raw / "dataset" / "sequences", raw)
            if path.name == "sequences" and path.is_dir()
        ),
        None,
    )
    if folder is None:
        raise InputError(f"{raw} has no folder sequences/00 .. 21; give the folder that holds it")
    split_of = {number: split for split, numbers in SEQUENCES.items() for number in numbers}
    units = []
    for sequence in sorted(path for path in folder.iterdir() if path.name.isdigit()):
        split = split_of.get(int(sequence.name), "train")
        for scan in sorted((sequence / "velodyne").glob("*.bin")):
            labels = sequence / "labels" / f"{scan.stem}.label"
            files = (scan,) if split == "test" else (scan, labels)
            units.append(Unit(f"{sequence.name}_{scan.stem}", split, files))
    return Plan("semantickitti", "segmentation", CLASSES, tuple(units), grid=options.grid or GRID)


def read(unit: Unit) -> Record:
    """A scan: coordinates about the sensor, ``intensity`` (remission, 0 .. 1), labels.

    Raises:
        InputError: a file cut short, labels that do not fit the scan, or an unknown label id.
    """
    scan = unit.files[0]
    values = _read(scan, "<f4", 16).reshape(-1, 4)
    broken = ~np.isfinite(values).all(axis=1)
    if broken.any():
        row = int(np.argmax(broken))
        raise InputError(f"{scan}, byte {16 * row}: point {row} is not finite")
    columns = {"points": values[:, :3], "intensity": values[:, 3]}
    if len(unit.files) > 1:
        columns["labels"] = _labels(unit.files[1], len(values))
    return Record(columns)


def _labels(path: Path, points: int) -> np.ndarray:
    ids = _read(path, "<u4", 4) & 0xFFFF
    if len(ids) != points:
        raise InputError(f"{path} labels {len(ids)} points, the scan has {points}")
    index = np.full(1 << 16, IGNORED - 1, np.int16)
    index[list(IGNORED_LABELS)] = IGNORED
    for number, (_, members, _) in enumerate(LABELS):
        index[list(members)] = number
    labels = index[ids]
    wrong = labels < IGNORED
    if wrong.any():
        row = int(np.argmax(wrong))
        raise InputError(f"{path}, byte {4 * row}: {ids[row]} is no label of SemanticKITTI")
    return labels


def _read(path: Path, kind: str, item: int) -> np.ndarray:
    """A file of numbers; ``item`` bytes make a record."""
    size = path.stat().st_size
    if size == 0 or size % item:
        raise InputError(
            f"{path} is cut short: {size} bytes are no whole number of {item}-byte records "
            f"(the last begins at byte {size - size % item})"
        )
    return np.fromfile(path, kind)
