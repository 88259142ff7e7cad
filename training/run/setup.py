"""What a run starts from: its data, its network, and what checkpoints say of both."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

import torch
from torch import Tensor, nn

from dela.model.inputs import Inputs
from dela.training.data.clouds import Clouds
from dela.training.data.dataset import Dataset
from dela.training.data.kinds import names_scans, open_dataset
from dela.training.optimize.adapters import Adapt, adapt_network
from dela.training.optimize.average import WeightAverage
from dela.training.optimize.finetune import freeze_parts, take_weights
from dela.training.optimize.losses import class_weights
from dela.training.optimize.network import make_network, prepare_training, stage_ratios
from dela.training.optimize.synced_norm import synchronize_norms
from dela.training.run.distributed import Group
from dela.training.settings.seeds import MEASURE, generator
from dela.training.settings.train import TrainConfig

# Samples on which neighbor distances and the sizes of coarser stages are measured.
MEASURED_SAMPLES = 16


class HookOptions(TypedDict, total=False):
    """What the caller of a run sees and changes, by name.

    Attributes:
        log: receives one line per event, in the first process; ``print`` when left out.
        after_step: called with the number of steps taken and the loss after each step.
        adapt: puts adapters into the network once it has the weights of ``train.init``, and says by
            ``requires_grad`` what trains, see
            :func:`~dela.training.optimize.adapters.adapt_network`. A resumed run needs the same.
    """

    log: Callable[[str], None]
    after_step: Callable[[int, float], None] | None
    adapt: Adapt | None


@dataclass(frozen=True)
class Hooks:
    """:class:`HookOptions` with what was left out."""

    log: Callable[[str], None] = print
    after_step: Callable[[int, float], None] | None = None
    adapt: Adapt | None = None


@dataclass(frozen=True)
class RunData:
    """The scans of a run, and how many steps it takes on them.

    Attributes:
        validation: None where the configuration names no scans to validate on.
        samples_per_step: over all processes and accumulated batches.
        class_weights: [classes] float32 on the run's device; None weighs all alike.
    """

    training: Dataset
    validation: Dataset | None
    steps_per_epoch: int
    total_steps: int
    samples_per_step: int
    class_weights: Tensor | None


@dataclass(frozen=True)
class TrainedNetwork:
    """The network of a run, ready to be trained.

    Attributes:
        model: the network with its adapters; ``parallel``: what a step calls, the same or one that
            averages gradients over processes.
        frozen: names of the modules that stay in evaluation mode.
        average: the running average of its weights, if one is wanted.
        synced_norms: batch norms see the samples of all processes.
        origin: what checkpoints say of its start.
    """

    model: nn.Module
    parallel: nn.Module
    frozen: Sequence[str]
    average: WeightAverage[nn.Module] | None
    synced_norms: bool
    origin: dict[str, Any]


def open_data(config: TrainConfig, group: Group) -> RunData:
    """Open the scans of a run.

    Raises:
        InputError: as :func:`~dela.training.data.kinds.open_dataset`.
        ConfigError: as there, or class weights of data without a labelled point.
    """
    schedule, data = config.train, config.data
    training = open_dataset(data, config.model, "train", config.augment)
    validation = open_dataset(data, config.model, "val") if names_scans(data, "val") else None
    samples = schedule.batch_size * schedule.accumulate * group.size
    steps = schedule.steps_per_epoch or training.steps_per_epoch(samples)
    weights = None
    if schedule.class_weight_power:
        counted = class_weights(training.class_counts(), schedule.class_weight_power)
        weights = torch.from_numpy(counted).to(group.device)
    return RunData(training, validation, steps, schedule.epochs * steps, samples, weights)


def build_network(
    config: TrainConfig, data: RunData, group: Group, hooks: Hooks, saved: dict[str, Any] | None
) -> TrainedNetwork:
    """Make the network of a run on its device: starting values, adapters, frozen parts.

    Args:
        saved: the resumed run's checkpoint, whose weights are still to come; None starts anew.

    Raises:
        CheckpointError, ConfigError: ``train.init``, ``freeze`` or adapters that do not fit.
    """
    schedule = config.train
    if saved is None:
        model, fresh, origin = _new_network(config, data.training, group, hooks)
    else:
        model, fresh = make_network(config.model, schedule.seed), ()
        origin = {name: saved[name] for name in ("stage_ratios", "processes", "init")}
    for line in adapt_network(model, schedule, fresh, hooks.adapt):
        hooks.log(line)
    model.to(group.device)
    frozen = freeze_parts(model, schedule.freeze)
    synced_norms = schedule.sync_norm and group.size > 1
    if synced_norms:
        synchronize_norms(model)
    average = WeightAverage(model, schedule.weight_average) if schedule.weight_average else None
    prepare_training(model, schedule)
    return TrainedNetwork(model, group.parallel(model), frozen, average, synced_norms, origin)


def _new_network(
    config: TrainConfig, training: Dataset, group: Group, hooks: Hooks
) -> tuple[nn.Module, tuple[str, ...], dict[str, Any]]:
    """A network as a run starts from it, names of its tensors that stem from no trained network
    with ``train.init``, and what checkpoints say of its start."""
    schedule = config.train
    pyramids = _measured_pyramids(training, schedule.seed)
    model = make_network(config.model, schedule.seed, pyramids)
    origin = {"stage_ratios": stage_ratios(pyramids), "processes": group.size, "init": None}
    if not schedule.init:
        return model, (), origin
    taken = take_weights(model, schedule.init)
    origin["init"] = {"path": taken.source, "sha256": taken.sha256}
    for line in taken.lines():
        hooks.log(line)
    return model, taken.fresh, origin


def _measured_pyramids(training: Dataset, seed: int) -> list[Inputs]:
    pyramids = []
    for number in range(MEASURED_SAMPLES):
        pyramid = training.sample(generator(seed, MEASURE, number)).pyramid
        assert not isinstance(pyramid, Clouds)
        pyramids.append(pyramid)
    return pyramids
