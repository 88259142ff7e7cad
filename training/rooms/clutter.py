"""Clutter of generated rooms: what stands on floors, tables and walls and has no class of its own.

Local frames as in ``furniture``: on a table z = 0 is its top, on a wall y = 0 is the wall.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from dela.training.rooms.furniture import LABELS, Piece, any_colored
from dela.training.rooms.materials import (
    Material,
    board_stuff,
    fabric,
    metal,
    paint,
    paper,
    plastic,
    wood,
)
from dela.training.rooms.solids import Placed

Rng = np.random.Generator
CLUTTER = LABELS["clutter"]


def on_floor(rng: Rng) -> Piece:
    """Boxes, bins, plants, standing lamps, bags, suitcases, coat stands, buckets."""
    return (_boxes, _bin, _plant, _floor_lamp, _bag, _coat_stand, _heap, _cabinet)[
        rng.choice(8, p=[0.2, 0.18, 0.17, 0.1, 0.12, 0.08, 0.08, 0.07])
    ](rng)


def _boxes(rng: Rng) -> Piece:
    card = Material((172, 132, 90), "plain", scale=0.4, contrast=0.1)
    w, d = rng.uniform(0.3, 0.6), rng.uniform(0.3, 0.45)
    tower: list[tuple[float, float, float, float]] = []
    z = 0.0
    for _ in range(rng.integers(1, 4)):
        height = rng.uniform(0.2, 0.4)
        tower.append((z, height, rng.uniform(0.8, 1.0), rng.uniform(-0.15, 0.15)))
        z += height

    def build(put: Placed) -> None:
        for bottom, height, shrink, turn in tower:
            put.box((0, 0, bottom + height / 2), (w * shrink, d * shrink, height), card, turn=turn)

    return Piece(CLUTTER, (w, d, z), build)


def _bin(rng: Rng) -> Piece:
    r, h, stuff = rng.uniform(0.12, 0.2), rng.uniform(0.28, 0.65), plastic(rng)
    taper = rng.uniform(1.1, 1.35)

    def build(put: Placed) -> None:
        put.round((0, 0, h / 2), r, h, stuff, taper)

    return Piece(CLUTTER, (2.6 * r, 2.6 * r, h), build)


def _plant(rng: Rng) -> Piece:
    pot, r, h = any_colored(rng), rng.uniform(0.12, 0.2), rng.uniform(0.22, 0.38)
    green = (rng.uniform(40, 90), rng.uniform(90, 140), rng.uniform(40, 70))
    leaf, stem = Material(green, "grain", contrast=0.3), wood(rng)
    tall = rng.uniform(0.7, 1.7)
    crown = rng.uniform(0.18, 0.32)
    leaves = rng.normal(0, 1, (int(rng.integers(14, 30)), 3))
    sizes = rng.uniform(0.06, 0.16, (len(leaves), 2))

    def build(put: Placed) -> None:
        put.round((0, 0, h / 2), r, h, pot, 1.25)
        put.round((0, 0, (h + tall) / 2), 0.015, tall - h, stem)
        for place, (length, wide) in zip(leaves, sizes, strict=True):
            x, y = crown * place[:2].clip(-1.2, 1.2) * 0.8
            z = tall - 0.1 + 0.3 * (tall - h) * float(np.clip(place[2], -1.2, 0.8))
            put.ball((x, y, z), (length * 1.6, wide * 1.6, 0.05), leaf)

    return Piece(CLUTTER, (2 * crown, 2 * crown, tall + 0.2), build)


def _floor_lamp(rng: Rng) -> Piece:
    pole, h, r = metal(rng), rng.uniform(1.4, 1.8), rng.uniform(0.15, 0.24)
    shade = replace(fabric(rng), color=(236, 222, 190), glow=0.6)

    def build(put: Placed) -> None:
        put.round((0, 0, 0.015), 0.14, 0.03, pole)
        put.round((0, 0, h / 2), 0.014, h, pole)
        put.round((0, 0, h), r, 0.3, shade, 0.65)

    return Piece(CLUTTER, (2 * r, 2 * r, h + 0.15), build)


def _bag(rng: Rng) -> Piece:
    cloth, w, d, h = fabric(rng), *rng.uniform([0.25, 0.14, 0.25], [0.45, 0.25, 0.55])

    def build(put: Placed) -> None:
        put.ball((0, 0, h * 0.45), (w, d, h), cloth)
        put.box((0, 0, h * 0.3), (w * 0.8, d * 0.8, h * 0.6), cloth)

    return Piece(CLUTTER, (w, d, h), build)


def _coat_stand(rng: Rng) -> Piece:
    pole = wood(rng) if rng.random() < 0.5 else metal(rng)
    coats = [(fabric(rng), rng.uniform(0, 6.3)) for _ in range(rng.integers(0, 4))]

    def build(put: Placed) -> None:
        put.round((0, 0, 0.015), 0.2, 0.03, pole)
        put.round((0, 0, 0.88), 0.02, 1.74, pole)
        for i in range(4):
            put.box((0, 0, 1.68), (0.36, 0.02, 0.02), pole, turn=i * np.pi / 4)
        for cloth, angle in coats:
            put.ball((0.14 * np.cos(angle), 0.14 * np.sin(angle), 1.22), (0.26, 0.22, 0.95), cloth)

    return Piece(CLUTTER, (0.5, 0.5, 1.76), build)


def _heap(rng: Rng) -> Piece:
    things = [
        (
            any_colored(rng),
            rng.uniform(-0.18, 0.18, 2),
            rng.uniform(0.06, 0.24, 3),
            rng.uniform(0, 3),
        )
        for _ in range(rng.integers(3, 7))
    ]

    def build(put: Placed) -> None:
        for stuff, (x, y), (w, d, h), turn in things:
            put.box((x, y, h / 2), (w, d, h), stuff, turn=turn)

    return Piece(CLUTTER, (0.6, 0.6, 0.25), build)


def _cabinet(rng: Rng) -> Piece:
    """A printer or drawer unit on castors."""
    w, d, h = rng.uniform(0.4, 0.6), rng.uniform(0.4, 0.55), rng.uniform(0.45, 0.8)
    body, top = plastic(rng), plastic(rng)

    def build(put: Placed) -> None:
        put.box((0, 0, h / 2 + 0.03), (w, d, h - 0.06), body)
        put.box((0, 0, h + 0.06), (w * 0.9, d * 0.8, 0.12), top)

    return Piece(CLUTTER, (w, d, h), build)


def on_table(rng: Rng, place: Placed, size: tuple[float, float], many: float) -> None:
    """Strew things over a table top; a desk set faces -y of ``place``.

    Args:
        place: frame at the middle of the top.
        size: width and depth of the top.
        many: things per square metre.
    """
    w, d = size
    taken: list[tuple[float, float, float]] = []
    for _ in range(rng.poisson(many * w * d)):
        design, radius = _TABLE_THINGS[rng.choice(len(_TABLE_THINGS), p=_TABLE_SHARES)]
        limit = np.array([w, d]) / 2 - radius
        if (limit <= 0).any():
            continue
        x, y = rng.uniform(-limit, limit)
        if all(np.hypot(x - a, y - b) > radius + r for a, b, r in taken):
            taken.append((x, y, radius))
            design(rng, place.at(x, y, 0, rng.normal(0, 0.25), CLUTTER))


def _monitor(rng: Rng, put: Placed) -> None:
    case = plastic(rng)
    w, h = rng.uniform(0.45, 0.65), rng.uniform(0.28, 0.38)
    screen = Material((20, 24, 32), "picture", (90, 130, 180), 0.1, 0.5, answers=0.7, glow=0.4)
    put.box((0, 0, 0.01), (0.24, 0.18, 0.02), case)
    put.box((0, -0.02, 0.1), (0.05, 0.03, 0.18), case)
    put.box((0, 0, 0.14 + h / 2), (w, 0.035, h), case)
    put.box((0, 0.02, 0.14 + h / 2), (w - 0.03, 0.005, h - 0.03), screen)


def _laptop(rng: Rng, put: Placed) -> None:
    case = metal(rng)
    put.box((0, 0, 0.01), (0.34, 0.24, 0.02), case)
    put.box((0, -0.15, 0.11), (0.34, 0.012, 0.23), case, lean=0.3)


def _keyboard(rng: Rng, put: Placed) -> None:
    put.box((0, 0, 0.012), (0.42, 0.14, 0.024), plastic(rng))


def _papers(rng: Rng, put: Placed) -> None:
    put.box((0, 0, 0.015), (0.21, 0.3, rng.uniform(0.01, 0.06)), paint(rng), turn=rng.uniform(0, 1))


def _mug(rng: Rng, put: Placed) -> None:
    put.round((0, 0, 0.05), 0.042, 0.1, any_colored(rng))


def _bottle(rng: Rng, put: Placed) -> None:
    stuff = any_colored(rng)
    put.round((0, 0, 0.1), 0.036, 0.2, stuff)
    put.round((0, 0, 0.24), 0.034, 0.08, stuff, 0.4)


def _desk_lamp(rng: Rng, put: Placed) -> None:
    pole = metal(rng)
    put.round((0, 0, 0.015), 0.08, 0.03, pole)
    put.round((0, 0, 0.2), 0.012, 0.4, pole)
    put.round((0, 0.05, 0.42), 0.11, 0.14, any_colored(rng), 0.5)


def _book_pile(rng: Rng, put: Placed) -> None:
    z = 0.0
    for _ in range(rng.integers(1, 6)):
        thick = rng.uniform(0.015, 0.045)
        put.box((0, 0, z + thick / 2), (0.17, 0.24, thick), paper(rng), turn=rng.normal(0, 0.2))
        z += thick


def _pot(rng: Rng, put: Placed) -> None:
    put.round((0, 0, 0.06), 0.05, 0.12, any_colored(rng), 1.3)
    leaf = Material((70, 120, 56), "grain", contrast=0.3)
    for x, y, z in rng.normal(0, 0.045, (7, 3)):
        put.ball((x, y, 0.2 + z), (0.1, 0.08, 0.05), leaf)


_TABLE_THINGS: tuple[tuple[Callable[[Rng, Placed], None], float], ...] = (
    (_monitor, 0.3),
    (_laptop, 0.22),
    (_keyboard, 0.2),
    (_papers, 0.18),
    (_mug, 0.06),
    (_bottle, 0.06),
    (_desk_lamp, 0.12),
    (_book_pile, 0.15),
    (_pot, 0.12),
)
_TABLE_SHARES = (0.2, 0.14, 0.1, 0.2, 0.1, 0.06, 0.07, 0.08, 0.05)


def on_wall(rng: Rng) -> tuple[Piece, float]:
    """A picture, clock, air conditioner, coat rail or extinguisher, and its lower edge's height."""
    kind = rng.choice(5, p=[0.45, 0.13, 0.14, 0.14, 0.14])
    if kind == 0:
        w, h = rng.uniform(0.3, 1.0), rng.uniform(0.3, 0.8)
        frame, face = board_stuff(rng), paper(rng)
        face = replace(face, texture="picture", accent=paper(rng).color, scale=0.15, contrast=0.4)

        def picture(put: Placed) -> None:
            put.box((0, 0.015, h / 2), (w, 0.03, h), frame)
            put.box((0, 0.03, h / 2), (w - 0.06, 0.01, h - 0.06), face)

        return Piece(CLUTTER, (w, 0.04, h), picture), 1.65 - h / 2
    if kind == 1:
        rim, dial = plastic(rng), paint(rng)

        def clock(put: Placed) -> None:
            put.ball((0, 0.01, 0.15), (0.3, 0.08, 0.3), rim)
            put.ball((0, 0.03, 0.15), (0.25, 0.06, 0.25), dial)

        return Piece(CLUTTER, (0.3, 0.06, 0.3), clock), 2.0
    if kind == 2:
        body = paint(rng)

        def conditioner(put: Placed) -> None:
            put.box((0, 0.11, 0.15), (0.85, 0.22, 0.28), body)
            put.box((0, 0.2, 0.03), (0.7, 0.06, 0.04), plastic(rng))

        return Piece(CLUTTER, (0.9, 0.24, 0.3), conditioner), 2.0
    if kind == 3:
        rail = wood(rng)
        coats = [(fabric(rng), x) for x in rng.uniform(-0.4, 0.4, rng.integers(1, 4))]

        def coat_rail(put: Placed) -> None:
            put.box((0, 0.02, 1.0), (1.0, 0.03, 0.1), rail)
            for cloth, x in coats:
                put.ball((x, 0.12, 0.55), (0.34, 0.2, 0.9), cloth)

        return Piece(CLUTTER, (1.0, 0.26, 1.1), coat_rail), 0.7
    red = Material((176, 36, 32), contrast=0.05)

    def extinguisher(put: Placed) -> None:
        put.round((0, 0.1, 0.22), 0.08, 0.44, red)
        put.round((0, 0.1, 0.48), 0.03, 0.08, plastic(rng))

    return Piece(CLUTTER, (0.2, 0.2, 0.5), extinguisher), 0.4


