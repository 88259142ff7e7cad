"""Preparing a dataset: in parallel, resumed, checked, and with malformed files among the others."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import raw_layouts
from dela.cli.main import main, run_command
from dela.errors import InputError
from dela.training.cli.data import DatasetName
from dela.training.prepare import DATASETS, store, worker
from dela.training.prepare.plan import Options
from dela.training.prepare.runner import prepare

# In this process.
SERIAL = Options(workers=1)


def quiet(*_: object) -> None:
    pass


def contents(out: Path) -> dict[str, bytes]:
    """Every file of a prepared folder."""
    return {
        str(path.relative_to(out)): path.read_bytes()
        for path in sorted(out.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def raw_rooms(tmp_path_factory):
    root = tmp_path_factory.mktemp("s3dis")
    raw_layouts.write_s3dis(root, points=300)
    return root


@pytest.fixture
def rooms(raw_rooms, tmp_path):
    """Raw rooms that a test may change, and where to prepare them."""
    shutil.copytree(raw_rooms, tmp_path / "raw")
    return tmp_path / "raw", tmp_path / "out"


def command(capsys, *words: object) -> tuple[int, str, str]:
    """Exit code, standard output and error of a command line."""
    with pytest.raises(SystemExit) as ended:
        main([str(word) for word in words])
    captured = capsys.readouterr()
    return ended.value.code, captured.out, captured.err


def test_the_commands_choices_are_the_datasets():
    assert [choice.value for choice in DatasetName] == list(DATASETS)


def test_parallel_and_serial_results_are_the_same_files(rooms):
    raw, out = rooms
    done = []
    serial = prepare(
        "s3dis", raw, out, SERIAL, log=quiet, progress=lambda *facts: done.append(facts)
    )
    parallel = prepare("s3dis", raw, out.with_name("other"), Options(workers=2), log=quiet)
    assert serial.prepared == parallel.prepared == 4 and not serial.failed
    assert contents(out) == contents(out.with_name("other"))
    assert [count for count, _, _ in done] == [1, 2, 3, 4] and {total for _, total, _ in done} == {
        4
    }


def test_the_manifest_tells_splits_counts_and_sizes(rooms):
    raw, out = rooms
    summary = prepare("s3dis", raw, out, SERIAL, log=quiet)
    manifest = store.read_manifest(out)
    assert manifest["splits"] == {
        "train": ["Area_1_office_1", "Area_3_hallway_2", "Area_6_copyRoom_1"],
        "val": ["Area_5_office_1"],
        "test": [],
    }
    labels = [
        store.load_column(out / store.SCENES / name, "labels")
        for name in manifest["splits"]["train"]
    ]
    counts = np.bincount(np.concatenate(labels), minlength=13)
    assert manifest["counts"]["train"] == counts.tolist()
    assert manifest["scenes"]["Area_5_office_1"]["points"] == 300
    assert manifest["source"] == str(raw) and manifest["complete"] is True
    assert summary.to_dict()["splits"]["train"] == {"scenes": 3, "clouds": 3, "points": 900}


def test_a_second_run_keeps_everything(rooms):
    raw, out = rooms
    prepare("s3dis", raw, out, SERIAL, log=quiet)
    before = contents(out)
    times = {path: path.stat().st_mtime_ns for path in out.rglob("*.npy")}
    again = prepare("s3dis", raw, out, SERIAL, log=quiet)
    assert (again.prepared, again.kept) == (0, 4)
    assert contents(out) == before
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*.npy")} == times


def test_changed_raw_files_settings_and_columns_are_made_anew(rooms):
    raw, out = rooms
    prepare("s3dis", raw, out, SERIAL, log=quiet)
    first = contents(out)
    path = raw / "Area_1" / "office_1" / "Annotations" / "wall_1.txt"
    text = path.read_text()
    path.write_text(text.replace(" ", " ", 1) + "1 2 3 4 5 6\n")
    said: list[str] = []
    changed = prepare("s3dis", raw, out, SERIAL, log=said.append)
    assert (changed.prepared, changed.kept) == (1, 3)
    assert said == ["Area_1_office_1 is made anew: its raw files or settings have changed"]
    assert len(store.load_column(out / store.SCENES / "Area_1_office_1", "points")) == 301

    path.write_text(text)
    column = out / store.SCENES / "Area_5_office_1" / "color.npy"
    column.write_bytes(column.read_bytes()[:-1] + b"\x07")
    mended = prepare("s3dis", raw, out, SERIAL, log=quiet)
    assert (mended.prepared, mended.kept) == (2, 2)
    assert contents(out) == first

    options = Options(grid=0.1, workers=1)
    coarser = prepare("s3dis", raw, out, options, log=quiet)
    assert (coarser.prepared, coarser.kept) == (4, 0)
    assert store.read_manifest(out)["grid"] == 0.1


def test_overwrite_makes_everything_anew_and_replaces_another_dataset(rooms, tmp_path):
    raw, out = rooms
    first = prepare("s3dis", raw, out, SERIAL, log=quiet)
    again = prepare("s3dis", raw, out, Options(workers=1, overwrite=True), log=quiet)
    assert first.prepared == again.prepared == 4
    raw_layouts.write_semantickitti(tmp_path / "kitti", {"08": 1}, points=50)
    with pytest.raises(InputError, match=r"holds the prepared dataset 's3dis'.*--overwrite"):
        prepare("semantickitti", tmp_path / "kitti", out, SERIAL, log=quiet)
    other = prepare(
        "semantickitti", tmp_path / "kitti", out, Options(workers=1, overwrite=True), log=quiet
    )
    assert store.read_manifest(out)["dataset"] == "semantickitti"
    assert other.left_over == [f"Area_{n}" for n in ("1_office_1", "3_hallway_2", "5_office_1")] + [
        "Area_6_copyRoom_1"
    ]


def test_malformed_files_cost_their_scene_alone(rooms, capsys):
    raw, out = rooms
    one = raw / "Area_1" / "office_1" / "Annotations" / "wall_1.txt"
    one.write_text("1 2 3 4 5 6\n1 2 3\n")
    (one.parent / "table_1.txt").write_text("x\n")
    two = raw / "Area_6" / "copyRoom_1" / "Annotations"
    shutil.rmtree(two)
    code, text, error = command(
        capsys, "data", "prepare", "s3dis", raw, "-o", out, "--workers", 2, "--json"
    )
    assert code == 1
    summary = json.loads(text)
    assert summary["prepared"] == 2 and summary["malformed_files"] == 3
    assert summary["failed"] == {
        "Area_1_office_1": [
            f"{one.parent}/table_1.txt, line 1: 'x' is not 6 numbers",
            f"{one}, line 2: 3 values, expected 6",
        ],
        "Area_6_copyRoom_1": [f"{two}/*.txt is missing"],
    }
    for messages in summary["failed"].values():
        assert all(message in error for message in messages)
    assert "3 malformed files, see above" in error.splitlines()[-1]
    assert "Area_1_office_1, Area_6_copyRoom_1)" in error.splitlines()[-1]
    manifest = store.read_manifest(out)
    assert sorted(manifest["failed"]) == ["Area_1_office_1", "Area_6_copyRoom_1"]
    assert manifest["splits"]["train"] == ["Area_3_hallway_2"]
    assert sorted(path.name for path in (out / store.SCENES).iterdir()) == [
        "Area_3_hallway_2",
        "Area_5_office_1",
    ]


def test_malformed_clouds_are_left_out_of_their_set_and_told_again(tmp_path):
    raw_layouts.write_shapenetpart(tmp_path / "raw", categories=("mug",), shapes=4)
    expected = prepare("shapenetpart", tmp_path / "raw", tmp_path / "whole", SERIAL, log=quiet)
    shapes = sorted((tmp_path / "raw").glob("*/shape*.txt"))
    good = shapes[1].read_text()
    shapes[1].write_text(good + "1 2 3\n")
    shapes[3].rename(tmp_path / "away")
    lines = good.count("\n")
    messages = [
        f"{shapes[1]}, line {lines + 1}: 3 values, expected 7",
        f"cannot read {shapes[3]}: No such file or directory",
    ]
    for _ in range(2):
        out = prepare("shapenetpart", tmp_path / "raw", tmp_path / "out", SERIAL, log=quiet)
        assert out.failed == {"train_mug": messages} and out.malformed == 2
        assert out.manifest["scenes"]["train_mug"]["clouds"] == 2
        assert out.manifest["splits"] == expected.manifest["splits"]
    assert (out.prepared, out.kept) == (0, 3)
    shapes[1].write_text(good)
    (tmp_path / "away").rename(shapes[3])
    assert not prepare("shapenetpart", tmp_path / "raw", tmp_path / "out", log=quiet).failed
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_repairs_are_noted_in_the_log_and_with_the_scene(rooms, capsys):
    raw, out = rooms
    path = raw / "Area_3" / "hallway_2" / "Annotations" / "wall_1.txt"
    path.write_bytes(path.read_bytes() + b"22.350 6.692 3.048 185\x10187 182\n")
    code, text, error = command(capsys, "data", "prepare", "s3dis", raw, "-o", out)
    assert code == 0 and "4 prepared" in text
    line = len(path.read_bytes().splitlines())
    assert f"{path}, line {line}: " in error and "read as '22.35 6.692 3.048 185 187 182'" in error
    assert len(store.read_scene(out / store.SCENES / "Area_3_hallway_2")["notes"]) == 1


def test_unforeseen_errors_cost_their_scene_alone(rooms, monkeypatch):
    raw, out = rooms
    original = worker.encode

    def breaks(record, *others):
        if record.columns["points"][0, 0] > 25:
            raise ZeroDivisionError("odd")
        return original(record, *others)

    monkeypatch.setattr(worker, "encode", breaks)
    summary = prepare("s3dis", raw, out, SERIAL, log=quiet)
    assert summary.prepared == 3
    assert summary.failed == {
        "Area_6_copyRoom_1": [
            f"{raw}/Area_6/copyRoom_1/Annotations: ZeroDivisionError: odd",
        ]
    }


def test_a_full_disk_stops_the_work(rooms, monkeypatch):
    raw, out = rooms
    original, calls = worker.write_scene, []

    def full(folder, columns, facts):
        calls.append(folder)
        if len(calls) == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder))
        return original(folder, columns, facts)

    monkeypatch.setattr(worker, "write_scene", full)
    with pytest.raises(InputError, match=r"No space left on device; 1 of 4 scenes are done"):
        prepare("s3dis", raw, out, SERIAL, log=quiet)
    assert len(calls) == 2
    with pytest.raises(InputError, match="did not finish"):
        store.read_manifest(out)
    monkeypatch.undo()
    assert prepare("s3dis", raw, out, SERIAL, log=quiet).kept == 1


_ENDLESS = """
import sys, time
from pathlib import Path
from dela.training.prepare import store

