"""Checkpoints of the published DeLA v2 code: every tensor mapped to a dela network, and back.

A published checkpoint is a flat state_dict (bare, or under ``"model"``) with nested stage names
``stage.sub_stage.sub_stage...``. Everything that tensors' shapes tell is read from them; what they
cannot tell (neighbor counts, points per stage, grid, coordinate scale, spread, epsilon) comes from
a preset or from overrides.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from dela.errors import CheckpointError, ConfigError
from dela.families import resolve_config
from dela.families.dela import Network
from dela.families.dela.config import DelaConfig
from dela.model.contract import AttributeInfo
from dela.model.weights import FORMAT, is_state_dict, load_weights, read_torch_file, refuse_misfits

_SOURCE = "the reference checkpoint"
_ATTRIBUTES = "ellipsoids.0.attributes"  # two tensors in the reference: color rows and height
_COLORS = tuple(AttributeInfo(name, 250.0) for name in ("red", "green", "blue"))
_HEIGHT = AttributeInfo("height", 3.3)
_NORMALS = tuple(AttributeInfo(f"normal_{axis}") for axis in "xyz")


def read_reference(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """The state_dict of a published checkpoint file; no code in the file is run.

    Raises:
        CheckpointError: missing or damaged file, no state_dict inside, bare or under "model", or a
            checkpoint of dela itself.
    """
    content = read_torch_file(path)
    if isinstance(content, dict) and content.get("format") == FORMAT:
        raise CheckpointError(f"{path} is a dela checkpoint already; use it as it is")
    return _bare(content, str(path))


def import_reference(
    state_dict: Mapping[str, Any], preset: str | DelaConfig, **overrides: Any
) -> Network:
    """The network of a published checkpoint, in evaluation mode.

    Args:
        state_dict: names and tensors; ``{"model": state_dict}`` and a ``module.`` prefix on every
            name are accepted. The network gets copies.
        preset: gives what shapes cannot tell; a network with fewer stages than the preset takes
            the first entries of its per-stage lists, one with more needs them as overrides.
        overrides: fields of :class:`~dela.families.dela.config.DelaConfig`, or ``num_classes``.

    Raises:
        CheckpointError: names that are missing, unexpected or of another shape (eight of each kind
            are listed), or another task than the preset's.
        ConfigError: an unknown preset, or an override that does not fit the checkpoint.
    """
    tensors = _bare(state_dict, _SOURCE)
    config = _read_config(tensors, resolve_config(preset), overrides)
    with torch.device("meta"):
        model = Network(config)
    own = model.state_dict()
    names = reference_names(config)
    sources = {
        key: _attribute_sources(tensor.numel(), config.dims[0], "stage.spse_h" in tensors)
        if key == _ATTRIBUTES
        else {_reference_name(key, names): tensor.shape}
        for key, tensor in own.items()
    }
    expected = {name: shape for source in sources.values() for name, shape in source.items()}
    misshaped = [
        f"{name} is {list(tensors[name].shape)}, not {list(shape)}"
        for name, shape in expected.items()
        if name in tensors and tensors[name].shape != shape
    ]
    missing, unexpected = expected.keys() - tensors.keys(), tensors.keys() - expected.keys()
    refuse_misfits(_SOURCE, missing, unexpected, misshaped)
    weights = {}
    for key, source in sources.items():
        parts = [tensors[name] for name in source]
        weights[key] = torch.cat(parts) if len(parts) > 1 else parts[0].clone()
    load_weights(model, weights, _SOURCE)
    return model.eval()


def reference_state_dict(model: Network) -> dict[str, Tensor]:
    """The inverse of :func:`import_reference`: the network's tensors under the published names.

    The published code keeps height apart from the other attributes: so is the last attribute here
    when its name begins with ``height``.
    """
    config = model.config
    names = reference_names(config)
    result: dict[str, Tensor] = {}
    for key, tensor in model.state_dict().items():
        if key == _ATTRIBUTES:
            height = config.attributes[-1].name.startswith("height")
            sources = _attribute_sources(tensor.numel(), config.dims[0], height)
            parts = tensor.split([shape.numel() for shape in sources.values()])
            result |= {name: part.clone() for name, part in zip(sources, parts, strict=True)}
        else:
            result[_reference_name(key, names)] = tensor.clone()
    return result


def reference_names(config: DelaConfig) -> dict[str, str]:
    """Our modules and bare parameters -> the published names (attribute rows excepted)."""
    names = {}
    for stage, depth in enumerate(config.depths):
        own, theirs = f"stages.{stage}.", _stage(stage)
        names[f"ellipsoids.{stage}.shapes"] = f"{theirs}spse_m"
        names[f"ellipsoids.{stage}.directions"] = f"{theirs}spse_n"
        names[f"{own}encoding.distance_norm"] = f"{theirs}nbr_proj.0"
        names[f"{own}encoding.expand"] = f"{theirs}nbr_proj.1"
        names[f"{own}encoding.reduce"] = f"{theirs}nbr_proj.3"
        names[f"{own}encoding.norm"] = f"{theirs}nbr_bn"
        names[f"{own}downsample.project"] = f"{theirs}skip_proj.0"
        names[f"{own}downsample.norm"] = f"{theirs}skip_proj.1"
        aggregations = {f"{own}downsample.aggregation": f"{theirs}lfp"}
        for i in range(depth):
            aggregations[f"{own}block.aggregations.{i}"] = f"{theirs}blk.lfps.{i}"
        for ours, published in aggregations.items():
            names[f"{ours}.centers"] = f"{published}.coor"
            names[f"{ours}.falloff"] = f"{published}.scale"
            names[f"{ours}.project"] = f"{published}.proj"
            names[f"{ours}.norm"] = f"{published}.bn"
        for i in range(1 + depth // 2):
            published = f"{theirs}blk.mlps.{i - 1}.mlp" if i else f"{theirs}blk.mlp.mlp"
            for layer, position in (("expand", 0), ("reduce", 2), ("norm", 3)):
                names[f"{own}block.mlps.{i}.{layer}"] = f"{published}.{position}"
        names[f"head.projections.{stage}.norm"] = f"{theirs}postproj.0"
        names[f"head.projections.{stage}.project"] = f"{theirs}postproj.1"
        for layer, position in (("expand", 0), ("norm", 1), ("project", 3)):
            names[f"coordinate_heads.{stage}.{layer}"] = f"{theirs}cor_head.{position}"
    names["head.norm"] = "head.0"
    names["head.classify"] = "head.1" if config.task == "classification" else "head.2"
    return names


def _stage(stage: int) -> str:
    return "stage." + "sub_stage." * stage


def _reference_name(key: str, names: Mapping[str, str]) -> str:
    if key in names:
        return names[key]
    module, leaf = key.rsplit(".", 1)
    return f"{names[module]}.{leaf}"


def _attribute_sources(numel: int, channels: int, height: bool) -> dict[str, torch.Size]:
    rows = numel - channels * height
    parts = {"stage.spse_c": rows, "stage.spse_h": channels * height}
    return {name: torch.Size([count]) for name, count in parts.items() if count}


def _bare(content: Any, source: str) -> dict[str, Tensor]:
    if isinstance(content, Mapping) and isinstance(content.get("model"), Mapping):
        content = content["model"]
    if not isinstance(content, Mapping) or not is_state_dict(dict(content)):
        raise CheckpointError(
            f"{source} holds no state_dict; expected names and tensors, bare or under 'model'"
        )
    if all(name.startswith("module.") for name in content):
        return {name.removeprefix("module."): tensor for name, tensor in content.items()}
    return dict(content)


class _Shapes:
    """Sizes read from several tensors each, so that one damaged tensor does not mislead."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self.tensors = tensors

    def vote(self, *candidates: tuple[str, int]) -> int:
        """The commonest size among (name, axis) pairs; CheckpointError when none is there."""
        sizes = [
            self.tensors[name].shape[axis]
            for name, axis in candidates
            if name in self.tensors and self.tensors[name].ndim > axis
        ]
        if not sizes:
            refuse_misfits(_SOURCE, [name for name, _ in candidates], [], [])
        return Counter(sizes).most_common(1)[0][0]


