"""predict, verify, info, view and doctor as commands: files, tables, exit codes, bad input."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from rich.console import Console

from dela.cli import main as cli
from dela.cloud.formats import FORMATS, read_cloud, write_cloud
from dela.cloud.point_cloud import PointCloud
from dela.runtime import Predictor, doctor, load_backend
from dela.runtime.cli.tables import findings_table, predictions_table
from dela.scan.context import context_points
from dela.scan.tiles import context_width
from small_networks import make_cloud


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]):
    """Runs a command line: exit code, standard output, standard error."""

    def run_line(*words: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            cli.main([str(word) for word in words])
        captured = capsys.readouterr()
        return int(ended.value.code), captured.out, captured.err

    return run_line


def assert_failed_in_words(result: tuple[int, str, str], *parts: str) -> None:
    code, _, error = result
    assert code == 1, error
    lines = error.strip().splitlines()
    assert 1 <= len(lines) <= 2 and "Traceback" not in error, error
    assert "not foreseen" not in error, error
    for part in parts:
        assert part in error, error


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    return write_cloud(tmp_path / "scan.laz", make_cloud())


@pytest.mark.parametrize("suffix", [".laz", ".las", ".ply", ".npz"])
def test_predict_keeps_order_and_every_column(run, network, tmp_path, suffix):
    path = write_cloud(tmp_path / f"scan{suffix}", make_cloud())
    before = read_cloud(path)
    code, out, error = run("predict", path, "-m", network.onnx)
    assert code == 0, error
    after = read_cloud(tmp_path / f"scan_labelled{suffix}")
    assert np.array_equal(after.points, before.points)
    las = suffix in (".las", ".laz")
    label = "classification" if las else "label"
    assert set(np.unique(after.columns[label])) <= {2, 5, 6}
    assert after.columns["confidence"].min() >= 1 / 3 and after.columns["confidence"].max() <= 1
    for name, column in before.columns.items():
        kept = f"input_{name}" if name == label else name
        assert np.array_equal(after.columns[kept], column), name
    for word in ("voxels", "network", "low", "share", f"scan_labelled{suffix}"):
        assert word in out


def test_predict_keeps_the_coordinate_reference(run, network, lidar_dir, tmp_path):
    laspy = pytest.importorskip("laspy")
    source = lidar_dir / "tile_77060_627755.laz"
    with laspy.open(source) as reader:
        record, header = reader.read_points(-1), reader.header
    cloud = read_cloud(source)
    for name in ("red", "green", "blue"):
        cloud.columns[name] = np.full(len(cloud), 100, dtype=np.uint8)
    colored = write_cloud(tmp_path / "tile.laz", cloud)
    code, _, error = run("predict", colored, "-m", network.onnx)
    assert code == 0, error
    with laspy.open(tmp_path / "tile_labelled.laz") as reader:
        written, new = reader.read_points(-1), reader.header
    assert [str(vlr.record_data_bytes()) for vlr in new.vlrs.get("WktCoordinateSystemVlr")] == [
        str(vlr.record_data_bytes()) for vlr in header.vlrs.get("WktCoordinateSystemVlr")
    ]
    for axis in "XYZ":
        assert np.array_equal(written[axis], record[axis])
    for name in ("intensity", "return_number", "gps_time"):
        assert np.array_equal(written[name], record[name])
    assert np.array_equal(written["input_classification"], record["classification"])


def test_predict_a_second_time_keeps_the_first_input(run, network, tmp_path):
    path = write_cloud(tmp_path / "scan.las", make_cloud())
    run("predict", path, "-m", network.onnx, "-o", tmp_path / "once.las")
    run("predict", tmp_path / "once.las", "-m", network.onnx, "-o", tmp_path / "twice.las")
    truth = read_cloud(path).columns["classification"]
    twice = read_cloud(tmp_path / "twice.las")
    assert np.array_equal(twice.columns["input_classification"], truth)


def test_a_suffix_entered_in_the_table_is_known_to_every_command(run, network, tmp_path):
    own = dataclasses.replace(FORMATS[".npz"], name="TOY", label_column="kind", unlabelled=-7)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(FORMATS, ".toy", own)
        scan = write_cloud(tmp_path / "scan.toy", make_cloud())
        code, _, error = run("predict", tmp_path, "-m", network.onnx, "-o", tmp_path / "out")
        assert code == 0, error
        kinds = read_cloud(tmp_path / "out" / "scan_labelled.toy").columns["kind"]
        assert set(np.unique(kinds)) <= {2, 5, 6} and kinds.dtype == np.int32
        assert run("info", scan)[0] == 0
    assert "unknown suffix '.toy'" in run("info", scan)[2]


def test_predict_json_and_scores(run, network, scan, tmp_path):
    words = ["predict", scan, "-m", network.onnx, "-o", tmp_path / "out.ply"]
    code, out, error = run(*words, "--json", "--truth", "classification", "--votes", 2)
    assert code == 0, error
    (result,) = json.loads(out)["results"]
    assert result["points"] == 4000 and sum(result["classes"].values()) == 4000
    assert set(result["seconds"]) == {"read", "pyramid", "network", "write"}
    assert result["tiles"] == 2
    predicted = read_cloud(tmp_path / "out.ply").columns["label"]
    truth = read_cloud(scan).columns["classification"]
    assert result["scores"]["oa"] == pytest.approx(np.mean(predicted == truth))


def test_true_codes_can_be_mapped_to_classes(run, network, scan, tmp_path):
    words = ["predict", scan, "-m", network.onnx, "-o", tmp_path / "out.npz", "--json"]
    words += ["--truth", "return_number", "--map", "0=5"]
    code, out, error = run(*words)
    assert code == 0, error
    scores = json.loads(out)["results"][0]["scores"]
    assert [row["points"] for row in scores["classes"]] == [0, 4000, 0]
    code, _, error = run(*words, "--map", "0:5", "--overwrite")
    assert code == 2 and "--map 0:5: give two label codes" in error
    assert_failed_in_words(run(*words, "--map", "0=99", "--overwrite"), "99")


def test_true_codes_without_a_class_are_told(run, network, tmp_path):
    cloud = make_cloud(600)
    codes = np.full(600, 5, np.int32)
    codes[:30], codes[30:40] = 9, -1
    scan = write_cloud(
        tmp_path / "scan.ply", PointCloud(cloud.points, {**cloud.columns, "truth": codes})
    )
    words = ["predict", scan, "-m", network.onnx, "-o", tmp_path / "out.ply", "--json"]
    code, out, error = run(*words, "--truth", "truth")
    assert code == 0 and json.loads(out)["results"][0]["unscored"] == 40
    assert "40 points are not scored: no class has their true code (-1, 9); --map" in error
    code, _, error = run(*words, "--truth", "truth", "--map", "9=5", "--map=-1=5", "--overwrite")
    assert code == 0 and "not scored" not in error


def test_predict_a_folder_passes_over_results_and_survives_a_bad_file(run, network, tmp_path):
    folder = tmp_path / "scans"
    folder.mkdir()
    write_cloud(folder / "a.ply", make_cloud(500))
    write_cloud(folder / "b_labelled.ply", make_cloud(500))
    (folder / "broken.laz").write_bytes(b"LASF but nothing more")
    words = ["predict", folder, "-m", network.onnx]
    done = run(*words)
    assert_failed_in_words(done, "broken.laz", "1 of 2 scans failed")
    head, *rows = done[1].partition("failed ")[2].splitlines()
    assert head.split() == ["why"] and "is cut short" in "".join(rows)
    assert (folder / "a_labelled.ply").exists()
    assert not (folder / "b_labelled_labelled.ply").exists()
    assert sorted(path.name for path in folder.iterdir()) == [
        "a.ply", "a_labelled.ply", "b_labelled.ply", "broken.laz",
    ]  # fmt: skip


def test_neighbouring_files_are_context(run, network, tmp_path):
    whole = make_cloud(6000, (4.0, 2.0, 0.5))
    west = whole.points[:, 0] < np.median(whole.points[:, 0])
    tiles = tmp_path / "tiles"
    tiles.mkdir()
    for name, rows in (("west", west), ("east", ~west)):
        write_cloud(tiles / f"{name}.laz", whole.select(rows))
    write_cloud(tiles / "west_labelled.laz", make_cloud())  # an earlier result is no neighbor
    scan, alone, beside = tiles / "west.laz", tmp_path / "alone.npz", tmp_path / "beside.npz"
    assert run("predict", scan, "-m", network.onnx, "-o", alone)[0] == 0
    code, _, error = run("predict", scan, "-m", network.onnx, "-o", beside, "--context", tiles)
    assert code == 0, error
    cloud, other = read_cloud(scan), read_cloud(tiles / "east.laz")
    near = context_points(cloud, [other], context_width(network.config))
    assert 0 < len(near) < len(other)
    expected = Predictor(load_backend(network.onnx)).predict(cloud, around=near)
    found = read_cloud(beside)
    assert np.array_equal(found.columns["confidence"], expected.confidence)
    assert not np.array_equal(read_cloud(alone).columns["confidence"], expected.confidence)


def test_predict_into_a_new_folder(run, network, scan, tmp_path):
    code, _, error = run("predict", scan, "-m", network.onnx, "-o", tmp_path / "deep" / "out")
    assert code == 0, error
    assert (tmp_path / "deep" / "out" / "scan_labelled.laz").exists()


def test_two_scans_for_one_output_are_refused(run, network, tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write_cloud(tmp_path / name / "scan.ply", make_cloud(100))
    words = ["predict", tmp_path / "a", tmp_path / "b", "-m", network.onnx]
    assert_failed_in_words(run(*words, "-o", tmp_path / "out.ply"), "one file for 2 scans")
    assert_failed_in_words(run(*words, "-o", tmp_path / "out"), "would both be written")


def test_nothing_is_overwritten_unasked(run, network, scan):
    assert run("predict", scan, "-m", network.onnx)[0] == 0
    target = scan.with_name("scan_labelled.laz")
    before = target.read_bytes()
    assert_failed_in_words(run("predict", scan, "-m", network.onnx), "--overwrite")
    assert target.read_bytes() == before
    assert run("predict", scan, "-m", network.onnx, "--overwrite")[0] == 0


def test_without_kernels_the_labels_are_the_same(run, network, scan, tmp_path):
    run("predict", scan, "-m", network.onnx, "-o", tmp_path / "a.npz")
    run("predict", scan, "-m", network.onnx, "-o", tmp_path / "b.npz", "--no-kernels")
    run("predict", scan, "-m", network.checkpoint, "-o", tmp_path / "c.npz")
    labels = [read_cloud(tmp_path / f"{name}.npz").columns["label"] for name in "abc"]
    assert np.mean(labels[0] == labels[1]) >= 0.9999
    assert np.mean(labels[0] == labels[2]) >= 0.9999


def test_invalid_points_keep_their_place(run, network, tmp_path):
    cloud = make_cloud()
    cloud.points[7, 1] = np.nan
    path = write_cloud(tmp_path / "scan.ply", cloud)
    assert_failed_in_words(run("predict", path, "-m", network.onnx), "1 of 4000", "--drop-invalid")
    code, out, error = run("predict", path, "-m", network.onnx, "--drop-invalid")
    assert code == 0, error
    assert "not finite" in out
    labels = read_cloud(tmp_path / "scan_labelled.ply").columns["label"]
    assert labels[7] == -1 and (np.delete(labels, 7) > 0).all()


class TestBadInput:
    def test_missing_file(self, run, network, tmp_path):
        words = ["predict", tmp_path / "none.laz", "-m", network.onnx]
        assert_failed_in_words(run(*words), "none.laz does not exist")

    def test_truncated_laz(self, run, network, scan):
        scan.write_bytes(scan.read_bytes()[:-9000])
        assert_failed_in_words(run("predict", scan, "-m", network.onnx), "scan.laz", "cut short")
        assert not scan.with_name("scan_labelled.laz").exists()

    def test_ply_without_z(self, run, network, tmp_path):
        path = tmp_path / "flat.ply"
        path.write_text(
            "ply\nformat ascii 1.0\nelement vertex 1\nproperty float x\nproperty float y\n"
            "end_header\n1 2\n"
        )
        assert_failed_in_words(run("predict", path, "-m", network.onnx), "flat.ply", " z")

    def test_empty_cloud(self, run, network, tmp_path):
        path = write_cloud(tmp_path / "empty.ply", make_cloud(0))
        assert_failed_in_words(run("predict", path, "-m", network.onnx), "empty")

    def test_all_points_in_one_voxel(self, run, network, tmp_path):
        path = write_cloud(tmp_path / "dot.ply", make_cloud(50, (0.01, 0.01, 0.01)))
        assert_failed_in_words(run("predict", path, "-m", network.onnx), "one voxel")

    def test_wrong_columns(self, run, network, tmp_path):
        cloud = PointCloud(make_cloud(100).points, {"intensity": np.ones(100, np.uint16)})
        path = write_cloud(tmp_path / "grey.ply", cloud)
        assert_failed_in_words(
            run("predict", path, "-m", network.onnx), "'red'", "red, green, blue, height"
        )

    def test_foreign_onnx(self, run, scan, tmp_path):
        value = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
        other = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1])
        node = onnx.helper.make_node("Relu", ["x"], ["y"])
        model = onnx.helper.make_model(
            onnx.helper.make_graph([node], "g", [value], [other]),
            opset_imports=[onnx.helper.make_opsetid("", 20)],
            ir_version=10,
        )
        onnx.save(model, tmp_path / "foreign.onnx")
        words = ["predict", scan, "-m", tmp_path / "foreign.onnx"]
        assert_failed_in_words(run(*words), "foreign.onnx", "metadata")

    def test_a_checkpoint_of_another_version(self, run, network, scan, tmp_path):
        import torch

        content = torch.load(network.checkpoint, weights_only=True)
        content["version"] = 99
        torch.save(content, tmp_path / "newer.pt")
        assert_failed_in_words(run("predict", scan, "-m", tmp_path / "newer.pt"), "version 99")

    def test_an_output_that_cannot_be_written(self, run, network, scan, tmp_path):
        words = ["predict", scan, "-m", network.onnx, "-o"]
        assert_failed_in_words(run(*words, tmp_path / "no" / "x.laz"), "does not exist")
        assert_failed_in_words(run(*words, "/proc/x.laz"), "cannot write /proc/x.laz")
        (tmp_path / "file").write_text("")
        assert_failed_in_words(run(*words, tmp_path / "file" / "out"), "cannot make the folder")

    @pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
    def test_a_full_disk_leaves_nothing_behind(self, run, network, scan, tmp_path, monkeypatch):
        import errno

        from dela.cloud import formats

        def full(path: Path, cloud: PointCloud) -> None:
            path.write_bytes(b"half of it")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setitem(formats.FORMATS, ".npz", formats.Format("NPZ", read_cloud, full))
        before = sorted(tmp_path.iterdir())
        words = ["predict", scan, "-m", network.onnx, "-o", tmp_path / "out.npz"]
        assert_failed_in_words(run(*words), "disk is full")
        assert sorted(tmp_path.iterdir()) == before


def test_the_scan_itself_is_never_overwritten(run, network, scan):
    before = scan.read_bytes()
    words = ["predict", scan, "-m", network.onnx, "-o", scan, "--overwrite"]
    assert_failed_in_words(run(*words), "is the input itself")
    assert scan.read_bytes() == before


def test_a_failure_before_the_first_scan_makes_no_folder(run, network, scan, tmp_path):
    words = ["predict", scan, "-m", tmp_path / "none.onnx", "-o", tmp_path / "out"]
    assert_failed_in_words(run(*words), "none.onnx does not exist")
    words = ["predict", scan, "-m", network.onnx, "-o", tmp_path / "out.obj"]
    assert_failed_in_words(run(*words), "out.obj has no suffix of a scan")
    assert sorted(tmp_path.iterdir()) == [scan]


@pytest.mark.parametrize("command", ["verify", "view"])
def test_errors_about_a_scan_name_it(run, network, tmp_path, command):
    pytest.importorskip("PIL.Image")
    path = write_cloud(tmp_path / "empty.ply", make_cloud(0))
    words = {
        "verify": [network.onnx, "--checkpoint", network.checkpoint, "-i", path],
        "view": [path],
    }
    assert_failed_in_words(run(command, *words[command]), "empty.ply: ")
    assert list(tmp_path.iterdir()) == [path]


def test_view_leaves_out_points_that_are_not_finite(run, tmp_path):
    pytest.importorskip("PIL.Image")
    cloud = make_cloud(500)
    cloud.points[3] = np.nan
    cloud = PointCloud(cloud.points, {})
    path = write_cloud(tmp_path / "scan.ply", cloud)
    code, _, error = run("view", path, "--width", 300)
    assert code == 0 and error == ""


def test_long_paths_are_shown_whole(capsys):
    path = "/data/" + "survey_of_the_northern_valley/" * 6 + "scan.laz"
    finding = doctor.Finding("native library", doctor.OK, path)
    seconds = dict.fromkeys(("read", "pyramid", "network", "write"), 0.0)
    result = {"input": path, "points": 1, "voxels": 1, "tiles": 1, "seconds": seconds}
    for table in (findings_table([finding]), predictions_table([result])):
        Console(width=80).print(table)
        out = capsys.readouterr().out
        assert "…" not in out
        assert max(len(line) for line in out.splitlines()) <= 80
        assert "scan.laz" in out.replace("\n", "").replace(" ", "")


def test_verify_passes_a_true_export_and_prints_both_columns(run, network, scan):
    words = ["verify", network.onnx, "--checkpoint", network.checkpoint, "--input", scan]
    code, out, error = run(*words)
    assert code == 0, error
    for word in ("our kernels", "function bodies", "label agreement", "cosine", "passed"):
        assert word in out
    assert "FAILED" not in out and error == ""
    code, out, _ = run(*words, "--json", "--no-kernels")
    (report,) = json.loads(out)["reports"]
    assert report["backend"] == "function bodies" and report["passed"]
    assert report["max_relative_error"] <= 1e-4 and report["label_agreement"] >= 0.9999


def test_verify_ends_with_1_on_a_broken_weight(run, network, scan, tmp_path):
    model = onnx.load(network.onnx)
    weight = next(t for t in model.graph.initializer if len(t.dims) == 2 and min(t.dims) > 8)
    values = onnx.numpy_helper.to_array(weight).copy()
    values *= 1.5
    weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
    onnx.save(model, tmp_path / "broken.onnx")
    words = ["verify", tmp_path / "broken.onnx", "--checkpoint", network.checkpoint]
    result = run(*words, "-i", scan)
    assert_failed_in_words(result, "does not give PyTorch's answer", "our kernels")
    assert "FAILED" in result[1]


def test_verify_tolerance_can_be_set(run, network, scan):
    words = ["verify", network.onnx, "--checkpoint", network.checkpoint, "-i", scan]
    assert_failed_in_words(run(*words, "--tolerance", "0"), "allowed 0e+00")


def test_verify_says_when_the_checkpoint_is_another(run, network, scan, tmp_path):
    import torch

    content = torch.load(network.checkpoint, weights_only=True)
    content["extra"] = {"note": "other bytes, same weights"}
    torch.save(content, tmp_path / "other.pt")
    words = ["verify", network.onnx, "--checkpoint", tmp_path / "other.pt", "-i", scan]
    code, _, error = run(*words)
    assert code == 0
    assert error.startswith("warning:") and "another checkpoint" in error


def test_info_describes_each_kind(run, network, scan):
    code, out, _ = run("info", network.checkpoint)
    assert code == 0 and "checkpoint" in out and "middle, code 5" in out and "sha256" in out
    code, out, _ = run("info", network.onnx, "--json")
    values = json.loads(out)
    assert values["kind"] == "onnx" and values["dtype"] == "fp32"
    assert [item["name"] for item in values["inputs"]][:2] == ["points", "attributes"]
    code, out, _ = run("info", scan, "--json")
    values = json.loads(out)
    assert values["kind"] == "scan" and values["points"] == 4000
    assert values["columns"]["intensity"]["most"] < 4000
    assert_failed_in_words(run("info", scan.parent), "is a folder")
    assert_failed_in_words(run("info", __file__), "unknown suffix '.py'")
    single = write_cloud(scan.with_name("one.ply"), make_cloud(1))
    code, out, _ = run("info", single, "--json")
    assert code == 0 and "points_per_square_metre" not in json.loads(out)


def test_view_draws_truth_beside_prediction(run, network, scan, tmp_path):
    Image = pytest.importorskip("PIL.Image")
    run("predict", scan, "-m", network.onnx)
    labelled = scan.with_name("scan_labelled.laz")
    code, out, error = run("view", labelled, "-m", network.onnx, "--width", 640)
    assert code == 0, error
    assert out.strip() == str(labelled.with_suffix(".png"))
    with Image.open(labelled.with_suffix(".png")) as picture:
        assert picture.width == 640 and picture.height > 400
    code, _, error = run("view", scan, "--width", 400, "-o", tmp_path / "plain.png")
    assert code == 0, error
    assert_failed_in_words(run("view", scan, "-o", tmp_path / "x.jpg"), ".png")


def test_predict_draws_on_request(run, network, scan):
    code, out, error = run("predict", scan, "-m", network.onnx, "--picture")
    assert code == 0, error
    assert scan.with_name("scan_labelled.png").stat().st_size > 5000
    assert "scan_labelled.png" in out


def test_doctor_finds_this_installation_whole(run):
    code, out, error = run("doctor")
    assert code == 0, error
    assert "instruction set" in out and "onnxruntime" in out


def test_doctor_warns_of_two_onnxruntimes(run, monkeypatch):
    from dela.runtime import doctor

    true_version = doctor._version
    monkeypatch.setattr(
        doctor, "_version", lambda name: "1.0" if "onnxruntime" in name else true_version(name)
    )
    code, out, _ = run("doctor")
    assert code == 0
    assert "warning" in out and "overwrite each other" in out.replace("\n", " ")


def test_doctor_ends_with_1_when_the_library_is_missing(run, monkeypatch):
    from dela.plugins import native

    def missing() -> Path:
        raise native.NativeLibraryError("native library libdela.so not found")

    monkeypatch.setattr(native, "library_path", missing)
    code, out, error = run("doctor")
    assert code == 1 and "broken" in out
    assert "native library" in error


def test_prediction_runs_where_torch_cannot_be_imported(network, scan, tmp_path):
    """Everything a deployment does, with torch, onnx and scipy blocked."""
    script = (
        "import sys\n"
        "for name in ('torch', 'onnx', 'onnxscript', 'scipy'):\n    sys.modules[name] = None\n"
        "from dela.cli.main import main\n"
        "main(sys.argv[1:])\n"
    )

    def blocked(*words: object) -> subprocess.CompletedProcess[str]:
        line = [sys.executable, "-c", script, *(str(word) for word in words)]
        return subprocess.run(line, capture_output=True, text=True)

    done = blocked("predict", scan, "-m", network.onnx, "-o", tmp_path / "out.ply")
    assert done.returncode == 0, done.stderr
    assert len(read_cloud(tmp_path / "out.ply")) == 4000
    assert blocked("info", network.onnx).returncode == 0
    assert blocked("doctor").returncode == 0
    for words in (
        ["predict", scan, "-m", network.checkpoint, "-o", tmp_path / "x.ply"],
        ["verify", network.onnx, "--checkpoint", network.checkpoint, "-i", scan],
        ["export", network.checkpoint, "-o", tmp_path / "x.onnx"],
        ["train", "rooms", "-o", tmp_path / "run"],
    ):
        done = blocked(*words)
        assert_failed_in_words(
            (done.returncode, done.stdout, done.stderr),
            "which is not installed",
            "pip install 'dela[train]'",
        )


def test_columns_are_named_on_every_command_that_reads(run, network, tmp_path):
    cloud = make_cloud()
    names = [*"xyz", *cloud.columns]
    table = np.column_stack([cloud.points, *cloud.columns.values()])
    path, named = tmp_path / "scan.npy", ("--columns", ",".join(names))
    np.save(path, table)
    code, _, error = run("predict", path, "-m", network.onnx)
    assert code == 1 and "--columns" in error
    code, out, error = run("predict", path, "-m", network.onnx, *named, "--json")
    assert code == 0, error
    expected = Predictor(load_backend(network.onnx)).predict(cloud).labels
    labelled = read_cloud(json.loads(out)["results"][0]["output"])
    np.testing.assert_array_equal(labelled.columns["label"], expected)
    for words in (
        ("verify", network.onnx, "--checkpoint", network.checkpoint, "-i", path),
        ("bench", network.onnx, "-i", path, "--repeat", 1, "--warmup", 0),
        ("info", path),
        ("view", path, "--width", 300),
    ):
        assert run(*words, *named)[0] == 0
        code, _, error = run(*words, "--columns", "x,y", *(["--overwrite"] * (words[0] == "view")))
        assert code == 1 and "z missing" in error


def test_kitti_scans_are_labelled_in_files_of_their_own(run, network, tmp_path):
    cloud = make_cloud()
    names = ["x", "y", "z", *cloud.columns]
    near = cloud.points - cloud.points.min(axis=0)
    values = np.column_stack([near, *cloud.columns.values()]).astype("<f4")
    for name in ("000000", "000001"):
        values.tofile(tmp_path / f"{name}.bin")
    named = ("--columns", ",".join(names))
    code, _, error = run("predict", tmp_path, "-m", network.onnx, *named)
    assert code == 0, error
    again = PointCloud(
        values[:, :3], dict(zip(cloud.columns, values[:, 3:].T.astype(float), strict=True))
    )
    expected = Predictor(load_backend(network.onnx)).predict(again).labels
    for name in ("000000", "000001"):
        np.testing.assert_array_equal(np.fromfile(tmp_path / f"{name}.label", "<u4"), expected)
    words = ("predict", tmp_path / "000000.bin", "-m", network.onnx, *named, "-o")
    assert_failed_in_words(run(*words, tmp_path / "b.bin"), "a .bin holds no labels")
    code, _, error = run(*words, tmp_path / "b.ply")
    assert code == 0, error
    np.testing.assert_array_equal(read_cloud(tmp_path / "b.ply").columns["label"], expected)


def test_info_tells_the_density_of_sparse_scans(run, tmp_path):
    scan = write_cloud(tmp_path / "scan.npz", PointCloud(np.eye(3) * 1000, {}))
    code, out, _ = run("info", scan, "--json")
    assert code == 0 and json.loads(out)["points_per_square_metre"] == 3e-6
