"""Readers of S3DIS, ScanNet, SemanticKITTI and folders: contents, splits, malformed files."""

from __future__ import annotations

import numpy as np
import pytest

import raw_layouts
from dela.cloud.formats import read_cloud
from dela.errors import ConfigError, InputError
from dela.model.class_names import CLASS_NAMES
from dela.training.prepare import DATASETS, dataset_module
from dela.training.prepare.plan import MalformedFiles, Options, Plan, Unit
from dela.training.prepare.sources import folder, s3dis, scannet, semantickitti
from dela.training.prepare.sources.mesh import read_mesh, vertex_normals
from dela.training.prepare.sources.tables import read_table
from dela.training.settings.data import named_classes


def by_name(plan: Plan) -> dict[str, Unit]:
    return {unit.name: unit for unit in plan.units}


def test_every_dataset_has_a_module_with_a_plan_and_a_reader():
    for name in DATASETS:
        module = dataset_module(name)
        assert callable(module.plan) and callable(module.read)
    with pytest.raises(InputError, match="unknown dataset 'kitti'; known: s3dis"):
        dataset_module("kitti")


def test_every_dataset_tells_its_title_kind_and_classes():
    for name in DATASETS:
        module = dataset_module(name)
        assert module.TITLE and module.KIND in ("scenes", "objects", "parts")
        # The classes of `classes = "NAME"` in a configuration.
        expected = [] if name == "folder" else named_classes(name)
        assert [(c.name, c.code) for c in module.CLASSES] == [
            (c["name"], c["code"]) for c in expected
        ]


# S3DIS


@pytest.fixture
def rooms(tmp_path):
    root = tmp_path / "Stanford3dDataset_v1.2_Aligned_Version"
    return root, raw_layouts.write_s3dis(root, points=400)


def test_s3dis_rooms_hold_every_annotated_point(rooms):
    root, expected = rooms
    plan = s3dis.plan(root, Options())
    assert {unit.name: unit.split for unit in plan.units} == {
        "Area_1_office_1": "train",
        "Area_3_hallway_2": "train",
        "Area_5_office_1": "val",
        "Area_6_copyRoom_1": "train",
    }
    assert tuple(info.name for info in plan.classes) == CLASS_NAMES["s3dis"]
    assert plan.grid == 0.04 and not plan.notes
    for unit in plan.units:
        points, color, labels = expected[unit.name]
        record = s3dis.read(unit)
        assert np.array_equal(record.columns["points"], points.round(3))
        assert np.array_equal(record.columns["color"], color)
        assert np.array_equal(record.columns["labels"], labels)


def test_s3dis_is_found_one_folder_deeper_too(rooms):
    root, expected = rooms
    assert {unit.name for unit in s3dis.plan(root.parent, Options()).units} == set(expected)
    with pytest.raises(InputError, match="has no folders Area_1"):
        s3dis.plan(root / "Area_1" / "office_1", Options())


@pytest.mark.parametrize(
    ("damaged", "mended"),
    [
        # hallway_6: a byte where the blank between two colors was
        (b"22.350 6.692 3.048 185\x10187 182", [22.350, 6.692, 3.048, 185, 187, 182]),
        # office_19: a byte within a number
        (b"23.2 4.1 2.9 103.0\x100000 100 99", [23.2, 4.1, 2.9, 103, 100, 99]),
        (b"23.2 4.1 2.9 103.0\xef\xbf\xbd0000 100 99", [23.2, 4.1, 2.9, 103, 100, 99]),
        (b"1.0 2.0 3.0\x00 4 5 6", [1, 2, 3, 4, 5, 6]),
    ],
)
def test_s3dis_lines_with_illegal_bytes_are_mended_and_noted(tmp_path, damaged, mended):
    path = tmp_path / "ceiling_1.txt"
    path.write_bytes(b"1 2 3 4 5 6\n" + damaged + b"\n7 8 9 10 11 12\n")
    values, notes = read_table(path, 6, repair=True)
    assert values.tolist() == [[1, 2, 3, 4, 5, 6], mended, [7, 8, 9, 10, 11, 12]]
    assert len(notes) == 1 and f"{path}, line 2: '" in notes[0]
    assert all(character.isprintable() for character in notes[0])
    with pytest.raises(InputError, match=r"ceiling_1\.txt, line 2: "):
        read_table(path, 6)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"1 2 3 4 5", "line 3: 5 values, expected 6"),
        (b"1 2 3 4 5 6 7", "line 3: 7 values"),
        (b"1 2 x 4 5 6", "line 3: '1 2 x 4 5 6' is not 6 numbers"),
        (b"1 2 3 4x5 6 7", "line 3: "),
        (b"1 2 3 4\x105\x106", None),  # two bytes for two blanks
        (b"1 2\x10 4 5", "line 3: "),
        (b"nan 2 3 4 5 6", "line 3: .* finite"),
        (b"1 2 3 4 5 1e999", "line 3: .* finite"),
        (b"1_0 2 3 4 5 6", "line 3: "),
    ],
)
def test_malformed_lines_are_told_by_number(tmp_path, line, message):
    path = tmp_path / "wall_1.txt"
    path.write_bytes(b"1 2 3 4 5 6\n\n" + line + b"\n")
    if message is None:
        assert read_table(path, 6, repair=True)[0][1].tolist() == [1, 2, 3, 4, 5, 6]
        return
    with pytest.raises(InputError, match=message):
        read_table(path, 6, repair=True)


