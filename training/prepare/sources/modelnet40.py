"""ModelNet40 (Wu et al., "3D ShapeNets"), 2048 points a shape, as sampled for PointNet.

Raw layout: ``modelnet40_ply_hdf5_2048/ply_data_train*.h5`` and ``ply_data_test*.h5``.
"""

from __future__ import annotations

from pathlib import Path

from dela.errors import InputError
from dela.model.class_names import CLASS_NAMES
from dela.model.contract import PALETTE, ClassInfo
from dela.training.prepare.plan import Options, Plan, Unit
from dela.training.prepare.sources.h5sets import need_h5py, read_h5_set
from dela.training.prepare.store import Record

TITLE = "ModelNet40, 2048 points (h5)"
KIND = "objects"
CLASSES = tuple(
    ClassInfo(name, code, PALETTE[code % len(PALETTE)])
    for code, name in enumerate(CLASS_NAMES["modelnet40"])
)


def plan(raw: Path, options: Options) -> Plan:
    """A unit per file; the test files are the validation split.

    Raises:
        InputError: no training or no test file.
    """
    need_h5py()
    units = []
    for split, pattern in (("train", "ply_data_train*.h5"), ("val", "ply_data_test*.h5")):
        found = sorted(raw.rglob(pattern))
        if not found:
            raise InputError(f"{raw} holds no {pattern}; give the folder modelnet40_ply_hdf5_2048")
        units += [Unit(path.stem.removeprefix("ply_data_"), split, (path,)) for path in found]
    return Plan("modelnet40", "classification", CLASSES, tuple(units))


def read(unit: Unit) -> Record:
    """The clouds of one file, y up, with normals where the file has them.

    Raises:
        InputError: a damaged file, see :func:`~dela.training.prepare.sources.h5sets.read_h5_set`.
    """
    return read_h5_set(unit.files[0], len(CLASSES), with_normals=True)
