"""Furniture into a generated room: what the room is for decides what stands where."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from dela.training.rooms import clutter
from dela.training.rooms.furniture import (
    LABELS,
    Piece,
    board,
    bookcase,
    chair,
    desk,
    low_table,
    sofa,
    table,
)
from dela.training.rooms.plan import Plan, Rectangle, overlap
from dela.training.rooms.solids import Placed, Solids

Rng = np.random.Generator
_TRIES = 40


class _Furnisher:
    """Places pieces where nothing stands yet."""

    def __init__(self, plan: Plan, solids: Solids, rng: Rng) -> None:
        self.plan, self.solids, self.rng = plan, solids, rng
        self.standing: list[Rectangle] = []

    def fits(self, area: Rectangle, gap: float = 0.02) -> bool:
        return self.plan.covers(area) and not any(
            overlap(area, other, gap) for other in (*self.standing, *self.plan.blocked)
        )

    def against_wall(
        self, piece: Piece, z: float = 0.0, keep_off: float = 0.0
    ) -> tuple[Placed, Rectangle] | None:
        """Stand or hang a piece on a wall; None where no place is left."""
        w, d, h = piece.size
        for _ in range(_TRIES):
            wall = self.plan.walls[self.rng.integers(len(self.plan.walls))]
            if wall.length < w + 0.1:
                continue
            s = self.rng.uniform(w / 2 + 0.03, wall.length - w / 2 - 0.03)
            area = wall.footprint(s, w, d + keep_off)
            on_floor = z < 0.6
            if not wall.free(s - w / 2, s + w / 2, z, z + h) or (
                on_floor and not self.fits(area, 0.0)
            ):
                continue
            wall.taken.append((s - w / 2, s + w / 2, z, z + h))
            if on_floor:
                self.standing.append(wall.footprint(s, w, d))
            put = wall.frame(self.solids, s, piece.label, z).at(0, 0.015 if on_floor else 0.0, 0)
            piece.build(put)
            return put, area
        return None

    def free_standing(
        self, piece: Piece, gap: float, yaw: float | None = None
    ) -> tuple[Placed, Rectangle] | None:
        low, high = self.plan.bounds
        for _ in range(_TRIES):
            turn = (
                self.rng.choice([0, np.pi / 2]) + self.rng.normal(0, 0.06) if yaw is None else yaw
            )
            x, y = self.rng.uniform(low, high)
            put = self.stand(piece, x, y, turn, gap)
            if put is not None:
                return put, self.standing[-1]
        return None

    def stand(self, piece: Piece, x: float, y: float, yaw: float, gap: float) -> Placed | None:
        """Stand a centered piece at a place if it is free."""
        cos, sin = abs(np.cos(yaw)), abs(np.sin(yaw))
        w = (piece.size[0] * cos + piece.size[1] * sin) / 2
        d = (piece.size[0] * sin + piece.size[1] * cos) / 2
        wide = (x - w - gap, y - d - gap, x + w + gap, y + d + gap)
        if not self.fits(wide):
            return None
        self.standing.append((x - w, y - d, x + w, y + d))
        put = Placed(self.solids, (x, y, 0), yaw, piece.label)
        piece.build(put)
        return put

    def chairs_around(self, put: Placed, size: tuple[float, float], share: float) -> None:
        """Chairs of one design along the sides of a table, facing it, more or less tucked in."""
        design = self.rng.bit_generator.state
        w, d = size
        spots = [
            (x, side * (d / 2 + self.rng.uniform(0.0, 0.3)), 0.0 if side < 0 else np.pi)
            for side in (-1, 1)
            for x in np.arange(-w / 2 + 0.38, w / 2 - 0.3, 0.72)
        ]
        if w > 1.3:
            spots += [(side * (w / 2 + 0.25), 0.0, side * np.pi / 2) for side in (-1, 1)]
        later = self.rng.spawn(1)[0]
        for x, y, yaw in spots:
            if later.random() > share:
                continue
            self.rng.bit_generator.state = design
            piece = chair(self.rng, at_table=True)
            origin = put.at(x, y, 0, yaw + later.normal(0, 0.2))
            half = 0.16
            body = (
                origin.origin[0] - half,
                origin.origin[1] - half,
                origin.origin[0] + half,
                origin.origin[1] + half,
            )
            if self.plan.covers(_grow(body, 0.2)) and not any(
                overlap(body, other) for other in (*self._others(put), *self.plan.blocked)
            ):
                self.standing.append(_grow(body, 0.12))
                piece.build(Placed(self.solids, tuple(origin.origin), origin.yaw, LABELS["chair"]))
        self.rng.bit_generator.state = later.bit_generator.state

    def _others(self, put: Placed) -> list[Rectangle]:
        x, y = put.origin[:2]
        return [r for r in self.standing if not (r[0] <= x <= r[2] and r[1] <= y <= r[3])]

    def desk_place(self) -> None:
        """A desk at a wall, a chair in front, things on it."""
        piece = desk(self.rng)
        placed = self.against_wall(piece, keep_off=0.7)
        if placed is None:
            return
        put, _ = placed
        w, d, h = piece.size
        clutter.on_table(self.rng, put.at(0, d / 2, h), (w, d), 6.0)
        seat = chair(self.rng, at_table=True)
        at = put.at(self.rng.normal(0, 0.1), d + self.rng.uniform(0.15, 0.4), 0)
        self.stand(seat, at.origin[0], at.origin[1], at.yaw + np.pi + self.rng.normal(0, 0.4), 0.0)

    def table_group(self, size: tuple[float, float] | None, share: float) -> None:
        piece = table(self.rng, size)
        placed = self.free_standing(piece, 0.55) or self.free_standing(piece, 0.3)
        if placed is None:
            return
        put, _ = placed
        w, d, h = piece.size
        clutter.on_table(self.rng, put.at(0, 0, h), (w * 0.9, d * 0.9), 2.5)
        self.chairs_around(put, (w, d), share)

    def sofa_group(self) -> None:
        piece = sofa(self.rng)
        placed = self.against_wall(piece, keep_off=0.3)
        if placed is None:
            return
        put, _ = placed
        if self.rng.random() < 0.75:
            low = low_table(self.rng)
            at = put.at(0, piece.size[1] + 0.35 + low.size[1] / 2, 0)
            stood = self.stand(low, at.origin[0], at.origin[1], at.yaw, 0.0)
            if stood is not None:
                clutter.on_table(self.rng, stood.at(0, 0, low.size[2]), low.size[:2], 4.0)


def furnish(plan: Plan, solids: Solids, rng: Rng) -> list[Rectangle]:
    """Add furniture and clutter to ``solids``; the floor rectangles they stand on."""
    maker = _Furnisher(plan, solids, rng)
    use = rng.choice(list(_USES), p=[0.35, 0.25, 0.25, 0.15])
    _USES[use](maker, plan.area, rng)
    for _ in range(int(rng.integers(0, 2)) + int(plan.area / 20)):
        maker.against_wall(bookcase(rng))
    if rng.random() < 0.75:
        maker.against_wall(board(rng), rng.uniform(0.85, 1.0))
    if rng.random() < 0.35:
        maker.sofa_group()
    for _ in range(int(rng.integers(1, 5))):
        piece, z = clutter.on_wall(rng)
        if z + piece.size[2] < plan.height - 0.05:
            maker.against_wall(piece, max(z, 0.61))
    for _ in range(int(rng.integers(2, 4 + int(plan.area / 8)))):
        piece = clutter.on_floor(rng)
        if rng.random() < 0.7:
            _beside_wall(maker, piece)
        else:
            maker.free_standing(piece, 0.1, rng.uniform(0, 2 * np.pi))
    for _ in range(int(rng.integers(0, 3))):
        maker.free_standing(chair(rng), 0.1, rng.uniform(0, 2 * np.pi))
    return maker.standing


def _beside_wall(maker: _Furnisher, piece: Piece) -> None:
    """A centered piece with its back to a wall."""
    shift = piece.size[1] / 2 + 0.02
    moved = Piece(
        piece.label,
        (piece.size[0], piece.size[1] + 0.04, piece.size[2]),
        lambda put: piece.build(put.at(0, shift, 0)),
    )
    maker.against_wall(moved)


def _office(maker: _Furnisher, area: float, rng: Rng) -> None:
    maker.against_wall(bookcase(rng))
    for _ in range(int(rng.integers(2, 3 + int(area / 9)))):
        maker.desk_place()
    if area > 24:
        maker.table_group(None, 0.8)


def _meeting(maker: _Furnisher, area: float, rng: Rng) -> None:
    long = min(4.0, 1.6 + area / 14)
    maker.table_group((rng.uniform(1.6, long), rng.uniform(0.9, 1.3)), 0.85)
    maker.against_wall(board(rng), rng.uniform(0.85, 1.0))
    maker.against_wall(bookcase(rng, rng.uniform(0.7, 0.85)))


def _lounge(maker: _Furnisher, area: float, rng: Rng) -> None:
    for _ in range(int(rng.integers(1, 3))):
        maker.sofa_group()
    maker.table_group(None, 0.9)
    maker.against_wall(bookcase(rng))


def _class_room(maker: _Furnisher, area: float, rng: Rng) -> None:
    maker.against_wall(board(rng), rng.uniform(0.85, 1.0))
    size = (rng.uniform(1.1, 1.5), rng.uniform(0.55, 0.7))
    for _ in range(int(rng.integers(3, 4 + int(area / 6)))):
        maker.table_group(size, 0.6)


_USES: dict[str, Callable[[_Furnisher, float, Rng], None]] = {
    "office": _office,
    "meeting": _meeting,
    "lounge": _lounge,
    "class": _class_room,
}


def _grow(area: Rectangle, by: float) -> Rectangle:
    return (area[0] - by, area[1] - by, area[2] + by, area[3] + by)
