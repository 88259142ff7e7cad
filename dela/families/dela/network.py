"""The DeLA v2 network: one implementation for segmentation and classification, any stage count."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dela.errors import InputError
from dela.families.dela.config import DelaConfig
from dela.families.dela.embedding import Ellipsoids, SpatialEncoding
from dela.families.dela.encoder import PyramidTensors, encode
from dela.families.dela.heads import ClassificationHead, CoordinateHead, SegmentationHead
from dela.families.dela.layers import Block, Downsample
from dela.families.layers import module_list
from dela.families.recompute import run
from dela.pyramid.cpu import Pyramid


class Stage(nn.Module):
    """One encoder stage: downsampling (from the second on), spatial encoding, residual block."""

    def __init__(self, config: DelaConfig, stage: int, drop_rates: list[float]) -> None:
        super().__init__()
        dim, momentum = config.dims[stage], config.bn_momentum
        self.drop_rates = drop_rates
        self.downsample = Downsample(config.dims[stage - 1], dim, momentum) if stage else None
        self.encoding = SpatialEncoding(config.dims[0], dim, momentum)
        hidden = int(dim * config.mlp_ratio)
        self.block = Block(dim, config.depths[stage], hidden, momentum)


class PyramidModule(nn.Module):
    """Takes a packed :class:`~dela.pyramid.cpu.Pyramid`, checks that it fits, hands on its
    tensors."""

    def __init__(self, config: DelaConfig) -> None:
        super().__init__()
        self.config = config

    def input_device(self) -> torch.device:
        return next(itertools.chain(self.parameters(), self.buffers())).device

    def tensors(self, pyramid: Pyramid, dtype: torch.dtype = torch.float32) -> PyramidTensors:
        """Points, attributes (None without any), neighbors, kept and nearest rows as tensors.

        Arrays may be numpy or tensors, indices of any integer dtype; nothing is copied that
        already is a tensor of the right dtype on the model's device.

        Raises:
            InputError: no pyramid, or its stages, attribute columns or rows do not fit the
                configuration or each other.
        """
        device = self.input_device()
        self._refuse_misfit(pyramid)

        def floats(array: Any) -> Tensor:
            return torch.as_tensor(array, dtype=dtype, device=device).contiguous()

        def indices(arrays: Sequence[Any]) -> list[Tensor]:
            return [
                torch.as_tensor(array, device=device).to(torch.int32).contiguous()
                for array in arrays
            ]

        kept, nearest = indices(pyramid.kept), indices(pyramid.nearest)
        # The operators check their neighbors; these index tensors directly. Only on the CPU: on
        # another device the answer would hold up every step.
        if device.type == "cpu":
            sizes = [len(pyramid.points), *map(len, kept)]
            tables = [*zip(kept, sizes, strict=False), *zip(nearest, sizes[1:], strict=False)]
            if not all(_within(rows, size) for rows, size in tables):
                pyramid.validate()
        return PyramidTensors(
            floats(pyramid.points),
            floats(pyramid.attributes) if self.config.input_columns else None,
            indices(pyramid.neighbors),
            kept,
            nearest,
        )

    def _refuse_misfit(self, pyramid: Pyramid) -> None:
        """Raises InputError when the pyramid is of another network."""
        config = self.config
        if not isinstance(pyramid, Pyramid):
            raise InputError(
                f"the network takes a Pyramid, not a {type(pyramid).__name__}; "
                "dela.build_pyramid makes one of points and attributes"
            )
        if pyramid.stages != config.stages:
            raise InputError(
                f"the pyramid has {pyramid.stages} stages, the network {config.stages}; "
                "build it with the network's own configuration"
            )
        wanted = [info.name for info in config.input_columns]
        columns = 0 if pyramid.attributes is None else int(pyramid.attributes.shape[1])
        if columns != len(wanted):
            raise InputError(
                f"the pyramid has {columns} attribute columns, the network takes {len(wanted)}"
                + (f" ({', '.join(wanted)})" if wanted else "")
            )
        links = config.stages - 1
        expected = {"kept": links, "nearest": links if config.task == "segmentation" else 0}
        for name, count in expected.items():
            if len(getattr(pyramid, name)) < count:
                raise InputError(
                    f"the pyramid has {len(getattr(pyramid, name))} {name} lists; "
                    f"{config.stages} stages need {count}"
                )
        if config.task == "classification":
            for stage, lengths in enumerate(pyramid.lengths):
                if any(length != config.points[stage] for length in lengths):
                    raise InputError(
                        f"stage {stage} holds clouds of {sorted(set(lengths))} points; the network "
                        f"takes exactly {config.points[stage]}"
                    )

    def from_tensors(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Logits from the inputs of an exported graph by name (evaluation mode)."""
        later = range(1, self.config.stages)
        return self.answer(
            PyramidTensors(
                tensors["points"],
                tensors.get("attributes"),
                [tensors[f"neighbors_{stage}"] for stage in range(self.config.stages)],
                [tensors[f"kept_{stage}"] for stage in later],
                [tensors[f"nearest_{stage}"] for stage in later if f"nearest_{stage}" in tensors],
            )
        )

    def forward(self, pyramid: Pyramid) -> Any:
        """Logits float32 [N_0, classes], or [B, classes] for classification.

        Args:
            pyramid: packed clouds, numpy or tensors.

        Raises:
            InputError: the pyramid does not fit the network.
        """
        return self.answer(self.tensors(pyramid))

    def answer(self, inputs: PyramidTensors) -> Tensor:
        """Logits in evaluation mode."""
        raise NotImplementedError


