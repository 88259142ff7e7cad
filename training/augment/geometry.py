"""Random changes to where points are: pure functions of arrays and a generator.

Coordinates are meters about the sample's center, float32 [N, 3]; nothing is changed in place.
"""

from __future__ import annotations

import numpy as np


def random_rotation(
    degrees_z: float, tilt: float, generator: np.random.Generator, vertical: int = 2
) -> np.ndarray:
    """[3, 3] rotation: a turn about the vertical axis, then a tilt about a random horizontal one.

    Args:
        degrees_z: largest turn either way.
        tilt: largest tilt, degrees.
        vertical: index of the vertical axis.
    """
    turn = np.radians(generator.uniform(-degrees_z, degrees_z))
    upright = rotation(np.eye(3)[vertical], turn)
    heading = generator.uniform(0, 2 * np.pi)
    lean = np.radians(generator.uniform(-tilt, tilt))
    horizontal = np.zeros(3)
    horizontal[[axis for axis in range(3) if axis != vertical]] = np.cos(heading), np.sin(heading)
    return rotation(horizontal, lean) @ upright


def any_rotation(generator: np.random.Generator) -> np.ndarray:
    """[3, 3] rotation drawn evenly from all of them: a random unit quaternion."""
    w, *axis = generator.standard_normal(4)
    length = float(np.linalg.norm(axis))
    return rotation(np.array(axis) / max(length, 1e-12), 2 * np.arctan2(length, w))


def rotation(axis: np.ndarray, angle: float) -> np.ndarray:
    """Rodrigues' formula: [3, 3] rotation about a unit axis, radians."""
    x, y, z = axis
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross


def random_flip(generator: np.random.Generator, vertical: int = 2) -> np.ndarray:
    """[3, 3] diagonal: the two horizontal axes each mirrored with probability one half."""
    signs = np.ones(3)
    signs[[axis for axis in range(3) if axis != vertical]] = generator.integers(0, 2, 2) * 2 - 1
    return np.diag(signs)


def random_scale(
    limits: tuple[float, float], per_axis: bool, generator: np.random.Generator
) -> np.ndarray:
    """[3] factors, one for all axes or one each."""
    factors = generator.uniform(limits[0], limits[1], 3)
    return factors if per_axis else np.full(3, factors[0])


def transform(points: np.ndarray, linear: np.ndarray) -> np.ndarray:
    """float32 [N, 3] ``linear @ p`` of every point."""
    return points @ linear.T.astype(np.float32)


def transform_directions(directions: np.ndarray, linear: np.ndarray) -> np.ndarray:
    """Unit normals [N, 3] after their surface went through ``linear``; zero rows stay zero."""
    turned = directions @ np.linalg.inv(linear).astype(np.float32)
    length = np.linalg.norm(turned, axis=1, keepdims=True)
    return turned / np.maximum(length, 1e-12)


def jitter(points: np.ndarray, sigma: float, generator: np.random.Generator) -> np.ndarray:
    """Gaussian noise on coordinates (meters), clipped at three standard deviations."""
    noise = generator.standard_normal(points.shape, np.float32).clip(-3, 3)
    return points + np.float32(sigma) * noise


def elastic_offsets(
    points: np.ndarray, granularity: float, magnitude: float, generator: np.random.Generator
) -> np.ndarray:
    """float32 [N, 3] meters by which smooth noise moves each point.

    Standard normal vectors on a grid of cell size ``granularity`` (meters), twice averaged over
    three nodes along each axis, interpolated linearly between nodes, times ``magnitude``; after
    Choy et al., "4D Spatio-Temporal ConvNets" (Minkowski networks), 2019.
    """
    low = points.min(axis=0)
    nodes = ((points.max(axis=0) - low) // granularity).astype(np.int64) + 3
    noise = generator.standard_normal((*nodes, 3), np.float32)
    for _ in range(2):
        for axis in range(3):
            noise = _mean_of_three(noise, axis)
    # Node 1 stands at the lowest corner, node 0 one cell before it.
    return np.float32(magnitude) * _trilinear(noise, (points - low) / granularity + 1)


def _mean_of_three(values: np.ndarray, axis: int) -> np.ndarray:
    """Mean of every node and its two neighbors along an axis, zero beyond the ends."""
    total = values.copy()
    ahead, behind = [slice(None)] * values.ndim, [slice(None)] * values.ndim
    ahead[axis], behind[axis] = slice(1, None), slice(None, -1)
    total[tuple(behind)] += values[tuple(ahead)]
    total[tuple(ahead)] += values[tuple(behind)]
    return total / np.float32(3)


def _trilinear(grid: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Values [N, 3] of ``grid`` [X, Y, Z, 3] at positions [N, 3] counted in nodes."""
    base = np.minimum(at.astype(np.int64), np.array(grid.shape[:3]) - 2)
    share = (at - base).astype(np.float32)
    result = np.zeros((len(at), grid.shape[3]), np.float32)
    for corner in np.ndindex(2, 2, 2):
        weight = np.prod(np.where(corner, share, 1 - share), axis=1, keepdims=True)
        x, y, z = (base + corner).T
        result += weight * grid[x, y, z]
    return result


def keep_rows(count: int, drop: float, generator: np.random.Generator) -> np.ndarray:
    """Ascending rows left after leaving out a random share of at most ``drop``; at least one."""
    share = generator.uniform(0, drop)
    rows = np.flatnonzero(generator.random(count, np.float32) >= share)
    return rows if len(rows) else np.array([generator.integers(count)])


def cut_out(
    points: np.ndarray, most: int, radius: float, generator: np.random.Generator
) -> np.ndarray:
    """Ascending rows left after cutting balls about random points; at least one row.

    Args:
        most: 1 to this many balls are cut, below 1 counts as 1.
        radius: meters.
    """
    outside = np.ones(len(points), bool)
    for _ in range(int(generator.integers(1, max(1, most) + 1))):
        center = points[generator.integers(len(points))]
        left = outside & (np.square(points - center).sum(axis=1) >= radius**2)
        if left.any():
            outside = left
    return np.flatnonzero(outside)
