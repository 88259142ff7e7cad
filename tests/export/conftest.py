"""Tiny networks of every kind and their exports, each made once."""

from __future__ import annotations

import functools

import pytest

from dela.families.dela.config import DelaConfig
from dela.model.contract import AttributeInfo, CategoryInfo, ClassInfo

STAGES = {"dims": (8, 12, 16, 20), "neighbors": (6, 7, 4, 5), "spread": (1.6, 3.8, 7.6, 15.2)}


def tiny_config(kind: str) -> DelaConfig:
    stages, attributes, directions = {
        "one_stage": (1, 0, 0),
        "four_stages": (4, 4, 0),
        "directions": (2, 1, 3),
        "parts": (2, 1, 3),
        "parts_alone": (2, 0, 0),
        "classification": (2, 0, 0),
    }[kind]
    segmentation = kind != "classification"
    return DelaConfig(
        task="segmentation" if segmentation else "classification",
        classes=tuple(ClassInfo(f"class {i}", i) for i in range(5)),
        depths=(1,) * stages,
        coordinate_scale=40.0,
        grid=(0.04, 0.08, 0.16, 0.32)[:stages] if segmentation else (),
        points=() if segmentation else (64, 16),
        head_dim=12 if segmentation else 0,
        attributes=tuple(AttributeInfo(f"scalar_{i}") for i in range(attributes)),
        directions=tuple(AttributeInfo(f"normal_{axis}") for axis in "xyz"[:directions]),
        categories=tuple(CategoryInfo(f"category {i}", (i, i + 1)) for i in range(3))
        if kind.startswith("parts")
        else (),
        **{name: values[:stages] for name, values in STAGES.items()},
    )


def scrambled_network(kind: str):
    """A network in which every weight matters; a new one leaves whole branches near zero."""
    import torch

    from dela.families import create_model

    network = create_model(tiny_config(kind), seed=1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, values in network.named_parameters():
            if name.endswith("falloff"):
                values.fill_(0.8)
            elif values.ndim == 2:
                values.copy_(torch.randn(values.shape, generator=generator))
                values /= values.shape[1] ** 0.5
        for module in network.modules():
            if isinstance(module, torch.nn.BatchNorm1d):
                for values, low in ((module.weight, 0.5), (module.running_var, 0.5)):
                    values.copy_(low + torch.rand(values.shape, generator=generator))
                for values in (module.bias, module.running_mean):
                    values.copy_(0.2 * torch.randn(values.shape, generator=generator))
    return network.eval()


@pytest.fixture(scope="session")
def network():
    """kind -> a network of that kind."""
    return functools.cache(scrambled_network)


@pytest.fixture(scope="session")
def exported(network, tmp_path_factory):
    """(kind, dtype) -> path of the exported file and the results of its checks."""
    from dela.export import export_onnx

    folder = tmp_path_factory.mktemp("exported")

    @functools.cache
    def make(kind: str, dtype: str = "fp32"):
        results = []
        path = export_onnx(
            network(kind), folder / f"{kind}_{dtype}.onnx", dtype, report=results.append
        )
        return path, results

    return make
