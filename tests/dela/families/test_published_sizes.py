"""The published configurations at full size: a training step fits and its gradients are right."""

from __future__ import annotations

import copy
import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from dela import ops
from dela.families import create_model
from dela.families.dela import Network
from dela.pyramid.cpu import Pyramid, pack
from dela.training.settings.train import load_config
from published_step import CONFIGS, labels_of, sample

HELPERS = Path(__file__).resolve().parents[3] / "tests" / "helpers"
# Parameters of the published network, MiB a step of its whole batch needs, and of one cloud.
PUBLISHED = {
    "s3dis": (10_332_685, 9000, 2200),
    "scannet": (17_446_788, 30_000, 4000),
    "scanobjectnn": (3_522_735, 2200, 2200),
}
# Clouds and points a cloud for the comparison with plain PyTorch, which is slow.
REDUCED = {"s3dis": (2, 1500), "scannet": (2, 1200), "scanobjectnn": (2, 1024)}


def available_mib() -> float:
    """Memory that a process can have without swapping."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) / 1024
    return 0.0


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLISHED)
def test_a_full_size_step_runs_on_a_cpu(name, record_property):
    parameters, *needed = PUBLISHED[name]
    config = load_config(CONFIGS / f"{name}.toml")
    # One cloud where the memory asks for it.
    whole = needed[0] * 1.3 < available_mib()
    clouds, most = (config.train.batch_size, needed[0]) if whole else (1, needed[1])
    done = subprocess.run(
        [sys.executable, HELPERS / "published_step.py", name, str(clouds)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    record_property(
        "figure",
        f"{name}: {clouds} x {result['points'][0] // clouds:,} points, forward, backward and step "
        f"in {result['seconds']:.1f} s, peak memory {result['peak_mib']:,.0f} MiB",
    )
    largest = config.data.points if config.model.grid else config.model.points[0]
    assert result["points"][0] == clouds * largest
    assert result["parameters"] == parameters
    assert result["finite"]
    assert np.log(config.model.num_classes) * 0.8 < result["loss"] < 5
    # Layers behind a norm that starts at 0 have no gradient in the first step.
    assert result["moved"] > 0.7
    assert result["peak_mib"] < most


def gradients(model: Network, pyramid: Pyramid) -> dict[str, torch.Tensor]:
    """Loss gradients of every parameter, with the same random choices each time."""
    model.zero_grad(set_to_none=True)
    torch.manual_seed(5)
    logits, coordinate = model(pyramid)
    loss = torch.nn.functional.cross_entropy(
        logits.double(), labels_of(model.config, pyramid), label_smoothing=0.2
    )
    (loss + 0.25 * coordinate.double()).backward()
    return {name: p.grad.double() for name, p in model.named_parameters() if p.grad is not None}


def distance(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    """Norm of the difference of two gradients over the norm of the second."""
    names = list(expected)
    difference = sum(float((found[name] - expected[name]).square().sum()) for name in names)
    return (difference / sum(float(expected[name].square().sum()) for name in names)) ** 0.5


@pytest.mark.slow
@pytest.mark.parametrize("name", REDUCED)
def test_gradients_are_those_of_the_plain_operators(name):
    """In float32 the nearest of two neighbors that are almost equally near may be either one, and
    the gradient goes to it alone; so plain float32 is no exact reference. The kernels must come as
    near to plain float64 as plain float32 does."""
    config = load_config(CONFIGS / f"{name}.toml").model
    config = dataclasses.replace(config, drop_path=0.0, head_drop=0.0)
    clouds, points = REDUCED[name]
    pyramid = pack([sample(config, points, seed) for seed in range(clouds)])
    model = create_model(config, seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():  # as in a trained network, no branch is switched off
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm1d):
                module.weight.uniform_(0.2, 0.6, generator=generator)
    found = gradients(model, pyramid)
    with ops.implementation("reference"):
        plain = gradients(model, pyramid)
        exact = gradients(copy.deepcopy(model).double(), pyramid)
    assert found.keys() == exact.keys() == {name for name, _ in model.named_parameters()}

    assert distance(found, exact) < 0.01
    assert distance(found, exact) < 1.3 * distance(plain, exact)
    largest = max(float(gradient.norm()) for gradient in exact.values())
    for key, gradient in exact.items():
        if gradient.norm() > 1e-5 * largest:  # below, a gradient is the rest of what cancels
            pair = [distance({key: g[key]}, {key: gradient}) for g in (found, plain)]
            assert pair[0] < 2 * pair[1] + 0.005, f"{key}: {pair}"
