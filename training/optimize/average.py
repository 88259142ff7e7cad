"""Running average of the weights, and batch-norm statistics measured anew for averaged weights."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any, Generic, TypeVar

import torch
from torch import nn

Model = TypeVar("Model", bound=nn.Module)


class WeightAverage(Generic[Model]):
    """Exponential moving average of a model's parameters and buffers.

    The first steps use the smaller decay ``(1 + n) / (10 + n)``, so that the random start is soon
    forgotten.

    Attributes:
        model: a copy of the followed model that holds the average, in evaluation mode.
    """

    def __init__(self, followed: Model, decay: float) -> None:
        self.model: Model = copy.deepcopy(followed).eval().requires_grad_(False)
        self.decay = decay
        self.updates = 0
        current = followed.state_dict()
        averaged = self.model.state_dict()
        floating = [name for name, value in current.items() if value.is_floating_point()]
        # Live tensors of both models, gathered once: walking the modules at every step costs more
        # than the average itself.
        self._averaged = [averaged[name] for name in floating]
        self._current = [current[name] for name in floating]

    @torch.no_grad()
    def update(self) -> None:
        """Move the average towards the followed model's present weights."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        torch._foreach_lerp_(self._averaged, self._current, 1 - decay)

    def state(self) -> dict[str, Any]:
        """What :meth:`restore` needs; tensors are the live ones, not copies."""
        return {"updates": self.updates, "model": self.model.state_dict()}

    def restore(self, state: dict[str, Any]) -> None:
        self.updates = int(state["updates"])
        self.model.load_state_dict(state["model"])


@torch.no_grad()
def measure_batch_norms(
    model: nn.Module, inputs: Iterable[Any], frozen: Collection[str] = ()
) -> None:
    """Replace the batch norms' running statistics by their mean over these inputs.

    Averaged weights never saw a batch of their own, and a small momentum lags behind in a short
    training. Drop path and head drop stay off; the model is left in evaluation mode.

    Args:
        inputs: what the model's forward takes, at least one.
        frozen: names of modules that keep the statistics they have.
    """
    norms = batch_norms(model, frozen)
    model.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.train()
    try:
        with norm_momentum(norms, None):  # plain mean over the batches
            for batch in inputs:
                model(batch)
    finally:
        model.eval()


def batch_norms(model: nn.Module, frozen: Collection[str] = ()) -> list[nn.BatchNorm1d]:
    """The batch norms of a network, without those among the ``frozen`` modules."""
    return [
        module
        for name, module in model.named_modules()
        if isinstance(module, nn.BatchNorm1d) and name not in frozen
    ]


@contextlib.contextmanager
def norm_momentum(norms: Sequence[nn.BatchNorm1d], momentum: float | None) -> Iterator[None]:
    """A block in which batch norms follow their batches with this momentum; 1 takes the last."""
    before = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = momentum
    try:
        yield
    finally:
        for norm, value in zip(norms, before, strict=True):
            norm.momentum = value
