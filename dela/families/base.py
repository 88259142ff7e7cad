"""What the package asks of a family: a kind of network with its own configuration and inputs.

Everything outside ``dela/families`` knows a network through :class:`Family` and
:class:`~dela.model.contract.Contract` alone. A family lives in a folder of its own and stands in
the table :data:`dela.families.FAMILIES`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from dela.errors import ConfigError
from dela.model.inputs import Inputs, InputSpec, RowSize
from dela.model.parity import TOLERANCES, Tolerance

if TYPE_CHECKING:
    import torch
    from torch import nn


class Family(Protocol):
    """A kind of network. The first group of methods never imports torch.

    Attributes:
        name: as it stands in files and in ``[model] family``.
        config: its configuration, a frozen dataclass that extends
            :class:`~dela.model.contract.Contract`.
        presets: name -> configuration; a preset's name belongs to one family alone.
        input_fields: fields of the configuration that shape its input.
        derived_fields: fields that follow from the voxel sizes, so that a preset's are left out
            where other sizes are given.
        written: field -> how it may be written in ``[model]``, where that is not its own type.
        recomputes: whether :meth:`recompute` can keep less in training.
        on_gpu: whether :mod:`dela.pyramid.gpu` can prepare its input on a GPU.
    """

    name: str
    config: type[Any]
    presets: Mapping[str, Any]
    input_fields: tuple[str, ...]
    derived_fields: tuple[str, ...]
    written: Mapping[str, Any]
    recomputes: bool
    on_gpu: bool

    def sizes(self, config: Any) -> tuple[RowSize, ...]:
        """The sizes that vary, that of the labelled points first; each is the rows of an input. In
        classification every size has ``per_cloud``."""
        ...

    def inputs(self, config: Any) -> tuple[InputSpec, ...]:
        """The inputs of the network's graph, in their order."""
        ...

    def complete(self, given: dict[str, Any]) -> dict[str, Any]:
        """Fields of the configuration, with those that follow from the ``given`` ones filled in.

        Raises:
            ConfigError: a field is missing that nothing can replace.
        """
        ...

    def prepare(
        self,
        points: np.ndarray,
        attributes: np.ndarray | None,
        config: Any,
        *,
        seed: int | None = None,
        pick: int | None = 0,
        origin: np.ndarray | None = None,
    ) -> Inputs:
        """The input of one cloud.

        Args:
            points: [N, 3] float32 meters, near the origin: one per voxel of ``config.grid[0]``, or
                all points of an object.
            attributes: [N, F] float32, F = ``len(config.input_columns)``; None when F is 0.
            config: of the network.
            seed: of random choices.
            pick: which point stands for a coarser voxel; None: a random one (training).
            origin: [3] where coarser voxels are counted from, see
                :func:`dela.pyramid.cpu.build_pyramid`.

        Raises:
            InputError: no points, or shapes and values that do not fit.
        """
        ...

    def example(self, config: Any, size: int, seed: int = 0) -> Inputs:
        """A made-up input of about ``size`` labelled points, or of ``size`` clouds."""
        ...

    def reach(self, config: Any) -> float:
        """Meters around a point that its label may depend on: context that a tile needs."""
        ...

    def parity(self, dtype: str) -> Tolerance:
        """How near an exported network must come to PyTorch's answer."""
        ...

    # From here on torch is imported.

    def build(self, config: Any) -> nn.Module:
        """The network, its weights to be loaded. In evaluation mode it gives logits of
        :class:`~dela.model.inputs.Inputs`, in training mode what :meth:`losses` takes apart."""
        ...

    def create(self, config: Any, measured: Any = None, seed: int | None = None) -> nn.Module:
        """The network with starting values, in training mode.

        Args:
            config: of the network; ``network.config`` tells it.
            measured: what :meth:`measure` found on the training data.
            seed: of the starting values, leaving torch's global generator alone.
        """
        ...

    def measure(self, samples: Sequence[Any], config: Any) -> Any:
        """What :meth:`create` wants to know of some of the training's inputs; None for nothing."""
        ...

    def losses(self, output: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Logits and named auxiliary losses of what the network gives in training mode."""
        ...

    def freeze(self, network: nn.Module, dtype: torch.dtype) -> nn.Module:
        """The network's inference form, which is exported: called with
        :class:`~dela.model.inputs.Inputs`, and its ``from_tensors`` with a dictionary of the graph
        inputs, it gives float32 logits."""
        ...

    def parts(self, config: Any) -> tuple[tuple[str, ...], ...]:
        """The body from input to head, for freezing, layer decay and adapters: each part the
        names of its modules. What no part names is the head."""
        ...

    def recompute(self, network: nn.Module, on: bool) -> None:
        """In training, keep less and compute it again for the gradients, where the family can."""
        ...

    def compile(self, network: nn.Module) -> None:
        """Has ``torch.compile`` make the training pass, for batches of any size."""
        ...

    def carry_over(
        self, own: Mapping[str, Any], offered: Mapping[str, Any], ours: Any, theirs: Any
    ) -> dict[str, Any]:
        """Which of a network's tensors start from another network of the family.

        Args:
            own: name -> tensor of the network that starts.
            offered: name -> tensor of the other one.
            ours, theirs: their configurations.

        Returns:
            name -> the tensor's new values.

        Raises:
            ConfigError: nothing of the body fits.
        """
        ...

    def import_published(self, path: Path, preset: Any, **overrides: Any) -> Any:
        """The network of a checkpoint file that the family's authors published.

        Raises:
            ConfigError: none are known.
            CheckpointError: an unreadable file, or tensors that do not fit, with the list of them.
        """
        ...


class FamilyDefaults:
    """What most families answer alike, to be inherited."""

    name: str
    input_fields: tuple[str, ...] = ()
    derived_fields: tuple[str, ...] = ()
    written: Mapping[str, Any] = {}
    recomputes = False
    on_gpu = False
    presets: Mapping[str, Any] = {}

    def complete(self, given: dict[str, Any]) -> dict[str, Any]:
        return given

    def parity(self, dtype: str) -> Tolerance:
        return TOLERANCES[dtype]

    def parts(self, config: Any) -> tuple[tuple[str, ...], ...]:
        return ()

    def measure(self, samples: Sequence[Any], config: Any) -> Any:
        return None

    def losses(self, output: Any) -> tuple[Any, dict[str, Any]]:
        return output, {}

    def recompute(self, network: nn.Module, on: bool) -> None:
        if on:
            raise ConfigError(
                f"train.checkpoint is on, which the family {self.name} cannot do; leave it out"
            )

    def compile(self, network: nn.Module) -> None:
        network.compile(dynamic=True)

    def carry_over(
        self, own: Mapping[str, Any], offered: Mapping[str, Any], ours: Any, theirs: Any
    ) -> dict[str, Any]:
        same_classes = [c.name for c in ours.classes] == [c.name for c in theirs.classes]
        body = tuple(f"{name}." for part in self.parts(ours) for name in part)
        found = {
            name: offered[name]
            for name, tensor in own.items()
            if name in offered
            and offered[name].shape == tensor.shape
            and (same_classes or not body or name.startswith(body))
        }
        if not any(not body or name.startswith(body) for name in found):
            raise ConfigError("no part of that network fits this one")
        return found

    def import_published(self, path: Path, preset: Any, **overrides: Any) -> Any:
        raise ConfigError(f"dela knows no published checkpoints of the family {self.name}")


def refuse_missing(given: Mapping[str, Any], needed: Sequence[str]) -> None:
    """Raises ConfigError when one of the needed fields of ``[model]`` is not given."""
    for name in needed:
        if name not in given:
            raise ConfigError(f"model.{name} is missing; give it, or a preset")
