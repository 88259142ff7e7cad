"""Checkpoints come back bit for bit; what is not one, or not ours, is refused in words."""

from __future__ import annotations

import hashlib
import math
import re
import subprocess
import sys

import numpy as np
import pytest
import torch

from dela.artifacts.checkpoint import load_checkpoint, save_checkpoint
from dela.errors import CheckpointError, InputError
from dela.families import create_model

SMALL = {
    "dims": (16, 32),
    "depths": (1, 2),
    "neighbors": (8, 8),
    "spread": (1.6, 3.8),
    "grid": (0.1, 0.2),
    "head_dim": 8,
}


@pytest.fixture
def model():
    return create_model("s3dis", seed=0, num_classes=3, **SMALL)


def _rewritten(path, **changes):
    content = torch.load(path, weights_only=True)
    torch.save(content | changes, path)
    return path


def test_a_checkpoint_comes_back_whole(model, tmp_path):
    path = tmp_path / "model.pt"
    extra = {"step": 7, "rate": 0.5, "names": ["a", ("b", None)], "moments": {0: torch.rand(4)}}
    save_checkpoint(path, model, extra)
    loaded = load_checkpoint(path)
    assert loaded.config == model.config == loaded.model.config
    assert not loaded.model.training
    expected = model.state_dict()
    assert loaded.model.state_dict().keys() == expected.keys()
    assert all(torch.equal(t, expected[name]) for name, t in loaded.model.state_dict().items())
    assert all(parameter.requires_grad for parameter in loaded.model.parameters())
    assert torch.equal(loaded.extra["moments"].pop(0), extra["moments"].pop(0))
    assert loaded.extra == extra
    assert loaded.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_loaded_model_trains_on(model, tmp_path):
    save_checkpoint(tmp_path / "model.pt", model)
    loaded = load_checkpoint(tmp_path / "model.pt").model
    optimizer = torch.optim.SGD(loaded.parameters(), lr=1.0)
    sum(parameter.sum() for parameter in loaded.parameters()).backward()
    optimizer.step()
    for new, old in zip(loaded.parameters(), model.parameters(), strict=True):
        assert torch.allclose(new, old - 1.0)


def test_extra_that_would_not_load_again_is_refused_when_saving(model, tmp_path):
    path = tmp_path / "model.pt"
    for value in (np.float64(1.0), np.zeros(2), {1, 2}, path):
        with pytest.raises(CheckpointError, match=re.escape("extra['state'][0] is a ")):
            save_checkpoint(path, model, {"state": [value]})
    assert list(tmp_path.iterdir()) == []


def test_overwriting_is_a_choice(model, tmp_path):
    path = tmp_path / "model.pt"
    save_checkpoint(path, model, {"step": 1})
    save_checkpoint(path, model, {"step": 2})
    with pytest.raises(InputError, match="exists"):
        save_checkpoint(path, model, {"step": 3}, overwrite=False)
    assert load_checkpoint(path).extra == {"step": 2}
    with pytest.raises(InputError, match="does not exist"):
        save_checkpoint(tmp_path / "nowhere" / "model.pt", model)


def test_another_version_is_refused(model, tmp_path):
    save_checkpoint(tmp_path / "model.pt", model)
    with pytest.raises(CheckpointError, match="checkpoint version 7, this dela reads 1"):
        load_checkpoint(_rewritten(tmp_path / "model.pt", version=7))


def test_weights_that_do_not_fit_are_listed(model, tmp_path):
    path = tmp_path / "model.pt"
    save_checkpoint(path, model)
    weights = dict(model.state_dict())
    del weights["head.norm.bias"]
    weights["head.classify.bias"] = torch.zeros(9)
    weights["head.more"] = torch.zeros(1)
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(_rewritten(path, model=weights))
    message = str(caught.value)
    assert "missing: head.norm.bias" in message
    assert "unexpected: head.more" in message
    assert "head.classify.bias is [9], not [3]" in message


