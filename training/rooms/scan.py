"""Generated indoor scans: furnished rooms of 13 classes, seen by a few virtual laser scanners.

A room is a plan (:mod:`dela.training.rooms.plan`), furniture placed without collisions, and a scan:
rays from several standpoints give occlusion, range-dependent density and range noise; shared
palettes, light, shadow and exposure give the colors. The same seed gives the same points.
"""

from __future__ import annotations

import numpy as np

from dela.cloud.point_cloud import PointCloud
from dela.errors import InputError
from dela.model.class_names import S3DIS_CLASSES
from dela.training.rooms.furnish import furnish
from dela.training.rooms.materials import color_surfaces
from dela.training.rooms.plan import Plan, draw_plan
from dela.training.rooms.solids import Solids, cast, surface

ROOM_CLASSES = tuple(S3DIS_CLASSES.split())

# Of a standpoint's full turn: below is the tripod, above the instrument's own axis.
_LOWEST, _HIGHEST = np.radians(-62.0), np.radians(89.0)
_RANGE_NOISE, _NOISE_PER_METRE = 0.0015, 0.0006
_REGISTRATION = 0.002
_EYE = (1.35, 1.75)


def generate_room(seed: int, points: int = 200_000) -> PointCloud:
    """A furnished room as a scanner would have measured it.

    Args:
        seed: the room; 0 and above.
        points: how many points, about (never more).

    Returns:
        N points in meters, the room's corner near the origin, z up, with columns ``red``,
        ``green``, ``blue`` (uint8) and ``classification`` (uint8, index into ``ROOM_CLASSES``).

    Raises:
        InputError: a negative seed or no points asked for.
    """
    if seed < 0 or points < 1:
        raise InputError(f"seed {seed}, {points} points; a room needs seed >= 0 and points >= 1")
    rng = np.random.default_rng([seed, 13])
    solids = Solids()
    plan = draw_plan(rng, solids)
    obstacles = furnish(plan, solids, rng)
    standpoints = _standpoints(plan, obstacles, rng)
    lamps = plan.lamps(rng)
    shadow = [_ShadowMap(solids, lamp) for lamp in lamps]
    views = [_scan(solids, place, points / len(standpoints), rng) for place in standpoints]
    owner = np.concatenate([view[0] for view in views])
    true = np.concatenate([view[1] for view in views])
    seen = np.concatenate([view[2] for view in views])
    exposure = np.concatenate(
        [np.full(len(view[0]), rng.normal(1, 0.05), np.float32) for view in views]
    )
    place, normal = surface(solids, true, owner)
    light = _light(true, normal, lamps, shadow, plan)
    color = color_surfaces(solids.materials, owner, place, light, rng)
    color *= exposure[:, None] * rng.normal(1, 0.015, 3)
    color += rng.normal(0, 4.0, color.shape) + rng.normal(0, 3.0, (len(color), 1))
    kept = np.sort(rng.permutation(len(seen))[:points])
    channels = color[kept].clip(0, 255).astype(np.uint8)
    labels = np.array(solids.labels, np.uint8)[owner[kept]]
    return PointCloud(
        seen[kept],
        {
            "red": channels[:, 0].copy(),
            "green": channels[:, 1].copy(),
            "blue": channels[:, 2].copy(),
            "classification": labels,
        },
    )


def _angles(rays: float) -> tuple[np.ndarray, np.ndarray]:
    """Evenly spaced azimuths and elevations of about this many rays."""
    step = np.sqrt(2 * np.pi * (_HIGHEST - _LOWEST) / rays)
    columns = max(int(2 * np.pi / step), 16)
    rows = max(int((_HIGHEST - _LOWEST) / step), 8)
    azimuths = (np.arange(columns) + 0.5) * 2 * np.pi / columns - np.pi
    return azimuths, np.linspace(_LOWEST, _HIGHEST, rows)


def _directions(azimuths: np.ndarray, elevations: np.ndarray) -> np.ndarray:
    return np.stack(
        [
            np.cos(elevations) * np.cos(azimuths),
            np.cos(elevations) * np.sin(azimuths),
            np.sin(elevations) + 0 * azimuths,
        ],
        axis=-1,
    ).astype(np.float32)


