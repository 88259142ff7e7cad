"""Draws labelled clouds as a PNG: a small software renderer, numpy and Pillow only.

Points become round splats in a depth buffer; eye-dome lighting (Boucheny, 2009) darkens what lies
behind a depth edge, which gives unlit points their shape.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dela.errors import InputError
from dela.files import atomic_path
from dela.model.contract import ClassInfo

BACKGROUND = (250, 250, 252)
INK = (38, 42, 51)
FAINT_INK = (112, 118, 130)
UNLABELLED_COLOR = (176, 180, 188)
RIGHT_COLOR = (206, 210, 217)
WRONG_COLOR = (222, 45, 38)

_SUPERSAMPLING = 2
_MAX_DRAWN = 3_000_000
_LARGEST_SPLAT = 9
# Radius of a splat over the distance to the point's fourth neighbor.
_SPLAT = 0.75
# Low to high, for scans without color: dark blue, teal, green, sand.
_RAMP = np.array(
    [(64, 82, 150), (47, 118, 152), (53, 156, 135), (139, 195, 92), (245, 222, 120)], np.float64
)


@dataclass(frozen=True)
class Panel:
    """One view of the cloud: a title, perhaps a remark beside it, and a color per point.

    ``classes`` [N] are the class indices that the colors stand for; None: none.
    """

    title: str
    colors: np.ndarray
    remark: str = ""
    classes: np.ndarray | None = None


@dataclass(frozen=True)
class Camera:
    """Looks at the middle of the scene; degrees."""

    azimuth: float = -62.0
    elevation: float = 40.0


def class_colors(classes: np.ndarray, infos: Sequence[ClassInfo]) -> np.ndarray:
    """[N, 3] uint8 colors of class indices [N]; a negative index is drawn as unlabelled."""
    table = np.array([*(info.color for info in infos), UNLABELLED_COLOR], dtype=np.uint8)
    return table[np.where(classes < 0, len(infos), classes)]


def error_colors(truth: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """[N, 3] uint8: red where two class indices differ, pale where they agree or truth is < 0."""
    wrong = (truth != predicted) & (truth >= 0)
    return np.where(wrong[:, None], WRONG_COLOR, RIGHT_COLOR).astype(np.uint8)


def natural_colors(points: np.ndarray, columns: dict[str, np.ndarray]) -> np.ndarray:
    """[N, 3] uint8: the scan's own color; without one, height as a ramp, shaded by intensity.

    Lidar is often stored in formats with color that nobody filled in: all black is none. What is
    not finite takes the lowest value.
    """
    names = ("red", "green", "blue")
    if all(name in columns for name in names) and any(columns[name].any() for name in names):
        rgb = np.stack([columns[name] for name in names], axis=1)
        return np.clip(np.nan_to_num(rgb), 0, 255).astype(np.uint8)
    colors = _ramp(_unit_range(points[:, 2], 0.01, 0.99))
    if "intensity" in columns:
        light = 0.6 + 0.5 * _unit_range(columns["intensity"].astype(np.float64), 0.02, 0.98)
        colors = colors * light[:, None]
    return np.clip(colors, 0, 255).astype(np.uint8)


def cut_away(points: np.ndarray, camera: Camera) -> np.ndarray:
    """Boolean mask [N] of the points to draw so that one sees into a room.

    A scene closed at the top (a slab of a ceiling's thickness holds many of its points) loses its
    ceiling and, above knee height, the walls on the camera's side; any other scene stays whole.
    """
    keep = np.ones(len(points), dtype=bool)
    if len(points) == 0:
        return keep
    low, high = np.percentile(points, [0.2, 99.8], axis=0)
    height = high[2] - low[2]
    ceiling = points[:, 2] > high[2] - max(0.12, 0.1 * height)
    if not 1.5 < height < 12.0 or ceiling.mean() < 0.08:
        return keep
    keep &= ~ceiling
    toward = _view_axes(camera)[2]
    knee = points[:, 2] > low[2] + 0.12 * height
    for axis in (0, 1):
        near = points[:, axis] < low[axis] + 0.2
        if toward[axis] > 0:
            near = points[:, axis] > high[axis] - 0.2
        keep &= ~(near & knee)
    return keep


@dataclass(frozen=True)
class PictureStyle:
    """How a picture looks.

    Attributes:
        title: above everything; ``subtitle``: a smaller line under it.
        width: of the picture, pixels.
        camera: the viewpoint of all panels.
        whole: draw ceilings and near walls too (see :func:`cut_away`).
    """

    title: str = ""
    subtitle: str = ""
    width: int = 1600
    camera: Camera = Camera()
    whole: bool = False


def draw_panels(
    path: Path,
    points: np.ndarray,
    panels: Sequence[Panel],
    legend: Sequence[ClassInfo] = (),
    style: PictureStyle | None = None,
    overwrite: bool = False,
) -> None:
    """Writes a PNG of one cloud in several colorings, from one viewpoint.

    Args:
        points: [N, 3] meters; rows that are not finite are left out.
        panels: one to four colorings; three stand in a row, four in a square.
        legend: the classes; those that the panels show are named under them, all of them where
            no panel tells its classes.
        style: how it looks.

    Raises:
        InputError: no point to draw, or the file cannot be written.
        MissingDependencyError: Pillow is not installed.
    """
    from PIL import Image, ImageDraw

    style = style or PictureStyle()
    rows = _drawn_rows(points, style)
    view = _project(points[rows], style.camera)
    layout = _Layout.of(style, len(panels), view.aspect)
    lines = _legend_lines(
        _shown(legend, panels, rows), layout.small, style.width - 2 * layout.margin
    )
    legend_height = round(len(lines) * layout.small * 2.0)
    height = layout.height + (layout.margin // 2 + legend_height if lines else 0)
    picture = Image.new("RGB", (style.width, height), BACKGROUND)
    pen = ImageDraw.Draw(picture)
    _draw_title(pen, style, layout)
    splats = _splats(view, points[rows], layout.panel_width, layout.panel_height)
    for number, panel in enumerate(panels):
        left, top = layout.corner(number)
        _draw_caption(pen, panel, left, top, layout)
        image = Image.fromarray(splats.paint(panel.colors[rows]))
        picture.paste(image, (left, top + layout.caption_height))
    bottom = height - layout.margin // 2 - legend_height
    _draw_legend(pen, lines, layout.margin, bottom, layout.small)
    with atomic_path(path, overwrite) as temporary:
        picture.save(temporary, format="PNG", optimize=True)


def _drawn_rows(points: np.ndarray, style: PictureStyle) -> np.ndarray:
    """Rows of the points that a picture shows."""
    rows = np.flatnonzero(np.isfinite(points).all(axis=1))
    if len(rows) == 0:
        raise InputError("nothing to draw: the cloud has no finite point")
    if not style.whole:
        rows = rows[cut_away(points[rows], style.camera)]
    return rows[:: math.ceil(len(rows) / _MAX_DRAWN)]


@dataclass(frozen=True)
class _Layout:
    """Sizes in pixels of what a picture is made of; ``height`` is without the legend."""

    margin: int
    columns: int
    panel_width: int
    panel_height: int
    heading: int
    title_height: int
    height: int

    @classmethod
    def of(cls, style: PictureStyle, panels: int, aspect: float) -> _Layout:
        """Of so many panels that are ``aspect`` times as high as wide."""
        width, margin = style.width, round(style.width * 0.025)
        columns = panels if panels <= 3 else 2
        panel_width = (width - margin * (columns + 1)) // columns
        panel_height = int(np.clip(panel_width * aspect, 0.45 * panel_width, 0.85 * panel_width))
        if panels == 1:
            panel_height = min(panel_height, round(0.62 * width))
        heading = round(width * (0.018 if panels <= 2 else 0.0165))
        small = round(heading * 0.82)
        title = heading * (2.0 if style.title else 0) + small * (1.7 if style.subtitle else 0)
        rows = math.ceil(panels / columns)
        inside = rows * (panel_height + round(heading * 1.9)) + (rows - 1) * (margin // 2)
        height = margin + round(title) + inside + margin // 2
        return cls(margin, columns, panel_width, panel_height, heading, round(title), height)

    @property
    def small(self) -> int:
        return round(self.heading * 0.82)

    @property
    def caption_height(self) -> int:
        return round(self.heading * 1.9)

    def corner(self, number: int) -> tuple[int, int]:
        """Left and top of a panel with its caption."""
        down = self.panel_height + self.caption_height + self.margin // 2
        left = self.margin + (number % self.columns) * (self.panel_width + self.margin)
        return left, self.panels_top + (number // self.columns) * down

    @property
    def panels_top(self) -> int:
        return self.margin + self.title_height


def _draw_title(pen: Any, style: PictureStyle, layout: _Layout) -> None:
    top, heading = layout.margin, layout.heading
    if style.title:
        font = _font(round(heading * 1.3))
        pen.text((layout.margin, top), style.title, fill=INK, font=font)
        top += round(heading * 2.0)
    if style.subtitle:
        where = (layout.margin, top - heading // 4)
        pen.text(where, style.subtitle, fill=FAINT_INK, font=_font(layout.small))


def _draw_caption(pen: Any, panel: Panel, left: int, top: int, layout: _Layout) -> None:
    font = _font(layout.heading)
    pen.text((left, top), panel.title, fill=INK, font=font)
    if panel.remark:
        where = (
            left + font.getlength(panel.title) + layout.heading * 0.7,
            top + layout.heading * 0.16,
        )
        pen.text(where, panel.remark, fill=FAINT_INK, font=_font(layout.small))


@dataclass(frozen=True)
class _View:
    """Points seen by the camera: screen x, y (any unit), meters along the view axis.

    ``size`` is the scene's diagonal in meters, ``aspect`` its height over its width on the screen.
    """

    x: np.ndarray
    y: np.ndarray
    depth: np.ndarray
    size: float
    aspect: float


def _view_axes(camera: Camera) -> np.ndarray:
    """Rows: right, up, and the direction from the scene to the camera."""
    azimuth, elevation = math.radians(camera.azimuth), math.radians(camera.elevation)
    toward = np.array(
        [
            math.cos(elevation) * math.cos(azimuth),
            math.cos(elevation) * math.sin(azimuth),
            math.sin(elevation),
        ]
    )
    right = np.array([-math.sin(azimuth), math.cos(azimuth), 0.0])
    return np.stack([right, np.cross(toward, right), toward])


def _project(points: np.ndarray, camera: Camera) -> _View:
    low, high = np.percentile(points, [0.5, 99.5], axis=0)
    radius = max(float(np.linalg.norm(high - low)) / 2, 1e-6)
    seen = (points - (low + high) / 2) @ _view_axes(camera).T
    # A long lens: near enough to parallel that rooms stay square, with a hint of perspective.
    distance = 5.0 * radius
    depth = np.maximum(distance - seen[:, 2], 0.05 * radius)
    x, y = seen[:, 0] * distance / depth, seen[:, 1] * distance / depth
    span_x, span_y = np.ptp(np.percentile(x, [0.1, 99.9])), np.ptp(np.percentile(y, [0.1, 99.9]))
    return _View(x, y, depth, 2 * radius, float(span_y / max(span_x, 1e-9)))


@dataclass(frozen=True)
class _Splats:
    """Which point every pixel of a panel shows (-1: none), and how light it is there."""

    winner: np.ndarray
    light: np.ndarray

    def paint(self, colors: np.ndarray) -> np.ndarray:
        """[height, width, 3] uint8 for one coloring of the points."""
        table = np.concatenate([colors, [BACKGROUND]]).astype(np.float32)
        image = table[self.winner]
        image *= self.light[..., None]
        step = _SUPERSAMPLING
        rows, columns = image.shape[0] // step, image.shape[1] // step
        image = image.reshape(rows, step, columns, step, 3).mean(axis=(1, 3))
        return np.clip(image + 0.5, 0, 255).astype(np.uint8)


def _splats(view: _View, points: np.ndarray, width: int, height: int) -> _Splats:
    width, height = width * _SUPERSAMPLING, height * _SUPERSAMPLING
    left, right = np.percentile(view.x, [0.02, 99.98])
    low, high = np.percentile(view.y, [0.02, 99.98])
    scale = 0.95 * min(width / max(right - left, 1e-9), height / max(high - low, 1e-9))
    if not math.isfinite(scale) or scale > 1e8:
        scale = 1.0
    column = (width / 2 + (view.x - (left + right) / 2) * scale).astype(np.int64)
    row = (height / 2 - (view.y - (low + high) / 2) * scale).astype(np.int64)

    spacing = _point_spacing(points)
    reach = np.clip(np.rint(_SPLAT * spacing * scale), 1, _LARGEST_SPLAT * _SUPERSAMPLING)
    # Widest first, so that each pixel of the disc concerns a leading slice of the points.
    order = np.argsort(-reach, kind="stable")
    column, row, reach = column[order], row[order], reach[order]
    depth = view.depth[order].astype(np.float32)
    bulge = (_SPLAT * spacing[order] / reach**2).astype(np.float32)
    buffer = np.full(width * height, np.inf, dtype=np.float32)
    winner = np.full(width * height, -1, dtype=np.int64)
    disc = _disc(int(reach[0]))
    # Two passes over a disc of pixels per point: the nearest depth first, then its owner. The
    # disc bulges toward the camera, so neighboring splats meet halfway between their centers.
    for claim in (False, True):
        for dx, dy, square in disc:
            count = int(np.count_nonzero(square <= reach * (reach + 0.5)))
            x, y = column[:count] + dx, row[:count] + dy
            inside = np.flatnonzero((x >= 0) & (x < width) & (y >= 0) & (y < height))
            cell = y[inside] * width + x[inside]
            value = depth[inside] + bulge[inside] * np.float32(square)
            if not claim:
                np.minimum.at(buffer, cell, value)
            else:
                first = buffer[cell] == value
                winner[cell[first]] = order[inside[first]]
    # The light falls on the points themselves, not on their bulges.
    distance = np.append(view.depth / view.size, np.inf)[winner].reshape(height, width)
    return _Splats(winner.reshape(height, width), _eye_dome(distance))


def _disc(reach: int) -> list[tuple[int, int, int]]:
    """Offsets x, y of the pixels of a disc, and their squared distance from its center."""
    span = range(-reach, reach + 1)
    offsets = [(x, y, x * x + y * y) for y in span for x in span]
    return [item for item in offsets if item[2] <= reach * (reach + 0.5)]


def _point_spacing(points: np.ndarray) -> np.ndarray:
    """[N] meters to the fourth neighbor, kept between the median and twice the median."""
    from dela.geometry.cpu import knn

    if len(points) < 8:
        return np.full(len(points), 0.05)
    local = (points - points.mean(axis=0)).astype(np.float32)
    table = knn(local, 5)
    spacing = np.linalg.norm(local[table[:, -1]] - local, axis=1).astype(np.float64)
    middle = max(float(np.median(spacing)), 1e-6)
    return np.clip(spacing, middle, 2.0 * middle)


def _eye_dome(depth: np.ndarray) -> np.ndarray:
    """[H, W] factor 0..1: darker where a neighboring pixel lies nearer to the camera.

    Args:
        depth: [H, W] distances in units of the scene's size, infinite where nothing is.
    """
    empty = ~np.isfinite(depth)
    filled = np.where(empty, depth[~empty].max(initial=0.0) + 0.02, depth)
    shade = np.zeros_like(filled)
    offsets = [(1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (1, -1), (-1, 1), (-1, -1)]
    for reach, weight in ((_SUPERSAMPLING, 0.5), (3 * _SUPERSAMPLING, 0.5)):
        padded = np.pad(filled, reach, mode="edge")
        height, width = filled.shape
        for dy, dx in offsets:
            y, x = reach * (1 + dy), reach * (1 + dx)
            neighbor = padded[y : y + height, x : x + width]
            shade += weight * np.clip(filled - neighbor, 0.0, 0.03)
    light = np.exp(-9.0 * shade).astype(np.float32)
    light[empty] = 1.0
    return light


def _shown(
    legend: Sequence[ClassInfo], panels: Sequence[Panel], rows: np.ndarray
) -> Sequence[ClassInfo]:
    """The classes of the points drawn: a ceiling that was cut away needs no entry."""
    drawn = [np.unique(panel.classes[rows]) for panel in panels if panel.classes is not None]
    if not drawn:
        return legend
    found = set(np.concatenate(drawn).tolist())
    return [info for index, info in enumerate(legend) if index in found]


def _legend_lines(
    legend: Sequence[ClassInfo], size: int, width: int
) -> list[list[tuple[ClassInfo, float]]]:
    """Classes broken into lines, each with its offset from the left."""
    lines: list[list[tuple[ClassInfo, float]]] = []
    offset = math.inf
    for info in legend:
        needed = size * 1.5 + _font(size).getlength(info.name) + size * 1.6
        if offset + needed > width + size * 1.6:
            lines.append([])
            offset = 0.0
        lines[-1].append((info, offset))
        offset += needed
    return lines


def _draw_legend(
    pen: Any, lines: list[list[tuple[ClassInfo, float]]], left: int, top: int, size: int
) -> None:
    for number, line in enumerate(lines):
        y = top + number * size * 2.0
        for info, offset in line:
            x = left + offset
            pen.rounded_rectangle(
                (x, y + size * 0.1, x + size, y + size * 1.1), radius=size * 0.28, fill=info.color
            )
            pen.text((x + size * 1.5, y), info.name, fill=INK, font=_font(size))


def _font(size: int) -> Any:
    from PIL import ImageFont

    return ImageFont.load_default(max(size, 8))


def _ramp(values: np.ndarray) -> np.ndarray:
    place = np.clip(values, 0, 1) * (len(_RAMP) - 1)
    lower = np.minimum(place.astype(np.int64), len(_RAMP) - 2)
    part = (place - lower)[:, None]
    return _RAMP[lower] * (1 - part) + _RAMP[lower + 1] * part


def _unit_range(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Values from 0 to 1 between two quantiles; 0 for what is not finite."""
    finite = np.isfinite(values)
    if not finite.any():
        return np.zeros(len(values))
    bottom, top = np.quantile(values[finite], [low, high])
    scaled = (np.where(finite, values, bottom) - bottom) / max(top - bottom, 1e-9)
    return np.clip(scaled, 0.0, 1.0)
