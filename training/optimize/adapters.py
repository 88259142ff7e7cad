"""Adapters: small trained tensors beside frozen weights, merged wherever a network is saved.

The built-in ones are of low rank (LoRA: Hu et al., "Low-Rank Adaptation of Large Language Models",
2021); a hook may put others into the network.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from dela.errors import CheckpointError, ConfigError
from dela.families import empty_network
from dela.model.weights import load_weights, refuse_misfitting
from dela.training.optimize.network import adapted_layers, config_of
from dela.training.settings.seeds import ADAPTERS, torch_seed
from dela.training.settings.train import ScheduleConfig

Adapt = Callable[[nn.Module], None]


class LowRank(nn.Module):
    """Parametrization of a weight [out, in]: ``weight + alpha / rank * up @ down``.

    ``down`` [rank, in] starts with normal numbers of variance 1 / in, ``up`` [out, rank] with
    zeros, so the start is the weight itself. A float32 weight is adapted in float32 under autocast
    too: it is the weight that is merged.
    """

    def __init__(self, out_features: int, in_features: int, rank: int, alpha: float) -> None:
        super().__init__()
        self.scale = alpha / rank
        self.up = nn.Parameter(torch.zeros(out_features, rank))
        self.down = nn.Parameter(torch.randn(rank, in_features) * in_features**-0.5)

    def forward(self, weight: Tensor) -> Tensor:
        with torch.autocast(weight.device.type, enabled=False):
            return torch.addmm(weight, self.up, self.down, alpha=self.scale)


def adapt_network(
    model: nn.Module,
    schedule: ScheduleConfig,
    fresh: Collection[str] = (),
    adapt: Adapt | None = None,
) -> list[str]:
    """Put the adapters of ``train.low_rank`` into a network, then those of a hook.

    torch's generator is seeded from the run's seed meanwhile, so adapters start alike in every
    process of a run.

    Args:
        fresh: names of weights that stem from no trained network.
        adapt: changes the network in place: parametrizes tensors, or puts modules that have a
            method ``merged()``, which returns the plain module, in the place of others.

    Returns:
        What to tell in the log, a line each.

    Raises:
        ConfigError: a rank beyond a weight's, low rank on a fresh weight, or a hook's network that
            :func:`merged` cannot make plain.
    """
    lines = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(torch_seed(schedule.seed, ADAPTERS))
        if schedule.low_rank:
            lines.append(_add_low_rank(model, schedule.low_rank, schedule.low_rank_alpha, fresh))
        if adapt is not None:
            adapt(model)
            _check_mergeable(model)
    return lines


def _add_low_rank(model: nn.Module, rank: int, alpha: float, fresh: Collection[str]) -> str:
    count = 0
    layers = adapted_layers(model)
    for name, layer in layers:
        if f"{name}.weight" in fresh:
            raise ConfigError(
                f"train.low_rank is {rank}, but {name}.weight is new: train.init brings no such "
                "weight to adapt; give the network the stages of that checkpoint"
            )
        if rank > min(layer.weight.shape):
            raise ConfigError(
                f"train.low_rank is {rank}, but {name}.weight is {layer.out_features} x "
                f"{layer.in_features}, of rank {min(layer.weight.shape)} at most"
            )
        layer.weight.requires_grad_(False)
        adapter = LowRank(layer.out_features, layer.in_features, rank, alpha)
        parametrize.register_parametrization(layer, "weight", adapter)
        count += adapter.up.numel() + adapter.down.numel()
    return (
        f"adapters of rank {rank} on the {len(layers)} Linear weights of the stages, which stay: "
        f"{count:,} parameters"
    )


def _check_mergeable(model: nn.Module) -> None:
    plain = empty_network(config_of(model))
    own = dict(model.named_modules())
    wrapped = [f"{name}." for name, module in own.items() if _merges(module)]
    for name, module in plain.named_modules():
        found = own.get(name)
        if found is None or _merges(found) or name.startswith(tuple(wrapped)):
            continue
        if type(found).forward is not type(module).forward or "forward" in vars(found):
            raise ConfigError(
                f"adapt put a {type(found).__name__} in the place of {name}, which a checkpoint "
                f"cannot hold; give it a method merged() that returns a {type(module).__name__}"
            )
    try:
        refuse_misfitting(plain, merged(model).state_dict(), "the adapted network")
    except CheckpointError as error:
        raise ConfigError(
            f"{error}; adapt may parametrize tensors, or put modules with a method merged() in "
            "the place of others"
        ) from error


@torch.no_grad()
def merged(model: nn.Module) -> nn.Module:
    """The plain network that computes the same as an adapted one, as a checkpoint holds it.

    Returns:
        ``model`` itself where nothing is adapted, else a network in evaluation mode that shares
        the tensors that are not.

    Raises:
        CheckpointError: what is merged does not have the plain network's tensors.
    """
    weights = model.state_dict()
    done: list[str] = []
    for name, module in model.named_modules():
        if name.startswith(tuple(done)):
            continue
        if _merges(module):
            values = module.merged().state_dict()
            done.append(f"{name}.")
        elif parametrize.is_parametrized(module):
            values = {tensor: getattr(module, tensor) for tensor in module.parametrizations}
            done.append(f"{name}.parametrizations.")
        else:
            continue
        for key in [key for key in weights if key.startswith(done[-1])]:
            del weights[key]
        weights |= {f"{name}.{key}": value for key, value in values.items()}
    if not done:
        return model
    plain = empty_network(config_of(model))
    load_weights(plain, weights, "the adapted network")
    return plain.eval()


def _merges(module: nn.Module) -> bool:
    return callable(getattr(module, "merged", None))
