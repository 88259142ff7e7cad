"""What ``[data]`` names: the files and generated rooms of each split, the class of each label."""

from __future__ import annotations

import glob
from pathlib import Path

import numpy as np

from dela.cloud.formats import find_scans
from dela.errors import ConfigError, InputError
from dela.scores.confusion import IGNORED
from dela.training.settings.data import SPLITS, DataConfig

# Apart enough that no split's rooms run into the next one's.
SEED_STEP = 10_000


def split_files(data: DataConfig, split: str) -> list[Path]:
    """Files of a split, sorted, each once.

    Raises:
        InputError: an entry that matches no file.
        ConfigError: a file that is also in the training split.
    """
    files = named_files(data, split)
    if split != "train":
        shared = set(files) & set(named_files(data, "train"))
        if shared:
            raise ConfigError(
                f"{sorted(shared)[0]} is in data.train and in data.{split}; keep it in one"
            )
    return files


def named_files(data: DataConfig, key: str) -> list[Path]:
    """Files that an entry of ``[data]`` names (``train``, ``context`` ...), sorted, each once.

    Raises:
        InputError: a file, folder or glob that matches no scan.
    """
    found: set[Path] = set()
    for entry in getattr(data, key):
        path = Path(data.root) / entry
        if path.is_dir():
            matches = find_scans([path])
        elif path.exists():
            matches = [path]
        else:
            matches = [Path(p) for p in glob.glob(str(path), recursive=True)]
        if not matches:
            raise InputError(f"data.{key}: {entry!r} matches no scan in {data.root}")
        found.update(match.resolve() for match in matches)
    return sorted(found)


def room_seeds(data: DataConfig, split: str) -> range:
    """Seeds of the generated rooms of a split."""
    start = data.first_seed + SEED_STEP * SPLITS.index(split)
    return range(
        start,
        start + {"train": data.train_rooms, "val": data.val_rooms}.get(split, data.test_rooms),
    )


def map_labels(values: np.ndarray, data: DataConfig) -> np.ndarray:
    """[N] int16 class indices of label values, -1 where ignored.

    Raises:
        InputError: values that are in no class and not ignored, with how often each occurs.
    """
    codes, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    index_of = dict.fromkeys(data.ignore, IGNORED)
    index_of |= {code: i for i, info in enumerate(data.classes) for code in info.codes}
    unknown = [
        (c, n) for c, n in zip(codes.tolist(), counts.tolist(), strict=True) if c not in index_of
    ]
    if unknown:
        listed = ", ".join(f"{code:g} ({count:,} points)" for code, count in unknown[:10])
        more = f" and {len(unknown) - 10} more" if len(unknown) > 10 else ""
        raise InputError(
            f"label values outside the class map: {listed}{more}; "
            "add them to a class's codes or to data.ignore"
        )
    return np.array([index_of[code] for code in codes.tolist()], np.int16)[inverse.reshape(-1)]