@pytest.mark.parametrize("content", [b"", b"\n\n"])
def test_tables_without_lines_are_refused(tmp_path, content):
    path = tmp_path / "wall_1.txt"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"wall_1\.txt holds no points"):
        read_table(path, 6)


def test_tables_with_windows_lines_and_exponents_are_read(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"1e-3 -2.5E+1 3\r\n4\t5   6")
    assert read_table(path, 3)[0].tolist() == [[0.001, -25, 3], [4, 5, 6]]


def test_s3dis_reports_every_malformed_file_of_a_room(rooms):
    root, _ = rooms
    annotations = root / "Area_1" / "office_1" / "Annotations"
    (annotations / "wall_1.txt").write_text("1 2 3 4 5 6\n1 2 3\n")
    (annotations / "floor_1.txt").write_text("1 2 3 4 5 6\n1 2 3 4 256 6\n")
    (annotations / "lamp_1.txt").write_text("1 2 3 4 5 6\n")
    (annotations / "beam_1.txt").write_text("")
    with pytest.raises(MalformedFiles) as caught:
        s3dis.read(by_name(s3dis.plan(root, Options()))["Area_1_office_1"])
    messages = [message.removeprefix(f"{annotations}/") for message in caught.value.messages]
    assert messages[0] == "beam_1.txt holds no points"
    assert messages[1].startswith("floor_1.txt, point 2: colour [4.0, 256.0, 6.0]")
    assert messages[2].startswith("lamp_1.txt: 'lamp' is no class; known: ceiling")
    assert messages[3] == "wall_1.txt, line 2: 3 values, expected 6"


def test_s3dis_second_copies_are_left_out_with_a_note(rooms):
    root, expected = rooms
    annotations = root / "Area_5" / "office_1" / "Annotations"
    wall = (annotations / "wall_1.txt").read_text()
    (annotations / "wall_1 (1).txt").write_text(wall)
    (annotations / "table_1 (1).txt").write_text("1 2 3 4 5 6\n")  # no copy: other points
    plan = s3dis.plan(root, Options())
    assert len(plan.notes) == 1 and "wall_1 (1).txt is a copy of wall_1.txt" in plan.notes[0]
    record = s3dis.read(by_name(plan)["Area_5_office_1"])
    assert len(record.columns["points"]) == len(expected["Area_5_office_1"][0]) + 1


# ScanNet


def scannet_options(root, *splits: str) -> Options:
    return Options(lists={split: root / f"scannetv2_{split}.txt" for split in splits})


@pytest.fixture
def meshes(tmp_path):
    return tmp_path, raw_layouts.write_scannet(tmp_path, side=12)


def test_scannet_scenes_hold_vertices_colors_normals_and_classes(meshes):
    root, expected = meshes
    plan = scannet.plan(root, scannet_options(root, "train", "val"))
    assert {unit.name: unit.split for unit in plan.units} == {
        "scene0000_00": "train",
        "scene0001_00": "train",
        "scene0011_00": "val",
    }
    names = [info.name for info in plan.classes]
    assert tuple(names) == CLASS_NAMES["scannet"]
    codes = [info.code for info in plan.classes]
    assert codes == [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 14, 16, 24, 28, 33, 34, 36, 39]
    index_of = {1: names.index("wall"), 2: names.index("floor"), 7: names.index("table"), 38: -1}
    for unit in plan.units:
        mesh, record = expected[unit.name], scannet.read(unit)
        assert np.array_equal(record.columns["points"], mesh["points"])
        assert np.array_equal(record.columns["color"], mesh["color"])
        wanted = [index_of[int(label)] for label in mesh["labels"]]
        assert record.columns["labels"].tolist() == wanted
        length = np.linalg.norm(record.columns["normals"], axis=1)
        assert np.allclose(length, 1)


