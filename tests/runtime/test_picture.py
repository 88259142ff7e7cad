"""Pictures: what is drawn, what is cut away, and what lies in front."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dela.errors import InputError
from dela.model.contract import ClassInfo
from dela.runtime.picture import (
    BACKGROUND,
    RIGHT_COLOR,
    UNLABELLED_COLOR,
    WRONG_COLOR,
    Camera,
    Panel,
    PictureStyle,
    class_colors,
    cut_away,
    draw_panels,
    error_colors,
    natural_colors,
)

Image = pytest.importorskip("PIL.Image")
CLASSES = (ClassInfo("floor", 0, (200, 160, 120)), ClassInfo("lamp", 7, (250, 220, 60)))


def room(generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A box of 5 x 4 x 2.6 m: points, and the face of each (0 floor, 1 ceiling, 2.. walls)."""
    faces = []
    size = np.array([5.0, 4.0, 2.6])
    for axis, end in ((2, 0), (2, 1), (0, 0), (0, 1), (1, 0), (1, 1)):
        points = generator.uniform(0, size, (3000, 3))
        points[:, axis] = end * size[axis]
        faces.append(points)
    return np.concatenate(faces), np.repeat(np.arange(6), 3000)


def draw(
    tmp_path: Path, points: np.ndarray, colors: np.ndarray, legend=(), **arguments
) -> np.ndarray:
    path = tmp_path / "picture.png"
    style = PictureStyle(width=400, **arguments)
    draw_panels(path, points, [Panel("Scan", colors)], legend, style, overwrite=True)
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB")).astype(int)


def close_to(image: np.ndarray, color: tuple[int, ...], tolerance: int = 40) -> np.ndarray:
    return (np.abs(image - np.array(color)) <= tolerance).all(axis=2)


def test_colors_of_classes_and_errors():
    classes = np.array([1, -1, 0])
    expected = [CLASSES[1].color, UNLABELLED_COLOR, CLASSES[0].color]
    assert class_colors(classes, CLASSES).tolist() == [list(color) for color in expected]
    colors = error_colors(np.array([0, 1, -1]), np.array([0, 0, 1]))
    assert colors.tolist() == [list(RIGHT_COLOR), list(WRONG_COLOR), list(RIGHT_COLOR)]


def test_natural_colors_are_the_scans_own_or_a_ramp():
    points = np.column_stack([np.zeros(50), np.zeros(50), np.linspace(0, 9, 50)])
    rgb = {"red": np.full(50, 9), "green": np.full(50, 300), "blue": np.full(50, -4)}
    assert natural_colors(points, rgb)[0].tolist() == [9, 255, 0]
    ramp = natural_colors(points, {})
    assert ramp.dtype == np.uint8 and len(np.unique(ramp, axis=0)) > 30
    black = {name: np.zeros(50, np.uint8) for name in ("red", "green", "blue")}
    assert np.array_equal(natural_colors(points, black), ramp)
    bright = natural_colors(points, {"intensity": np.arange(50)})
    assert bright[5].sum() < ramp[5].sum() and bright[45].sum() >= ramp[45].sum()


def test_a_room_opens_toward_the_camera():
    points, face = room(np.random.default_rng(0))
    keep = cut_away(points, Camera(azimuth=-60))  # from +x, -y
    assert keep[face == 0].mean() > 0.9
    assert not keep[face == 1].any()
    knee = points[:, 2] > 0.5
    assert not keep[(face == 3) & knee].any() and not keep[(face == 4) & knee].any()
    far = knee & (points[:, 2] < 2.2)
    inner = far & (points[:, 0] < 4.7) & (points[:, 1] > 0.3)
    assert keep[((face == 2) | (face == 5)) & inner].all()


def test_an_open_scene_stays_whole():
    generator = np.random.default_rng(0)
    points = generator.uniform(0, 1, (5000, 3)) * (80, 80, 0.2)
    trees = generator.uniform(0, 1, (800, 3)) * (80, 80, 9)
    assert cut_away(np.concatenate([points, trees]), Camera()).all()
    assert cut_away(np.zeros((0, 3)), Camera()).shape == (0,)


