"""``dela export`` from the command line."""

from __future__ import annotations

import json

import pytest

from dela.checkpoint import save_checkpoint
from dela.cli import main, run_command
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
    ("arguments", "message"),
    [(["missing.pt"], "missing.pt"), (["best.pt", "--dtype", "int8"], "fp32, fp16, bf16")],
)
def test_failures_end_with_one_line_and_code_1(checkpoint, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(checkpoint.parent)
    with pytest.raises(SystemExit) as ended:
        main(["export", *arguments])
    assert ended.value.code == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert not list(checkpoint.parent.glob("*.onnx"))
