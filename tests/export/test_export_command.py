"""``dela export`` from the command line."""

from __future__ import annotations

import json

import pytest

from dela.artifacts.checkpoint import save_checkpoint
from dela.cli.main import main, run_command
from dela.errors import InputError


@pytest.fixture
def checkpoint(network, tmp_path):
    path = tmp_path / "best.pt"
    save_checkpoint(path, network("one_stage"))
    return path


def test_the_summary_as_json_and_for_people(checkpoint, tmp_path, capsys):
    run_command(["export", str(checkpoint), "--json"])
    summary = json.loads(capsys.readouterr().out)
    assert summary["file"] == str(tmp_path / "best.onnx")
    assert summary["bytes"] == (tmp_path / "best.onnx").stat().st_size
    assert summary["nodes"]["SPSE"] == 1
    assert summary["inputs"] == {"points": "float32[n0, 3]", "neighbors_0": "int32[n0, 6]"}
    assert summary["outputs"] == {"logits": "float32[n0, 5]"}
    assert [check["skipped"] for check in summary["checks"]] == [None] * 4

    with pytest.raises(InputError, match="--overwrite"):
        run_command(["export", str(checkpoint)])

    run_command(["export", str(checkpoint), "--overwrite", "--no-check"])
    text = capsys.readouterr().out
    assert "points float32[n0, 3]" in text
    assert "not checked (--no-check)" in text


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["missing.pt"], 1, "error: there is no checkpoint file at missing.pt"),
        (["best.pt", "-o", "best.pt", "--overwrite"], 1, "error: best.pt is the input itself"),
        (["best.pt", "--dtype", "int8"], 2, "'int8' is not one of 'fp32', 'fp16', 'bf16'"),
    ],
)
def test_failures_are_short_and_leave_everything(
    checkpoint, monkeypatch, capsys, arguments, code, message
):
    monkeypatch.chdir(checkpoint.parent)
    before = checkpoint.read_bytes()
    with pytest.raises(SystemExit) as ended:
        main(["export", *arguments])
    assert ended.value.code == code
    error = capsys.readouterr().err
    assert message in error and len(error.splitlines()) == code
    assert checkpoint.read_bytes() == before
    assert not list(checkpoint.parent.glob("*.onnx"))
