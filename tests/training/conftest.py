"""A labelled scan and a network small enough to train within a test."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from dela.families.dela.config import DelaConfig
from dela.model.contract import AttributeInfo
from dela.training.settings.train import (
    AugmentConfig,
    ClassMap,
    DataConfig,
    ScheduleConfig,
    TrainConfig,
    model_classes,
)
from tiny_scans import tiny_scan


@pytest.fixture(scope="session")
def tiny_scans(tmp_path_factory) -> Path:
    """Folder with ``train.ply`` and ``val.ply``."""
    from dela.cloud.formats import write_cloud

    folder = tmp_path_factory.mktemp("scans")
    for seed, name in enumerate(("train", "val")):
        write_cloud(folder / f"{name}.ply", tiny_scan(seed))
    return folder


@pytest.fixture
def tiny_config(tiny_scans: Path) -> TrainConfig:
    """Two classes, two stages, three steps an epoch."""
    data = DataConfig(
        kind="folder",
        root=str(tiny_scans),
        train=("train.ply",),
        val=("val.ply",),
        classes=(ClassMap("floor", (2,)), ClassMap("box", (6,))),
        ignore=(0,),
        points=300,
        margin=1.0,
    )
    model = DelaConfig(
        task="segmentation",
        classes=model_classes(data),
        dims=(16, 32),
        depths=(1, 1),
        neighbors=(8, 8),
        grid=(0.25, 0.5),
        spread=(1.6, 3.8),
        coordinate_scale=6.4,
        head_dim=16,
        attributes=(AttributeInfo("intensity", 1.0), AttributeInfo("height", 3.0)),
        drop_path=0.1,
        head_drop=0.1,
    )
    schedule = ScheduleConfig(
        epochs=2,
        steps_per_epoch=3,
        batch_size=2,
        learning_rate=5e-3,
        warmup=0.5,
        class_weight_power=0.3,
        norm_batches=0,
        workers=1,
    )
    augment = AugmentConfig(jitter=0.01, drop_points=0.1)
    return TrainConfig(model, data, augment, schedule)


@pytest.fixture
def with_schedule(tiny_config: TrainConfig):
    """The tiny configuration with some keys of ``[train]`` replaced."""

    def replaced(**changes) -> TrainConfig:
        return dataclasses.replace(
            tiny_config, train=dataclasses.replace(tiny_config.train, **changes)
        )

    return replaced
