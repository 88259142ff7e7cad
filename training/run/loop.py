"""The training loop: data, network, optimiser, steps, validation, checkpoints, top to bottom."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import math
import operator
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import dela
from dela.artifacts.checkpoint import save_checkpoint
from dela.errors import CheckpointError, DelaError
from dela.families import create_model
from dela.families.dela import Network, measure_neighbor_distances
from dela.pyramid.cpu import Pyramid
from dela.scores.confusion import Confusion
from dela.training.data.batches import BatchMaker, StepBatches
from dela.training.data.clouds import Clouds
from dela.training.data.delivery import open_delivery
from dela.training.data.prefetch import prefetch
from dela.training.data.scans import Batch, Dataset, open_dataset, pack_samples
from dela.training.evaluate.split import Scores, network_forward, score_split
from dela.training.optimize.adapters import Adapt, adapt_network, merged
from dela.training.optimize.average import WeightAverage, measure_batch_norms
from dela.training.optimize.finetune import freeze_parts, parameter_groups, take_weights
from dela.training.optimize.losses import (
    class_weights,
    cross_entropy,
    gradient_norm,
    label_weight,
    lovasz_softmax,
)
from dela.training.optimize.schedule import coordinate_weight, learning_rate
from dela.training.optimize.synced_norm import synchronise_norms
from dela.training.run.devices import (
    computes_in_bf16,
    memory_in_words,
    peak_memory,
    smaller_steps,
)
from dela.training.run.distributed import Group, gradients_kept_local, join_group
from dela.training.run.events import EventLog
from dela.training.run.folder import RunFolder
from dela.training.run.progress import TrainingProgress
from dela.training.run.report import (
    chosen_score,
    class_names,
    epoch_line,
    final_scores,
    log_row,
    opening_line,
)
from dela.training.run.resume import stage_ratios, state_to_resume
from dela.training.run.state import (
    MEASURE,
    Interruption,
    Totals,
    TrainingState,
    generator,
    seed_torch,
)
from dela.training.run.summary import write_summary
from dela.training.settings.train import TrainConfig

# Samples on which neighbour distances and the sizes of coarser stages are measured.
MEASURED_SAMPLES = 16


@dataclass(frozen=True)
class TrainResult:
    """Where a run left its networks, and the contents of ``metrics.json``."""

    best_path: Path
    last_path: Path
    metrics: dict[str, Any]


class TrainingInterrupted(KeyboardInterrupt):
    """Ctrl-C or SIGTERM, after the run was saved; the message says how to go on."""


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
    adapt: Adapt | None = None,
) -> TrainResult:
    """Train a network and leave it in a run folder.

    Every random choice is drawn from (seed, step), so a run that was interrupted or killed and
    resumed ends with the same weights as one that was not. Started by ``torchrun``, each process
    takes its share of every step, see :mod:`dela.training.run.distributed`.

    Args:
        run_dir: made when missing; see :class:`~dela.training.run.folder.RunFolder`.
        resume: go on from ``last.pt`` in ``run_dir``; the configuration must be the same.
        overwrite: replace a run that is there.
        seed: instead of ``config.train.seed``.
        device: torch device; ``cuda`` gives each process its own GPU.
        log: receives one line per event, in the first process.
        after_step: called with the number of steps taken and the loss after each step.
        adapt: puts adapters into the network once it has the weights of ``train.init``, and says by
            ``requires_grad`` what trains, see
            :func:`~dela.training.optimize.adapters.adapt_network`. A resumed run needs the same.

    Raises:
        InputError: a run is there already or going on, nothing to resume, or data that cannot be
            read.
        ConfigError: the configuration differs from the resumed run's.
        DelaError: the loss or its gradient is not finite, or out of memory.
        TrainingInterrupted: Ctrl-C or SIGTERM; ``last.pt`` holds the state.
    """
    if seed is not None:
        config = dataclasses.replace(config, train=dataclasses.replace(config.train, seed=seed))
    folder = RunFolder(run_dir)
    with join_group(device) as group, Interruption(agreed=group.size > 1) as interruption:
        log = log if group.leads else _silent
        with folder.claimed() if group.leads else contextlib.nullcontext():
            return _train(
                config, folder, group, interruption, resume, overwrite, log, after_step, adapt
            )


def _train(
    config: TrainConfig,
    folder: RunFolder,
    group: Group,
    interruption: Interruption,
    resume: bool,
    overwrite: bool,
    log: Callable[[str], None],
    after_step: Callable[[int, float], None] | None,
    adapt: Adapt | None,
) -> TrainResult:
    schedule = config.train
    saved = state_to_resume(folder, config, group.size) if resume else None
    if not resume and not overwrite:
        folder.refuse_existing()
    if saved is None and schedule.init and not Path(schedule.init).is_file():
        raise CheckpointError(f"train.init: there is no checkpoint file at {schedule.init}")
    group.wait()

    delivery = open_delivery(config, group.device)
    training = open_dataset(config.data, config.model, "train", config.augment)
    validation = open_dataset(config.data, config.model, "val") if _has_validation(config) else None
    batches_per_step = schedule.accumulate * group.size
    steps_per_epoch = schedule.steps_per_epoch or training.steps_per_epoch(
        schedule.batch_size * batches_per_step
    )
    total_steps = schedule.epochs * steps_per_epoch
    warmup_steps = round(schedule.warmup * steps_per_epoch)
    weights = None
    if schedule.class_weight_power:
        counted = class_weights(training.class_counts(), schedule.class_weight_power)
        weights = torch.from_numpy(counted).to(group.device)

    fresh: tuple[str, ...] = ()
    if saved is None:
        pyramids = list(_measured_pyramids(training, schedule.seed, range(MEASURED_SAMPLES)))
        distances = measure_neighbor_distances(pyramids, config.model)
        model = create_model(config.model, neighbor_distances=distances, seed=schedule.seed)
        origin = {"stage_ratios": stage_ratios(pyramids), "processes": group.size, "init": None}
        if schedule.init:
            taken = take_weights(model, schedule.init)
            fresh = taken.fresh
            origin["init"] = {"path": taken.source, "sha256": taken.sha256}
            for line in taken.lines():
                log(line)
    else:
        model = create_model(config.model, seed=schedule.seed)
        origin = {name: saved[name] for name in ("stage_ratios", "processes", "init")}
    for line in adapt_network(model, schedule, fresh, adapt):
        log(line)
    model.to(group.device)
    model.checkpoint_blocks = schedule.checkpoint
    frozen = freeze_parts(model, schedule.freeze)
    synced_norms = schedule.sync_norm and group.size > 1
    if synced_norms:
        synchronise_norms(model)
    average = WeightAverage(model, schedule.weight_average) if schedule.weight_average else None
    if schedule.compile:
        model.compile_training()
    network = group.parallel(model)
    state = TrainingState(
        model, make_optimizer(model, config), average, Totals(Confusion(config.model.num_classes))
    )
    if saved is not None:
        state.restore(saved["resume"])
    if group.leads and saved is None:
        folder.start(config)
    elif group.leads:
        folder.keep_log_until(state.step - state.totals.steps)
    half = computes_in_bf16(schedule.dtype, group.device)
    log(opening_line(config, training, validation, state, total_steps, half, group.size))
    events = EventLog(folder, schedule.tensorboard and group.leads, state.step, log)

    # Beside a training step one native thread per worker is enough; two would take turns with it.
    make_batch = BatchMaker(
        training,
        schedule,
        steps_per_epoch,
        total_steps,
        schedule.batch_size * batches_per_step,
        1 if schedule.workers else None,
    )
    threads_pin = group.device.type == "cuda" and not schedule.worker_processes
    make_step = StepBatches(make_batch, group.rank, group.size, threads_pin)

    def compute_gradients(
        batches: list[tuple[Batch, list[str]]], step: int
    ) -> tuple[dict[str, float], torch.Tensor]:
        """Leave a step's gradients in the model; its losses, and its confusion matrix.

        Both are over all batches of all processes. A labelled point weighs the same in each.
        """
        model.train()
        for name in frozen:
            model.get_submodule(name).eval()
        state.optimizer.zero_grad(set_to_none=True)
        labels = [torch.from_numpy(batch.labels).to(group.device) for batch, _ in batches]
        targets = [
            truth if batch.targets is None else torch.from_numpy(batch.targets).to(group.device)
            for (batch, _), truth in zip(batches, labels, strict=True)
        ]
        amounts = torch.stack([label_weight(values, weights) for values in targets])
        shares = amounts / group.sum(amounts.sum()).clamp(min=1e-12)
        parts = len(batches) * group.size
        coordinate_share = coordinate_weight(
            step, total_steps, schedule.coordinate_loss, schedule.coordinate_loss_decay
        )
        rows = []
        confusion = Confusion(config.model.num_classes)
        for number, ((batch, _), truth) in enumerate(zip(batches, labels, strict=True)):
            seed_torch(schedule.seed, step, number * group.size + group.rank)
            pyramid = delivery(batch.pyramid)
            with (
                memory_in_words(
                    f"a batch of {len(pyramid.points):,} points",
                    smaller_steps(config, group.device),
                    group.device,
                ),
                gradients_kept_local(network, number + 1 < len(batches)),
            ):
                with torch.autocast(group.device.type, dtype=torch.bfloat16, enabled=half):
                    logits, coordinate = network(pyramid)
                classification = shares[number] * cross_entropy(
                    logits, targets[number], schedule.label_smoothing, weights
                )
                coordinate = coordinate.float() / parts
                loss = classification + coordinate * coordinate_share
                if schedule.lovasz:
                    loss = loss + schedule.lovasz / parts * lovasz_softmax(logits, truth)
                # The processes' gradients are averaged; a step wants their sum.
                (loss * group.size).backward()
            rows.append(torch.stack([loss, classification, coordinate]).detach())
            confusion.add(batch.labels, logits.detach().argmax(1).cpu().numpy())
        own = torch.stack(rows)
        losses = group.sum(own.sum(0)).tolist()
        norm = gradient_norm(model).item()
        if not math.isfinite(losses[0] + norm):
            suspects = [
                names
                for (_, names), row in zip(batches, own, strict=True)
                if math.isfinite(losses[0]) or not bool(row.isfinite().all())
            ]
            raise DelaError(_not_finite(losses[0], norm, step, group.gather(suspects), folder))
        figures = dict(zip(("loss", "cross_entropy", "coordinate_loss"), losses, strict=True))
        counts = group.sum(torch.from_numpy(confusion.counts))
        return figures | {"gradient_norm": norm}, counts

    def prove_memory() -> None:
        """Gradients of the largest batch: memory runs out now or never, and norms saw the data."""
        norms = [m for m in model.modules() if isinstance(m, torch.nn.BatchNorm1d)]
        before = [copy.deepcopy(norm.state_dict()) for norm in norms]
        for norm in norms:
            norm.momentum = 1.0
        batch, names = make_batch.largest()
        compute_gradients([(batch, names)], 0)
        state.optimizer.zero_grad(set_to_none=True)
        for norm, values in zip(norms, before, strict=True):
            norm.momentum = config.model.bn_momentum
            if schedule.init:  # it brought statistics of its own
                norm.load_state_dict(values)
        log(f"largest batch, {len(batch.pyramid.points):,} points: {peak_memory(group.device)}")

    def take_step(batches: list[tuple[Batch, list[str]]]) -> float:
        started = time.perf_counter()
        step = state.step
        rate = learning_rate(
            step,
            total_steps,
            warmup_steps,
            schedule.learning_rate,
            schedule.final_rate * schedule.learning_rate,
            schedule.warmup_start * schedule.learning_rate,
            schedule.warmup_inside,
        )
        for parameters in state.optimizer.param_groups:
            parameters["lr"] = rate * parameters["scale"]
        figures, counts = compute_gradients(batches, step)
        if schedule.clip_gradient:
            torch.nn.utils.clip_grad_norm_(model.parameters(), schedule.clip_gradient)
        state.optimizer.step()
        if state.average is not None:
            state.average.update()
        state.step += 1
        state.totals.confusion.counts += counts.cpu().numpy()
        state.totals.add(figures, time.perf_counter() - started)
        events.add(state.step, "step", figures | {"learning_rate": rate})
        return figures["loss"]

    def save_state(network: Network, scores: Scores | None) -> None:
        if group.leads:
            extra = _extra(config, state, origin, scores) | {"resume": state.to_dict()}
            save_checkpoint(folder.last, merged(network), extra)

    def show_validation(done: float, scans: int) -> None:
        progress.step(state.step, f"validating, scan {min(int(done) + 1, scans)} of {scans}")

    def finish_epoch() -> None:
        epoch = state.step // steps_per_epoch
        last_epoch = state.step == total_steps
        due = last_epoch or epoch % schedule.validate_every == 0
        evaluated = state.evaluated
        if due and schedule.norm_batches:
            evaluated = copy.deepcopy(evaluated)
            everyone = group if synced_norms else Group(group.device)
            batches = map(delivery, _norm_batches(training, config, everyone))
            measure_batch_norms(evaluated, batches, frozen)
        group.take_buffers(evaluated)
        scores = None
        if due and validation is not None:
            mine = copy.copy(validation)
            mine.scans = group.share(validation.scans)
            smaller = f"data.eval_points below {config.data.eval_points:,}"
            with memory_in_words("the validation", smaller, group.device):
                own = score_split(network_forward(evaluated), mine, progress=show_validation)
            scores = functools.reduce(operator.add, group.gather(own))
        with interruption.held():
            score = None if scores is None else chosen_score(config, scores)
            better = score is not None and (state.best is None or score > state.best)
            if better:
                state.best = score
            row = log_row(config, state, epoch, scores)
            if group.leads:
                if better or (validation is None and last_epoch):
                    extra = _extra(config, state, origin, scores)
                    save_checkpoint(folder.best, merged(evaluated), extra)
                folder.append_log(row)
                if scores is not None or last_epoch:
                    folder.write_scores(final_scores(config, state, scores, row))
                write_summary(folder)
            events.add(state.step, "epoch", row)
            progress.line(epoch_line(config, row, scores, state.best), state.step)
            state.new_epoch()
            # Last: until this file stands, a resumed run repeats the end of the epoch.
            save_state(evaluated, scores)
        group.wait()

    if state.step == 0 and not state.totals.steps:
        prove_memory()
    saved_at = time.monotonic()
    with TrainingProgress(total_steps, state.step, log, shown=group.leads) as progress:
        try:
            if state.totals.steps and state.step % steps_per_epoch == 0:
                finish_epoch()  # the run was interrupted while it validated
            ready = prefetch(
                make_step,
                state.step,
                total_steps,
                schedule.workers,
                max(2, schedule.workers),
                schedule.worker_processes,
            )
            with contextlib.closing(delivery.ahead(ready)) as steps:
                for batches in steps:
                    epoch = state.step // steps_per_epoch + 1
                    with interruption.held():
                        loss = take_step(batches)
                    progress.step(state.step, f"epoch {epoch} loss {loss:.3f}")
                    if after_step is not None:
                        after_step(state.step, loss)
                    if _save_due(config, state.step, time.monotonic() - saved_at):
                        save_state(state.evaluated, None)
                        saved_at = time.monotonic()
                    if state.step % steps_per_epoch == 0:
                        finish_epoch()
                        saved_at = time.monotonic()
                    if group.size > 1 and group.any(interruption.asked):
                        raise KeyboardInterrupt
        except KeyboardInterrupt:
            if interruption.hurried:
                raise
            if state.totals.steps or not state.step:  # else the epoch's end has just saved it
                with interruption.held():
                    save_state(state.evaluated, None)
            raise TrainingInterrupted(
                f"interrupted after step {state.step} of {total_steps}; the state is in "
                f"{folder.last}: repeat the command with --resume to go on"
            ) from None
        finally:
            events.close()

    return TrainResult(folder.best, folder.last, folder.read_scores())


def make_optimizer(model: Network, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW over :func:`~dela.training.optimize.finetune.parameter_groups`."""
    groups = parameter_groups(model, config.train)
    return torch.optim.AdamW(groups, lr=config.train.learning_rate, fused=True)


