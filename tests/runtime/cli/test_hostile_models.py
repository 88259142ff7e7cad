"""Damaged and hostile model files: one or two lines, no wrong answer, no foreign error."""

from __future__ import annotations

import hashlib
import json

import pytest

from dela.cli import main as cli
from dela.cloud.formats import write_cloud
from small_networks import make_cloud


@pytest.fixture
def run(capsys, tmp_path):
    scan = write_cloud(tmp_path / "room.ply", make_cloud(500))

    def run_line(command, model):
        given = [scan, "-m", model, "-o", tmp_path / "out.ply"] if command == "predict" else [model]
        with pytest.raises(SystemExit) as ended:
            cli.main([command, *map(str, given)])
        return ended.value.code, *capsys.readouterr()

    return run_line


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("S_deep.onnx", "nested too deeply"),
        ("S_ver.onnx", "format version"),
        ("S_cfg_color.onnx", "expected a whole number"),
        ("S_listcfg.pt", "expected a whole number"),
        ("S_nanw.pt", "NaN or infinite"),
    ],
)
@pytest.mark.parametrize("command", ["info", "predict"])
def test_it_is_refused_in_words(run, hostile_dir, tmp_path, command, name, message):
    if name.endswith(".pt"):
        pytest.importorskip("torch")
    code, _, error = run(command, hostile_dir / name)
    assert code == 1 and message in error
    assert "not foreseen" not in error and len(error.splitlines()) <= 2
    assert not (tmp_path / "out.ply").exists()


@pytest.mark.parametrize("command", ["info", "predict"])
def test_escapes_in_class_names_stay_away_from_the_terminal(run, hostile_dir, command):
    code, shown, error = run(command, hostile_dir / "S_esc2.onnx")
    assert code == 0, error
    assert "\x1b" not in shown + error and "\\x1b]0;pwned" in shown


def test_an_infinite_code_in_an_engine_s_description_is_refused(run, hostile_dir, tmp_path):
    (damaged,) = hostile_dir.glob("json_BAD_*.engine.json")
    engine = tmp_path / "model.engine"
    engine.write_bytes(b"engine")
    digest = hashlib.sha256(b"engine").hexdigest()
    text = damaged.read_text()
    text = text.replace(json.loads(text)["engine_sha256"], digest)
    (tmp_path / "model.engine.json").write_text(text)
    code, _, error = run("info", engine)
    assert code == 1 and "classes.code is inf; expected a whole number" in error
