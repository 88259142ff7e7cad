"""Spatial encoding: how the shape of a point's neighborhood becomes its features (SPSE)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dela.families.layers import BatchNorm


class Ellipsoids(nn.Module):
    """One learned ellipsoid per channel, with reference values for attributes and directions.

    Parameters are flat because weight decay spares one-dimensional parameters:

    - ``shapes`` [10 C]: per channel center (3), scale (3), rotation axis (3) and angle (1);
    - ``attributes`` [E C]: E rows of C reference values, absent when E = 0;
    - ``directions`` [L C]: L rows, each channel's column normalized before use, absent when L = 0.
    """

    attributes: nn.Parameter | None
    directions: nn.Parameter | None

    def __init__(self, channels: int, attributes: int = 0, directions: int = 0) -> None:
        super().__init__()
        self.channels = channels
        self.shapes = nn.Parameter(torch.zeros(10 * channels))
        self.register_parameter(
            "attributes", nn.Parameter(torch.zeros(attributes * channels)) if attributes else None
        )
        self.register_parameter(
            "directions", nn.Parameter(torch.zeros(directions * channels)) if directions else None
        )

    def weight(self) -> Tensor:
        """SPSE's weight [12 + E + L, C].

        ``W = R(axis, angle) diag(scale)`` with Rodrigues' formula
        ``R = I + sin(angle) A + (1 - cos(angle)) A^2``, A the cross-product matrix of the axis.
        """
        shapes = self.shapes.view(-1, 10)
        center, scale, angle = shapes[:, :3], shapes[:, 3:6], shapes[:, 9, None, None]
        x, y, z = F.normalize(shapes[:, 6:9], dim=1).unbind(1)
        zero = torch.zeros_like(x)
        cross = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], dim=1).view(-1, 3, 3)
        identity = torch.eye(3, dtype=cross.dtype, device=cross.device)
        rotation = identity + angle.sin() * cross + (1 - angle.cos()) * (cross @ cross)
        matrix = rotation * scale[:, None, :]
        rows = [torch.cat([matrix.reshape(-1, 9), center], dim=1).t()]
        if self.attributes is not None:
            rows.append(self.attributes.view(-1, self.channels))
        if self.directions is not None:
            rows.append(F.normalize(self.directions.view(-1, self.channels), dim=0))
        return torch.cat(rows)


class SpatialEncoding(nn.Module):
    """Turns SPSE distances [N, channels] into a stage's features [N, dim]."""

    def __init__(self, channels: int, dim: int, momentum: float) -> None:
        super().__init__()
        self.distance_norm = BatchNorm(channels, momentum=momentum)
        self.expand = nn.Linear(channels, 2 * channels)
        self.reduce = nn.Linear(2 * channels, dim, bias=False)
        self.norm = BatchNorm(dim, momentum=momentum)

    def forward(self, distances: Tensor) -> Tensor:
        return self.norm(self.reduce(F.gelu(self.expand(self.distance_norm(distances)))))