def test_a_configuration_that_cannot_be_is_refused(model, tmp_path):
    path = tmp_path / "model.pt"
    save_checkpoint(path, model)
    config = model.config.to_dict()
    with pytest.raises(CheckpointError, match="unknown model key 'colour'"):
        load_checkpoint(_rewritten(path, config=config | {"colour": 1}))
    with pytest.raises(CheckpointError, match="depths has 1 entries"):
        load_checkpoint(_rewritten(path, config=config | {"depths": (1,)}))
    with pytest.raises(CheckpointError, match="holds no configuration"):
        load_checkpoint(_rewritten(path, config=None))
    with pytest.raises(CheckpointError, match=r"mlp_ratio is 1e\+308; it must be"):
        load_checkpoint(_rewritten(path, config=config | {"mlp_ratio": 1e308}))


def test_a_network_is_not_built_for_more_layers_than_the_file_has(model, tmp_path):
    path = tmp_path / "model.pt"
    save_checkpoint(path, model)
    stages = len(model.config.depths)
    config = model.config.to_dict() | {"depths": (10**9,) * stages}
    with pytest.raises(CheckpointError, match=f"configuration asks for {stages * 10**9} at least"):
        load_checkpoint(_rewritten(path, config=config))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_are_no_numbers_are_refused_with_their_layer(model, tmp_path, value):
    path = tmp_path / "model.pt"
    save_checkpoint(path, model)
    weights = dict(model.state_dict())
    weights["head.norm.bias"] = torch.full_like(weights["head.norm.bias"], value)
    with pytest.raises(CheckpointError, match=r"layer head\.norm\.bias are NaN or infinite"):
        load_checkpoint(_rewritten(path, model=weights))


@pytest.mark.parametrize(
    "changes", [{"version": torch.ones(2)}, {"extra": [1]}, {"config": torch.ones(2)}]
)
def test_values_of_other_types_are_refused(model, tmp_path, changes):
    save_checkpoint(tmp_path / "model.pt", model)
    with pytest.raises(CheckpointError):
        load_checkpoint(_rewritten(tmp_path / "model.pt", **changes))


@pytest.mark.parametrize("size", [0, 10, 1000, 20_000, -200])
def test_a_truncated_file_is_refused(model, tmp_path, size):
    path = tmp_path / "model.pt"
    save_checkpoint(path, model)
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(CheckpointError, match=re.escape(str(path))) as caught:
        load_checkpoint(path)
    assert "no torch file" in str(caught.value) or "truncated" in str(caught.value)


@pytest.mark.parametrize("limit", [100, 8192, 20_000])
def test_a_full_disk_is_said_in_words_and_keeps_the_old_file(model, tmp_path, limit):
    path = tmp_path / "model.pt"
    save_checkpoint(path, model, {"step": 1})
    script = f"""
import resource, signal
from dela.artifacts.checkpoint import load_checkpoint, save_checkpoint
from dela.errors import InputError

model = load_checkpoint("model.pt").model
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))
try:
    save_checkpoint("model.pt", model)
except InputError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert "cannot write model.pt: the disk is full" in done.stdout
    assert load_checkpoint(path).extra == {"step": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["model.pt"]


def test_other_files_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match="no checkpoint file"):
        load_checkpoint(tmp_path / "none.pt")
    with pytest.raises(CheckpointError):
        load_checkpoint(tmp_path)
    path = tmp_path / "other.pt"
    path.write_text("not a checkpoint, but a text that is longer than a few bytes\n" * 9)
    with pytest.raises(CheckpointError, match=r"not a"):
        load_checkpoint(path)
    torch.save([1, 2], path)
    with pytest.raises(CheckpointError, match=r"is not a dela checkpoint$"):
        load_checkpoint(path)
    torch.save({"model": {"stage.spse_m": torch.zeros(3)}}, path)
    with pytest.raises(CheckpointError, match="import-checkpoint"):
        load_checkpoint(path)


def test_code_in_a_file_is_not_run(tmp_path):
    class Touch:
        def __reduce__(self):
            return (open, (str(tmp_path / "touched"), "w"))

    torch.save({"format": "dela-checkpoint", "version": 1, "extra": Touch()}, tmp_path / "bad.pt")
    with pytest.raises(CheckpointError, match="could run code"):
        load_checkpoint(tmp_path / "bad.pt")
    assert not (tmp_path / "touched").exists()