def test_normals_are_weighted_by_the_area_of_the_faces():
    rng = np.random.default_rng(0)
    points = rng.normal(size=(30, 3))
    faces = rng.integers(0, 30, (60, 3))
    faces[0] = [1, 1, 2]  # no area
    wanted = np.zeros((30, 3))
    for face in faces:
        a, b, c = points[face]
        normal = np.cross(b - a, c - a)
        if np.linalg.norm(normal) > 0:
            area = np.linalg.norm(normal) / 2
            for vertex in face:
                wanted[vertex] += area * normal / np.linalg.norm(normal)
    length = np.linalg.norm(wanted, axis=1, keepdims=True)
    wanted = np.where(length > 0, wanted / np.maximum(length, 1e-300), 0)
    assert np.allclose(vertex_normals(points, faces), wanted)
    assert not vertex_normals(points, faces[:1]).any()  # degenerate: zero, not NaN


def test_ascii_meshes_are_read_too(tmp_path):
    path = tmp_path / "m.ply"
    head = "ply\nformat ascii 1.0\nelement vertex 4\n"
    head += "".join(f"property float {axis}\n" for axis in "xyz")
    head += "element face {}\nproperty list uchar int vertex_indices\nend_header\n"
    vertices = "0 0 0\n1 0 0\n0 1 0\n0 0 1\n"
    path.write_text(head.format(2) + vertices + "3 0 1 2\n3 0 2 3\n")
    assert read_mesh(path).faces.tolist() == [[0, 1, 2], [0, 2, 3]]
    for body, message in (
        ("3 0 1 2\n4 0 1 2 3\n", "face 1: '4 0 1 2 3' is no triangle"),
        ("3 0 1 2\n3 0 1 4\n", r"face 1: \[0, 1, 4\] are not all vertices 0 \.\. 3"),
        ("3 0 1 2\n", "cut short"),
    ):
        path.write_text(head.format(2) + vertices + body)
        with pytest.raises(InputError, match=message):
            read_mesh(path)


def test_scannet_lists_are_checked(meshes, tmp_path):
    root, _ = meshes
    with pytest.raises(InputError, match="--train-list and --val-list"):
        scannet.plan(root, Options())
    val = root / "scannetv2_val.txt"
    val.write_text("scene0000_00\n")
    with pytest.raises(InputError, match="scene0000_00 is in the list of train and of val"):
        scannet.plan(root, scannet_options(root, "train", "val"))
    val.write_text("scene0011_00\n\nscene11\n")
    with pytest.raises(InputError, match=r"scannetv2_val\.txt, line 3: 'scene11' is no scene"):
        scannet.plan(root, scannet_options(root, "val"))
    val.write_text("scene0011_00\nscene0700_00\n")
    plan = scannet.plan(root, scannet_options(root, "val"))
    assert [unit.name for unit in plan.units] == ["scene0011_00"]
    assert "1 scenes of the val list are not in" in plan.notes[0]
    with pytest.raises(InputError, match="cannot read the scene list"):
        scannet.plan(root, scannet_options(root, "train", "test"))
    with pytest.raises(InputError, match="holds no scene"):
        scannet.plan(tmp_path / "scans" / "scene0000_00" / "nothing", scannet_options(root, "val"))


def test_scannet_test_scenes_need_no_labels(meshes):
    root, _ = meshes
    (root / "scannetv2_test.txt").write_text("scene0011_00\n")
    (root / "scans" / "scene0011_00" / "scene0011_00_vh_clean_2.labels.ply").unlink()
    plan = scannet.plan(root, scannet_options(root, "train", "test"))
    assert "labels" not in scannet.read(by_name(plan)["scene0011_00"]).columns