real = store.np.save
def slow(path, column, **options):
    real(path, column, **options)
    if Path(path).name == "color.npy" and "Area_5" in str(path):
        print("half-written", flush=True)
        time.sleep(60)
store.np.save = slow
if __name__ == "__main__":
    from dela.cli.main import main
    main(["data", "prepare", "s3dis", *sys.argv[1:]])
"""


@pytest.mark.parametrize("workers", [1, 2])
def test_a_killed_preparation_is_gone_on_with(rooms, tmp_path, workers):
    raw, out = rooms
    whole = prepare("s3dis", raw, tmp_path / "whole", SERIAL, log=quiet)
    script = tmp_path / "endless.py"
    script.write_text(_ENDLESS)
    words = [sys.executable, script, raw, "-o", out, "--workers", str(workers)]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "half-written\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert list((out / store.SCENES).glob(f"{store.PARTIAL}Area_5_office_1*"))
    with pytest.raises(InputError, match="did not finish; repeat its command"):
        store.read_manifest(out)
    deadline = time.monotonic() + 20
    while True:  # the workers leave as their parent has, and its lock with them
        try:
            resumed = prepare("s3dis", raw, out, SERIAL, log=quiet)
            break
        except InputError as error:
            assert "another preparation" in str(error) and time.monotonic() < deadline
            time.sleep(0.1)
    assert resumed.kept >= 1 and resumed.kept + resumed.prepared == whole.prepared == 4
    assert contents(out) == contents(tmp_path / "whole")


@pytest.mark.usefixtures("ctrl_c")
@pytest.mark.parametrize("workers", [1, 2])
def test_an_interrupted_preparation_leaves_nothing_half_written(rooms, tmp_path, workers):
    raw, out = rooms
    script = tmp_path / "endless.py"
    script.write_text(_ENDLESS)
    words = [sys.executable, script, raw, "-o", out, "--workers", str(workers)]
    process = subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout.readline() == "half-written\n"
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: every process of the group
    _, error = process.communicate(timeout=20)
    assert process.returncode == 130 and error.splitlines() == ["interrupted"]
    assert not list((out / store.SCENES).glob(f"{store.PARTIAL}*"))
    resumed = prepare("s3dis", raw, out, SERIAL, log=quiet)
    assert resumed.kept >= 1 and resumed.kept + resumed.prepared == 4


def test_a_killed_worker_is_told_in_words(rooms, tmp_path):
    raw, out = rooms
    script = tmp_path / "killed.py"
    script.write_text(
        "import os, sys\n"
        "from dela.training.prepare import store\n"
        "from dela.training.prepare.runner import Options, prepare\n"
        "real = store.np.save\n"
        "def last(path, column, **options):\n"
        "    if 'Area_5' in str(path):\n"
        "        os.kill(os.getpid(), 9)\n"
        "    real(path, column, **options)\n"
        "store.np.save = last\n"
        "if __name__ == '__main__':\n"
        "    prepare('s3dis', sys.argv[1], sys.argv[2], Options(workers=2))\n"
    )
    done = subprocess.run([sys.executable, script, raw, out], capture_output=True, text=True)
    assert done.returncode == 1
    assert "a worker process was killed" in done.stderr and "--workers" in done.stderr
    assert not list((out / store.SCENES).glob(f"{store.PARTIAL}*"))


def test_two_preparations_do_not_write_one_folder(rooms):
    raw, out = rooms
    out.mkdir()
    with (out / ".lock").open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        with pytest.raises(InputError, match="another preparation is at work"):
            prepare("s3dis", raw, out, SERIAL, log=quiet)
    assert prepare("s3dis", raw, out, SERIAL, log=quiet).prepared == 4


def test_foreign_folders_and_missing_raw_data_are_refused(rooms, tmp_path):
    raw, out = rooms
    out.mkdir()
    (out / "thesis.tex").write_text("\\documentclass")
    for overwrite in (False, True):
        with pytest.raises(InputError, match="is not empty and holds no prepared data"):
            prepare("s3dis", raw, out, Options(workers=1, overwrite=overwrite), log=quiet)
    assert [path.name for path in out.iterdir()] == ["thesis.tex"]
    with pytest.raises(InputError, match="is not a folder"):
        prepare("s3dis", raw, out / "thesis.tex", SERIAL, log=quiet)
    with pytest.raises(InputError, match="does not exist; give the folder of the raw data"):
        prepare("s3dis", tmp_path / "nothing", tmp_path / "new", SERIAL, log=quiet)
    (tmp_path / "sequences").mkdir()
    with pytest.raises(InputError, match="holds nothing of semantickitti"):
        prepare("semantickitti", tmp_path, tmp_path / "new", SERIAL, log=quiet)
    assert not (tmp_path / "new").exists()


def test_scenes_that_left_the_raw_data_are_in_no_split(rooms):
    raw, out = rooms
    prepare("s3dis", raw, out, SERIAL, log=quiet)
    shutil.rmtree(raw / "Area_3")
    summary = prepare("s3dis", raw, out, SERIAL, log=quiet)
    assert summary.left_over == ["Area_3_hallway_2"] and summary.kept == 3
    assert "Area_3_hallway_2" not in store.read_manifest(out)["scenes"]


def test_options_of_other_datasets_are_usage_errors(rooms, capsys):
    raw, out = rooms
    for words, message in (
        (("s3dis", raw, "-o", out, "--train-list", "x"), "scene lists are for scannet"),
        (("s3dis", raw, "-o", out, "--config", "x"), "--config is for a folder of scans"),
        (("s3dis", raw, "-o", out, "--grid", "0"), "give metres above 0"),
        (("modelnet40", raw, "-o", out, "--grid", "1"), "--grid is for scenes"),
        (("kitti", raw, "-o", out), "kitti"),
        (("s3dis", raw), "--output"),
    ):
        code, _, error = command(capsys, "data", "prepare", *words)
        assert code == 2 and message in error, error
    assert not out.exists()


def test_info_describes_and_checks_prepared_data(rooms, capsys):
    raw, out = rooms
    code, text, _ = command(capsys, "data", "prepare", "s3dis", raw, "-o", out, "--workers", 1)
    assert code == 0 and text.startswith(f"{out}: 4 prepared; train 3 clouds (900 points)")
    code, text, error = command(capsys, "data", "info", out, "--check")
    assert code == 0 and "checksums of 4 scenes stand" in error
    assert "train: 3 scenes, 900 points" in text and "voxels of 0.04 m are indexed" in text
    row = next(line.split() for line in text.splitlines() if line.startswith("table"))
    assert row == ["table", "7", "225", "75"]
    code, text, _ = command(capsys, "data", "info", out, "--json")
    assert json.loads(text) == store.read_manifest(out)
    (out / store.SCENES / "Area_5_office_1" / "labels.npy").unlink()
    code, _, error = command(capsys, "data", "info", out, "--check")
    assert code == 1 and "labels.npy" in error and "1 of 4 scenes are damaged" in error
    code, _, error = command(capsys, "data", "info", raw)
    assert code == 1 and "holds no prepared data" in error


def test_the_command_returns_its_summary(rooms):
    raw, out = rooms
    summary = run_command(
        ["data", "prepare", "s3dis", str(raw), "-o", str(out), "--workers", "1", "--grid", "0.2"]
    )
    assert summary.prepared == 4 and summary.manifest["grid"] == 0.2


def test_a_process_per_processor_that_the_quota_grants(monkeypatch):
    """Of one granted processor, whatever the machine has: no pool is made."""
    from dela.threads import Threads

    monkeypatch.setattr(worker, "count_threads", lambda environ: Threads(1, "quota", True))
    monkeypatch.setattr(worker, "ProcessPoolExecutor", None)
    monkeypatch.setattr(worker, "_make", lambda job: job)
    assert list(worker.outcomes(["first", "second"], None)) == ["first", "second"]