def _count(names: Iterable[str], pattern: str) -> int:
    """1 + the largest number that ``pattern`` finds in a name; 0 when it finds none."""
    return max((1 + int(m[1]) for name in names if (m := re.match(pattern, name))), default=0)


def _stages_and_task(tensors: Mapping[str, Tensor], preset: DelaConfig) -> tuple[int, str]:
    """Number of stages and task that the names tell.

    Raises:
        CheckpointError: no network of DeLA, or of another task than the preset.
    """
    nesting = [name.count("sub_stage.") for name in tensors if name.startswith("stage.")]
    if not nesting:
        raise CheckpointError(
            f"{_SOURCE} has no name that begins with 'stage.', but {', '.join(list(tensors)[:4])} "
            "...; it is no DeLA v2 network"
        )
    stages = 1 + max(nesting)
    task = "segmentation" if any(".postproj." in name for name in tensors) else "classification"
    if task != preset.task:
        raise CheckpointError(
            f"{_SOURCE} is for {task}, the preset for {preset.task}; choose another preset"
        )
    return stages, task


def _dimension(shapes: _Shapes, prefix: str) -> int:
    """Features of a stage."""
    return shapes.vote(
        (f"{prefix}nbr_bn.weight", 0),
        (f"{prefix}nbr_proj.3.weight", 0),
        (f"{prefix}blk.mlp.mlp.3.weight", 0),
        (f"{prefix}blk.mlp.mlp.0.weight", 1),
        (f"{prefix}cor_head.0.weight", 1),
    )


