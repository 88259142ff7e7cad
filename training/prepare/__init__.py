"""Preparation of the published datasets, and of folders of scans, for memory-mapped training.

One module a dataset, each with two functions: ``plan(raw, options)`` lists the scenes and
``read(unit)`` reads one of them. :mod:`~dela.training.prepare.runner` does the rest.
"""

from __future__ import annotations

import importlib
from types import ModuleType

from dela.errors import InputError

# name on the command line -> what stands in its help
DATASETS = {
    "s3dis": "S3DIS, aligned version 1.2 (Area_1 .. Area_6)",
    "scannet": "ScanNet v2 (meshes and labels)",
    "scanobjectnn": "ScanObjectNN, PB_T50_RS (h5)",
    "modelnet40": "ModelNet40, 2048 points (h5)",
    "shapenetpart": "ShapeNetPart with normals (txt)",
    "semantickitti": "SemanticKITTI (bin and label)",
    "folder": "labelled LAS, LAZ, PLY, PCD, NPY, NPZ or text files, with --config",
}


def dataset_module(name: str) -> ModuleType:
    """The module of a dataset.

    Raises:
        InputError: an unknown name.
    """
    if name not in DATASETS:
        raise InputError(f"unknown dataset {name!r}; known: {', '.join(DATASETS)}")
    return importlib.import_module(f"{__name__}.sources.{name}")
