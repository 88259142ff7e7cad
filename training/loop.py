"""The training loop: data, network, optimiser, steps, validation, checkpoints, top to bottom."""

from __future__ import annotations

import copy
import dataclasses
import math
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import dela
from dela.checkpoint import load_checkpoint, save_checkpoint
from dela.errors import CheckpointError, ConfigError, DelaError, InputError
from dela.metrics import Confusion
from dela.network import create_model, measure_neighbor_distances
from dela.pyramid import Pyramid, pack
from dela.training.average import WeightAverage, measure_batch_norms
from dela.training.config import TrainConfig
from dela.training.datasets import Batch, Dataset, open_dataset, pack_samples
from dela.training.evaluate import evaluate, network_forward
from dela.training.losses import class_weights, cross_entropy, lovasz_softmax
from dela.training.prefetch import prefetch
from dela.training.progress import TrainingProgress
from dela.training.run_folder import RunFolder
from dela.training.schedule import coordinate_weight, learning_rate
from dela.training.state import (
    MEASURE,
    SAMPLE,
    Totals,
    TrainingState,
    finish_before_interrupt,
    generator,
    seed_torch,
)

# Samples on which neighbour distances and the sizes of coarser stages are measured.
MEASURED_SAMPLES = 16
# What may differ between a run and its continuation: it changes no number.
FREE_ON_RESUME = {("data", "root"), ("train", "workers")}


@dataclass(frozen=True)
class TrainResult:
    """Where a run left its networks, and the contents of ``metrics.json``."""

    best_path: Path
    last_path: Path
    metrics: dict[str, Any]


class TrainingInterrupted(KeyboardInterrupt):
    """Ctrl-C, after the run was saved; the message says how to go on."""