def radiator(rng: Rng, width: float) -> Piece:
    """Ribs under a window."""
    white = paint(rng)

    def build(put: Placed) -> None:
        put.box((0, 0.06, 0.36), (width, 0.03, 0.44), white)
        for x in np.arange(-width / 2 + 0.03, width / 2, 0.075):
            put.box((x, 0.085, 0.36), (0.035, 0.05, 0.46), white)

    return Piece(CLUTTER, (width, 0.13, 0.62), build)


def curtain(rng: Rng, height: float) -> Piece:
    """Folds of cloth hanging beside a window."""
    cloth = fabric(rng)
    folds = int(rng.integers(4, 8))

    def build(put: Placed) -> None:
        for i in range(folds):
            x = (i - (folds - 1) / 2) * 0.07
            put.round((x, 0.07 + 0.02 * (i % 2), height / 2), 0.045, height, cloth)

    return Piece(CLUTTER, (0.08 * folds, 0.14, height), build)


def hanging_lamp(rng: Rng, drop: float) -> Piece:
    """From the ceiling: z = 0 is the ceiling, the lamp hangs below."""
    shade = replace(any_colored(rng), glow=0.5)
    wire = metal(rng)
    r = rng.uniform(0.15, 0.28)
    globe = rng.random() < 0.4

    def build(put: Placed) -> None:
        put.round((0, 0, -drop / 2), 0.01, drop, wire)
        if globe:
            put.ball((0, 0, -drop), (2 * r, 2 * r, 2 * r), shade)
        else:
            put.round((0, 0, -drop), r, 0.22, shade, 0.4)

    return Piece(CLUTTER, (2 * r, 2 * r, drop + r), build)