def _has_validation(config: TrainConfig) -> bool:
    data = config.data
    if data.kind == "prepared":
        from dela.training.data.prepared import prepared_names

        return bool(prepared_names(data, "val"))
    return bool(data.val_rooms if data.kind == "rooms" else data.val)


def _measured_pyramids(training: Dataset, seed: int, numbers: Iterable[int]) -> Iterator[Pyramid]:
    for number in numbers:
        pyramid = training.sample(generator(seed, MEASURE, number)).pyramid
        assert isinstance(pyramid, Pyramid)
        yield pyramid


def _norm_batches(
    training: Dataset, config: TrainConfig, group: Group
) -> Iterator[Pyramid | Clouds]:
    """Batches as large as the training's: a norm's variance spans the clouds of its batch."""
    schedule = config.train
    for batch in range(schedule.norm_batches):
        first = (batch * group.size + group.rank) * schedule.batch_size
        samples = [
            training.sample(
                generator(schedule.seed, MEASURE, number), build=not schedule.gpu_pyramid
            )
            for number in range(first, first + schedule.batch_size)
        ]
        yield pack_samples(samples).pyramid


def _save_due(config: TrainConfig, step: int, seconds: float) -> bool:
    schedule = config.train
    by_count = schedule.save_steps and step % schedule.save_steps == 0
    by_clock = schedule.save_minutes and seconds >= 60 * schedule.save_minutes
    return bool(by_count or by_clock)


def _extra(
    config: TrainConfig,
    state: TrainingState,
    origin: dict[str, Any],
    scores: Scores | None,
) -> dict[str, Any]:
    return {
        "training": config.to_dict(),
        **origin,
        "step": state.step,
        "validation": None if scores is None else scores.to_dict(class_names(config)),
        "dela_version": dela.__version__,
    }


def _not_finite(
    loss: float, norm: float, step: int, suspects: list[list[list[str]]], folder: RunFolder
) -> str:
    what = f"the loss is {loss}" if not math.isfinite(loss) else f"the gradient's norm is {norm}"
    names = dict.fromkeys(name for process in suspects for batch in process for name in batch)
    text = (
        f"{what} at step {step + 1} (samples from {', '.join(names)}); lower "
        "train.learning_rate or set train.clip_gradient, and look at these scans"
    )
    return text + (f"; {folder.last} is from before" if folder.last.exists() else "")


def _silent(_: str) -> None:
    pass