def split_category(
    attributes: Tensor | None, config: DelaConfig
) -> tuple[Tensor | None, Tensor | None]:
    """Input columns [N_0, F] parted into SPSE's (None without any) and the head's categories."""
    if attributes is None or not config.categories:
        return attributes, None
    own = attributes.shape[1] - len(config.categories)
    return (attributes[:, :own] if own else None), attributes[:, own:]


def _within(rows: Tensor, size: int) -> bool:
    return not len(rows) or (int(rows.min()) >= 0 and int(rows.max()) < size)


class Network(PyramidModule):
    """A DeLA v2 network; make one with :func:`dela.families.dela.create_model`.

    Encoder stages gather features stage by stage; a segmentation head returns to stage 0, a
    classification head pools the last stage. Stage 0 has its own ellipsoids (with attributes and
    directions), stage 1 its own, deeper stages share those of stage 1; in classification every
    stage shares those of stage 0.

    Attributes:
        checkpoint_blocks: in training, compute the layers of encodings and blocks a second time
            for their gradients rather than keep what is inside them; less memory, same numbers.
    """

    def __init__(self, config: DelaConfig) -> None:
        super().__init__(config)
        self.checkpoint_blocks = False
        # A function of the network, not a method: copies of the network compute with their own.
        self._training_pass: Callable[..., tuple[Tensor, Tensor]] = _training_pass
        own = 1 if config.task == "classification" else min(2, config.stages)
        scalars, directions = len(config.attributes), len(config.directions)
        self.ellipsoids = module_list(
            Ellipsoids(config.dims[0], *((scalars, directions) if i == 0 else ()))
            for i in range(own)
        )
        rates = np.linspace(0, config.drop_path, sum(config.depths)).tolist()
        ends = np.cumsum(config.depths).tolist()
        self.stages = module_list(
            Stage(config, stage, rates[end - depth : end])
            for stage, (depth, end) in enumerate(zip(config.depths, ends, strict=True))
        )
        self.head = (
            ClassificationHead(config)
            if config.task == "classification"
            else SegmentationHead(config)
        )
        self.coordinate_heads = module_list(
            CoordinateHead(dim, config.bn_momentum)
            for dim in (config.dims if config.coordinate_loss else ())
        )

    def forward(self, pyramid: Pyramid) -> Tensor | tuple[Tensor, Tensor]:
        """Logits of a batch.

        Args:
            pyramid: packed clouds, numpy or tensors.

        Returns:
            Logits float32 [N_0, classes], or [B, classes] for classification. In training mode the
            pair (logits, coordinate loss), the loss a scalar summed over stages.

        Raises:
            InputError: the pyramid does not fit the network.
        """
        dtype = self.ellipsoids[0].shapes.dtype
        inputs = self.tensors(pyramid, dtype)
        if not self.training:
            return self.answer(inputs)
        lengths = [torch.tensor(clouds, device=inputs.points.device) for clouds in pyramid.lengths]
        return self._training_pass(self, inputs, lengths)

    def compile_training(self, **options: Any) -> None:
        """Has ``torch.compile`` make one graph, for batches of any size, of the training pass.

        Args:
            options: of ``torch.compile``, such as ``backend``.
        """
        self._training_pass = torch.compile(_training_pass, dynamic=True, **options)

    def answer(self, inputs: PyramidTensors) -> Tensor:
        """Logits in evaluation mode."""
        attributes, category = split_category(inputs.attributes, self.config)
        features, _ = self._encode(inputs._replace(attributes=attributes), None)
        return self.head(features, inputs.nearest, category)

    def _encode(
        self, inputs: PyramidTensors, lengths: Sequence[Tensor] | None
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Features [N_d, dims_d] and points in units of the spread [N_d, 3] of every stage."""
        neighbors, kept = inputs.neighbors, inputs.kept
        recompute = self.checkpoint_blocks and self.training and torch.is_grad_enabled()

        def stage_forward(
            index: int, distances: Tensor, position: Tensor, before: tuple[Tensor, Tensor] | None
        ) -> Tensor:
            stage = self.stages[index]
            x = run(recompute, stage.encoding, distances)
            if stage.downsample is not None and before is not None:
                x = x + stage.downsample(*before, neighbors[index - 1], kept[index - 1])
            clouds = None if lengths is None else lengths[index]
            return stage.block(x, position, neighbors[index], stage.drop_rates, clouds, recompute)

        weights = [ellipsoids.weight() for ellipsoids in self.ellipsoids]
        return encode(self.config, weights, inputs, stage_forward)


def _training_pass(
    model: Network, inputs: PyramidTensors, lengths: Sequence[Tensor]
) -> tuple[Tensor, Tensor]:
    """Logits and coordinate loss; ``lengths`` are int64 [clouds], one tensor a stage."""
    attributes, category = split_category(inputs.attributes, model.config)
    features, positions = model._encode(inputs._replace(attributes=attributes), lengths)
    logits = model.head(features, inputs.nearest, category)
    loss = logits.new_zeros(())
    for head, x, position, table in reversed(
        list(zip(model.coordinate_heads, features, positions, inputs.neighbors, strict=False))
    ):
        loss = loss + head.loss(x, position, table)
    return logits, loss
