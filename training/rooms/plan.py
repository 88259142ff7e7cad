"""The shell of a generated room: floor, ceiling, walls with doors and windows, beams, columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from dela.training.rooms import materials
from dela.training.rooms.clutter import curtain, hanging_lamp, radiator
from dela.training.rooms.furniture import LABELS, Piece
from dela.training.rooms.materials import Material
from dela.training.rooms.solids import Placed, Solids

Rng = np.random.Generator
Rectangle = tuple[float, float, float, float]
_REVEAL = 0.14


@dataclass
class Wall:
    """A straight wall seen from inside: ``start`` + s ``along``, ``inward`` to its left.

    ``taken`` lists what hangs on or stands against it: (from, to, bottom, top).
    """

    start: np.ndarray
    along: np.ndarray
    length: float
    taken: list[tuple[float, float, float, float]] = field(default_factory=list)

    @property
    def inward(self) -> np.ndarray:
        return np.array([-self.along[1], self.along[0]])

    @property
    def yaw(self) -> float:
        return float(np.arctan2(self.along[1], self.along[0]))

    def free(self, first: float, last: float, bottom: float, top: float) -> bool:
        """Whether a stretch lies on the wall and touches nothing that is there."""
        return (
            first >= 0.02
            and last <= self.length - 0.02
            and all(last <= a or first >= b or top <= c or bottom >= d for a, b, c, d in self.taken)
        )

    def frame(self, solids: Solids, s: float, label: int, z: float = 0.0) -> Placed:
        """Local frame at a place on the wall: x along it, y into the room."""
        x, y = self.start + s * self.along
        return Placed(solids, (x, y, z), self.yaw, label)

    def footprint(self, s: float, width: float, depth: float) -> Rectangle:
        """Rectangle on the floor of a piece centered at ``s``."""
        corners = np.array(
            [
                self.start + (s + side * width / 2) * self.along + reach * self.inward
                for side in (-1, 1)
                for reach in (0.0, depth)
            ]
        )
        return (*corners.min(0), *corners.max(0))


@dataclass
class Plan:
    """A room without furniture.

    Attributes:
        cells: disjoint rectangles (x0, y0, x1, y1) that make up the floor.
        walls: counter-clockwise.
        height: of the ceiling, meters.
        blocked: rectangles where nothing may stand: door swings, columns.
        paint: the walls' covering.
    """

    cells: list[Rectangle]
    walls: list[Wall]
    height: float
    blocked: list[Rectangle]
    paint: Material

    @property
    def area(self) -> float:
        return sum((c[2] - c[0]) * (c[3] - c[1]) for c in self.cells)

    @property
    def bounds(self) -> tuple[np.ndarray, np.ndarray]:
        cells = np.array(self.cells)
        return cells[:, :2].min(0), cells[:, 2:].max(0)

    def contains(self, place: Sequence[float] | np.ndarray, margin: float = 0.0) -> bool:
        x, y = place
        return self.covers((x - margin, y - margin, x + margin, y + margin))

    def covers(self, area: Rectangle) -> bool:
        """Whether a rectangle lies inside the room."""
        inside = sum(
            max(0.0, min(area[2], c[2]) - max(area[0], c[0]))
            * max(0.0, min(area[3], c[3]) - max(area[1], c[1]))
            for c in self.cells
        )
        return inside >= (area[2] - area[0]) * (area[3] - area[1]) * (1 - 1e-9)

    def lamps(self, rng: Rng) -> list[np.ndarray]:
        """One or two lights under the ceiling, in the largest cells."""
        order = sorted(self.cells, key=lambda c: -(c[2] - c[0]) * (c[3] - c[1]))
        return [
            np.array(
                [
                    (c[0] + c[2]) / 2 + rng.uniform(-0.5, 0.5),
                    (c[1] + c[3]) / 2 + rng.uniform(-0.5, 0.5),
                    self.height - 0.6,
                ]
            )
            for c in order[:2]
        ]


def overlap(a: Rectangle, b: Rectangle, gap: float = 0.0) -> bool:
    """Whether two rectangles come closer than ``gap``."""
    return a[0] < b[2] + gap and b[0] < a[2] + gap and a[1] < b[3] + gap and b[1] < a[3] + gap


def draw_plan(rng: Rng, solids: Solids) -> Plan:
    """Draw a room and add its shell to ``solids``."""
    corners, cells = _outline(rng)
    walls = []
    for start, stop in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        length = float(np.hypot(*(stop - start)))
        walls.append(Wall(start, (stop - start) / length, length))
    plan = Plan(cells, walls, rng.uniform(2.5, 3.4), [], materials.wall_covering(rng))
    _floor_and_ceiling(plan, solids, rng)
    openings = _draw_openings(plan, rng)
    for wall, holes in zip(walls, openings, strict=True):
        _build_wall(plan, wall, holes, solids, rng)
    _columns(plan, solids, rng)
    _beams(plan, solids, rng)
    return plan


def _outline(rng: Rng) -> tuple[np.ndarray, list[Rectangle]]:
    """Corners, counter-clockwise, and the rectangles inside: rectangle, L, or alcove."""
    w, d = rng.uniform(4.0, 8.0), rng.uniform(3.6, 6.5)
    shape = rng.choice(3, p=[0.55, 0.3, 0.15])
    if shape == 0:
        return np.array([(0, 0), (w, 0), (w, d), (0, d)]), [(0, 0, w, d)]
    if shape == 1:
        x, y = w * rng.uniform(0.45, 0.7), d * rng.uniform(0.45, 0.7)
        corners = np.array([(0, 0), (w, 0), (w, y), (x, y), (x, d), (0, d)])
        cells = [(0.0, 0.0, w, y), (0.0, y, x, d)]
    else:
        a, b, e = w * rng.uniform(0.1, 0.35), w * rng.uniform(0.6, 0.9), rng.uniform(0.6, 1.6)
        corners = np.array([(0, 0), (w, 0), (w, d), (b, d), (b, d + e), (a, d + e), (a, d), (0, d)])
        cells = [(0.0, 0.0, w, d), (a, d, b, d + e)]
    size = corners.max(0)
    for axis in np.flatnonzero(rng.random(2) < 0.5):
        corners = corners.copy()
        corners[:, axis] = size[axis] - corners[:, axis]
        corners = corners[::-1]
        flipped = []
        for cell in cells:
            values = list(cell)
            values[axis], values[axis + 2] = size[axis] - cell[axis + 2], size[axis] - cell[axis]
            flipped.append((values[0], values[1], values[2], values[3]))
        cells = flipped
    return corners, cells


def _floor_and_ceiling(plan: Plan, solids: Solids, rng: Rng) -> None:
    floor, ceiling = materials.floor_covering(rng), materials.ceiling_covering(rng)
    tube = replace(ceiling, color=(250, 250, 246), texture="plain", glow=0.9)
    panels = rng.random() < 0.6
    for x0, y0, x1, y1 in plan.cells:
        w, d = x1 - x0, y1 - y0
        middle = ((x0 + x1) / 2, (y0 + y1) / 2)
        Placed(solids, (*middle, 0), 0, LABELS["floor"]).floor((0, 0, 0), w, d, floor)
        put = Placed(solids, (*middle, plan.height), 0, LABELS["ceiling"])
        put.floor((0, 0, 0), w, d, ceiling)
        if panels:
            for x in np.arange(-w / 2 + 1.2, w / 2 - 0.8, 2.0):
                put.box((x, 0, -0.01), (0.3, min(1.2, d * 0.5), 0.02), tube)
        elif rng.random() < 0.8:
            piece = hanging_lamp(rng, rng.uniform(0.3, 0.7))
            piece.build(put.at(rng.uniform(-0.4, 0.4), rng.uniform(-0.4, 0.4), 0, 0, piece.label))


@dataclass(frozen=True)
class _Opening:
    kind: str
    first: float
    last: float
    bottom: float
    top: float


def _draw_openings(plan: Plan, rng: Rng) -> list[list[_Opening]]:
    """Doors (one to three) and windows, each on a free stretch of wall."""
    openings: list[list[_Opening]] = [[] for _ in plan.walls]
    # Windows keep one size through a room, as in a building.
    width, sill = rng.uniform(0.9, 1.9), rng.uniform(0.75, 1.0)
    head = min(sill + rng.uniform(1.1, 1.6), plan.height - 0.25)
    wanted = ["door"] * int(rng.choice([1, 2, 3], p=[0.45, 0.4, 0.15]))
    wanted += ["window"] * int(rng.integers(1, 5))
    lit = rng.permutation(len(plan.walls))[:2]
    for kind in wanted:
        for _ in range(30):
            number = (
                int(rng.choice(lit)) if kind == "window" else int(rng.integers(len(plan.walls)))
            )
            wall = plan.walls[number]
            size = width if kind == "window" else rng.choice([0.9, 1.0, 1.5], p=[0.5, 0.35, 0.15])
            if wall.length < size + 0.5:
                continue
            first = rng.uniform(0.2, wall.length - size - 0.2)
            last = first + size
            bottom, top = (sill, head) if kind == "window" else (0.0, min(2.1, plan.height - 0.2))
            if not wall.free(first - 0.15, last + 0.15, bottom - 0.05, top + 0.05):
                continue
            wall.taken.append((first - 0.12, last + 0.12, bottom - 0.05, top + 0.1))
            openings[number].append(_Opening(kind, first, last, bottom, top))
            if kind == "door":
                plan.blocked.append(wall.footprint((first + last) / 2, size + 0.1, size * 0.9))
            break
    return openings


def _build_wall(plan: Plan, wall: Wall, holes: list[_Opening], solids: Solids, rng: Rng) -> None:
    put = wall.frame(solids, 0.0, LABELS["wall"])
    cursor = 0.0
    for hole in sorted(holes, key=lambda each: each.first):
        _wall_piece(put, cursor, hole.first, 0, plan.height, plan.paint)
        _wall_piece(put, hole.first, hole.last, hole.top, plan.height, plan.paint)
        _wall_piece(put, hole.first, hole.last, 0, hole.bottom, plan.paint)
        cursor = hole.last
        middle, width = (hole.first + hole.last) / 2, hole.last - hole.first
        depth = _REVEAL if hole.kind == "window" else 0.06
        for x in (hole.first - 0.005, hole.last + 0.005):
            put.box(
                (x, -depth / 2, (hole.bottom + hole.top) / 2),
                (0.01, depth, hole.top - hole.bottom),
                plan.paint,
            )
        put.box((middle, -depth / 2, hole.top + 0.005), (width, depth, 0.01), plan.paint)
        if hole.kind == "door":
            _door(wall.frame(solids, middle, LABELS["door"]), width, hole.top, rng)
        else:
            put.box((middle, -depth / 2, hole.bottom - 0.005), (width, depth, 0.01), plan.paint)
            at = wall.frame(solids, middle, LABELS["window"], hole.bottom)
            _window(at, width, hole.top - hole.bottom, rng)
            _under_and_beside(plan, wall, hole, solids, rng)
    _wall_piece(put, cursor, wall.length, 0, plan.height, plan.paint)


def _wall_piece(
    put: Placed, first: float, last: float, bottom: float, top: float, paint: Material
) -> None:
    if last - first > 1e-6 and top - bottom > 1e-6:
        middle = ((first + last) / 2, 0.0, (bottom + top) / 2)
        put.pane(middle, last - first, top - bottom, paint)


def _door(put: Placed, width: float, height: float, rng: Rng) -> None:
    """Frame, one or two leaves with panels or a pane, handle; sometimes ajar."""
    leaf = materials.board_stuff(rng)
    frame = leaf if rng.random() < 0.5 else materials.board_stuff(rng)
    handle, dark = materials.metal(rng), replace(leaf, color=materials.shade(leaf.color, 0.85))
    for x in (-width / 2, width / 2):
        put.box((x, -0.01, height / 2), (0.09, 0.09, height), frame)
    put.box((0, -0.01, height), (width + 0.09, 0.09, 0.09), frame)
    leaves = 2 if width > 1.2 else 1
    design = rng.integers(3)
    wide = (width - 0.08) / leaves
    pane = materials.frosted_glass(rng)
    ajar = rng.uniform(0.15, 1.4) if rng.random() < 0.2 else 0.0
    for i in range(leaves):
        hinge = -1 if i == 0 else 1
        at = put.at(hinge * (width / 2 - 0.04), -0.04, 0, hinge * -ajar * (1 if i == 0 else 0))
        x = -hinge * wide / 2
        at.box((x, 0, height / 2 - 0.02), (wide, 0.045, height - 0.05), leaf)
        if design == 0:
            for z in (0.55, 1.45):
                at.box((x, 0.022, z), (wide - 0.24, 0.012, 0.62), dark)
        elif design == 1:
            at.box((x, 0.022, 1.5), (wide * 0.4, 0.01, 0.7), pane)
        grip = x - hinge * (wide / 2 - 0.09)
        at.box((grip + hinge * 0.05, 0.07, 1.02), (0.14, 0.025, 0.025), handle)
        at.box((grip, 0.035, 1.02), (0.04, 0.03, 0.16), handle)


def _window(put: Placed, width: float, height: float, rng: Rng) -> None:
    """Frame in the reveal, mullions, sill, glass that answers now and then, sometimes blinds."""
    frame = materials.paint(rng) if rng.random() < 0.6 else materials.wood(rng)
    back = -_REVEAL + 0.03
    for x in (-width / 2 + 0.03, width / 2 - 0.03):
        put.box((x, back, height / 2), (0.06, 0.06, height), frame)
    for z in (0.03, height - 0.03):
        put.box((0, back, z), (width, 0.06, 0.06), frame)
    bars = int(width / 0.55)
    for i in range(1, bars):
        put.box((-width / 2 + i * width / bars, back, height / 2), (0.05, 0.055, height), frame)
    if rng.random() < 0.4:
        put.box((0, back, height * 0.7), (width, 0.05, 0.05), frame)
    put.pane((0, back - 0.01, height / 2), width, height, materials.glass(rng))
    put.box((0, -0.03, -0.015), (width + 0.1, 0.22, 0.03), frame)
    if rng.random() < 0.35:
        slats = replace(materials.paint(rng), texture="stripes", scale=0.05)
        slats = replace(slats, accent=materials.shade(slats.color, 0.8))
        drop = height * rng.uniform(0.25, 0.9)
        put.box((0, back + 0.07, height - drop / 2), (width - 0.04, 0.015, drop), slats)


def _under_and_beside(plan: Plan, wall: Wall, hole: _Opening, solids: Solids, rng: Rng) -> None:
    middle, width = (hole.first + hole.last) / 2, hole.last - hole.first
    if hole.bottom > 0.7 and rng.random() < 0.45:
        _hang(plan, wall, radiator(rng, width * 0.8), middle, 0.0, solids)
    if rng.random() < 0.3:
        for side in (hole.first - 0.3, hole.last + 0.3):
            _hang(plan, wall, curtain(rng, min(hole.top + 0.15, 2.4)), side, 0.03, solids)


def _hang(plan: Plan, wall: Wall, piece: Piece, s: float, z: float, solids: Solids) -> None:
    half = piece.size[0] / 2
    area = wall.footprint(s, piece.size[0], piece.size[1])
    if wall.free(s - half, s + half, z, z + piece.size[2]) and not any(
        overlap(area, other) for other in plan.blocked
    ):
        wall.taken.append((s - half, s + half, z, z + piece.size[2]))
        piece.build(wall.frame(solids, s, piece.label, z))


def _columns(plan: Plan, solids: Solids, rng: Rng) -> None:
    """None to three: against walls, in corners, or free; square or round."""
    count = int(rng.choice([0, 1, 2, 3], p=[0.3, 0.3, 0.25, 0.15]))
    cover = plan.paint if rng.random() < 0.6 else materials.paint(rng)
    side = rng.uniform(0.28, 0.5)
    low, high = plan.bounds
    for _ in range(count):
        for _ in range(20):
            if rng.random() < 0.65:
                wall = plan.walls[rng.integers(len(plan.walls))]
                s = rng.uniform(side, max(wall.length - side, side + 0.01))
                x, y = wall.start + s * wall.along + wall.inward * side * rng.uniform(0.1, 0.5)
                if not wall.free(s - side / 2, s + side / 2, 0, plan.height):
                    continue
                taken = wall.taken
            else:
                x, y = rng.uniform(low + 1.0, high - 1.0)
                if not plan.contains((x, y), 0.9):
                    continue
                taken, s = [], 0.0
            area = (x - side / 2, y - side / 2, x + side / 2, y + side / 2)
            if any(overlap(area, other, 0.1) for other in plan.blocked):
                continue
            put = Placed(solids, (x, y, plan.height / 2), 0, LABELS["column"])
            if taken is not None and rng.random() < 0.3:
                put.round((0, 0, 0), side / 2, plan.height, cover)
            else:
                put.box((0, 0, 0), (side, side, plan.height), cover)
            taken.append((s - side / 2, s + side / 2, 0, plan.height))
            plan.blocked.append(area)
            break


def _beams(plan: Plan, solids: Solids, rng: Rng) -> None:
    """Under the ceiling, across one cell of the plan, evenly spaced or along a wall."""
    if rng.random() < 0.3:
        return
    cover = (
        materials.wood(rng) if rng.random() < 0.25 else
        plan.paint if rng.random() < 0.5 else materials.paint(rng)
    )  # fmt: skip
    wide, deep = rng.uniform(0.18, 0.4), rng.uniform(0.18, 0.45)
    deep = min(deep, plan.height - 2.25)
    across = int(rng.integers(2))
    for cell in plan.cells if rng.random() < 0.5 else plan.cells[:1]:
        length = cell[2 + across] - cell[across]
        span = cell[3 - across] - cell[1 - across]
        count = int(rng.integers(1, max(2, int(length / 1.8)) + 1))
        for i in range(count):
            at = cell[across] + (i + 0.5 + rng.uniform(-0.1, 0.1)) * length / count
            middle = [0.0, 0.0]
            middle[across], middle[1 - across] = at, cell[1 - across] + span / 2
            size = (wide, span, deep) if across == 0 else (span, wide, deep)
            put = Placed(solids, (middle[0], middle[1], plan.height - deep / 2), 0, LABELS["beam"])
            put.box((0, 0, 0), size, cover)