def train(
    config: TrainConfig,
    run_dir: str | Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    seed: int | None = None,
    device: str = "cpu",
    log: Callable[[str], None] = print,
    after_step: Callable[[int, float], None] | None = None,
) -> TrainResult:
    """Train a network and leave it in a run folder.

    Every random choice is drawn from (seed, step), so a run that was interrupted and resumed ends
    with the same weights as one that was not.

    Args:
        run_dir: made when missing; see :class:`~dela.training.run_folder.RunFolder`.
        resume: go on from ``last.pt`` in ``run_dir``; the configuration must be the same.
        overwrite: replace a run that is there.
        seed: instead of ``config.train.seed``.
        device: torch device.
        log: receives one line per event.
        after_step: called with the number of steps taken and the loss after each step.

    Raises:
        InputError: a run is there already, nothing to resume, or data that cannot be read.
        ConfigError: the configuration differs from the resumed run's.
        DelaError: the loss is not finite.
        TrainingInterrupted: Ctrl-C; ``last.pt`` holds the state.
    """
    if seed is not None:
        config = dataclasses.replace(config, train=dataclasses.replace(config.train, seed=seed))
    schedule = config.train
    torch_device = usable_device(device)
    folder = RunFolder(run_dir)
    saved = _resumable(folder, config) if resume else None
    if saved is None and not overwrite:
        folder.refuse_existing()

    training = open_dataset(config.data, config.model, "train", config.augment)
    validation = open_dataset(config.data, config.model, "val") if _has_split(config) else None
    steps_per_epoch = schedule.steps_per_epoch or math.ceil(
        training.samples_per_pass / schedule.batch_size
    )
    total_steps = schedule.epochs * steps_per_epoch
    warmup_steps = round(schedule.warmup * steps_per_epoch)
    weights = None
    if schedule.class_weight_power:
        counted = class_weights(training.class_counts(), schedule.class_weight_power)
        weights = torch.from_numpy(counted).to(torch_device)

    if saved is None:
        pyramids = list(_measured_pyramids(training, schedule.seed, MEASURED_SAMPLES))
        distances = measure_neighbor_distances(pyramids, config.model)
        model = create_model(config.model, neighbor_distances=distances, seed=schedule.seed)
        ratios = stage_ratios(pyramids)
    else:
        model = create_model(config.model, seed=schedule.seed)
        ratios = saved["stage_ratios"]
    model.to(torch_device)
    average = WeightAverage(model, schedule.weight_average) if schedule.weight_average else None
    state = TrainingState(
        model, make_optimizer(model, config), average, Totals(Confusion(config.model.num_classes))
    )
    if saved is None:
        folder.start(config)
    else:
        state.restore(saved["resume"])
        folder.keep_log_until(state.step - state.totals.steps)
    half = computes_in_bf16(schedule.dtype, torch_device)
    log(_opening_line(config, training, validation, state, total_steps, half))
    # Beside a training step one native thread per worker is enough; two would take turns with it.
    sample_threads = 1 if schedule.workers else None

    def make_batch(step: int) -> tuple[Batch, list[str]]:
        samples = [
            training.sample(generator(schedule.seed, SAMPLE, step, slot), sample_threads)
            for slot in range(schedule.batch_size)
        ]
        return pack_samples(samples), [training.scans[sample.scan].name for sample in samples]

    def take_step(batch: Batch, names: list[str]) -> float:
        started = time.perf_counter()
        step = state.step
        seed_torch(schedule.seed, step)
        for group in state.optimizer.param_groups:
            group["lr"] = learning_rate(step, total_steps, warmup_steps, schedule.learning_rate)
        model.train()
        labels = torch.from_numpy(batch.labels).to(torch_device)
        with torch.autocast(torch_device.type, dtype=torch.bfloat16, enabled=half):
            logits, coordinate = model(batch.pyramid)
        classification = cross_entropy(logits, labels, schedule.label_smoothing, weights)
        loss = classification + coordinate.float() * coordinate_weight(
            step, total_steps, schedule.coordinate_loss, schedule.coordinate_loss_decay
        )
        if schedule.lovasz:
            loss = loss + schedule.lovasz * lovasz_softmax(logits, labels)
        value = loss.item()
        if not math.isfinite(value):
            raise DelaError(
                f"the loss is {value} at step {step + 1} (samples from {', '.join(names)}); lower "
                "train.learning_rate or set train.clip_gradient, and look at these scans"
            )
        state.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if schedule.clip_gradient:
            nn.utils.clip_grad_norm_(model.parameters(), schedule.clip_gradient)
        state.optimizer.step()
        if state.average is not None:
            state.average.update()
        state.step += 1
        state.totals.confusion.add(batch.labels, logits.detach().argmax(1).cpu().numpy())
        losses = {
            "loss": value,
            "cross_entropy": classification.item(),
            "coordinate_loss": coordinate.item(),
        }
        state.totals.add(losses, time.perf_counter() - started)
        return value

    def finish_epoch() -> None:
        epoch = state.step // steps_per_epoch
        last_epoch = state.step == total_steps
        due = last_epoch or epoch % schedule.validate_every == 0
        evaluated = state.evaluated
        if due and schedule.norm_batches:
            evaluated = copy.deepcopy(evaluated)
            measure_batch_norms(evaluated, _norm_batches(training, config))
        confusion = None
        if due and validation is not None:
            confusion = evaluate(network_forward(evaluated), validation)
        with finish_before_interrupt():
            score = None if confusion is None else confusion.miou
            better = score is not None and (state.best is None or score > state.best)
            if better:
                state.best = score
            extra = _extra(config, state, ratios, confusion)
            if better or (validation is None and last_epoch):
                save_checkpoint(folder.best, evaluated, extra)
            row = _log_row(config, state, epoch, confusion)
            folder.append_log(row)
            progress.line(_epoch_line(row, schedule.epochs, confusion, state.best), state.step)
            state.new_epoch()
            save_checkpoint(folder.last, evaluated, extra | {"resume": state.to_dict()})
            if last_epoch:
                folder.write_scores(_final_scores(config, state, confusion, row))

    with TrainingProgress(total_steps, state.step, log) as progress:
        try:
            if state.totals.steps and state.step % steps_per_epoch == 0:
                finish_epoch()  # the run was interrupted while it validated
            batches = prefetch(make_batch, state.step, total_steps, schedule.workers)
            with closing(batches):
                for batch, names in batches:
                    epoch = state.step // steps_per_epoch + 1
                    with finish_before_interrupt():
                        loss = take_step(batch, names)
                    progress.step(state.step, f"epoch {epoch} loss {loss:.3f}")
                    if after_step is not None:
                        after_step(state.step, loss)
                    if state.step % steps_per_epoch == 0:
                        finish_epoch()
        except KeyboardInterrupt:
            with finish_before_interrupt():
                extra = _extra(config, state, ratios, None) | {"resume": state.to_dict()}
                save_checkpoint(folder.last, state.evaluated, extra)
            raise TrainingInterrupted(
                f"interrupted after step {state.step} of {total_steps}; the state is in "
                f"{folder.last}: repeat the command with --resume to go on"
            ) from None

    return TrainResult(folder.best, folder.last, folder.read_scores())


def make_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW that decays matrices only: biases, norms and ellipsoids are one-dimensional."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {
            "params": [p for p in parameters if p.ndim > 1],
            "weight_decay": config.train.weight_decay,
        },
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.train.learning_rate, fused=True)


def computes_in_bf16(dtype: str, device: torch.device) -> bool:
    """Whether the dense layers run in bfloat16 for this ``train.dtype``.

    ``auto`` asks for arithmetic in hardware: a processor without AVX512-BF16 or AMX emulates it
    and is slower than in float32.
    """
    if dtype != "auto":
        return dtype == "bf16"
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    # Older releases of torch cannot tell, and get float32.
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return device.type == "cpu" and bool(capabilities.get("avx512_bf16"))


def stage_ratios(pyramids: list[Pyramid]) -> list[dict[str, float]]:
    """Points of each stage over points of stage 0: ``min``, ``mean``, ``max`` per stage.

    Exported files carry them, so that engines can be built for a range of stage 0 alone.
    """
    sizes = np.array([[sum(lengths) for lengths in pyramid.lengths] for pyramid in pyramids])
    ratios = sizes / sizes[:, :1]
    return [
        {"min": float(r.min()), "mean": float(r.mean()), "max": float(r.max())} for r in ratios.T
    ]


