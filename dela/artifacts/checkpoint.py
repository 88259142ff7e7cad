"""Checkpoints: a network's configuration and weights in one file, loaded without running code."""

from __future__ import annotations

import hashlib
import os
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dela.errors import CheckpointError, ConfigError
from dela.families import FIRST, config_from_dict, config_to_dict, empty_network
from dela.files import atomic_path
from dela.model.weights import (
    FORMAT,
    is_state_dict,
    load_weights,
    read_torch_file,
    refuse_non_finite,
)
from dela.text import brief

# Checkpoints of the first family keep the version that they always had.
VERSION = 2
_FIRST_FAMILY_VERSION = 1

_PLAIN = (type(None), bool, int, float, str)


@dataclass(frozen=True)
class Checkpoint:
    """A loaded checkpoint.

    Attributes:
        model: the network, in evaluation mode.
        config: the same as ``model.config``.
        extra: what the writer put beside the model (training state, scores ...).
        sha256: of the file's bytes, hexadecimal.
    """

    model: Any
    config: Any
    extra: dict[str, Any] = field(default_factory=dict)
    sha256: str = ""


def save_checkpoint(
    path: str | os.PathLike[str],
    model: torch.nn.Module,
    extra: dict[str, Any] | None = None,
    overwrite: bool = True,
) -> None:
    """Writes a checkpoint, whole or not at all.

    Args:
        path: usually ``*.pt``.
        model: its configuration, parameters and running statistics are kept.
        extra: tensors, numbers, strings, None, and lists, tuples and dictionaries of these: what
            loads again without running code.
        overwrite: whether an existing file is replaced.

    Raises:
        CheckpointError: ``extra`` holds another type; the message says where.
        InputError: the file cannot be written.
    """
    extra = extra or {}
    config: Any = model.config
    _check_plain(extra, "extra")
    content = {
        "format": FORMAT,
        "version": _FIRST_FAMILY_VERSION if config.family == FIRST else VERSION,
        "config": config_to_dict(config),
        "model": model.state_dict(),
        "extra": extra,
    }
    with atomic_path(path, overwrite) as temporary, open(temporary, "wb") as file:
        try:
            torch.save(content, file)
        except RuntimeError as error:
            # torch finds its archive broken; the failed write behind it says why.
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise


def load_checkpoint(path: str | os.PathLike[str], device: str | torch.device = "cpu") -> Checkpoint:
    """Reads a checkpoint written by :func:`save_checkpoint`; no code in the file is run.

    Raises:
        CheckpointError: missing or truncated file, not a dela checkpoint, another version, or
            weights that do not fit the configuration (with the list of what does not).
    """
    path = Path(path)
    content = read_torch_file(path)
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        hint = ""
        if isinstance(content, dict) and is_state_dict(content.get("model", content)):
            hint = "; a published DeLA v2 checkpoint is read by `dela import-checkpoint`"
        raise CheckpointError(f"{path} is not a dela checkpoint{hint}")
    version, values = content.get("version"), content.get("config")
    extra = content.get("extra", {})
    if not isinstance(values, dict) or not isinstance(extra, dict):
        raise CheckpointError(f"{path} holds no configuration; it is damaged")
    known = VERSION if "family" in values else _FIRST_FAMILY_VERSION
    if type(version) is not int or version != known:
        raise CheckpointError(
            f"{path}: checkpoint version {brief(version)}, this dela reads {known}; "
            "install the dela that wrote it"
        )
    try:
        config = config_from_dict(values)
    except ConfigError as error:
        raise CheckpointError(f"{path}: {error}") from error
    if not is_state_dict(content.get("model")):
        raise CheckpointError(f"{path} holds no weights; it is damaged or was not written by dela")
    if len(content["model"]) < config.least_tensors:
        raise CheckpointError(
            f"{path} holds {len(content['model'])} tensors, its configuration asks for "
            f"{config.least_tensors} at least; it is damaged or was not written by dela"
        )
    model = empty_network(config)
    load_weights(model, content["model"], str(path))
    refuse_non_finite(model, str(path))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return Checkpoint(model.to(device).eval(), config, dict(extra), digest)


def _check_plain(value: Any, where: str) -> None:
    # Exact types: a numpy float is a Python float to isinstance, but not to a safe loader.
    if type(value) in _PLAIN or isinstance(value, Tensor):
        return
    if type(value) in (dict, OrderedDict):
        for key, entry in value.items():
            _check_plain(key, f"{where} (a key)")
            _check_plain(entry, f"{where}[{key!r}]")
    elif type(value) in (list, tuple):
        for index, entry in enumerate(value):
            _check_plain(entry, f"{where}[{index}]")
    else:
        raise CheckpointError(
            f"{where} is a {type(value).__module__}.{type(value).__qualname__}, which a checkpoint "
            "cannot hold safely; convert it to tensors and plain Python values"
        )
