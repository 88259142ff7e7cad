"""ScanNet v2 (Dai et al., "ScanNet: Richly-annotated 3D Reconstructions of Indoor Scenes").

Raw layout: ``<scene>/<scene>_vh_clean_2.ply`` (the mesh) and ``<scene>_vh_clean_2.labels.ply``,
anywhere below the raw folder, usually in ``scans/`` and ``scans_test/``. Labels are the 20 NYU40
classes of the benchmark; every other value is ignored.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from dela.cloud.formats import read_cloud
from dela.errors import InputError
from dela.model.class_names import CLASS_CODES, SCANNET_CLASSES
from dela.model.contract import ClassInfo, numbered_classes
from dela.scores.confusion import IGNORED
from dela.training.prepare.plan import Options, Plan, Unit
from dela.training.prepare.sources.mesh import read_mesh, vertex_normals
from dela.training.prepare.store import Record
from dela.training.settings.data import SPLITS

TITLE = "ScanNet v2 (meshes and labels)"
KIND = "scenes"
# NYU40 ids of the benchmark's classes, in the order of the preset.
NYU40 = CLASS_CODES["scannet"]
# Voxel size of the published recipe, meters.
GRID = 0.02
CLASSES = tuple(
    ClassInfo(info.name, code, info.color)
    for info, code in zip(numbered_classes(SCANNET_CLASSES), NYU40, strict=True)
)

_LARGEST_NYU40 = 40
_MESH = "_vh_clean_2.ply"
_LABELS = "_vh_clean_2.labels.ply"
_SCENE = re.compile(r"scene\d{4}_\d{2}$")


def plan(raw: Path, options: Options) -> Plan:
    """A unit per scene of the lists; classes carry the NYU40 id as their code.

    Raises:
        InputError: no mesh, no list, a list that cannot be used, or a scene in two lists.
    """
    meshes = {path.name.removesuffix(_MESH): path for path in sorted(raw.rglob(f"*{_MESH}"))}
    if not meshes:
        raise InputError(f"{raw} holds no scene*{_MESH}; give the folder of ScanNet's scans")
    if not {"train", "val"} & set(options.lists):
        raise InputError(
            "which scenes train and which validate? give the official lists with --train-list "
            "and --val-list (scannetv2_train.txt, scannetv2_val.txt)"
        )
    units, notes = [], []
    owner: dict[str, str] = {}
    for split in SPLITS:
        if split not in options.lists:
            continue
        missing = []
        for scene in _scenes(options.lists[split]):
            if scene in owner:
                raise InputError(f"{scene} is in the list of {owner[scene]} and of {split}")
            owner[scene] = split
            mesh = meshes.get(scene)
            if mesh is None:
                missing.append(scene)
                continue
            labels = mesh.with_name(scene + _LABELS)
            files = (mesh,) if split == "test" and not labels.exists() else (mesh, labels)
            units.append(Unit(scene, split, files))
        if missing:
            more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
            notes.append(
                f"{len(missing)} scenes of the {split} list are not in {raw}: "
                f"{', '.join(missing[:3])}{more}"
            )
    grid = options.grid or GRID
    return Plan("scannet", "segmentation", CLASSES, tuple(units), grid=grid, notes=tuple(notes))


def read(unit: Unit) -> Record:
    """A scene: vertices, colors, normals weighted by the area of the faces, labels if there are.

    Raises:
        InputError: a damaged mesh, one without faces or colors, labels that do not fit it.
    """
    mesh = read_mesh(unit.files[0])
    cloud = mesh.cloud
    missing = [name for name in ("red", "green", "blue") if name not in cloud.columns]
    if missing:
        raise InputError(f"{unit.files[0]} has no vertex property {', '.join(missing)}")
    columns = {
        "points": cloud.points,
        "color": np.stack([cloud.columns[name] for name in ("red", "green", "blue")], axis=1),
        "normals": vertex_normals(cloud.points, mesh.faces),
    }
    if len(unit.files) > 1:
        columns["labels"] = _labels(unit.files[1], cloud.points)
    return Record(columns)


def _labels(path: Path, points: np.ndarray) -> np.ndarray:
    """[N] int16 class indices of a labels mesh that must have the same vertices."""
    cloud = read_cloud(path)
    if "label" not in cloud.columns:
        raise InputError(f"{path} has no vertex property 'label'")
    if len(cloud) != len(points):
        raise InputError(f"{path} labels {len(cloud)} vertices, the mesh has {len(points)}")
    values = cloud.columns["label"]
    wrong = (values < 0) | (values > _LARGEST_NYU40)
    if wrong.any():
        vertex = int(np.argmax(wrong))
        raise InputError(f"{path}, vertex {vertex}: {values[vertex]} is no NYU40 label (0 .. 40)")
    index = np.full(_LARGEST_NYU40 + 1, IGNORED, np.int16)
    index[list(NYU40)] = np.arange(len(NYU40))
    return index[values.astype(np.int64)]


def _scenes(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read the scene list {path}: {error}") from error
    scenes = []
    for number, line in enumerate(lines, start=1):
        scene = line.strip()
        if not scene:
            continue
        if not _SCENE.match(scene):
            raise InputError(f"{path}, line {number}: {scene[:40]!r} is no scene (scene0000_00)")
        scenes.append(scene)
    return list(dict.fromkeys(scenes))
