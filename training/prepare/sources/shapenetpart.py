"""ShapeNetPart (Yi et al., "A Scalable Active Framework for Region Annotation in 3D Shapes").

Raw layout: ``synsetoffset2category.txt``, ``train_test_split/shuffled_{train,val,test}_file_list
.json`` and ``<synset>/<shape>.txt`` with seven numbers a line (x y z, normal, part).
"""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np

from dela.errors import InputError
from dela.model.class_names import CLASS_NAMES, SHAPENETPART_CATEGORIES
from dela.model.contract import PALETTE, ClassInfo
from dela.text import parse_json
from dela.training.prepare.plan import MalformedFiles, Options, Plan, Unit
from dela.training.prepare.sources.tables import read_table
from dela.training.prepare.store import Record
from dela.training.settings.data import SPLITS

TITLE = "ShapeNetPart with normals (txt)"
KIND = "parts"
CLASSES = tuple(
    ClassInfo(name, part, PALETTE[part % len(PALETTE)])
    for part, name in enumerate(CLASS_NAMES["shapenetpart"])
)

# Category -> its parts' labels in the files, which number all parts through.
_ENDS = list(itertools.accumulate(SHAPENETPART_CATEGORIES.values()))
PARTS = {
    category: range(end - count, end)
    for (category, count), end in zip(SHAPENETPART_CATEGORIES.items(), _ENDS, strict=True)
}
_CATEGORIES = "synsetoffset2category.txt"
_SPLIT_FOLDER = "train_test_split"


def plan(raw: Path, options: Options) -> Plan:
    """A unit per split and category.

    Raises:
        InputError: the category table or a split list is missing or not as described.
    """
    if not (raw / _CATEGORIES).is_file():
        inner = [path.parent for path in sorted(raw.glob(f"*/{_CATEGORIES}"))]
        if not inner:
            raise InputError(
                f"{raw} holds no {_CATEGORIES}; give the folder "
                "shapenetcore_partanno_segmentation_benchmark_v0_normal"
            )
        raw = inner[0]
    category_of = _categories(raw / _CATEGORIES)
    units = []
    for split in SPLITS:
        path = raw / _SPLIT_FOLDER / f"shuffled_{split}_file_list.json"
        files: dict[str, list[Path]] = {name: [] for name in PARTS}
        for synset, shape in _shapes(path, set(category_of)):
            files[category_of[synset]].append(raw / synset / f"{shape}.txt")
        for number, (category, shapes) in enumerate(files.items()):
            if shapes:
                facts = {"category": number}
                units.append(Unit(f"{split}_{category}", split, tuple(sorted(shapes)), facts))
    categories = tuple((name, tuple(parts)) for name, parts in PARTS.items())
    return Plan("shapenetpart", "parts", CLASSES, tuple(units), categories)


def read(unit: Unit) -> Record:
    """The shapes of one category, y up, one after the other.

    Each is centered on its points' mean and scaled to a radius of 1, as the published networks see
    them.

    Shapes that cannot be read are left out and named in ``malformed``.

    Raises:
        MalformedFiles: not one can be read.
    """
    number = int(unit.facts["category"])
    name, parts = list(PARTS.items())[number]
    tables, errors = [], []
    for path in unit.files:
        try:
            values, _ = read_table(path, 7)
        except InputError as error:
            errors.append(str(error))
            continue
        wrong = ~np.isin(values[:, 6], parts)
        if wrong.any():
            row = int(np.argmax(wrong))
            errors.append(
                f"{path}, point {row + 1}: part {values[row, 6]:g} is none of {name} "
                f"({parts[0]} .. {parts[-1]})"
            )
            continue
        values[:, :3] -= values[:, :3].mean(axis=0)
        radius = np.linalg.norm(values[:, :3], axis=1).max()
        values[:, :3] /= radius if radius > 0 else 1.0
        tables.append(values)
    if not tables:
        raise MalformedFiles(errors)
    values = np.concatenate(tables)
    columns = {
        "points": values[:, :3],
        "normals": values[:, 3:6],
        "labels": values[:, 6].astype(np.int16),
        "offsets": np.cumsum([0, *(len(table) for table in tables)]),
        "cloud_labels": np.full(len(tables), number, np.int16),
    }
    return Record(columns, malformed=errors)


def _categories(path: Path) -> dict[str, str]:
    """Synset -> category, from lines such as ``Airplane<tab>02691156``."""
    result = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        words = line.split()
        if not words:
            continue
        name = words[0].lower()
        if len(words) != 2 or name not in PARTS:
            raise InputError(f"{path}, line {number}: {line[:40]!r} is no category and synset")
        result[words[1]] = name
    return result


def _shapes(path: Path, synsets: set[str]) -> list[tuple[str, str]]:
    """(synset, shape) of a list of ``shape_data/<synset>/<shape>``."""
    try:
        entries = parse_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"cannot read the split {path}: {error.strerror}") from error
    except ValueError as error:
        raise InputError(f"{path} is not JSON: {error}") from error
    shapes = []
    for number, entry in enumerate(entries if isinstance(entries, list) else []):
        parts = str(entry).split("/")
        if len(parts) != 3 or parts[1] not in synsets:
            raise InputError(
                f"{path}, entry {number}: {str(entry)[:60]!r} is not shape_data/SYNSET/SHAPE "
                f"with a synset of {_CATEGORIES}"
            )
        shapes.append((parts[1], parts[2]))
    if not shapes:
        raise InputError(f"{path} lists no shapes")
    return shapes