def test_the_nearer_surface_hides_the_farther(tmp_path):
    plane = np.stack(np.meshgrid(np.linspace(0, 1, 60), np.linspace(0, 1, 60)), -1).reshape(-1, 2)
    low = np.column_stack([plane, np.zeros(3600)])
    high = np.column_stack([plane, np.full(3600, 0.2)])
    colors = np.repeat([[220, 30, 30], [30, 60, 220]], 3600, axis=0).astype(np.uint8)
    for order in (slice(None), slice(None, None, -1)):
        points = np.concatenate([low, high])[order]
        image = draw(tmp_path, points, colors[order], camera=Camera(elevation=89), whole=True)
        blue, red = close_to(image, (30, 60, 220)).sum(), close_to(image, (220, 30, 30)).sum()
        assert blue > 10_000 and red < 0.05 * blue


def test_the_picture_is_the_same_every_time(tmp_path):
    points, face = room(np.random.default_rng(1))
    colors = class_colors((face > 2).astype(int), CLASSES)
    first, second = (draw(tmp_path, points, colors, legend=CLASSES) for _ in range(2))
    assert np.array_equal(first, second)
    assert close_to(first, BACKGROUND, 3).mean() > 0.2
    assert close_to(first, CLASSES[1].color).sum() > 200


@pytest.mark.parametrize("count", [1, 2, 5])
def test_few_points_and_points_without_extent(tmp_path, count):
    colors = np.full((count, 3), 30, dtype=np.uint8)
    image = draw(tmp_path, np.full((count, 3), 1e6), colors)
    assert close_to(image, (30, 30, 30), 60).any()


def test_points_that_are_not_finite_are_left_out(tmp_path):
    points, face = room(np.random.default_rng(2))
    colors = class_colors((face > 2).astype(int), CLASSES)
    expected = draw(tmp_path, points[100:], colors[100:], whole=True)
    points[:100] = np.nan
    assert np.array_equal(draw(tmp_path, points, colors, whole=True), expected)
    with pytest.raises(InputError, match="no finite point"):
        draw(tmp_path, points[:100], colors[:100])


def test_natural_colors_survive_what_is_not_finite():
    points = np.array([[0, 0, 0], [0, 0, np.nan], [0, 0, 2.0]])
    colors = natural_colors(points, {"intensity": np.array([1.0, np.nan, 3.0])})
    assert (colors[0] != colors[2]).any() and colors.shape == (3, 3)
    assert natural_colors(points[:0], {}).shape == (0, 3)
    assert natural_colors(points[1:2], {}).shape == (1, 3)
    shade = {name: np.array([np.nan, 300.0, 20.0]) for name in ("red", "green", "blue")}
    assert natural_colors(points, shade)[:, 0].tolist() == [0, 255, 20]


def test_the_legend_names_only_what_is_drawn(tmp_path):
    points, face = room(np.random.default_rng(4))
    ceiling = ClassInfo("ceiling", 1, (255, 0, 255))
    classes = (face == 1).astype(int)
    colors = np.full((len(points), 3), 120, dtype=np.uint8)

    def magenta(**arguments) -> int:
        path = tmp_path / "legend.png"
        panels = [Panel("Truth", colors, classes=classes)]
        style = PictureStyle(**arguments)
        draw_panels(path, points, panels, (CLASSES[0], ceiling), style, overwrite=True)
        with Image.open(path) as picture:
            return close_to(np.asarray(picture.convert("RGB")).astype(int), ceiling.color).sum()

    assert magenta(whole=True, width=400) > 20
    assert magenta(width=400) == 0


def test_four_panels_stand_in_a_square_and_nothing_is_overwritten(tmp_path):
    points, face = room(np.random.default_rng(3))
    colors = class_colors((face > 2).astype(int), CLASSES)
    heights = {}
    for count in (1, 2, 3, 4):
        path = tmp_path / f"{count}.png"
        panels = [Panel(f"Panel {i}", colors, "a remark") for i in range(count)]
        style = PictureStyle(title="Title", subtitle="More", width=800)
        draw_panels(path, points, panels, CLASSES, style)
        with Image.open(path) as picture:
            assert picture.width == 800
            heights[count] = picture.height
    assert heights[3] < heights[2] < heights[4]
    with pytest.raises(InputError, match="exists"):
        draw_panels(path, points, panels, CLASSES)
