"""The configuration of a DeLA v2 network and the published presets. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from dela.errors import ConfigError
from dela.model.class_names import S3DIS_CLASSES, SCANNET_CLASSES, SCANOBJECTNN_CLASSES
from dela.model.contract import AttributeInfo, Contract, numbered_classes

# SPSE adds this under its square root; with directions, whose term can reach -1, more.
EPSILON = 1e-8
EPSILON_WITH_DIRECTIONS = 1.0 + 1e-4


# Wider layers than anybody trains, whose weights still have sizes that can be counted.
_WIDEST = 65_536
_MOST_NEIGHBORS = 4096
_WIDEST_RATIO = 64


@dataclass(frozen=True, kw_only=True)
class DelaConfig(Contract):
    """Everything that shapes a DeLA v2 network and the input it expects.

    Per-stage tuples (``dims``, ``depths``, ``neighbors``, ``spread``, and ``grid`` or ``points``)
    have one entry per stage.
    """

    family: ClassVar[str] = "dela"

    dims: tuple[int, ...]
    depths: tuple[int, ...]
    neighbors: tuple[int, ...]
    spread: tuple[float, ...]
    coordinate_scale: float
    head_dim: int = 0
    epsilon: float | None = None
    mlp_ratio: float = 2.0
    drop_path: float = 0.1
    head_drop: float = 0.0
    bn_momentum: float = 0.02
    coordinate_loss: bool = True

    def __post_init__(self) -> None:
        if self.task in ("segmentation", "classification"):
            self._check_stages()
        super().__post_init__()
        if self.task == "segmentation" and self.head_dim < 1:
            raise ConfigError(f"head_dim is {self.head_dim}; segmentation needs at least 1")
        self._check_numbers()

    def _check_stages(self) -> None:
        stages = len(self.dims)
        if stages < 1:
            raise ConfigError("dims is empty; a network has at least one stage")
        lists: dict[str, tuple[Any, ...]] = {
            "depths": self.depths,
            "neighbors": self.neighbors,
            "spread": self.spread,
            **({"grid": self.grid} if self.task == "segmentation" else {"points": self.points}),
        }
        for name, values in lists.items():
            if len(values) != stages:
                raise ConfigError(
                    f"{name} has {len(values)} entries, dims has {stages}; give one per stage"
                )
            if name in ("neighbors", "spread") and any(not value > 0 for value in values):
                raise ConfigError(f"{name} is {list(values)}; every entry must be above 0")
        if max(self.neighbors) > _MOST_NEIGHBORS:
            raise ConfigError(
                f"neighbors is {list(self.neighbors)}; at most {_MOST_NEIGHBORS} are possible"
            )
        if any(depth < 0 for depth in self.depths):
            raise ConfigError(f"depths is {list(self.depths)}; no entry may be negative")
        for dim in self.dims:
            if dim < 4 or dim % 4:
                raise ConfigError(f"dims holds {dim}; every dimension must be a multiple of 4")
        for name, values in (("dims", self.dims), ("head_dim", (self.head_dim,))):
            if max(values) > _WIDEST:
                raise ConfigError(f"{name} holds {max(values)}; at most {_WIDEST} are possible")

    def _check_numbers(self) -> None:
        if not self.coordinate_scale > 0:
            raise ConfigError(f"coordinate_scale is {self.coordinate_scale}; it must be above 0")
        for name in ("drop_path", "head_drop"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be in [0, 1)")
        if not 0 < self.bn_momentum <= 1:
            raise ConfigError(f"bn_momentum is {self.bn_momentum}; it must be in (0, 1]")
        if not 0 < self.mlp_ratio <= _WIDEST_RATIO:
            raise ConfigError(
                f"mlp_ratio is {self.mlp_ratio}; it must be above 0 and at most {_WIDEST_RATIO}"
            )
        if self.epsilon is not None and not self.epsilon >= 0:
            raise ConfigError(f"epsilon is {self.epsilon}; it must not be negative")

    @property
    def stages(self) -> int:
        return len(self.dims)

    @property
    def least_tensors(self) -> int:
        return sum(self.depths)

    def spse_epsilon(self, stage: int) -> float:
        """Epsilon under SPSE's root at a stage; only stage 0 sees directions."""
        if self.epsilon is not None:
            return self.epsilon
        return EPSILON_WITH_DIRECTIONS if stage == 0 and self.directions else EPSILON


# The name under which users of one family know it.
ModelConfig = DelaConfig

_COLOR = tuple(AttributeInfo(name, 250.0) for name in ("red", "green", "blue"))

# The published recipes (DeLA v2).
PRESETS: dict[str, DelaConfig] = {
    "s3dis": DelaConfig(
        task="segmentation",
        classes=numbered_classes(S3DIS_CLASSES),
        dims=(64, 128, 256, 512),
        depths=(4, 4, 8, 8),
        neighbors=(24, 32, 32, 32),
        spread=(1.6, 3.8, 7.6, 15.2),
        coordinate_scale=40.0,
        grid=(0.04, 0.08, 0.16, 0.32),
        head_dim=256,
        attributes=(*_COLOR, AttributeInfo("height", 3.3)),
        drop_path=0.1,
        head_drop=0.15,
        bn_momentum=0.02,
    ),
    "scannet": DelaConfig(
        task="segmentation",
        classes=numbered_classes(SCANNET_CLASSES),
        dims=(80, 128, 192, 352, 640),
        depths=(4, 4, 4, 8, 8),
        neighbors=(24, 32, 32, 32, 32),
        spread=(1.6, 3.0, 5.7, 11.2, 21.5),
        coordinate_scale=60.0,
        grid=(0.02, 0.04, 0.08, 0.16, 0.32),
        head_dim=352,
        attributes=(*_COLOR, AttributeInfo("height", 2.6)),
        directions=tuple(AttributeInfo(f"normal_{axis}") for axis in "xyz"),
        drop_path=0.1,
        head_drop=0.2,
        bn_momentum=0.02,
    ),
    "scanobjectnn": DelaConfig(
        task="classification",
        classes=numbered_classes(SCANOBJECTNN_CLASSES),
        dims=(96, 192, 384),
        depths=(4, 4, 4),
        neighbors=(24, 24, 24),
        spread=(2.2, 4.4, 8.8),
        coordinate_scale=40.0,
        points=(1024, 256, 64),
        drop_path=0.15,
        bn_momentum=0.1,
        vote_axis="y",
    ),
}