def _read_config(
    tensors: Mapping[str, Tensor], preset: DelaConfig, overrides: Mapping[str, Any]
) -> DelaConfig:
    """The preset with everything that shapes tell, then with the overrides."""
    shapes = _Shapes(tensors)
    stages, task = _stages_and_task(tensors, preset)
    prefixes = [_stage(stage) for stage in range(stages)]
    dims = tuple(_dimension(shapes, prefix) for prefix in prefixes)
    hidden = shapes.vote(
        ("stage.blk.mlp.mlp.0.weight", 0),
        ("stage.blk.mlp.mlp.0.bias", 0),
        ("stage.blk.mlp.mlp.2.weight", 1),
    )
    last = "head.2" if task == "segmentation" else "head.1"
    values: dict[str, Any] = {
        "dims": dims,
        "depths": tuple(
            _count(tensors, re.escape(prefix) + r"blk\.lfps\.(\d+)\.") for prefix in prefixes
        ),
        "mlp_ratio": hidden / dims[0],
        "num_classes": shapes.vote((f"{last}.weight", 0), (f"{last}.bias", 0)),
        "coordinate_loss": any(".cor_head." in name for name in tensors),
        "neighbors": preset.neighbors[:stages],
        "spread": preset.spread[:stages],
    }
    if task == "segmentation":
        values["grid"] = preset.grid[:stages]
        values["head_dim"] = shapes.vote(
            ("head.0.weight", 0), *((f"{prefix}postproj.1.weight", 0) for prefix in prefixes)
        )
        values["attributes"] = _attributes(tensors, preset, dims[0])
        values["directions"] = _directions(tensors, preset, dims[0])
    else:
        values["points"] = preset.points[:stages]
    for name in ("attributes", "directions"):
        if name in overrides and len(overrides[name]) != len(values.get(name, ())):
            raise ConfigError(
                f"{name} names {len(overrides[name])} columns, {_SOURCE} has {len(values[name])}"
            )
    if "classes" in overrides or "num_classes" in overrides:
        del values["num_classes"]
    return resolve_config(preset, **(values | dict(overrides)))


def _rows(tensors: Mapping[str, Tensor], name: str, channels: int) -> int:
    return -(-tensors[name].numel() // channels) if name in tensors else 0


def _attributes(
    tensors: Mapping[str, Tensor], preset: DelaConfig, channels: int
) -> tuple[AttributeInfo, ...]:
    known = [info for info in preset.attributes if not info.name.startswith("height")]
    heights = [info for info in preset.attributes if info.name.startswith("height")]
    rows = _rows(tensors, "stage.spse_c", channels)
    colors = _named(rows, tuple(known), _COLORS, "attribute")
    return colors + ((*heights, _HEIGHT)[:1] if "stage.spse_h" in tensors else ())


def _directions(
    tensors: Mapping[str, Tensor], preset: DelaConfig, channels: int
) -> tuple[AttributeInfo, ...]:
    rows = _rows(tensors, "stage.spse_n", channels)
    return _named(rows, preset.directions, _NORMALS, "direction")


def _named(
    count: int, known: tuple[AttributeInfo, ...], usual: tuple[AttributeInfo, ...], word: str
) -> tuple[AttributeInfo, ...]:
    """``count`` columns: the preset's if their number fits, else the usual, else numbered."""
    for candidate in (known, usual):
        if len(candidate) == count:
            return candidate
    return tuple(AttributeInfo(f"{word}_{i}") for i in range(count))
