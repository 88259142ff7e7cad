"""The training loop, top to bottom: data, network, epochs, steps, validation, checkpoints."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import operator
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Unpack

import torch
from torch import nn

import dela
from dela.artifacts.checkpoint import save_checkpoint
from dela.errors import CheckpointError
from dela.model.inputs import Inputs
from dela.scores.confusion import Confusion
from dela.training.data.batches import BatchMaker, StepBatches
from dela.training.data.clouds import Clouds
from dela.training.data.dataset import Dataset
from dela.training.data.prefetch import prefetch
from dela.training.data.samples import pack_samples
from dela.training.evaluate.split import Scores, network_forward, score_split
from dela.training.optimize.adapters import merged
from dela.training.optimize.average import batch_norms, measure_batch_norms, norm_momentum
from dela.training.optimize.finetune import make_optimizer
from dela.training.optimize.schedule import scheduled_rate
from dela.training.run.delivery import Step, Steps, open_delivery
from dela.training.run.devices import computes_in_bf16, explain_out_of_memory, peak_memory
from dela.training.run.distributed import Group, join_group
from dela.training.run.events import EventLog
from dela.training.run.folder import RunFolder
from dela.training.run.gradients import Gradients
from dela.training.run.progress import TrainingProgress
from dela.training.run.report import (
    chosen_score,
    class_names,
    epoch_line,
    final_scores,
    log_row,
    opening_line,
)
from dela.training.run.resume import state_to_resume
from dela.training.run.setup import HookOptions, Hooks, build_network, open_data
from dela.training.run.state import Interruption, Totals, TrainingState
from dela.training.run.summary import write_summary
from dela.training.settings.seeds import MEASURE, generator
from dela.training.settings.train import TrainConfig


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
    **hooks: Unpack[HookOptions],
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
        hooks: ``log``, ``after_step`` and ``adapt``, see
            :class:`~dela.training.run.setup.HookOptions`.

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
        called = Hooks(**hooks)
        if not group.leads:
            called = dataclasses.replace(called, log=_silent)
        with folder.claimed() if group.leads else contextlib.nullcontext():
            saved = state_to_resume(folder, config, group.size) if resume else None
            if not resume and not overwrite:
                folder.refuse_existing()
            if saved is None and config.train.init and not Path(config.train.init).is_file():
                raise CheckpointError(
                    f"train.init: there is no checkpoint file at {config.train.init}"
                )
            group.wait()
            Run(config, folder, group, interruption, called, saved).train()
            return TrainResult(folder.best, folder.last, folder.read_scores())


class Run:
    """One training run in this process.

    Args:
        folder: claimed by this run.
        saved: the checkpoint it goes on from; None starts anew.
    """

    def __init__(
        self,
        config: TrainConfig,
        folder: RunFolder,
        group: Group,
        interruption: Interruption,
        hooks: Hooks,
        saved: dict[str, Any] | None,
    ) -> None:
        self.config, self.schedule = config, config.train
        self.folder, self.group = folder, group
        self.interruption, self.hooks = interruption, hooks
        self.delivery = open_delivery(config, group.device)
        self.data = data = open_data(config, group)
        self.network = network = build_network(config, data, group, hooks, saved)
        optimizer = make_optimizer(network.model, self.schedule)
        totals = Totals(Confusion(config.model.num_classes))
        self.state = TrainingState(network.model, optimizer, network.average, totals)
        if saved is not None:
            self.state.restore(saved["resume"])
        self.rate = scheduled_rate(self.schedule, data.steps_per_epoch, data.total_steps)
        self.gradients = Gradients(
            config,
            group,
            self.delivery,
            network.model,
            network.parallel,
            network.frozen,
            data.class_weights,
            data.total_steps,
            folder.last,
        )
        # Beside a training step one native thread per worker is enough; two would take turns
        # with it.
        self.make_batch = BatchMaker(
            data.training,
            self.schedule,
            data.steps_per_epoch,
            data.total_steps,
            data.samples_per_step,
            1 if self.schedule.workers else None,
        )
        self.events = self.open_folder(new=saved is None)
        self.progress = TrainingProgress(
            data.total_steps, self.state.step, hooks.log, shown=group.leads
        )
        self.saved_at = time.monotonic()

    def open_folder(self, new: bool) -> EventLog:
        """Write or go on with the files of the folder, and say what is trained."""
        group, state = self.group, self.state
        if group.leads and new:
            self.folder.start(self.config)
        elif group.leads:
            self.folder.keep_log_until(state.step - state.totals.steps)
        half = computes_in_bf16(self.schedule.dtype, group.device)
        self.hooks.log(opening_line(self.config, self.data, state, half, group.size))
        wanted = self.schedule.tensorboard and group.leads
        return EventLog(self.folder, wanted, state.step, self.hooks.log)

    def train(self) -> None:
        """Train to the end, from wherever the run is.

        Raises:
            TrainingInterrupted: Ctrl-C or SIGTERM, once the state is saved.
        """
        state = self.state
        if state.step == 0 and not state.totals.steps:
            self.prove_memory()
        self.saved_at = time.monotonic()
        with self.progress:
            try:
                if state.totals.steps and self.at_epochs_end:
                    self.finish_epoch()  # the run was interrupted while it validated
                self.take_steps()
            except KeyboardInterrupt:
                if self.interruption.hurried:
                    raise
                self.save_interrupted()
            finally:
                self.events.close()

    def prove_memory(self) -> None:
        """Gradients of the largest batch: memory runs out now or never, and norms saw the data."""
        norms = batch_norms(self.network.model)
        before = [copy.deepcopy(norm.state_dict()) for norm in norms]
        batch, names = self.make_batch.largest()
        with norm_momentum(norms, 1.0):
            self.gradients.compute(0, [(batch, names)])
        self.state.optimizer.zero_grad(set_to_none=True)
        if self.schedule.init:  # it brought statistics of its own
            for norm, values in zip(norms, before, strict=True):
                norm.load_state_dict(values)
        used = peak_memory(self.group.device)
        self.hooks.log(f"largest batch, {batch.pyramid.rows:,} points: {used}")

    def take_steps(self) -> None:
        """All steps that are left, with what is due after each."""
        state = self.state
        with contextlib.closing(self.delivery.ahead(self.prepared_steps())) as steps:
            for batches in steps:
                epoch = state.step // self.data.steps_per_epoch + 1
                with self.interruption.held():
                    loss = self.take_step(batches)
                self.progress.step(state.step, f"epoch {epoch} loss {loss:.3f}")
                if self.hooks.after_step is not None:
                    self.hooks.after_step(state.step, loss)
                if self.save_is_due():
                    self.save_state(state.evaluated, None)
                if self.at_epochs_end:
                    self.finish_epoch()
                if self.group.size > 1 and self.group.any(self.interruption.asked):
                    raise KeyboardInterrupt

    def prepared_steps(self) -> Steps:
        """This process's batches of each step that is left, some of them made ahead."""
        schedule, group = self.schedule, self.group
        pin = group.device.type == "cuda" and not schedule.worker_processes
        return prefetch(
            StepBatches(self.make_batch, group.rank, group.size, pin),
            self.state.step,
            self.data.total_steps,
            schedule.workers,
            max(2, schedule.workers),
            schedule.worker_processes,
        )

    def take_step(self, batches: Step) -> float:
        """Gradients, then one step of the optimizer; the loss."""
        started = time.perf_counter()
        state = self.state
        rate = self.rate.at(state.step)
        for parameters in state.optimizer.param_groups:
            parameters["lr"] = rate * parameters["scale"]
        state.optimizer.zero_grad(set_to_none=True)
        result = self.gradients.compute(state.step, batches)
        if self.schedule.clip_gradient:
            trained = self.network.model.parameters()
            torch.nn.utils.clip_grad_norm_(trained, self.schedule.clip_gradient)
        state.optimizer.step()
        if state.average is not None:
            state.average.update()
        state.step += 1
        state.totals.confusion.counts += result.counts.cpu().numpy()
        state.totals.add(result.figures, time.perf_counter() - started)
        self.events.add(state.step, "step", result.figures | {"learning_rate": rate})
        return result.figures["loss"]

    @property
    def at_epochs_end(self) -> bool:
        return self.state.step % self.data.steps_per_epoch == 0

    def finish_epoch(self) -> None:
        """Validate when it is due, log the epoch, keep the network if it is the best, save."""
        state = self.state
        epoch = state.step // self.data.steps_per_epoch
        due = state.step == self.data.total_steps or epoch % self.schedule.validate_every == 0
        evaluated = state.evaluated
        if due and self.schedule.norm_batches:
            evaluated = self.with_measured_norms(evaluated)
        self.group.take_buffers(evaluated)
        scores = self.validate(evaluated) if due else None
        with self.interruption.held():
            self.record_epoch(epoch, evaluated, scores)
            state.new_epoch()
            # Last: until this file stands, a resumed run repeats the end of the epoch.
            self.save_state(evaluated, scores)
        self.group.wait()

    def with_measured_norms(self, model: nn.Module) -> nn.Module:
        """A copy whose batch norms have the statistics of some training batches."""
        model = copy.deepcopy(model)
        everyone = self.group if self.network.synced_norms else Group(self.group.device)
        batches = map(self.delivery, _norm_batches(self.data.training, self.config, everyone))
        measure_batch_norms(model, batches, self.network.frozen)
        return model

    def validate(self, model: nn.Module) -> Scores | None:
        """Scores of the validation split, of which each process takes its share; None without."""
        if self.data.validation is None:
            return None
        mine = copy.copy(self.data.validation)
        mine.scans = self.group.share(self.data.validation.scans)
        smaller = f"data.eval_points below {self.config.data.eval_points:,}"
        with explain_out_of_memory("the validation", smaller, self.group.device):
            own = score_split(network_forward(model), mine, progress=self.show_validation)
        return functools.reduce(operator.add, self.group.gather(own))

    def show_validation(self, done: float, scans: int) -> None:
        at_hand = min(int(done) + 1, scans)
        self.progress.step(self.state.step, f"validating, scan {at_hand} of {scans}")

    def record_epoch(self, epoch: int, model: nn.Module, scores: Scores | None) -> None:
        """The epoch in the log, the scores, the page, and ``best.pt`` if it is the best."""
        state, last = self.state, self.state.step == self.data.total_steps
        score = None if scores is None else chosen_score(self.config, scores)
        better = score is not None and (state.best is None or score > state.best)
        if better:
            state.best = score
        row = log_row(self.config, state, epoch, scores)
        if self.group.leads:
            if better or (self.data.validation is None and last):
                save_checkpoint(self.folder.best, merged(model), self.facts(scores))
            self.folder.append_log(row)
            if scores is not None or last:
                self.folder.write_scores(final_scores(self.config, state, scores, row))
            write_summary(self.folder)
        self.events.add(state.step, "epoch", row)
        self.progress.line(epoch_line(self.config, row, scores, state.best), state.step)

    def save_is_due(self) -> bool:
        """Whether a checkpoint within an epoch is, by count or by clock."""
        schedule = self.schedule
        if schedule.save_steps and self.state.step % schedule.save_steps == 0:
            return True
        seconds = time.monotonic() - self.saved_at
        return bool(schedule.save_minutes) and seconds >= 60 * schedule.save_minutes

    def save_state(self, model: nn.Module, scores: Scores | None) -> None:
        """Write ``last.pt``: a network as it is evaluated, and all that a resumed run needs."""
        if self.group.leads:
            extra = self.facts(scores) | {"resume": self.state.to_dict()}
            save_checkpoint(self.folder.last, merged(model), extra)
        self.saved_at = time.monotonic()

    def save_interrupted(self) -> None:
        """Save what the end of an epoch has not just saved, and leave.

        Raises:
            TrainingInterrupted: always.
        """
        state = self.state
        if state.totals.steps or not state.step:
            with self.interruption.held():
                self.save_state(state.evaluated, None)
        raise TrainingInterrupted(
            f"interrupted after step {state.step} of {self.data.total_steps}; the state is in "
            f"{self.folder.last}: repeat the command with --resume to go on"
        ) from None

    def facts(self, scores: Scores | None) -> dict[str, Any]:
        """What a checkpoint says beside the network."""
        return {
            "training": self.config.to_dict(),
            **self.network.origin,
            "step": self.state.step,
            "validation": None if scores is None else scores.to_dict(class_names(self.config)),
            "dela_version": dela.__version__,
        }


def _norm_batches(
    training: Dataset, config: TrainConfig, group: Group
) -> Iterator[Inputs | Clouds]:
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


def _silent(_: str) -> None:
    pass
