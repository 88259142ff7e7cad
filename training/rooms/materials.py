"""Colors, textures and light of generated rooms.

Classes share palettes on purpose: a white board, door, column and wall may have one white, and a
wooden table, chair, door and bookcase one brown, so that color alone gives no class away.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

Color = tuple[float, float, float]


@dataclass(frozen=True)
class Material:
    """How a surface looks.

    Attributes:
        color: RGB 0-255 under full light.
        texture: a key of ``TEXTURES``.
        accent: the second color of the texture.
        scale: size of the pattern, meters.
        contrast: strength of the pattern, 0..1.
        answers: share of rays that come back (glass, black plastic: below 1).
        glow: light of its own, 0..1 (lamps, screens, sky behind a window).
    """

    color: Color
    texture: str = "plain"
    accent: Color = (60.0, 60.0, 60.0)
    scale: float = 0.5
    contrast: float = 0.08
    answers: float = 1.0
    glow: float = 0.0


PAINTS: tuple[Color, ...] = (
    (238, 236, 230), (228, 222, 208), (212, 214, 214), (232, 224, 196), (196, 208, 214),
    (206, 216, 200), (220, 200, 186), (190, 186, 180), (236, 230, 222), (170, 178, 184),
)  # fmt: skip
WOODS: tuple[Color, ...] = (
    (150, 104, 64), (186, 142, 94), (112, 74, 46), (206, 172, 128), (166, 122, 84), (88, 60, 42),
    (222, 200, 166),
)  # fmt: skip
PLASTICS: tuple[Color, ...] = (
    (42, 42, 46), (70, 72, 76), (128, 130, 132), (226, 226, 224), (46, 66, 110), (140, 44, 40),
    (52, 96, 76), (190, 150, 60),
)  # fmt: skip
METALS: tuple[Color, ...] = ((168, 170, 174), (120, 122, 126), (60, 62, 66), (206, 206, 208))
FABRICS: tuple[Color, ...] = (
    (60, 72, 104), (128, 52, 48), (96, 94, 90), (52, 52, 56), (84, 104, 84), (164, 148, 124),
    (198, 188, 170), (112, 84, 66), (74, 110, 128), (150, 120, 70),
)  # fmt: skip
PAPERS: tuple[Color, ...] = (
    (178, 52, 44), (44, 82, 140), (52, 110, 70), (214, 176, 68), (232, 226, 212), (92, 62, 106),
    (40, 40, 44), (206, 116, 48), (124, 150, 172), (118, 86, 60),
)  # fmt: skip


def paint(rng: np.random.Generator) -> Material:
    """A wall or a board in one color."""
    return Material(_vary(_pick(PAINTS, rng), rng), "plain", scale=1.5, contrast=0.04)


def wood(rng: np.random.Generator) -> Material:
    """Grained along the longest side."""
    return Material(
        _vary(_pick(WOODS, rng), rng), "wood", scale=rng.uniform(0.015, 0.05), contrast=0.14
    )


def plastic(rng: np.random.Generator) -> Material:
    """One even color."""
    return Material(_vary(_pick(PLASTICS, rng), rng), contrast=0.04, answers=0.95)


def metal(rng: np.random.Generator) -> Material:
    """Grays of legs, frames and lamps."""
    return Material(_vary(_pick(METALS, rng), rng), scale=0.2, contrast=0.12, answers=0.93)


def fabric(rng: np.random.Generator) -> Material:
    """Covers and curtains, coarse in grain."""
    return Material(_vary(_pick(FABRICS, rng), rng), "grain", scale=0.3, contrast=0.14)


def paper(rng: np.random.Generator) -> Material:
    """Covers of books and folders."""
    return Material(_vary(_pick(PAPERS, rng), rng), contrast=0.05)


def board_stuff(rng: np.random.Generator) -> Material:
    """Wood or painted board: doors, tables, shelves, cabinets."""
    return wood(rng) if rng.random() < 0.6 else paint(rng)


def floor_covering(rng: np.random.Generator) -> Material:
    """Planks, tiles, carpet or stone."""
    choice = rng.integers(4)
    if choice == 0:
        return replace(wood(rng), texture="planks", scale=rng.uniform(0.09, 0.18))
    if choice == 1:
        stone = _vary(_pick(PAINTS, rng), rng)
        grout = shade(stone, 0.6)
        return Material(stone, "tiles", grout, scale=rng.uniform(0.3, 0.6), contrast=0.1)
    if choice == 2:
        return Material(_vary(_pick(FABRICS, rng), rng), "grain", scale=0.8, contrast=0.2)
    stone = _vary(_pick(PAINTS, rng), rng)
    return Material(shade(stone, 0.8), "grain", scale=1.2, contrast=0.12)


def ceiling_covering(rng: np.random.Generator) -> Material:
    """Paint, or white tiles."""
    if rng.random() < 0.5:
        return paint(rng)
    white = _vary(PAINTS[0], rng)
    return Material(white, "tiles", shade(white, 0.72), scale=0.6, contrast=0.05)


def wall_covering(rng: np.random.Generator) -> Material:
    """Mostly paint, else bricks or wood."""
    draw = rng.random()
    if draw < 0.8:
        return paint(rng)
    if draw < 0.9:
        return Material((158, 92, 72), "bricks", (190, 184, 176), scale=0.24, contrast=0.15)
    return replace(wood(rng), scale=0.1)


def glass(rng: np.random.Generator) -> Material:
    """A window: half of the rays are lost in it, the others see the sky."""
    sky = _vary((176, 200, 224), rng, 18)
    return Material(sky, "sky", (96, 128, 84), scale=0.8, contrast=0.1, answers=0.5, glow=0.7)


def frosted_glass(rng: np.random.Generator) -> Material:
    """Glass of partitions and doors, which answers most rays."""
    return replace(paint(rng), answers=0.7, glow=0.15)


def color_surfaces(
    materials: list[Material],
    owner: np.ndarray,
    place: np.ndarray,
    light: np.ndarray,
    rng: np.random.Generator,
) -> np.ndarray:
    """[N, 3] float RGB 0-255 of surface points, without sensor noise.

    Args:
        materials: one per solid; owner: [N] solids; place: [N, 3], see ``solids.surface``.
        light: [N] 0..1, how much light arrives.
    """
    table = np.array([[*m.color, *m.accent, m.scale, m.contrast, m.glow] for m in materials])
    # One material, one pattern: the pieces of a wall around its openings go together.
    kinds = {id(material): number for number, material in enumerate(materials)}
    start = rng.uniform(0, 100, len(materials))
    phase = np.array([start[kinds[id(material)]] for material in materials])[owner]
    rows = table[owner]
    color, accent = rows[:, :3].copy(), rows[:, 3:6]
    scale, contrast, glow = rows[:, 6], rows[:, 7], rows[:, 8]
    long, middle, short = place.T
    codes = np.array([list(TEXTURES).index(m.texture) for m in materials])[owner]
    for code, pattern in enumerate(TEXTURES.values()):
        chosen = np.flatnonzero(codes == code)
        if not len(chosen):
            continue
        brightness, mix = pattern(
            long[chosen], middle[chosen], short[chosen], scale[chosen], phase[chosen], rng
        )
        gain = 1 + contrast[chosen] * brightness
        base = color[chosen] * gain[:, None]
        color[chosen] = base + (accent[chosen] - base) * mix[:, None]
    lit = light + (1 - light) * glow
    return color * lit[:, None]


A = np.ndarray
G = np.random.Generator
# Brightness about -1..1 and share of the accent color 0..1.
Pattern = tuple[np.ndarray, np.ndarray]


def _waves(u: np.ndarray, v: np.ndarray, w: np.ndarray, phase: np.ndarray) -> np.ndarray:
    """Smooth irregular values, about -1..1, period about 1."""
    total = np.sin(5.1 * u + 2.3 * v + phase) + np.sin(-3.7 * v + 4.3 * w + 1.7 * phase)
    total += np.sin(9.7 * w + 7.9 * u - 2.9 * phase) + np.sin(12.1 * v - 6.1 * u + 0.7 * phase)
    return total / 3


def _hash(i: np.ndarray, j: np.ndarray, phase: np.ndarray) -> np.ndarray:
    return np.mod(np.sin(i * 12.9898 + j * 78.233 + phase) * 43758.5453, 1.0)


def _plain(u: A, v: A, w: A, scale: A, phase: A, rng: G) -> Pattern:
    return _waves(u / scale, v / scale, w / scale, phase), np.zeros(len(u))


def _grain(u: A, v: A, w: A, scale: A, phase: A, rng: G) -> Pattern:
    fine = rng.standard_normal(len(u)) * 0.6
    return fine + 0.5 * _waves(u / scale, v / scale, w / scale, phase), np.zeros(len(u))


def _wood(u: A, v: A, w: A, scale: A, phase: A, rng: G) -> Pattern:
    bend = 0.8 * _waves(u * 0.7, v * 2, w * 2, phase)
    return np.sin(6.283 * (v + 0.6 * w) / scale + 3 * bend + phase) * 0.6 + 0.4 * bend, np.zeros(
        len(u)
    )


def _planks(u: A, v: A, w: A, scale: A, phase: A, rng: G) -> Pattern:
    row = np.floor(v / scale)
    along = u / 1.4 + _hash(row, row, phase)
    board = np.floor(along)
    tone = 2 * _hash(row, board, phase) - 1
    gap = (np.mod(v, scale) < 0.006) | (np.mod(along, 1) < 0.005)
    vein = np.sin(6.283 * v / 0.03 + 4 * _waves(u * 0.6, v, w, phase + tone * 9))
    return 0.7 * tone + 0.3 * vein, 0.6 * gap


def _tiles(u: A, v: A, w: A, scale: A, phase: A, rng: G) -> Pattern:
    gap = (np.mod(u, scale) < 0.012) | (np.mod(v, scale) < 0.012)
    tone = 2 * _hash(np.floor(u / scale), np.floor(v / scale), phase) - 1
    return tone + 0.5 * rng.standard_normal(len(u)), gap.astype(float)


def _bricks(u: A, v: A, w: A, scale: A, phase: A, rng: G) -> Pattern:
    height = scale / 3
    row = np.floor(v / height)
    along = u / scale + 0.5 * np.mod(row, 2)
    gap = (np.mod(v, height) < 0.012) | (np.mod(along, 1) < 0.05)
    return 2 * _hash(row, np.floor(along), phase) - 1, 0.9 * gap


def _stripes(u: A, v: A, w: A, scale: A, phase: A, rng: G) -> Pattern:
    return np.zeros(len(u)), (np.mod(v, scale) < scale / 2).astype(float)


def _sky(u: A, v: A, w: A, scale: A, phase: A, rng: G) -> Pattern:
    horizon = 0.15 * _waves(u / scale, u / scale, w, phase)
    return _waves(u / scale, v / scale, w, phase), (v < horizon - 0.1).astype(float) * 0.8


def _writing(u: A, v: A, w: A, scale: A, phase: A, rng: G) -> Pattern:
    line = np.mod(v, scale) < scale * 0.3
    word = np.sin(u / scale * 9 + 5 * _waves(u * 3, v * 3, w, phase)) > 0.2
    block = _hash(np.floor(u / (6 * scale)), np.floor(v / (4 * scale)), phase) < 0.45
    return _waves(u, v, w, phase), (line & word & block) * 0.75


def _picture(u: A, v: A, w: A, scale: A, phase: A, rng: G) -> Pattern:
    return (
        2 * _hash(np.floor(u / scale), np.floor(v / scale), phase) - 1,
        0.5 + 0.5 * _waves(u / scale, v / scale, w, phase).clip(-1, 1),
    )


TEXTURES = {
    "plain": _plain,
    "grain": _grain,
    "wood": _wood,
    "planks": _planks,
    "tiles": _tiles,
    "bricks": _bricks,
    "stripes": _stripes,
    "sky": _sky,
    "writing": _writing,
    "picture": _picture,
}


def _pick(colors: tuple[Color, ...], rng: np.random.Generator) -> Color:
    return colors[rng.integers(len(colors))]


def _vary(color: Color, rng: np.random.Generator, amount: float = 10.0) -> Color:
    shift = rng.normal(0, amount) + rng.normal(0, amount / 3, 3)
    red, green, blue = np.clip(np.array(color) + shift, 8, 250)
    return (float(red), float(green), float(blue))


def shade(color: Color, factor: float) -> Color:
    """A darker or lighter color."""
    return (color[0] * factor, color[1] * factor, color[2] * factor)
