"""Tiny data in the raw layout of every dataset, as its publishers hand it out.

Each function writes below a folder and returns what a preparation must find there. Scenes are a
floor, two walls and boxes on the floor, a few meters large, so that networks can be trained on
them; objects are boxes and balls of different shapes.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dela.cloud.formats import write_cloud
from dela.cloud.point_cloud import PointCloud
from dela.model.class_names import CLASS_NAMES, SHAPENETPART_CATEGORIES

S3DIS_ROOMS = ("Area_1/office_1", "Area_3/hallway_2", "Area_5/office_1", "Area_6/copyRoom_1")
SCANNET_SCENES = {"train": ("scene0000_00", "scene0001_00"), "val": ("scene0011_00",)}
KITTI_SCANS = {"00": 2, "08": 1, "11": 1}


@dataclass(frozen=True)
class Room:
    """A labelled scene: what stands where.

    Attributes:
        points: [N, 3] float64 meters, rounded to millimeters.
        color: [N, 3] uint8.
        parts: [N] 0 floor, 1 wall, 2 box, 3 ball.
    """

    points: np.ndarray
    color: np.ndarray
    parts: np.ndarray


def make_room(seed: int, points: int = 3000, size: float = 3.0) -> Room:
    """A floor, two walls, three boxes and a ball."""
    rng = np.random.default_rng(seed)
    shares = np.array([0.4, 0.25, 0.25, 0.1])
    counts = (shares * points).astype(int)
    counts[0] += points - counts.sum()
    floor = np.column_stack([rng.uniform(0, size, (counts[0], 2)), np.zeros(counts[0])])
    along, up = rng.uniform(0, size, counts[1]), rng.uniform(0, 2.4, counts[1])
    wall = np.column_stack([along, np.zeros(counts[1]), up])
    wall[::2] = wall[::2][:, [1, 0, 2]]
    box = rng.uniform(-0.4, 0.4, (counts[2], 3))
    axis = rng.integers(0, 3, counts[2])
    box[np.arange(len(box)), axis] = np.sign(box[np.arange(len(box)), axis]) * 0.4
    box += rng.uniform(0.6, size - 0.6, (3, 3))[rng.integers(0, 3, counts[2])] * [1, 1, 0]
    box[:, 2] += 0.4
    ball = rng.normal(size=(counts[3], 3))
    ball = 0.3 * ball / np.linalg.norm(ball, axis=1, keepdims=True) + [size / 2, size / 2, 1.5]
    parts = np.repeat(np.arange(4), counts)
    base = np.array([[90, 80, 70], [220, 215, 200], [150, 60, 40], [40, 90, 180]])
    color = (base[parts] + rng.integers(-15, 16, (points, 3))).clip(0, 255).astype(np.uint8)
    where = np.concatenate([floor, wall, box, ball]) + rng.normal(0, 0.004, (points, 3))
    return Room(where.round(3), color, parts)


def write_s3dis(
    root: Path, rooms: Sequence[str] = S3DIS_ROOMS, points: int = 3000
) -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """``Area_x/room/Annotations/*.txt`` and what lies around them in the published archive.

    Returns:
        scene -> (points [N, 3], color [N, 3], labels [N]) in the order of the file names.
    """
    names = ("floor_1", "wall_1", "table_1", "stairs_1")  # the benchmark counts stairs as clutter
    classes = list(CLASS_NAMES["s3dis"])
    expected = {}
    for seed, name in enumerate(rooms):
        folder = root / name / "Annotations"
        folder.mkdir(parents=True)
        room = make_room(seed, points)
        moved = room.points + np.array([10.0 * seed, -20.5, 0.25])
        order = []
        for part in np.argsort(names):
            rows = np.flatnonzero(room.parts == part)
            write_s3dis_table(folder / f"{names[part]}.txt", moved[rows], room.color[rows])
            order.append(rows)
        labels = np.array([classes.index(n) for n in ("floor", "wall", "table", "clutter")])
        rows = np.concatenate(order)
        expected[name.replace("/", "_")] = moved[rows], room.color[rows], labels[room.parts[rows]]
        (root / name / f"{name.split('/')[1]}.txt").write_text("the whole room, not read\n")
        (folder / ".DS_Store").write_bytes(b"\0\0\0\1Bud1")
        (folder / "Icon\r").write_bytes(b"")
    area = root / rooms[0].split("/")[0]
    (area / ".DS_Store").write_bytes(b"\0\0\0\1Bud1")
    (area / f"{area.name}_alignmentAngle.txt").write_text("## Global alignment angle\n")
    return expected


def write_s3dis_table(path: Path, points: np.ndarray, color: np.ndarray) -> None:
    lines = [
        f"{x:.3f} {y:.3f} {z:.3f} {r} {g} {b}"
        for (x, y, z), (r, g, b) in zip(points, color.tolist(), strict=True)
    ]
    path.write_text("\n".join(lines) + "\n")


def write_scannet(
    root: Path, scenes: dict[str, Sequence[str]] | None = None, side: int = 40
) -> dict[str, dict[str, np.ndarray]]:
    """``scans/<scene>/<scene>_vh_clean_2.ply`` with labels, and the lists of the splits beside.

    Each mesh is a bumpy sheet of ``side`` x ``side`` vertices 5 cm apart whose borders stand up as
    walls. NYU40 labels: floor 2, wall 1, table 7, and 38 (in no class of the benchmark).

    Returns:
        scene -> ``points``, ``color``, ``labels``, ``faces``.
    """
    root.mkdir(parents=True, exist_ok=True)
    expected = {}
    for split, names in (scenes or SCANNET_SCENES).items():
        (root / f"scannetv2_{split}.txt").write_text("".join(f"{name}\n" for name in names))
        for name in names:
            folder = root / "scans" / name
            folder.mkdir(parents=True)
            mesh = _sheet(side, int(name[5:9]))
            write_mesh(folder / f"{name}_vh_clean_2.ply", mesh)
            write_mesh(folder / f"{name}_vh_clean_2.labels.ply", mesh, with_labels=True)
            expected[name] = mesh
    return expected


def _sheet(side: int, seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    x, y = (axis.ravel() for axis in np.meshgrid(*2 * [np.arange(side) * 0.05], indexing="ij"))
    edge = np.minimum.reduce([x, y, x.max() - x, y.max() - y])
    wall, table = edge < 0.09, np.hypot(x - x.mean(), y - y.mean()) < 0.4
    z = np.where(wall, 0.8 - 8 * edge, np.where(table, 0.7, 0.0)) + rng.normal(0, 0.003, len(x))
    labels = np.where(wall, 1, np.where(table, 7, 2)).astype(np.uint16)
    labels[rng.choice(len(x), 5, replace=False)] = 38
    base = np.zeros((41, 3))
    base[[1, 2, 7, 38]] = [[200, 200, 190], [120, 90, 60], [60, 60, 160], [10, 200, 10]]
    color = (base[labels] + rng.integers(0, 20, (len(x), 3))).astype(np.uint8)
    corner = np.arange(side * side).reshape(side, side)[:-1, :-1].ravel()
    faces = np.concatenate(
        [
            np.column_stack([corner, corner + side, corner + 1]),
            np.column_stack([corner + side, corner + side + 1, corner + 1]),
        ]
    ).astype(np.int32)
    points = np.column_stack([x, y, z]).astype(np.float32)
    return {"points": points, "color": color, "labels": labels, "faces": faces}


def write_mesh(path: Path, mesh: dict[str, np.ndarray], with_labels: bool = False) -> None:
    """A binary PLY as ScanNet's: vertices with color and alpha, triangles, perhaps labels."""
    fields = [("x", "<f4"), ("y", "<f4"), ("z", "<f4")]
    fields += [(name, "u1") for name in ("red", "green", "blue", "alpha")]
    header = ["ply", "format binary_little_endian 1.0", "comment VCGLIB generated"]
    header.append(f"element vertex {len(mesh['points'])}")
    header += [f"property float {axis}" for axis in "xyz"]
    header += [f"property uchar {name}" for name in ("red", "green", "blue", "alpha")]
    if with_labels:
        fields.append(("label", "<u2"))
        header.append("property ushort label")
    vertices = np.zeros(len(mesh["points"]), fields)
    for axis, name in enumerate("xyz"):
        vertices[name] = mesh["points"][:, axis]
    for channel, name in enumerate(("red", "green", "blue")):
        vertices[name] = mesh["color"][:, channel]
    vertices["alpha"] = 255
    if with_labels:
        vertices["label"] = mesh["labels"]
    faces = np.zeros(len(mesh["faces"]), [("count", "u1"), ("rows", "<i4", (3,))])
    faces["count"], faces["rows"] = 3, mesh["faces"]
    header += [f"element face {len(faces)}", "property list uchar int vertex_indices", "end_header"]
    path.write_bytes("\n".join(header).encode() + b"\n" + vertices.tobytes() + faces.tobytes())


def make_object(kind: int, points: int, rng: np.random.Generator) -> np.ndarray:
    """[P, 3] float32: a box or a ball whose proportions tell its kind; y is up, centerd."""
    size = 0.2 + 0.8 * np.array([(kind % 3) / 2, (kind // 3 % 3) / 2, (kind // 9) / 4])
    cloud = rng.normal(size=(points, 3))
    scale = np.linalg.norm(cloud, axis=1) if kind % 2 else np.abs(cloud).max(axis=1)
    return (size / 2 * cloud / scale[:, None]).astype(np.float32)


def write_scanobjectnn(root: Path, clouds: int = 30, points: int = 1200) -> dict[str, dict]:
    """``main_split/*_objectdataset_augmentedrot_scale75.h5``; returns split -> data, label."""
    folder = root / "main_split"
    folder.mkdir(parents=True)
    (root / "main_split_nobg").mkdir()
    expected = {}
    for seed, (split, prefix) in enumerate((("train", "training"), ("val", "test"))):
        arrays = _objects(clouds, points, len(CLASS_NAMES["scanobjectnn"]), seed)
        arrays["mask"] = np.zeros((clouds, points), np.int32)
        name = f"{prefix}_objectdataset_augmentedrot_scale75.h5"
        write_h5(folder / name, arrays)
        write_h5(root / "main_split_nobg" / name, _objects(2, points, 2, 99))
        expected[split] = arrays
    return expected


def write_modelnet40(root: Path, clouds: int = 40, points: int = 1200) -> dict[str, dict]:
    """``ply_data_train0.h5``, ``..1.h5`` and ``ply_data_test0.h5``; returns scene -> arrays."""
    root.mkdir(parents=True, exist_ok=True)
    expected = {}
    for seed, name in enumerate(("train0", "train1", "test0")):
        arrays = _objects(clouds, points, 40, seed)
        arrays["label"] = arrays["label"].astype(np.uint8)[:, None]
        normal = np.random.default_rng(seed).normal(size=arrays["data"].shape)
        arrays["normal"] = (normal / np.linalg.norm(normal, axis=2)[..., None]).astype(np.float32)
        write_h5(root / f"ply_data_{name}.h5", arrays)
        expected[name] = arrays
    (root / "shape_names.txt").write_text("\n".join(CLASS_NAMES["modelnet40"]) + "\n")
    return expected


def _objects(clouds: int, points: int, kinds: int, seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = (np.arange(clouds) * 7 % kinds).astype(np.int32)
    return {"data": np.stack([make_object(k, points, rng) for k in labels]), "label": labels}


def write_h5(path: Path, arrays: dict[str, np.ndarray]) -> None:
    import h5py

    with h5py.File(path, "w") as file:
        for name, array in arrays.items():
            file.create_dataset(name, data=array, compression="gzip")


def write_shapenetpart(
    root: Path, categories: Sequence[str] = ("airplane", "mug", "table"), shapes: int = 4
) -> dict[str, np.ndarray]:
    """``<synset>/<shape>.txt``, the category table and the split lists.

    Every category has ``shapes`` shapes in the training split and one in each of the others; shape
    k has 500 + 10 k points, cut into its parts by height.

    Returns:
        ``<split>/<category>/<shape>`` -> [N, 7] as in the file.
    """
    numbers = {name: 2691156 + i for i, name in enumerate(SHAPENETPART_CATEGORIES)}
    lines = [f"{name.capitalize()}\t{number:08d}" for name, number in numbers.items()]
    root.mkdir(parents=True, exist_ok=True)
    (root / "synsetoffset2category.txt").write_text("\n".join(lines) + "\n")
    starts = dict(
        zip(
            SHAPENETPART_CATEGORIES, np.cumsum([0, *SHAPENETPART_CATEGORIES.values()]), strict=False
        )
    )
    expected: dict[str, np.ndarray] = {}
    entries: dict[str, list[str]] = {"train": [], "val": [], "test": []}
    for category in categories:
        synset = f"{numbers[category]:08d}"
        (root / synset).mkdir()
        splits = ["train"] * shapes + ["val", "test"]
        for number, split in enumerate(splits):
            rng = np.random.default_rng(numbers[category] + number)
            points = make_object(numbers[category] % 15, 500 + 10 * number, rng)
            parts = SHAPENETPART_CATEGORIES[category]
            cuts = np.quantile(points[:, 1], np.arange(1, parts) / parts)
            labels = starts[category] + np.searchsorted(cuts, points[:, 1])
            normals = points / np.linalg.norm(points, axis=1, keepdims=True)
            table = np.column_stack([points, normals, labels]).round(6)
            shape = f"shape{number}"
            np.savetxt(root / synset / f"{shape}.txt", table, fmt="%.6f")
            entries[split].append(f"shape_data/{synset}/{shape}")
            expected[f"{split}/{category}/{shape}"] = table
    (root / "train_test_split").mkdir()
    for split, names in entries.items():
        path = root / "train_test_split" / f"shuffled_{split}_file_list.json"
        path.write_text(json.dumps(names[::-1]))
    return expected


def write_semantickitti(
    root: Path, scans: dict[str, int] | None = None, points: int = 3000
) -> dict[str, tuple[np.ndarray, np.ndarray | None]]:
    """``sequences/XX/velodyne/*.bin`` and, but for 11 and later, ``labels/*.label``.

    Labels: road 40, building 50, moving car 252, other-object 99 (ignored); the upper 16 bits hold
    instance numbers.

    Returns:
        scene -> ([N, 4] float32, [N] uint32 or None).
    """
    expected = {}
    for sequence, count in (scans or KITTI_SCANS).items():
        folder = root / "sequences" / sequence
        (folder / "velodyne").mkdir(parents=True)
        for number in range(count):
            room = make_room(100 * int(sequence) + number, points, 6.0)
            rng = np.random.default_rng(number)
            remission = (0.2 + 0.2 * room.parts + rng.uniform(0, 0.1, points))[:, None]
            values = np.hstack([room.points - [3, 3, 1.7], remission]).astype("<f4")
            labels = np.array([40, 50, 252, 99], "<u4")[room.parts]
            labels |= (room.parts.astype("<u4") + 1) << 16
            values.tofile(folder / "velodyne" / f"{number:06d}.bin")
            if int(sequence) <= 10:
                (folder / "labels").mkdir(exist_ok=True)
                labels.tofile(folder / "labels" / f"{number:06d}.label")
            expected[f"{sequence}_{number:06d}"] = (values, labels if int(sequence) <= 10 else None)
    return expected


def write_folder(root: Path, points: int = 3000) -> tuple[Path, dict[str, PointCloud]]:
    """Labelled LAZ, PLY and NPZ files and a training configuration for them.

    Returns:
        The configuration, and file -> cloud. Codes 2 ground, 5 and 6 things, 0 ignored.
    """
    clouds = {}
    (root / "north").mkdir(parents=True)
    for seed, name in enumerate(("north/a.laz", "north/b.ply", "c.npz")):
        room = make_room(seed, points)
        columns = {
            "classification": np.array([2, 5, 6, 0], np.uint8)[room.parts],
            "intensity": (200 * room.parts + np.arange(points) % 50).astype(np.uint16),
        }
        columns |= {n: room.color[:, i] for i, n in enumerate(("red", "green", "blue"))}
        cloud = PointCloud(room.points + np.array([651_000.0, 6_860_000.0, 40.0]), columns)
        write_cloud(root / name, cloud)
        clouds[name] = cloud
    config = root / "config.toml"
    config.write_text(_FOLDER_CONFIG)
    return config, clouds


_FOLDER_CONFIG = """\
[data]
kind = "folder"
train = ["north"]
val = ["c.npz"]
label = "classification"
ignore = [0]
points = 500

[[data.classes]]
name = "ground"
codes = [2]

[[data.classes]]
name = "thing"
codes = [5, 6]

[model]
dims = [16, 32]
depths = [1, 1]
neighbors = 8
grid = [0.1, 0.2]
attributes = ["red", "green", "blue", "intensity", "height", "height_above_ground"]

[train]
epochs = 1
steps_per_epoch = 2
batch_size = 2
warmup = 0
workers = 0
"""
