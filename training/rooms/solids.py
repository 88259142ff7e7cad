"""Simple solids and the rays that meet them: the geometry of generated rooms.

A solid is a unit shape under an affine map, so one intersection routine per shape serves boxes,
round legs, lamp shades and cushions of any size and orientation.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from dela.training.rooms.materials import Material

# Unit shapes. BOX [-1, 1]^3; PANE the square z = 0; BALL radius 1; TAPER: round, z in [-1, 1],
# radius 1 at the bottom and ``taper`` at the top, closed by caps.
BOX, PANE, BALL, TAPER = range(4)
_NEAREST = 0.05


@dataclass
class Solids:
    """A growing list of solids; each has a class, a material and a chance to answer a ray."""

    kinds: list[int] = field(default_factory=list)
    centers: list[np.ndarray] = field(default_factory=list)
    frames: list[np.ndarray] = field(default_factory=list)
    tapers: list[float] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    materials: list[Material] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.kinds)

    def add(
        self,
        kind: int,
        center: np.ndarray,
        frame: np.ndarray,
        label: int,
        material: Material,
        taper: float = 1.0,
    ) -> None:
        """Args: ``frame`` [3, 3], columns = images of the unit shape's axes, meters."""
        self.kinds.append(kind)
        self.centers.append(np.asarray(center, float))
        self.frames.append(np.asarray(frame, float))
        self.tapers.append(taper)
        self.labels.append(label)
        self.materials.append(material)


class Placed:
    """Adds solids in the local frame of one piece: x to its right, y ahead, z up, meters."""

    def __init__(
        self, solids: Solids, origin: tuple[float, float, float], yaw: float, label: int
    ) -> None:
        self.solids = solids
        self.origin = np.asarray(origin, float)
        self.label = label
        cos, sin = np.cos(yaw), np.sin(yaw)
        self.turn = np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1.0]])
        self.yaw = yaw

    def at(
        self, x: float, y: float, z: float, yaw: float = 0.0, label: int | None = None
    ) -> Placed:
        """A frame moved and turned within this one."""
        origin = self.turn @ np.array([x, y, z]) + self.origin
        return Placed(
            self.solids,
            (origin[0], origin[1], origin[2]),
            self.yaw + yaw,
            self.label if label is None else label,
        )

    def box(
        self,
        center: tuple[float, float, float],
        size: tuple[float, float, float],
        material: Material,
        lean: float = 0.0,
        turn: float = 0.0,
    ) -> None:
        """A box; ``lean`` tips it about x (radians, the top goes to -y), ``turn`` about z."""
        frame = _scaling(size)
        if lean:
            cos, sin = np.cos(lean), np.sin(lean)
            frame = np.array([[1, 0, 0], [0, cos, -sin], [0, sin, cos]]) @ frame
        if turn:
            cos, sin = np.cos(turn), np.sin(turn)
            frame = np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1.0]]) @ frame
        self._place(BOX, center, frame, material)

    def ball(
        self,
        center: tuple[float, float, float],
        size: tuple[float, float, float],
        material: Material,
    ) -> None:
        self._place(BALL, center, _scaling(size), material)

    def pane(
        self,
        center: tuple[float, float, float],
        width: float,
        height: float,
        material: Material,
    ) -> None:
        """An upright rectangle, facing y."""
        frame = np.array([[width / 2, 0, 0], [0, 0, 1e-3], [0, height / 2, 0]])
        self._place(PANE, center, frame, material)

    def floor(
        self,
        center: tuple[float, float, float],
        width: float,
        depth: float,
        material: Material,
    ) -> None:
        """A level rectangle."""
        self._place(PANE, center, np.diag([width / 2, depth / 2, 1e-3]), material)

    def round(
        self,
        center: tuple[float, float, float],
        radius: float,
        height: float,
        material: Material,
        taper: float = 1.0,
    ) -> None:
        """A cylinder or cone along z; its top is ``taper`` as wide."""
        size = (2 * radius, 2 * radius, height)
        self._place(TAPER, center, _scaling(size), material, taper)

    def _place(
        self,
        kind: int,
        center: tuple[float, float, float],
        frame: np.ndarray,
        material: Material,
        taper: float = 1.0,
    ) -> None:
        self.solids.add(
            kind,
            self.turn @ np.asarray(center, float) + self.origin,
            self.turn @ frame,
            self.label,
            material,
            taper,
        )


