"""The gradients of one training step, over all batches of all processes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import torch
from torch import Tensor, nn

from dela.errors import DelaError
from dela.scores.confusion import Confusion
from dela.training.data.samples import Batch
from dela.training.optimize.losses import (
    cross_entropy,
    gradient_norm,
    label_weight,
    lovasz_softmax,
)
from dela.training.optimize.network import auxiliary_weights, training_pass
from dela.training.run.delivery import Delivery, Step
from dela.training.run.devices import computes_in_bf16, explain_out_of_memory, smaller_steps
from dela.training.run.distributed import Group, gradients_kept_local
from dela.training.settings.seeds import NETWORK, torch_seed
from dela.training.settings.train import TrainConfig


@dataclass(frozen=True)
class StepResult:
    """What a step's gradients came from.

    Attributes:
        figures: the loss, its parts and the gradient's norm, by their names in ``metrics.csv``.
        counts: [classes, classes] the confusion matrix.
    """

    figures: dict[str, float]
    counts: Tensor


@dataclass(frozen=True)
class _Part:
    """One batch of a step.

    Attributes:
        labels: [N] int64; ``targets``: the same, or [clouds, classes] shares of the classes.
        share: of the step's labelled points that are in the batch, a scalar.
        parts: batches of the step, over all processes.
    """

    batch: Batch
    labels: Tensor
    targets: Tensor
    share: Tensor
    parts: int


@dataclass(frozen=True)
class Gradients:
    """Leaves the gradients of a step in a network.

    Attributes:
        model: the network; ``parallel``: the same, or what averages its gradients over processes.
        frozen: names of its modules that stay in evaluation mode.
        class_weights: [classes]; None weighs all alike.
        total_steps: of the training.
        saved: the last checkpoint, if there is one yet: what a broken run can go back to.
    """

    config: TrainConfig
    group: Group
    delivery: Delivery
    model: nn.Module
    parallel: nn.Module
    frozen: Sequence[str]
    class_weights: Tensor | None
    total_steps: int
    saved: Path

    def compute(self, step: int, batches: Step) -> StepResult:
        """Add a step's gradients to those in the network.

        The result is over all batches of all processes, of which a labelled point weighs the same
        in each.

        Args:
            step: steps taken before; it decides what the network draws at random.
            batches: this process's.

        Raises:
            DelaError: the loss or its gradient is not finite, or out of memory.
        """
        self.model.train()
        for name in self.frozen:
            self.model.get_submodule(name).eval()
        weights = auxiliary_weights(self.config.train, step, self.total_steps)
        rows: list[dict[str, Tensor]] = []
        confusion = Confusion(self.config.model.num_classes)
        for number, part in enumerate(self._parts([batch for batch, _ in batches])):
            stream = number * self.group.size + self.group.rank
            torch.manual_seed(torch_seed(self.config.train.seed, NETWORK, step, stream))
            row, logits = self._backward(part, weights, last=number + 1 == len(batches))
            rows.append(row)
            confusion.add(part.batch.labels, logits.argmax(1).cpu().numpy())
        own = torch.stack([torch.stack(list(row.values())) for row in rows])
        losses = self.group.sum(own.sum(0)).tolist()
        norm = gradient_norm(self.model).item()
        if not math.isfinite(losses[0] + norm):
            self._refuse_broken(step, batches, own, losses[0], norm)
        figures = dict(zip(rows[0], losses, strict=True)) | {"gradient_norm": norm}
        return StepResult(figures, self.group.sum(torch.from_numpy(confusion.counts)))

    def _parts(self, batches: Sequence[Batch]) -> list[_Part]:
        """The batches with what they are compared with and how much they count."""
        device = self.group.device
        labels = [torch.from_numpy(batch.labels).to(device) for batch in batches]
        targets = [
            own if batch.targets is None else torch.from_numpy(batch.targets).to(device)
            for batch, own in zip(batches, labels, strict=True)
        ]
        amounts = torch.stack([label_weight(values, self.class_weights) for values in targets])
        shares = amounts / self.group.sum(amounts.sum()).clamp(min=1e-12)
        count = len(batches) * self.group.size
        return [
            _Part(batch, labels[number], targets[number], shares[number], count)
            for number, batch in enumerate(batches)
        ]

    def _backward(
        self, part: _Part, weights: dict[str, float], last: bool
    ) -> tuple[dict[str, Tensor], Tensor]:
        """One batch forward and backward: its losses, the first in all, and its logits.

        Args:
            last: of the step: the processes exchange gradients.
        """
        device = self.group.device
        pyramid = self.delivery(part.batch.pyramid)
        what = f"a batch of {pyramid.rows:,} points"
        half = computes_in_bf16(self.config.train.dtype, device)
        with (
            explain_out_of_memory(what, smaller_steps(self.config, device), device),
            gradients_kept_local(self.parallel, not last),
        ):
            with torch.autocast(device.type, dtype=torch.bfloat16, enabled=half):
                logits, auxiliary = training_pass(self.parallel, pyramid, self.config.model)
            losses = self._losses(part, logits, auxiliary, weights)
            # The processes' gradients are averaged; a step wants their sum.
            (losses["loss"] * self.group.size).backward()
        return {name: value.detach() for name, value in losses.items()}, logits.detach()

    def _losses(
        self,
        part: _Part,
        logits: Tensor,
        auxiliary: dict[str, Tensor],
        weights: dict[str, float],
    ) -> dict[str, Tensor]:
        """The batch's share of the step's loss, and what it is the sum of."""
        schedule = self.config.train
        classification = part.share * cross_entropy(
            logits, part.targets, schedule.label_smoothing, self.class_weights
        )
        own = {name: loss.float() / part.parts for name, loss in auxiliary.items()}
        taken = own.keys() & {"loss", "cross_entropy", "gradient_norm"}
        if taken:
            raise DelaError(f"the network names a loss {min(taken)!r}, a name the training uses")
        loss = classification
        for name, value in own.items():
            loss = loss + value * weights.get(name, 1.0)
        if schedule.lovasz:
            jaccard = lovasz_softmax(logits, part.labels)
            loss = loss + schedule.lovasz / part.parts * jaccard
        return {"loss": loss, "cross_entropy": classification, **own}

    def _refuse_broken(
        self, step: int, batches: Step, rows: Tensor, loss: float, norm: float
    ) -> NoReturn:
        """Raises DelaError that names the scans a broken loss or gradient may come from."""
        suspects = [
            names
            for (_, names), row in zip(batches, rows, strict=True)
            if math.isfinite(loss) or not bool(row.isfinite().all())
        ]
        everyone = [names for process in self.group.gather(suspects) for names in process]
        scans = dict.fromkeys(name for names in everyone for name in names)
        what = f"the gradient's norm is {norm}" if math.isfinite(loss) else f"the loss is {loss}"
        text = (
            f"{what} at step {step + 1} (samples from {', '.join(scans)}); lower "
            "train.learning_rate or set train.clip_gradient, and look at these scans"
        )
        raise DelaError(text + (f"; {self.saved} is from before" if self.saved.exists() else ""))
