"""ScanObjectNN (Uy et al., "Revisiting Point Cloud Classification"), hardest variant PB_T50_RS.

Raw layout: ``training_objectdataset_augmentedrot_scale75.h5`` and ``test_...``, in the raw folder
or below it (``h5_files/main_split``). Objects with background: the ``main_split``.
"""

from __future__ import annotations

from pathlib import Path

from dela.errors import InputError
from dela.model.class_names import SCANOBJECTNN_CLASSES
from dela.model.contract import numbered_classes
from dela.training.prepare.plan import Options, Plan, Unit
from dela.training.prepare.sources.h5sets import need_h5py, read_h5_set
from dela.training.prepare.store import Record

TITLE = "ScanObjectNN, PB_T50_RS (h5)"
KIND = "objects"
CLASSES = numbered_classes(SCANOBJECTNN_CLASSES)

# The test file is both: the published runs choose and report on it.
_FILES = {"train": "training_objectdataset_augmentedrot_scale75.h5"}
_FILES["val"] = "test_objectdataset_augmentedrot_scale75.h5"


def plan(raw: Path, options: Options) -> Plan:
    """A unit per file; the test file is the validation split.

    Raises:
        InputError: a file is missing.
    """
    need_h5py()
    units = []
    for split, name in _FILES.items():
        found = [path for path in sorted(raw.rglob(name)) if "nobg" not in str(path.parent.name)]
        if not found:
            raise InputError(
                f"{raw} holds no {name}; give the folder main_split of ScanObjectNN's h5_files"
            )
        units.append(Unit(split, split, (found[0],)))
    return Plan("scanobjectnn", "classification", CLASSES, tuple(units))


def read(unit: Unit) -> Record:
    """The clouds of one file, y up.

    Raises:
        InputError: a damaged file, see :func:`~dela.training.prepare.sources.h5sets.read_h5_set`.
    """
    return read_h5_set(unit.files[0], len(CLASSES))
