"""A folder of one's own labelled scans: any format :func:`dela.cloud.formats.read_cloud` reads.

The training configuration says the rest: which files are which split, the label column, the class
map, the columns the network wants and the voxel size.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import numpy as np

from dela.cloud.formats import read_cloud
from dela.cloud.formats.columns import COLORS, NORMALS
from dela.errors import ConfigError, InputError
from dela.model.contract import CATEGORY, ClassInfo
from dela.model.fields import read_dataclass
from dela.scan.attributes import height_above_ground
from dela.training.prepare.plan import Options, Plan, Unit
from dela.training.prepare.store import Record, scene_name
from dela.training.settings.data import SPLITS
from dela.training.settings.splits import map_labels, split_files
from dela.training.settings.train import DataConfig, load_config, model_classes

TITLE = "labelled LAS, LAZ, PLY, PCD, NPY, NPZ or text files, with --config"
KIND = "scenes"
CLASSES: tuple[ClassInfo, ...] = ()

HEIGHT_ABOVE_GROUND = "height_above_ground"


def plan(raw: Path, options: Options) -> Plan:
    """A unit per file of the configuration's splits; paths start from the raw folder.

    Raises:
        InputError: no configuration, or an entry of a split that matches no file.
        ConfigError: a configuration of another kind than ``folder``.
    """
    if options.config is None:
        raise InputError(
            "a folder of scans needs --config: a training configuration with data.train, "
            "data.val, data.label and the class map"
        )
    config = load_config(options.config, data_root=raw)
    if config.data.kind != "folder":
        raise ConfigError(
            f'{options.config}: data.kind is {config.data.kind!r}; give one of kind = "folder"'
        )
    wanted = [info.name for info in config.model.input_columns]
    if any(name.startswith(f"{CATEGORY}_") for name in wanted):
        wanted = [name for name in wanted if not name.startswith(f"{CATEGORY}_")] + [CATEGORY]
    facts = {"columns": sorted({*wanted} - {"height"}), "data": _label_facts(config.data)}
    root = raw.resolve()
    units = []
    for split in SPLITS:
        if not getattr(config.data, split):
            continue
        for path in split_files(config.data, split):
            inside = path.relative_to(root) if path.is_relative_to(root) else Path(path.name)
            units.append(Unit(scene_name(str(inside.with_suffix(""))), split, (path,), facts))
    grid = options.grid or (config.model.grid[0] if config.model.grid else None)
    return Plan("folder", "segmentation", model_classes(config.data), tuple(units), grid=grid)


def read(unit: Unit) -> Record:
    """A scan: its points, the columns of the configuration, labels as class indices.

    Raises:
        InputError: a damaged file, a missing column, or label values outside the class map.
    """
    path = unit.files[0]
    data = read_dataclass(DataConfig, unit.facts["data"], "data")
    cloud = read_cloud(path, data.columns or None)
    names = [name for name in unit.facts["columns"] if name != HEIGHT_ABOVE_GROUND]
    missing = [name for name in (*names, data.label) if name not in cloud.columns]
    if missing:
        present = ", ".join(sorted(cloud.columns)) or "none"
        raise InputError(f"{path} has no column {missing[0]!r}; columns present: {present}")
    try:
        columns = {"points": cloud.points, "labels": map_labels(cloud.columns[data.label], data)}
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    for stored, parts in (("color", COLORS), ("normals", NORMALS)):
        if any(name in names for name in parts):
            absent = [name for name in parts if name not in cloud.columns]
            if absent:
                raise InputError(f"{path} has no column {absent[0]!r}, which goes with {names}")
            columns[stored] = np.stack([cloud.columns[name] for name in parts], axis=1)
    for name in names:
        if name not in COLORS and name not in NORMALS:
            columns[name] = cloud.columns[name]
    if HEIGHT_ABOVE_GROUND in unit.facts["columns"]:
        columns[HEIGHT_ABOVE_GROUND] = height_above_ground(cloud.points)
    return Record(columns)


def _label_facts(data: DataConfig) -> dict[str, object]:
    """What of ``[data]`` decides the labels; the rest may change without preparing anew."""
    named = {"columns": list(data.columns)} if data.columns else {}
    return {
        **named,
        "label": data.label,
        "classes": [asdict(info) for info in data.classes],
        "ignore": list(data.ignore),
    }
