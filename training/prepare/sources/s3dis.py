"""S3DIS, aligned version 1.2 (Armeni et al., "3D Semantic Parsing of Large-Scale Indoor Spaces").

Raw layout: ``Area_<n>/<room>/Annotations/<class>_<number>.txt``, six numbers a line (x y z in
meters, red green blue). A room is the union of its annotation files, whose names are the labels.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from dela.errors import InputError
from dela.model.class_names import S3DIS_CLASSES
from dela.model.contract import numbered_classes
from dela.training.prepare.plan import MalformedFiles, Options, Plan, Unit
from dela.training.prepare.sources.tables import read_table
from dela.training.prepare.store import Record, file_digest, scene_name

TITLE = "S3DIS, aligned version 1.2 (Area_1 .. Area_6)"
KIND = "scenes"
CLASSES = numbered_classes(S3DIS_CLASSES)
# Voxel size of the published recipe, meters.
GRID = 0.04

VALIDATION_AREA = 5
# The files know a fourteenth name, which the benchmark counts as clutter.
_ALSO = {"stairs": "clutter"}
_AREA = re.compile(r"Area_(\d+)$")
_COPY = re.compile(r"(.+) \(\d+\)$")


def plan(raw: Path, options: Options) -> Plan:
    """A unit per room; Area 5 is the validation split, as published.

    Raises:
        InputError: no ``Area_<n>`` folder.
    """
    areas = _areas(raw)
    units, notes = [], []
    for area in areas:
        number = int(area.name.removeprefix("Area_"))
        for room in sorted(path for path in area.iterdir() if path.is_dir()):
            if room.name.startswith("."):
                continue
            files, skipped = _annotations(room / "Annotations")
            notes += skipped
            units.append(
                Unit(
                    scene_name(f"{area.name}_{room.name}"),
                    "val" if number == VALIDATION_AREA else "train",
                    files or (room / "Annotations" / "*.txt",),  # reported as missing
                )
            )
    grid = options.grid or GRID
    return Plan("s3dis", "segmentation", CLASSES, tuple(units), grid=grid, notes=tuple(notes))


def read(unit: Unit) -> Record:
    """A room: its annotation files one after the other, in the order of their names.

    Raises:
        MalformedFiles: every file that cannot be read, with its line.
    """
    index_of = {info.name: info.code for info in CLASSES}
    tables, labels, notes, errors = [], [], [], []
    for path in unit.files:
        if not path.is_file():
            errors.append(f"{path} is missing")
            continue
        name = path.stem.rpartition("_")[0].lower() or path.stem.lower()
        label = index_of.get(_ALSO.get(name, name))
        if label is None:
            errors.append(f"{path}: {name!r} is no class; known: {', '.join(index_of)}")
            continue
        try:
            values, repaired = read_table(path, 6, repair=True)
        except InputError as error:
            errors.append(str(error))
            continue
        colors = values[:, 3:]
        if not 0 <= colors.min() <= colors.max() <= 255:
            row = int(np.argmax(((colors < 0) | (colors > 255)).any(axis=1)))
            errors.append(
                f"{path}, point {row + 1}: colour {colors[row].tolist()} is not in 0 .. 255"
            )
            continue
        tables.append(values)
        labels.append(np.full(len(values), label, np.int16))
        notes += repaired
    if errors:
        raise MalformedFiles(errors)
    values = np.concatenate(tables)
    columns = {"points": values[:, :3], "color": values[:, 3:], "labels": np.concatenate(labels)}
    return Record(columns, notes)


def _areas(raw: Path) -> list[Path]:
    """The areas' folders in ``raw`` or in one folder within it."""
    for folder in (raw, *sorted(path for path in raw.iterdir() if path.is_dir())):
        areas = sorted(path for path in folder.iterdir() if _AREA.match(path.name))
        areas = [path for path in areas if path.is_dir()]
        if areas:
            return areas
    raise InputError(
        f"{raw} has no folders Area_1 .. Area_6; give the folder "
        "Stanford3dDataset_v1.2_Aligned_Version"
    )


def _annotations(folder: Path) -> tuple[tuple[Path, ...], list[str]]:
    """The annotation files, without what file managers left beside them (.DS_Store, Icon, second
    copies such as ``wall_3 (1).txt``), and a note for each copy left out."""
    if not folder.is_dir():
        return (), []
    files = sorted(
        path
        for path in folder.iterdir()
        if path.suffix == ".txt" and not path.name.startswith(".") and path.is_file()
    )
    kept, notes = [], []
    for path in files:
        copy = _COPY.match(path.stem)
        original = path.with_name(f"{copy.group(1)}.txt") if copy else None
        if original in files and file_digest(original) == file_digest(path):
            notes.append(f"{path} is a copy of {original.name}: left out")
        else:
            kept.append(path)
    return tuple(kept), notes
