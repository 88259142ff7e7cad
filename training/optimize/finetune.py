"""Starting from another network's weights, and training parts of a network more gently or not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from dela.artifacts.checkpoint import load_checkpoint
from dela.errors import ConfigError
from dela.families import family_of
from dela.training.optimize.adapters import LowRank
from dela.training.optimize.network import config_of, depth_below_head, differences
from dela.training.settings.train import ScheduleConfig

_LISTED = 6


@dataclass(frozen=True)
class TakenWeights:
    """What became of a network's tensors.

    Attributes:
        source: the checkpoint file; its hash ``sha256``.
        taken: names of tensors that stem from it, whole or in part.
        fresh: names that kept their starting values.
        share: parameters taken over all parameters of the network.
        remarks: what differs between the two networks, one line each.
    """

    source: str
    sha256: str
    taken: tuple[str, ...]
    fresh: tuple[str, ...]
    share: float
    remarks: tuple[str, ...]

    def lines(self) -> list[str]:
        """The report for the log."""
        total = len(self.taken) + len(self.fresh)
        lines = [
            f"{self.source}: {len(self.taken)} of {total} tensors taken "
            f"({100 * self.share:.1f} % of the parameters)"
        ]
        if self.fresh:
            lines.append(f"new: {_listed(self.fresh)}")
        return lines + list(self.remarks)


def take_weights(model: nn.Module, path: str) -> TakenWeights:
    """Put into ``model`` what fits of a checkpoint; the rest keeps its starting values.

    The family says what fits (:meth:`dela.families.base.Family.carry_over`).

    Args:
        path: a dela checkpoint; one of the published code comes from ``dela import-checkpoint``.

    Raises:
        CheckpointError: no readable checkpoint.
        ConfigError: another task, or a network of which no stage fits.
    """
    source, ours = load_checkpoint(path), config_of(model)
    for what, theirs, here in (
        ("family", source.config.family, ours.family),
        ("task", source.config.task, ours.task),
    ):
        if theirs != here:
            raise ConfigError(
                f"{path} is for {theirs}, model.{what} is {here}; start from a network for the "
                f"same {what}"
            )
    own, offered = model.state_dict(), source.model.state_dict()
    try:
        found = family_of(ours).carry_over(own, offered, ours, source.config)
    except ConfigError as error:
        raise ConfigError(f"no stage of {path} fits: {error}") from error
    with torch.no_grad():
        for name, values in found.items():
            own[name].copy_(values)
    taken = [name for name in own if name in found]
    fresh = [name for name in own if name not in found]
    count = sum(own[name].numel() for name in taken)
    total = sum(value.numel() for value in model.state_dict().values())
    return TakenWeights(
        str(path),
        source.sha256,
        tuple(taken),
        tuple(fresh),
        count / total,
        tuple(differences(source.config, ours)),
    )


def freeze_parts(model: nn.Module, prefixes: Sequence[str]) -> list[str]:
    """Keep the parameters of some parts as they are.

    Args:
        prefixes: names of modules or parameters, such as ``stages.0``; whole words of a name.

    Returns:
        Names of the modules inside, which must stay in evaluation mode.

    Raises:
        ConfigError: a prefix that nothing is called by, or nothing left to train, be it of all
            parameters or of the adapters of ``train.low_rank``.
    """
    for prefix in prefixes:
        if not any(_under(name, prefix) for name, _ in model.named_parameters()):
            offered = dict.fromkeys(_part_of(name) for name, _ in model.named_parameters())
            raise ConfigError(
                f"train.freeze is {list(prefixes)}; no part is called {prefix!r}, parts are "
                f"{', '.join(offered)}"
            )
    for name, parameter in model.named_parameters():
        if any(_under(name, prefix) for prefix in prefixes):
            parameter.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ConfigError(f"train.freeze is {list(prefixes)}; nothing is left to train")
    adapters = [module.up for module in model.modules() if isinstance(module, LowRank)]
    if adapters and not any(up.requires_grad for up in adapters):
        raise ConfigError(
            f"train.freeze is {list(prefixes)}; no adapter of train.low_rank is left to train"
        )
    return [
        name
        for name, _ in model.named_modules()
        if any(_under(name, prefix) for prefix in prefixes)
    ]


def _part_of(name: str) -> str:
    """The part a parameter belongs to: ``stages.0`` or ``head``."""
    first, *rest = name.split(".")
    return f"{first}.{rest[0]}" if rest and rest[0].isdigit() else first


def _under(name: str, prefix: str) -> bool:
    """Whether a name is a part's; of a parametrized tensor, the tensor's own name tells it."""
    name = name.replace(".parametrizations.", ".")
    return name == prefix or name.startswith(f"{prefix}.")


def make_optimizer(model: nn.Module, schedule: ScheduleConfig) -> torch.optim.AdamW:
    """AdamW over :func:`parameter_groups`."""
    groups = parameter_groups(model, schedule)
    return torch.optim.AdamW(groups, lr=schedule.learning_rate, fused=True)


def parameter_groups(model: nn.Module, schedule: ScheduleConfig) -> list[dict[str, object]]:
    """Groups for AdamW: matrices decay, biases, norms and ellipsoids (one-dimensional) do not.

    With ``train.layer_decay`` a group for each stage's part of the learning rate, ``scale``.
    """
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            scale = schedule.layer_decay ** depth_below_head(name, config_of(model))
            groups.setdefault((scale, parameter.ndim > 1), []).append(parameter)
    return [
        {
            "params": parameters,
            "weight_decay": schedule.weight_decay if decays else 0.0,
            "scale": scale,
        }
        for (scale, decays), parameters in sorted(groups.items(), key=lambda g: g[0], reverse=True)
    ]


def _listed(names: Sequence[str]) -> str:
    more = len(names) - _LISTED
    return ", ".join(names[:_LISTED]) + (f" and {more} more" if more > 0 else "")
