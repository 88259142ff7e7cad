"""Everything that changes from step to step, and how it survives an interruption."""

from __future__ import annotations

import contextlib
import copy
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from dela.errors import CheckpointError
from dela.model.weights import refuse_misfitting
from dela.scores.confusion import Confusion
from dela.training.optimize.average import WeightAverage


@dataclass
class Totals:
    """Sums over the steps of the present epoch."""

    confusion: Confusion
    steps: int = 0
    seconds: float = 0.0
    losses: dict[str, float] = field(default_factory=dict)

    def add(self, losses: dict[str, float], seconds: float) -> None:
        self.steps += 1
        self.seconds += seconds
        for name, value in losses.items():
            self.losses[name] = self.losses.get(name, 0.0) + value

    def means(self) -> dict[str, float]:
        return {name: value / self.steps for name, value in self.losses.items()}


@dataclass
class TrainingState:
    """A run between two steps.

    Attributes:
        step: steps taken.
        best: the highest validation mIoU so far, None before the first validation.
        average: None when the weights themselves are saved.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    average: WeightAverage[nn.Module] | None
    totals: Totals
    step: int = 0
    best: float | None = None

    @property
    def learning_rate(self) -> float:
        """Of the parts that learn fastest, as last set."""
        return max(float(group["lr"]) for group in self.optimizer.param_groups)

    @property
    def evaluated(self) -> nn.Module:
        """The model that is validated and saved; not to be changed."""
        return self.model if self.average is None else self.average.model

    def new_epoch(self) -> None:
        self.totals = Totals(Confusion(self.totals.confusion.num_classes))

    def to_dict(self) -> dict[str, Any]:
        """Tensors and plain types only, as safe loading demands."""
        return {
            "step": self.step,
            "best": self.best,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": None if self.average is None else self.average.state(),
            "totals": {
                "steps": self.totals.steps,
                "seconds": self.totals.seconds,
                "losses": dict(self.totals.losses),
                "confusion": self.totals.confusion.counts.tolist(),
            },
        }

    def restore(self, values: dict[str, Any]) -> None:
        """Become the state that :meth:`to_dict` described.

        Raises:
            CheckpointError: it is of a network with other tensors, or other ones were trained.
        """
        refuse_misfitting(self.model, values["model"], "the interrupted run, with these adapters,")
        self.step, self.best = int(values["step"]), values["best"]
        self.model.load_state_dict(values["model"])
        try:
            # It keeps tensors that are on the right device already, so it gets its own.
            self.optimizer.load_state_dict(copy.deepcopy(values["optimizer"]))
        except ValueError as error:
            raise CheckpointError(
                "the interrupted run trained other parameters; resume it with the same adapters"
            ) from error
        if self.average is not None:
            self.average.restore(values["average"])
        totals = values["totals"]
        self.totals = Totals(
            Confusion(self.totals.confusion.num_classes, np.array(totals["confusion"])),
            totals["steps"],
            totals["seconds"],
            dict(totals["losses"]),
        )


class Interruption:
    """Ctrl-C and SIGTERM during a run: a step is taken whole or not at all.

    Used as a context manager around the training. A first signal raises KeyboardInterrupt, within
    :meth:`held` only at the block's end; a second Ctrl-C raises it at once, wherever that is.
    Outside the main thread, where Python delivers no signals, it does nothing. A signal that the
    run was started to ignore, as nohup and a shell's ``&`` do, stays ignored; under a launcher of
    several processes both are heard, because it repeats to each what it means them to follow.

    Attributes:
        asked: a signal came.
        hurried: Ctrl-C came again, so a step may have been left half taken.
    """

    def __init__(self, agreed: bool = False) -> None:
        """
        Args:
            agreed: never raise; the loop looks at :attr:`asked` where all processes of a group can
                stop together. (Their launcher repeats signals, and kills who takes too long.)
        """
        self.asked = self.hurried = False
        self._agreed = agreed
        self._holding = 0
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                if signal.getsignal(number) is signal.SIG_IGN and not self._agreed:
                    continue
                self._previous[number] = signal.signal(number, self._signalled)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Hold a first signal back until the block is done."""
        before = self.asked
        self._holding += 1
        try:
            yield
        finally:
            self._holding -= 1
        if self.asked and not before and not self._agreed:
            raise KeyboardInterrupt

    def _signalled(self, number: int, _: object) -> None:
        self.hurried = self.asked and number == signal.SIGINT and not self._agreed
        self.asked = True
        if self.hurried or not (self._holding or self._agreed):
            raise KeyboardInterrupt
