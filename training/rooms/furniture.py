"""Furniture of generated rooms: each function draws one design and says how much room it takes.

Local frame: x to the right, y ahead (away from the wall for pieces that stand against one, whose
back is at y = 0), z up from the floor. Free-standing pieces are centered on the origin.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from dela.model.class_names import S3DIS_CLASSES
from dela.training.rooms.materials import (
    FABRICS,
    PLASTICS,
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

LABELS = {name: code for code, name in enumerate(S3DIS_CLASSES.split())}
Rng = np.random.Generator


@dataclass(frozen=True)
class Piece:
    """A design: ``build`` adds its solids at a place. ``size`` is width, depth, height."""

    label: int
    size: tuple[float, float, float]
    build: Callable[[Placed], None]


def chair(rng: Rng, at_table: bool = False) -> Piece:
    """One of: wooden with four legs, swivel, cantilever, stool, armchair (not at tables)."""
    shares = [0.38, 0.36, 0.18, 0.08, 0.0] if at_table else [0.3, 0.32, 0.15, 0.08, 0.15]
    return (_wooden_chair, _swivel_chair, _cantilever_chair, _stool, _armchair)[
        rng.choice(5, p=shares)
    ](rng)


def _wooden_chair(rng: Rng) -> Piece:
    frame = wood(rng) if rng.random() < 0.7 else plastic(rng)
    seat = fabric(rng) if rng.random() < 0.5 else frame
    w, d = rng.uniform(0.4, 0.48), rng.uniform(0.42, 0.5)
    h, top = rng.uniform(0.43, 0.48), rng.uniform(0.82, 1.0)
    leg = rng.uniform(0.03, 0.045)
    slats = int(rng.integers(0, 4))
    lean = rng.uniform(0.05, 0.18)

    def build(put: Placed) -> None:
        put.box((0, 0, h - 0.02), (w, d, 0.05), seat)
        for x in (-w / 2 + leg / 2, w / 2 - leg / 2):
            put.box((x, d / 2 - leg / 2, h / 2), (leg, leg, h), frame)
            put.box((x, -d / 2 + leg / 2, h / 2), (leg, leg, h), frame)
            rise = top - h
            put.box(
                (x, -d / 2 - lean * rise / 2 + 0.02, h + rise / 2), (leg, leg, rise), frame, lean
            )
        back = -d / 2 + 0.02
        if slats == 0:
            middle = (h + top) / 2 + 0.06
            put.box((0, back - lean * (middle - h), middle), (w, 0.03, top - h - 0.12), seat, lean)
        for i in range(slats):
            z = top - 0.06 - i * (top - h - 0.1) / slats
            put.box((0, back - lean * (z - h), z), (w, 0.025, 0.07), frame, lean)

    return Piece(LABELS["chair"], (w + 0.05, d + 0.12, top), build)


def _swivel_chair(rng: Rng) -> Piece:
    cover = fabric(rng) if rng.random() < 0.7 else plastic(rng)
    base = metal(rng) if rng.random() < 0.5 else plastic(rng)
    w, d = rng.uniform(0.46, 0.54), rng.uniform(0.46, 0.52)
    h, top = rng.uniform(0.44, 0.54), rng.uniform(0.88, 1.2)
    arms = rng.random() < 0.6
    spin = rng.uniform(0, 2 * np.pi)

    def build(put: Placed) -> None:
        for i in range(5):
            angle = spin + i * 2 * np.pi / 5
            x, y = 0.16 * np.cos(angle), 0.16 * np.sin(angle)
            put.box((x, y, 0.09), (0.32, 0.045, 0.035), base, turn=angle)
            put.ball((2 * x, 2 * y, 0.035), (0.06, 0.06, 0.07), base)
        put.round((0, 0, h / 2), 0.03, h - 0.1, base)
        put.box((0, 0, h), (w, d, 0.08), cover)
        put.ball((0, 0.03, h + 0.03), (w * 0.98, d * 0.9, 0.08), cover)
        rise = top - h - 0.1
        put.box((0, -d / 2 - 0.06, h + 0.1 + rise / 2), (w * 0.9, 0.06, rise), cover, 0.14)
        put.box((0, -d / 2 + 0.02, h + 0.06), (0.07, 0.12, 0.14), base)
        if arms:
            for x in (-w / 2 - 0.02, w / 2 + 0.02):
                put.box((x, -0.02, h + 0.1), (0.035, 0.06, 0.2), base)
                put.box((x, 0.02, h + 0.21), (0.06, 0.26, 0.035), base)

    return Piece(LABELS["chair"], (0.66, 0.68, top), build)


def _cantilever_chair(rng: Rng) -> Piece:
    tube, cover = metal(rng), fabric(rng) if rng.random() < 0.6 else plastic(rng)
    w, d = rng.uniform(0.46, 0.54), rng.uniform(0.44, 0.52)
    h, top = 0.45, rng.uniform(0.8, 0.92)

    def build(put: Placed) -> None:
        for x in (-w / 2, w / 2):
            put.box((x, 0, 0.015), (0.025, d, 0.03), tube)
            put.box((x, d / 2, h / 2), (0.025, 0.025, h), tube)
            put.box((x, 0, h - 0.03), (0.025, d, 0.025), tube)
            put.box((x, -d / 2 - 0.03, (h + top) / 2), (0.025, 0.025, top - h), tube, 0.12)
        put.box((0, 0, h), (w - 0.03, d, 0.035), cover)
        put.box((0, -d / 2 - 0.05, top - 0.15), (w - 0.03, 0.03, 0.3), cover, 0.12)

    return Piece(LABELS["chair"], (w + 0.04, d + 0.16, top), build)


def _stool(rng: Rng) -> Piece:
    seat, leg = board_stuff(rng), metal(rng)
    r, h = rng.uniform(0.16, 0.2), rng.uniform(0.44, 0.65)

    def build(put: Placed) -> None:
        put.round((0, 0, h - 0.02), r, 0.04, seat)
        for i in range(4):
            x, y = r * 0.75 * np.cos(i * np.pi / 2 + 0.8), r * 0.75 * np.sin(i * np.pi / 2 + 0.8)
            put.round((x, y, h / 2 - 0.02), 0.018, h - 0.04, leg)

    return Piece(LABELS["chair"], (2 * r, 2 * r, h), build)


def _armchair(rng: Rng) -> Piece:
    cover = fabric(rng)
    w, d, top = rng.uniform(0.66, 0.78), rng.uniform(0.64, 0.76), rng.uniform(0.74, 0.88)

    def build(put: Placed) -> None:
        put.box((0, 0.03, 0.26), (w - 0.2, d - 0.1, 0.3), cover)
        put.ball((0, 0.05, 0.42), (w - 0.22, d - 0.16, 0.1), cover)
        put.box((0, -d / 2 + 0.09, top / 2 + 0.06), (w, 0.14, top - 0.16), cover, 0.1)
        for x in (-w / 2 + 0.06, w / 2 - 0.06):
            put.box((x, 0.02, 0.33), (0.12, d - 0.06, 0.44), cover)

    return Piece(LABELS["chair"], (w, d, top), build)


def table(rng: Rng, size: tuple[float, float] | None = None) -> Piece:
    """A table with four legs, two trestles, or one pedestal (round)."""
    if size is None and rng.random() < 0.22:
        return _round_table(rng)
    w, d = size or (rng.uniform(1.0, 1.8), rng.uniform(0.65, 0.95))
    h, thick = rng.uniform(0.7, 0.77), rng.uniform(0.025, 0.05)
    top = board_stuff(rng)
    legs = metal(rng) if rng.random() < 0.5 else top
    trestle = rng.random() < 0.3
    leg = rng.uniform(0.04, 0.07)
    modesty = rng.random() < 0.3

    def build(put: Placed) -> None:
        put.box((0, 0, h - thick / 2), (w, d, thick), top)
        for x in (-w / 2 + 0.08, w / 2 - 0.08):
            if trestle:
                put.box((x, 0, 0.02), (0.06, d * 0.85, 0.04), legs)
                put.box((x, 0, h / 2), (0.05, 0.1, h - thick), legs)
                continue
            for y in (-d / 2 + 0.07, d / 2 - 0.07):
                put.box((x, y, (h - thick) / 2), (leg, leg, h - thick), legs)
        if w > 2.4 and not trestle:
            for y in (-d / 2 + 0.07, d / 2 - 0.07):
                put.box((0, y, (h - thick) / 2), (leg, leg, h - thick), legs)
        if modesty:
            put.box((0, -d / 2 + 0.08, h - 0.25), (w - 0.2, 0.02, 0.36), top)

    return Piece(LABELS["table"], (w, d, h), build)


def _round_table(rng: Rng) -> Piece:
    r, h = rng.uniform(0.4, 0.65), rng.uniform(0.7, 0.76)
    top, foot = board_stuff(rng), metal(rng)

    def build(put: Placed) -> None:
        put.round((0, 0, h - 0.018), r, 0.036, top)
        put.round((0, 0, h / 2), 0.045, h - 0.05, foot)
        put.round((0, 0, 0.02), r * 0.55, 0.04, foot, taper=0.8)

    return Piece(LABELS["table"], (2 * r, 2 * r, h), build)


def low_table(rng: Rng) -> Piece:
    """A coffee table with a shelf."""
    w, d, h = rng.uniform(0.8, 1.2), rng.uniform(0.5, 0.65), rng.uniform(0.38, 0.46)
    top = board_stuff(rng)

    def build(put: Placed) -> None:
        put.box((0, 0, h - 0.02), (w, d, 0.04), top)
        put.box((0, 0, 0.14), (w - 0.12, d - 0.12, 0.02), top)
        for x in (-w / 2 + 0.05, w / 2 - 0.05):
            for y in (-d / 2 + 0.05, d / 2 - 0.05):
                put.box((x, y, h / 2 - 0.02), (0.05, 0.05, h - 0.04), top)

    return Piece(LABELS["table"], (w, d, h), build)


def desk(rng: Rng) -> Piece:
    """Against a wall; drawers on one side, panel or legs on the other."""
    w, d, h = rng.uniform(1.2, 1.7), rng.uniform(0.65, 0.8), rng.uniform(0.71, 0.76)
    top, body = board_stuff(rng), board_stuff(rng)
    handle, side = metal(rng), rng.choice([-1, 1])

    def build(put: Placed) -> None:
        put.box((0, d / 2, h - 0.015), (w, d, 0.03), top)
        put.box((side * (w / 2 - 0.22), d / 2, h / 2 - 0.015), (0.42, d - 0.06, h - 0.03), body)
        for i in range(3):
            z = 0.14 + i * 0.22
            put.box((side * (w / 2 - 0.22), d - 0.02, z), (0.14, 0.025, 0.02), handle)
        put.box((-side * (w / 2 - 0.02), d / 2, h / 2 - 0.015), (0.03, d - 0.04, h - 0.03), body)
        put.box((0, 0.05, h - 0.25), (w - 0.1, 0.02, 0.4), body)

    return Piece(LABELS["table"], (w, d, h), build)


def sofa(rng: Rng) -> Piece:
    """Against a wall: one to three seats, arms, sometimes a chaise, cushions."""
    seats = int(rng.integers(2, 4))
    wide = rng.uniform(0.58, 0.72)
    arm, d = rng.uniform(0.12, 0.24), rng.uniform(0.8, 0.98)
    w = seats * wide + 2 * arm
    seat, top = rng.uniform(0.38, 0.46), rng.uniform(0.72, 0.92)
    cover = fabric(rng)
    cushion = fabric(rng) if rng.random() < 0.4 else cover
    throw = fabric(rng)
    chaise = rng.choice([-1, 1]) if rng.random() < 0.25 else 0
    pillows = rng.uniform(-0.3, 0.3, int(rng.integers(0, 3)))
    reach = d + (0.6 if chaise else 0.0)

    def build(put: Placed) -> None:
        put.box((0, d / 2, seat / 2), (w - 0.02, d - 0.04, seat - 0.16), cover)
        put.box((0, 0.13, top / 2 + 0.04), (w, 0.24, top - 0.08), cover)
        for x in (-w / 2 + arm / 2, w / 2 - arm / 2):
            put.box((x, d / 2, 0.33), (arm, d, 0.56), cover)
        for i in range(seats):
            x = (i - (seats - 1) / 2) * wide
            put.box((x, d / 2 + 0.1, seat - 0.04), (wide - 0.02, d - 0.24, 0.16), cushion)
            put.ball((x, d / 2 + 0.1, seat + 0.03), (wide - 0.04, d - 0.3, 0.1), cushion)
            put.box((x, 0.3, top - 0.14), (wide - 0.03, 0.16, 0.34), cushion, 0.16)
        if chaise:
            x = chaise * (w / 2 - arm - wide / 2)
            put.box((x, d + 0.3, seat / 2), (wide, 0.62, seat), cover)
        for i, x in enumerate(pillows):
            put.box((x * w, 0.44, seat + 0.2), (0.4, 0.12, 0.36), throw, 0.35, turn=0.3 * i)

    return Piece(LABELS["sofa"], (w, reach, top), build)


def bookcase(rng: Rng, height: float | None = None) -> Piece:
    """Shelves with books against a wall, some compartments empty, some behind doors."""
    w, d = rng.uniform(0.8, 2.2), rng.uniform(0.26, 0.4)
    h = height or rng.choice([rng.uniform(0.8, 1.2), rng.uniform(1.7, 2.2)], p=[0.25, 0.75])
    body, handle = board_stuff(rng), metal(rng)
    bays = max(1, round(w / 0.8))
    levels = max(2, round(h / rng.uniform(0.32, 0.4)))
    doors = int(rng.integers(1, 3)) if rng.random() < 0.35 else 0
    closed = rng.random() < 0.12
    shelf_of = h / levels
    rows: list[tuple[float, float, float, float, float, Material, float]] = []
    for bay in range(bays):
        left, right = -w / 2 + bay * w / bays + 0.03, -w / 2 + (bay + 1) * w / bays - 0.03
        for level in range(levels):
            z = level * shelf_of + 0.03
            if closed or level < doors or rng.random() < 0.12:
                continue
            x = left + (rng.uniform(0, 0.2) if rng.random() < 0.3 else 0)
            stop = right - rng.exponential(0.12)
            while x < stop:
                thick = rng.choice([rng.uniform(0.02, 0.05), rng.uniform(0.06, 0.09)])
                tall = rng.uniform(0.55, 0.92) * (shelf_of - 0.05)
                lean = 0.0 if rng.random() < 0.9 else 0.12
                rows.append((x, z, thick, tall, rng.uniform(0.5, 0.85) * d, paper(rng), lean))
                x += thick + 0.002 + 0.3 * abs(lean) * tall
                if rng.random() < 0.05:
                    x += rng.uniform(0.05, 0.2)

    def build(put: Placed) -> None:
        put.box((0, 0.01, h / 2), (w, 0.02, h), body)
        for i in range(bays + 1):
            put.box((-w / 2 + i * w / bays, d / 2, h / 2), (0.025, d, h), body)
        for i in range(levels + 1):
            put.box((0, d / 2, min(i * shelf_of + 0.013, h - 0.013)), (w, d, 0.025), body)
        shut = levels if closed else doors
        if shut:
            for i in range(bays):
                x = -w / 2 + (i + 0.5) * w / bays
                put.box((x, d, shut * shelf_of / 2), (w / bays - 0.01, 0.02, shut * shelf_of), body)
                put.box(
                    (x + 0.3 * w / bays, d + 0.02, shut * shelf_of * 0.6),
                    (0.02, 0.025, 0.14),
                    handle,
                )
        for x, z, thick, tall, deep, cover, lean in rows:
            put.box(
                (x + thick / 2, 0.02 + deep / 2, z + tall / 2), (thick, deep, tall), cover, lean
            )

    return Piece(LABELS["bookcase"], (w, d + 0.03, float(h)), build)


def board(rng: Rng) -> Piece:
    """On a wall, z = 0 at its lower edge: white, chalk, pin board or projection screen."""
    w, h = rng.uniform(1.2, 3.0), rng.uniform(0.9, 1.3)
    kind = rng.choice(4, p=[0.55, 0.2, 0.15, 0.1])
    frame = metal(rng) if rng.random() < 0.6 else wood(rng)
    face = (
        replace(paint(rng), texture="writing", accent=(40, 60, 150), scale=0.09),
        Material((42, 74, 60), "writing", (214, 218, 210), scale=0.1),
        Material((176, 136, 92), "picture", (226, 222, 208), scale=0.24, contrast=0.12),
        replace(paint(rng), contrast=0.02),
    )[kind]
    tray = kind < 2

    def build(put: Placed) -> None:
        put.box((0, 0.025, h / 2), (w - 0.04, 0.03, h - 0.04), face)
        for z in (0.02, h - 0.02):
            put.box((0, 0.03, z), (w, 0.05, 0.04), frame)
        for x in (-w / 2 + 0.02, w / 2 - 0.02):
            put.box((x, 0.03, h / 2), (0.04, 0.05, h), frame)
        if tray:
            put.box((0, 0.07, 0.0), (w * 0.7, 0.1, 0.03), frame)

    return Piece(LABELS["board"], (w, 0.1, h), build)


def any_colored(rng: Rng) -> Material:
    """Plastic or cloth of any color."""
    return plastic(rng) if rng.integers(len(PLASTICS) + len(FABRICS)) < 8 else fabric(rng)
