"""Weights in files and in networks: read without running code, checked before they are taken."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dela.errors import CheckpointError

# What a checkpoint of this package says it is.
FORMAT = "dela-checkpoint"

_MAX_LISTED = 8


def read_torch_file(path: str | os.PathLike[str]) -> Any:
    """``torch.load`` of tensors and plain values only, its failures in words.

    Raises:
        CheckpointError: the file is missing, truncated, no torch file, or wants to run code.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"there is no checkpoint file at {path}")
    try:
        with path.open("rb"):
            pass
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from error
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "weights only" in str(error).lower():
            raise CheckpointError(
                f"{path} is not a usable checkpoint: it is no torch file, or it holds more than "
                "tensors and plain values, which is refused because loading it could run code"
            ) from error
        raise CheckpointError(f"{path} is not a torch checkpoint, or it is damaged") from error
    except Exception as error:
        # torch answers a cut or foreign file with RuntimeError, EOFError, OSError and others.
        raise CheckpointError(
            f"{path} is not a torch checkpoint, or it is truncated ({path.stat().st_size} bytes); "
            "copy or download it again"
        ) from error


def is_state_dict(value: Any) -> bool:
    """Whether ``value`` is a non-empty dictionary of names and tensors."""
    return (
        isinstance(value, dict)
        and bool(value)
        and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in value.items())
    )


def load_weights(model: torch.nn.Module, weights: dict[str, Tensor], source: str) -> None:
    """Puts ``weights`` into ``model``, which takes over the tensors themselves.

    Raises:
        CheckpointError: a name is missing, unexpected or of another shape or kind of number.
    """
    own = refuse_misfitting(model, weights, source)
    converted = {name: weights[name].to(own[name].dtype).contiguous() for name in own}
    model.load_state_dict(converted, assign=True)


def refuse_misfitting(
    model: torch.nn.Module, weights: dict[str, Tensor], source: str
) -> dict[str, Tensor]:
    """The tensors of ``model``, after checking that ``weights`` could take their places.

    Raises:
        CheckpointError: as :func:`load_weights`.
    """
    own = model.state_dict()
    misfits = []
    for name in own.keys() & weights.keys():
        found, expected = weights[name], own[name]
        if found.shape != expected.shape:
            misfits.append(f"{name} is {list(found.shape)}, not {list(expected.shape)}")
        elif found.is_floating_point() != expected.is_floating_point():
            misfits.append(f"{name} is {found.dtype}, not {expected.dtype}")
    refuse_misfits(source, own.keys() - weights.keys(), weights.keys() - own.keys(), misfits)
    return own


def refuse_non_finite(model: torch.nn.Module, source: str) -> None:
    """Raises CheckpointError when a weight is NaN or infinite; names the first layer with one."""
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise CheckpointError(
                f"{source}: weights of the layer {name} are NaN or infinite; training diverged or "
                "the file is damaged, use another checkpoint"
            )


def refuse_misfits(source: str, missing: Any, unexpected: Any, misshaped: Any) -> None:
    """Raises CheckpointError listing names that do not fit, at most eight of each kind."""
    parts = []
    for what, names in (
        ("missing", missing),
        ("unexpected", unexpected),
        ("wrong shape", misshaped),
    ):
        names = sorted(names)
        if names:
            more = f" and {len(names) - _MAX_LISTED} more" if len(names) > _MAX_LISTED else ""
            parts.append(f"{what}: {', '.join(names[:_MAX_LISTED])}{more}")
    if parts:
        raise CheckpointError(f"{source} does not fit the network; " + "; ".join(parts))