def _scan(
    solids: Solids, origin: np.ndarray, points: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One standpoint: solid, true place and measured place of every return."""
    azimuths, elevations = _angles(1.75 * points)
    step = elevations[1] - elevations[0]
    shape = (len(elevations), len(azimuths))
    tilt = elevations[:, None] + rng.uniform(-0.3, 0.3, shape) * step
    turn = azimuths[None, :] + rng.uniform(-0.3, 0.3, shape) * step
    rays = _directions(turn, tilt)
    distance, owner = cast(solids, origin, elevations, rays)
    # Rows near the zenith hold as many rays as the horizon: thin them to an even density.
    answers = np.array([material.answers for material in solids.materials])
    back = (owner >= 0) & (rng.random(shape) < np.cos(elevations)[:, None] + 0.02)
    back &= rng.random(shape) < np.where(owner >= 0, answers[owner], 0)
    owner, distance, rays = owner[back], distance[back].astype(float), rays[back].astype(float)
    noise = rng.normal(0, 1, len(distance)) * (_RANGE_NOISE + _NOISE_PER_METRE * distance)
    true = origin + distance[:, None] * rays
    measured = origin + (distance + noise)[:, None] * rays
    return owner, true, measured + rng.normal(0, _REGISTRATION, 3)


def _standpoints(
    plan: Plan, obstacles: list[tuple[float, float, float, float]], rng: np.random.Generator
) -> list[np.ndarray]:
    """Places away from walls and furniture, far from one another."""
    count = int(np.clip(round(plan.area / 7), 3, 6))
    low, high = plan.bounds
    free = [
        place
        for place in rng.uniform(low, high, (600, 2))
        if plan.contains(place, 0.4)
        and all(
            not (x0 - 0.2 < place[0] < x1 + 0.2 and y0 - 0.2 < place[1] < y1 + 0.2)
            for x0, y0, x1, y1 in obstacles
        )
    ]
    if not free:
        free = [np.mean([low, high], axis=0)]
    chosen = [free[0]]
    while len(chosen) < count:
        apart = [min(np.hypot(*(place - other)) for other in chosen) for place in free]
        chosen.append(free[int(np.argmax(apart))])
    return [np.array([x, y, rng.uniform(*_EYE)]) for x, y in chosen]


class _ShadowMap:
    """Ranges around a lamp: what lies further than the first solid is in its shadow."""

    def __init__(self, solids: Solids, lamp: np.ndarray) -> None:
        self.lamp = lamp
        step = np.radians(1.6)
        self.columns = int(2 * np.pi / step)
        azimuths = (np.arange(self.columns) + 0.5) * 2 * np.pi / self.columns - np.pi
        self.elevations = np.arange(-np.pi / 2 + step / 2, np.radians(20), step)
        rays = _directions(azimuths[None, :], self.elevations[:, None])
        self.range, _ = cast(solids, lamp, self.elevations, rays)

    def reaches(self, points: np.ndarray) -> np.ndarray:
        """[N] bool."""
        away = points - self.lamp
        distance = np.linalg.norm(away, axis=1)
        step = self.elevations[1] - self.elevations[0]
        row = np.rint((np.arcsin(away[:, 2] / distance) - self.elevations[0]) / step).astype(int)
        turn = np.arctan2(away[:, 1], away[:, 0])
        column = np.floor((turn + np.pi) / (2 * np.pi) * self.columns).astype(int) % self.columns
        high = row >= len(self.elevations)
        near = self.range[row.clip(0, len(self.elevations) - 1), column]
        return high | (distance < near * 1.03 + 0.06)


def _light(
    points: np.ndarray,
    normal: np.ndarray,
    lamps: list[np.ndarray],
    shadows: list[_ShadowMap],
    plan: Plan,
) -> np.ndarray:
    """[N] about 0..1: ambient light, darker in corners, and each lamp where it reaches."""
    low, high = plan.bounds
    edge = np.minimum(points[:, :2] - low, high - points[:, :2]).min(1)
    corner = np.minimum(edge, np.minimum(points[:, 2], plan.height - points[:, 2])).clip(0, 0.4)
    ambient = 0.5 + 0.06 * normal[:, 2] + 0.25 * corner
    direct = np.zeros(len(points))
    for lamp, shadow in zip(lamps, shadows, strict=True):
        toward = lamp - points
        distance = np.linalg.norm(toward, axis=1)
        facing = np.abs(np.einsum("ij,ij->i", toward, normal)) / distance
        direct += shadow.reaches(points) * (0.25 + 0.75 * facing) / (1 + 0.12 * distance**2)
    return (ambient + 0.55 * direct / np.sqrt(len(lamps))).clip(0.1, 1.08)
