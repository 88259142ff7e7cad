"""Preparation of the published datasets, and of folders of scans, for memory-mapped training.

One module a dataset (:class:`~dela.training.prepare.plan.Source`): what it is called, its classes,
and two functions, ``plan(raw, options)``, which lists the scenes, and ``read(unit)``, which reads
one of them. :mod:`~dela.training.prepare.runner` does the rest.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, cast

from dela.errors import InputError

if TYPE_CHECKING:
    from dela.training.prepare.plan import Source

# name on the command line -> the module of the dataset, imported when it is wanted
DATASETS = {
    "s3dis": "dela.training.prepare.sources.s3dis",
    "scannet": "dela.training.prepare.sources.scannet",
    "scanobjectnn": "dela.training.prepare.sources.scanobjectnn",
    "modelnet40": "dela.training.prepare.sources.modelnet40",
    "shapenetpart": "dela.training.prepare.sources.shapenetpart",
    "semantickitti": "dela.training.prepare.sources.semantickitti",
    "folder": "dela.training.prepare.sources.folder",
}


def dataset_module(name: str) -> Source:
    """The module of a dataset.

    Raises:
        InputError: an unknown name.
    """
    if name not in DATASETS:
        raise InputError(f"unknown dataset {name!r}; known: {', '.join(DATASETS)}")
    return cast("Source", importlib.import_module(DATASETS[name]))