def _scaling(size: tuple[float, float, float]) -> np.ndarray:
    """The frame of a unit shape of this size, meters along x, y and z."""
    return np.diag(np.maximum(np.asarray(size, float), 1e-3) / 2)


def cast(
    solids: Solids,
    origin: np.ndarray,
    elevations: np.ndarray,
    directions: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """The nearest solid that each ray of an angular grid meets.

    Args:
        origin: [3].
        elevations: [E] radians, ascending: the rows of the grid.
        directions: [E, A, 3] unit vectors, at most one grid step off nominal; nominally the A
            columns are spaced evenly over the full turn from azimuth -pi.

    Returns:
        range [E, A] float32 (inf: nothing met), solid [E, A] int32 (-1: nothing met).
    """
    rows, columns = directions.shape[:2]
    distance = np.full((rows, columns), np.inf, np.float32)
    owner = np.full((rows, columns), -1, np.int32)
    for number in range(len(solids)):
        frame, center = solids.frames[number], solids.centers[number]
        reach = np.abs(frame).sum(1)
        band = _elevation_window(center - origin, reach, elevations)
        if band is None:
            continue
        inverse = np.linalg.inv(frame)
        start = (inverse @ (origin - center)).astype(np.float32)
        inverse_t = inverse.T.astype(np.float32)
        for sector in _azimuth_windows(center - origin, reach, columns):
            window = (band, sector)
            local = directions[window] @ inverse_t
            met = _MEET[solids.kinds[number]](start, local, solids.tapers[number])
            nearer = met < distance[window]
            if nearer.any():
                distance[window][nearer] = met[nearer]
                owner[window][nearer] = number
    return distance, owner


def surface(solids: Solids, points: np.ndarray, owner: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Local coordinates and normals of hits.

    Args:
        points: [N, 3] places on surfaces; owner: [N] their solids.

    Returns:
        place [N, 3] meters along the solid's own axes, the longest first (panes: across, up, 0);
        normal [N, 3] unit, outward (panes: either side).
    """
    centers = np.array(solids.centers)[owner]
    frames = np.array(solids.frames)
    inverses = np.linalg.inv(frames)[owner]
    sizes = np.linalg.norm(frames, axis=1)
    unit = np.einsum("nij,nj->ni", inverses, points - centers)
    kinds = np.array(solids.kinds)[owner]
    tapers = np.array(solids.tapers)[owner]
    gradient = unit.copy()
    boxes = kinds == BOX
    side = np.abs(unit[boxes]).argmax(1)
    rows = np.arange(len(side))
    flat = np.zeros((len(side), 3))
    flat[rows, side] = np.sign(unit[boxes][rows, side])
    gradient[boxes] = flat
    gradient[kinds == PANE] = [0, 0, 1]
    rounds = kinds == TAPER
    slope = (tapers[rounds] - 1) / 2
    radius = (tapers[rounds] + 1) / 2 + slope * unit[rounds, 2]
    mantle = gradient[rounds]
    mantle[:, 2] = -slope * radius
    capped = (np.abs(unit[rounds, 2]) > 0.995) & (np.hypot(*unit[rounds, :2].T) < radius * 0.98)
    mantle[capped] = np.array([0, 0, 1.0]) * np.sign(unit[rounds, 2][capped])[:, None]
    gradient[rounds] = mantle
    normal = np.einsum("nij,ni->nj", inverses, gradient)
    normal /= np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-12)
    order = np.argsort(-sizes, axis=1, kind="stable")
    order[np.array(solids.kinds) == PANE] = [0, 1, 2]
    place = np.take_along_axis(unit * sizes[owner], order[owner], axis=1)
    return place, normal


def _elevation_window(
    offset: np.ndarray, reach: np.ndarray, elevations: np.ndarray
) -> slice | None:
    """Rows that can meet a bounding box; None when there are none."""
    gap = np.maximum(np.abs(offset[:2]) - reach[:2], 0)
    near, far = np.hypot(*gap), np.hypot(*(np.abs(offset[:2]) + reach[:2]))
    low, high = offset[2] - reach[2], offset[2] + reach[2]
    first = np.arctan2(low, near if low < 0 else far)
    last = np.arctan2(high, near if high > 0 else far)
    step = elevations[1] - elevations[0]
    begin = int(np.floor((first - elevations[0]) / step)) - 1
    end = int(np.ceil((last - elevations[0]) / step)) + 2
    begin, end = max(begin, 0), min(end, len(elevations))
    return slice(begin, end) if begin < end else None


def _azimuth_windows(offset: np.ndarray, reach: np.ndarray, columns: int) -> list[slice]:
    """Columns that can meet a bounding box: one run, or two where it crosses the seam."""
    if (np.abs(offset[:2]) <= reach[:2] + 1e-6).all():
        return [slice(0, columns)]
    corners = offset[:2] + reach[:2] * np.array([[-1, -1], [-1, 1], [1, -1], [1, 1]])
    middle = np.arctan2(offset[1], offset[0])
    apart = np.arctan2(corners[:, 1], corners[:, 0]) - middle
    apart = (apart + np.pi) % (2 * np.pi) - np.pi
    per_radian = columns / (2 * np.pi)
    begin = int(np.floor((middle + apart.min() + np.pi) * per_radian)) - 2
    end = int(np.ceil((middle + apart.max() + np.pi) * per_radian)) + 2
    if end - begin >= columns:
        return [slice(0, columns)]
    begin, end = begin % columns, (end - 1) % columns + 1
    return [slice(begin, end)] if begin < end else [slice(begin, columns), slice(0, end)]


def _meet_box(start: np.ndarray, local: np.ndarray, taper: float) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        slow = 1 / local
        first, second = (-1 - start) * slow, (1 - start) * slow
    enter = np.fmin(first, second).max(-1)
    leave = np.fmax(first, second).min(-1)
    return np.where((enter <= leave) & (enter > _NEAREST), enter, np.float32(np.inf))


def _meet_pane(start: np.ndarray, local: np.ndarray, taper: float) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        along = -start[2] / local[..., 2]
        u = np.abs(start[0] + along * local[..., 0])
        v = np.abs(start[1] + along * local[..., 1])
    return np.where((u <= 1) & (v <= 1) & (along > _NEAREST), along, np.float32(np.inf))


def _meet_ball(start: np.ndarray, local: np.ndarray, taper: float) -> np.ndarray:
    a = np.square(local).sum(-1)
    b = local @ start
    inside = np.square(b) - a * (start @ start - 1)
    along = (-b - np.sqrt(np.maximum(inside, 0))) / a
    return np.where((inside > 0) & (along > _NEAREST), along, np.float32(np.inf))


def _meet_taper(start: np.ndarray, local: np.ndarray, taper: float) -> np.ndarray:
    base, slope = np.float32((1 + taper) / 2), np.float32((taper - 1) / 2)
    dx, dy, dz = local[..., 0], local[..., 1], local[..., 2]
    edge = base + slope * start[2]
    a = dx * dx + dy * dy - slope * slope * dz * dz
    b = start[0] * dx + start[1] * dy - slope * dz * edge
    c = start[0] ** 2 + start[1] ** 2 - edge * edge
    best = np.full(a.shape, np.inf, np.float32)
    with np.errstate(divide="ignore", invalid="ignore"):
        root = np.sqrt(np.maximum(b * b - a * c, 0))
        for along in ((-b - root) / a, (-b + root) / a):
            height = start[2] + along * dz
            valid = (b * b >= a * c) & (along > _NEAREST) & (np.abs(height) <= 1)
            best = np.where(valid & (along < best), along, best)
        for top, radius in ((-1, 1.0), (1, taper)):
            along = (top - start[2]) / dz
            across = np.square(start[0] + along * dx) + np.square(start[1] + along * dy)
            valid = (across <= radius * radius) & (along > _NEAREST)
            best = np.where(valid & (along < best), along, best)
    return best


_MEET = {BOX: _meet_box, PANE: _meet_pane, BALL: _meet_ball, TAPER: _meet_taper}