def test_scannet_damage_is_told_by_file_and_place(meshes):
    root, expected = meshes
    unit = by_name(scannet.plan(root, scannet_options(root, "train")))["scene0000_00"]
    mesh, labels = unit.files
    whole = mesh.read_bytes()
    for length, message in ((len(whole) - 20, "cut short"), (len(whole) // 3, "cut short")):
        mesh.write_bytes(whole[:length])
        with pytest.raises(InputError, match=f"{mesh.name} .*{message}"):
            scannet.read(unit)
    changed = {**expected["scene0000_00"]}
    changed["faces"] = changed["faces"].copy()
    changed["faces"][3, 1] = 10_000
    raw_layouts.write_mesh(mesh, changed)
    with pytest.raises(InputError, match=r"face 3: .*10000"):
        scannet.read(unit)
    changed["faces"] = changed["faces"][:0]
    raw_layouts.write_mesh(mesh, changed)
    with pytest.raises(InputError, match="has no faces"):
        scannet.read(unit)
    mesh.write_bytes(whole)
    changed = {**expected["scene0000_00"]}
    changed["labels"] = changed["labels"].copy()
    changed["labels"][7] = 41
    raw_layouts.write_mesh(labels, changed, with_labels=True)
    with pytest.raises(InputError, match="vertex 7: 41 is no NYU40 label"):
        scannet.read(unit)
    raw_layouts.write_mesh(labels, expected["scene0000_00"])
    with pytest.raises(InputError, match="has no vertex property 'label'"):
        scannet.read(unit)
    few = {name: column[:-1] for name, column in expected["scene0000_00"].items()}
    few["faces"] = few["faces"][:1]
    raw_layouts.write_mesh(labels, few, with_labels=True)
    with pytest.raises(InputError, match="labels 143 vertices, the mesh has 144"):
        scannet.read(unit)


# SemanticKITTI


@pytest.fixture
def scans(tmp_path):
    return tmp_path, raw_layouts.write_semantickitti(tmp_path, points=300)


def test_semantickitti_scans_hold_points_remission_and_the_19_classes(scans):
    root, expected = scans
    plan = semantickitti.plan(root, Options())
    assert {unit.name: unit.split for unit in plan.units} == {
        "00_000000": "train",
        "00_000001": "train",
        "08_000000": "val",
        "11_000000": "test",
    }
    names = [info.name for info in plan.classes]
    assert tuple(names) == CLASS_NAMES["semantickitti"]
    for unit in plan.units:
        values, ids = expected[unit.name]
        record = semantickitti.read(unit)
        assert np.array_equal(record.columns["points"], values[:, :3])
        assert np.array_equal(record.columns["intensity"], values[:, 3])
        if ids is None:
            assert "labels" not in record.columns
            continue
        index_of = {40: names.index("road"), 50: names.index("building"), 252: 0, 99: -1}
        wanted = [index_of[int(i) & 0xFFFF] for i in ids]
        assert record.columns["labels"].tolist() == wanted
        assert names[0] == "car"


def test_semantickitti_learning_map_is_the_published_one():
    # semantic-kitti.yaml, learning_map: 0 there is "unlabeled", ours is -1.
    published = {0: 0, 1: 0, 10: 1, 11: 2, 13: 5, 15: 3, 16: 5, 18: 4, 20: 5, 30: 6, 31: 7, 32: 8}
    published |= {40: 9, 44: 10, 48: 11, 49: 12, 50: 13, 51: 14, 52: 0, 60: 9, 70: 15, 71: 16}
    published |= {72: 17, 80: 18, 81: 19, 99: 0, 252: 1, 253: 7, 254: 6, 255: 8, 256: 5, 257: 5}
    published |= {258: 4, 259: 5}
    ours = dict.fromkeys(semantickitti.IGNORED_LABELS, 0)
    for number, (_, ids, _) in enumerate(semantickitti.LABELS, start=1):
        ours |= dict.fromkeys(ids, number)
    assert ours == published


def test_semantickitti_damage_is_told_by_file_and_byte(scans):
    root, _ = scans
    unit = by_name(semantickitti.plan(root, Options()))["00_000000"]
    scan, labels = unit.files
    whole, marks = scan.read_bytes(), labels.read_bytes()
    scan.write_bytes(whole[:-7])
    with pytest.raises(InputError, match=rf"{scan.name} is cut short: .*begins at byte 4784"):
        semantickitti.read(unit)
    scan.write_bytes(b"")
    with pytest.raises(InputError, match="cut short: 0 bytes"):
        semantickitti.read(unit)
    broken = np.frombuffer(whole, "<f4").copy()
    broken[4 * 5 + 1] = np.nan
    broken.tofile(scan)
    with pytest.raises(InputError, match=r"000000\.bin, byte 80: point 5 is not finite"):
        semantickitti.read(unit)
    scan.write_bytes(whole)
    labels.write_bytes(marks[:-8])
    with pytest.raises(InputError, match=r"000000\.label labels 298 points, the scan has 300"):
        semantickitti.read(unit)
    strange = np.frombuffer(marks, "<u4").copy()
    strange[3] = 7 << 16 | 45
    strange.tofile(labels)
    with pytest.raises(InputError, match=r"000000\.label, byte 12: 45 is no label"):
        semantickitti.read(unit)


def test_semantickitti_needs_its_sequences_folder(scans, tmp_path):
    root, expected = scans
    assert len(semantickitti.plan(root / "sequences", Options()).units) == len(expected)
    with pytest.raises(InputError, match="has no folder sequences"):
        semantickitti.plan(root / "sequences" / "00", Options())


# Folders


def test_folders_store_what_the_configuration_wants(tmp_path):
    config, clouds = raw_layouts.write_folder(tmp_path, points=500)
    plan = folder.plan(tmp_path, Options(config=config))
    assert {unit.name: unit.split for unit in plan.units} == {
        "north__a": "train",
        "north__b": "train",
        "c": "val",
    }
    assert plan.grid == 0.1
    for name, unit in (("north/b.ply", "north__b"), ("c.npz", "c"), ("north/a.laz", "north__a")):
        cloud, record = clouds[name], folder.read(by_name(plan)[unit])
        codes = cloud.columns["classification"]
        wanted = np.where(codes == 0, -1, np.where(codes == 2, 0, 1))
        assert np.array_equal(record.columns["labels"], wanted)
        assert np.allclose(record.columns["points"], cloud.points, atol=2e-3)
        assert np.array_equal(record.columns["intensity"], cloud.columns["intensity"])
        green = read_cloud(tmp_path / name).columns["green"]
        assert np.array_equal(record.columns["color"][:, 1], green)
        assert sorted(record.columns) == [
            "color",
            "height_above_ground",
            "intensity",
            "labels",
            "points",
        ]


def test_folders_of_nameless_columns_take_their_names_from_the_configuration(tmp_path):
    config, clouds = raw_layouts.write_folder(tmp_path, points=300)
    cloud = clouds["c.npz"]
    names = ["x", "y", "z", *cloud.columns]
    np.save(tmp_path / "c.npy", np.column_stack([cloud.points, *cloud.columns.values()]))
    expected = folder.read(by_name(folder.plan(tmp_path, Options(config=config)))["c"])
    text = config.read_text().replace("c.npz", "c.npy")
    config.write_text(text.replace("[data]\n", f"[data]\ncolumns = {names}\n", 1))
    record = folder.read(by_name(folder.plan(tmp_path, Options(config=config)))["c"])
    assert sorted(record.columns) == sorted(expected.columns)
    for name, column in expected.columns.items():
        assert np.array_equal(record.columns[name], column), name


def test_folders_need_a_fitting_configuration(tmp_path):
    config, clouds = raw_layouts.write_folder(tmp_path, points=300)
    with pytest.raises(InputError, match="needs --config"):
        folder.plan(tmp_path, Options())
    text = config.read_text()
    config.write_text(text.replace('kind = "folder"', 'kind = "prepared"'))
    with pytest.raises(ConfigError, match=r"data.kind is 'prepared'"):
        folder.plan(tmp_path, Options(config=config))
    config.write_text(text.replace('"intensity"', '"curvature"'))
    unit = by_name(folder.plan(tmp_path, Options(config=config)))["c"]
    with pytest.raises(InputError, match=r"c\.npz has no column 'curvature'; columns present"):
        folder.read(unit)
    config.write_text(text.replace("codes = [5, 6]", "codes = [5]"))
    unit = by_name(folder.plan(tmp_path, Options(config=config)))["c"]
    with pytest.raises(InputError, match=r"c\.npz: label values outside .*6 \("):
        folder.read(unit)
    assert clouds


def test_two_files_that_would_be_one_scene_are_refused(tmp_path):
    config, clouds = raw_layouts.write_folder(tmp_path, points=300)
    from dela.cloud.formats import write_cloud

    write_cloud(tmp_path / "north" / "a.npz", clouds["c.npz"])
    with pytest.raises(InputError, match="would both be the scene 'north__a'; rename one"):
        folder.plan(tmp_path, Options(config=config))
