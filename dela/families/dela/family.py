"""DeLA v2 as a family: pyramids as input, two operators, segmentation and classification."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dela.errors import ConfigError
from dela.families.base import FamilyDefaults, refuse_missing
from dela.families.dela.config import PRESETS, DelaConfig
from dela.families.dela.example import example_pyramid
from dela.model.inputs import InputSpec, RowSize
from dela.pyramid.cpu import Pyramid, build_pyramid

if TYPE_CHECKING:
    import torch
    from torch import nn

# Presets see 1.6 units per coarse voxel: at stage 0 one voxel, later 1.19 of them (3.8 / 3.2 ...).
FIRST_SPREAD = 1.6
LATER_SPREAD = 1.1875
# Units per meter of published object networks; their objects are about 1 m large.
OBJECT_SCALE = 40.0

# Context around a core, in cells of the coarsest stage; more changes few labels and costs time.
CONTEXT_CELLS = 4.0

# Points left on a grid coarser by f: f^-2 where the scan is a closed surface, f^-1 where it is so
# thin that only scan lines are dense. Where nothing was measured: between both, up to the latter.
MEAN_POWER, MAX_POWER = 1.5, 1.0


class DelaFamily(FamilyDefaults):
    """See :class:`dela.families.base.Family`."""

    name = "dela"
    config = DelaConfig
    presets: Mapping[str, DelaConfig] = PRESETS
    input_fields = ("neighbors", "coordinate_scale", "spread")
    derived_fields = ("spread", "coordinate_scale")
    written: Mapping[str, Any] = {"neighbors": tuple[int, ...] | int}
    recomputes = True
    on_gpu = True

    def sizes(self, config: DelaConfig) -> tuple[RowSize, ...]:
        """Points of each stage."""
        if config.task == "classification":
            return tuple(RowSize(f"n{d}", count) for d, count in enumerate(config.points))
        factors = [size / config.grid[0] for size in config.grid]
        return tuple(
            RowSize(f"n{d}", 0, factor**-MEAN_POWER, factor**-MAX_POWER)
            for d, factor in enumerate(factors)
        )

    def inputs(self, config: DelaConfig) -> tuple[InputSpec, ...]:
        """``points``, ``attributes`` where there are any, ``neighbors_0`` .., ``kept_1`` ..,
        ``nearest_1`` .. (segmentation)."""
        columns = len(config.input_columns)
        specs = [InputSpec("points", "float32", "n0", (3,), padding="repeat")]
        if columns:
            specs.append(InputSpec("attributes", "float32", "n0", (columns,)))
        for d, k in enumerate(config.neighbors):
            specs.append(InputSpec(f"neighbors_{d}", "int32", f"n{d}", (k,), indexes=f"n{d}"))
        later = range(1, config.stages)
        specs += [InputSpec(f"kept_{d}", "int32", f"n{d}", indexes=f"n{d - 1}") for d in later]
        if config.task == "segmentation":
            specs += [InputSpec(f"nearest_{d}", "int32", "n0", indexes=f"n{d}") for d in later]
        return tuple(specs)

    def complete(self, given: dict[str, Any]) -> dict[str, Any]:
        """``neighbors`` of one number for all stages; ``spread``, ``coordinate_scale`` and
        ``head_dim`` from the voxel sizes."""
        classification = given["task"] == "classification"
        needed = ("points", "spread") if classification else ("grid",)
        refuse_missing(given, ("dims", "depths", "neighbors", *needed))
        filled = dict(given)
        if isinstance(filled["neighbors"], int):
            filled["neighbors"] = (filled["neighbors"],) * len(filled["dims"])
        if not classification:
            grid = filled["grid"]
            if not grid or not all(size > 0 for size in grid):
                raise ConfigError(
                    f"model.grid is {list(grid)}; every voxel size must be above 0 (metres)"
                )
            scale = filled.setdefault("coordinate_scale", round(FIRST_SPREAD / grid[0], 6))
            spread = [
                round(scale * size * (LATER_SPREAD if stage else 1.0), 6)
                for stage, size in enumerate(grid)
            ]
            filled.setdefault("spread", tuple(spread))
            filled.setdefault("head_dim", max(filled["dims"][-1] // 2, 32) if filled["dims"] else 0)
        filled.setdefault("coordinate_scale", OBJECT_SCALE)
        return filled

    def prepare(
        self,
        points: np.ndarray,
        attributes: np.ndarray | None,
        config: DelaConfig,
        *,
        seed: int | None = None,
        pick: int | None = 0,
        origin: np.ndarray | None = None,
    ) -> Pyramid:
        return build_pyramid(points, attributes, config, seed, pick, origin)

    def example(self, config: DelaConfig, size: int, seed: int = 0) -> Pyramid:
        return example_pyramid(config, size, seed)

    def reach(self, config: DelaConfig) -> float:
        return CONTEXT_CELLS * config.grid[-1]

    def build(self, config: DelaConfig) -> nn.Module:
        from dela.families.dela.network import Network

        return Network(config)

    def create(
        self, config: DelaConfig, measured: Any = None, seed: int | None = None
    ) -> nn.Module:
        import torch

        from dela.families.dela.network import Network
        from dela.families.dela.starting_values import initialize

        generator = None if seed is None else torch.Generator().manual_seed(seed)
        with torch.random.fork_rng(devices=[]):  # layers draw values that are replaced below
            model = Network(config)
        initialize(model, measured, generator)
        return model

    def measure(self, samples: Sequence[Pyramid], config: DelaConfig) -> Any:
        """Distances between neighbors, where ellipsoids and aggregations start."""
        from dela.families.dela.starting_values import measure_neighbor_distances

        return measure_neighbor_distances(samples, config)

    def losses(
        self, output: tuple[torch.Tensor, torch.Tensor]
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        logits, coordinate = output
        return logits, {"coordinate_loss": coordinate}

    def freeze(self, network: nn.Module, dtype: torch.dtype) -> nn.Module:
        from dela.families.dela.frozen import freeze

        return freeze(network, dtype)  # type: ignore[arg-type]

    def parts(self, config: DelaConfig) -> tuple[tuple[str, ...], ...]:
        later = [(f"stages.{d}",) for d in range(1, config.stages)]
        return (("ellipsoids", "stages.0"), *later)

    def recompute(self, network: Any, on: bool) -> None:
        network.checkpoint_blocks = on

    def compile(self, network: Any) -> None:
        network.compile_training()

    def carry_over(
        self,
        own: Mapping[str, Any],
        offered: Mapping[str, Any],
        ours: DelaConfig,
        theirs: DelaConfig,
    ) -> dict[str, Any]:
        from dela.families.dela.carry_over import carry_over

        return carry_over(own, offered, ours, theirs)

    def import_published(self, path: Path, preset: Any, **overrides: Any) -> Any:
        from dela.families.dela.published import import_reference, read_reference

        return import_reference(read_reference(path), preset, **overrides)


FAMILY = DelaFamily()