def usable_device(name: str) -> torch.device:
    """The torch device of this name.

    Raises:
        InputError: torch does not know it, or cannot use it here.
    """
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        first_line = str(error).splitlines()[0]
        raise InputError(f"device {name!r} is not usable: {first_line}") from error
    return device


def _has_split(config: TrainConfig) -> bool:
    data = config.data
    return bool(data.val_rooms if data.kind == "rooms" else data.val)


def _measured_pyramids(training: Dataset, seed: int, count: int) -> Iterator[Pyramid]:
    for number in range(count):
        yield training.sample(generator(seed, MEASURE, number)).pyramid


def _norm_batches(training: Dataset, config: TrainConfig) -> Iterator[Pyramid]:
    """Batches as large as the training's: a norm's variance spans the clouds of its batch."""
    size = config.train.batch_size
    pyramids = _measured_pyramids(training, config.train.seed, config.train.norm_batches * size)
    for _ in range(config.train.norm_batches):
        yield pack([next(pyramids) for _ in range(size)])


def _resumable(folder: RunFolder, config: TrainConfig) -> dict[str, Any]:
    """The ``extra`` of ``last.pt``, after checking that it is this configuration's.

    Raises:
        InputError: no ``last.pt``; CheckpointError: not a training run's; ConfigError: another
        configuration.
    """
    if not folder.last.exists():
        raise InputError(f"nothing to resume: {folder.last} does not exist; leave out --resume")
    extra = load_checkpoint(folder.last).extra or {}
    if "resume" not in extra:
        raise CheckpointError(f"{folder.last} holds no training state; it cannot be resumed")
    earlier = TrainConfig.from_dict(extra["training"]).to_dict()
    for section, values in config.to_dict().items():
        for key, value in values.items():
            if (section, key) not in FREE_ON_RESUME and value != earlier[section][key]:
                raise ConfigError(
                    f"{section}.{key} is {value!r}, but the run in {folder.path} has "
                    f"{earlier[section][key]!r}; resume with the same configuration "
                    f"({folder.config}) or start another run"
                )
    return extra


def _extra(
    config: TrainConfig,
    state: TrainingState,
    ratios: list[dict[str, float]],
    confusion: Confusion | None,
) -> dict[str, Any]:
    names = [info.name for info in config.model.classes]
    return {
        "training": config.to_dict(),
        "stage_ratios": ratios,
        "step": state.step,
        "validation": None if confusion is None else confusion.to_dict(names),
        "dela_version": dela.__version__,
    }


def _log_row(
    config: TrainConfig, state: TrainingState, epoch: int, confusion: Confusion | None
) -> dict[str, Any]:
    """One line of ``metrics.csv``."""
    totals = state.totals
    row: dict[str, Any] = {
        "epoch": epoch,
        "step": state.step,
        "seconds": totals.seconds,
        "learning_rate": state.optimizer.param_groups[0]["lr"],
        **totals.means(),
        "train_oa": totals.confusion.oa,
        "train_miou": totals.confusion.miou,
        "val_oa": None if confusion is None else confusion.oa,
        "val_macc": None if confusion is None else confusion.macc,
        "val_miou": None if confusion is None else confusion.miou,
    }
    for number, info in enumerate(config.model.classes):
        row[f"val_iou_{info.name}"] = None if confusion is None else float(confusion.iou[number])
    return row


def _opening_line(
    config: TrainConfig,
    training: Dataset,
    validation: Dataset | None,
    state: TrainingState,
    total_steps: int,
    half: bool,
) -> str:
    parameters = sum(p.numel() for p in state.model.parameters())
    validated = "none" if validation is None else str(len(validation.scans))
    went = f", resumed at step {state.step}" if state.step else ""
    return (
        f"{parameters / 1e6:.2f} M parameters, {config.model.num_classes} classes; "
        f"{len(training.scans)} scans to train, {validated} to validate; {total_steps} steps of "
        f"{config.train.batch_size} x {config.data.points:,} points in "
        f"{'bf16' if half else 'fp32'}{went}"
    )


def _epoch_line(
    row: dict[str, Any], epochs: int, confusion: Confusion | None, best: float | None
) -> str:
    text = (
        f"epoch {row['epoch']}/{epochs}: loss {row['loss']:.3f}, train accuracy "
        f"{row['train_oa']:.3f} mIoU {row['train_miou']:.3f}"
    )
    if confusion is not None and best is not None:
        text += f", validation accuracy {confusion.oa:.3f} mIoU {confusion.miou:.3f}"
        text += f" (best {best:.3f})"
    return f"{text}, {row['seconds']:.1f} s"


def _final_scores(
    config: TrainConfig, state: TrainingState, confusion: Confusion | None, row: dict[str, Any]
) -> dict[str, Any]:
    names = [info.name for info in config.model.classes]
    return {
        "steps": state.step,
        "epochs": config.train.epochs,
        "loss": row["loss"],
        "train_oa": row["train_oa"],
        "train_miou": row["train_miou"],
        "best_miou": state.best,
        "validation": None if confusion is None else confusion.to_dict(names),
    }
