"""Generated rooms: deterministic, label-true, occluded, not given away by color."""

from __future__ import annotations

import numpy as np
import pytest

from dela.errors import InputError
from dela.training.rooms.furniture import LABELS
from dela.training.rooms.materials import Material, color_surfaces
from dela.training.rooms.plan import draw_plan
from dela.training.rooms.scan import ROOM_CLASSES, generate_room
from dela.training.rooms.solids import BALL, BOX, PANE, TAPER, Placed, Solids, cast

GREY = Material((128, 128, 128), contrast=0.0)


@pytest.fixture(scope="module")
def rooms():
    return [generate_room(seed, points=20_000) for seed in range(10)]


def colors(cloud) -> np.ndarray:
    return np.stack([cloud.columns[name] for name in ("red", "green", "blue")], axis=1)


def test_the_same_seed_gives_the_same_points_and_another_seed_another_room(rooms):
    again = generate_room(3, points=20_000)
    assert np.array_equal(again.points, rooms[3].points)
    for name, column in rooms[3].columns.items():
        assert np.array_equal(again.columns[name], column)
    assert not np.array_equal(rooms[3].points[:100], rooms[4].points[:100])


def test_point_count_is_close_to_and_never_above_what_was_asked(rooms):
    for cloud in rooms:
        assert 18_000 <= len(cloud) <= 20_000


def test_columns_are_colors_and_class_codes(rooms):
    for cloud in rooms:
        assert set(cloud.columns) == {"red", "green", "blue", "classification"}
        assert all(column.dtype == np.uint8 for column in cloud.columns.values())
        assert cloud.columns["classification"].max() < len(ROOM_CLASSES)
        assert np.isfinite(cloud.points).all()


def test_every_class_appears_over_a_few_seeds_and_the_shell_in_every_room(rooms):
    counts = np.array(
        [np.bincount(cloud.columns["classification"], minlength=13) for cloud in rooms]
    )
    assert (counts.sum(0) > 200).all()
    for name in ("ceiling", "floor", "wall", "door", "clutter"):
        assert (counts[:, LABELS[name]] > 20).all()


def test_points_stay_within_the_walls_but_for_reveals_and_noise(rooms):
    for seed, cloud in enumerate(rooms):
        plan = draw_plan(np.random.default_rng([seed, 13]), Solids())
        low, high = plan.bounds
        assert (cloud.points[:, :2] > low - 0.2).all()
        assert (cloud.points[:, :2] < high + 0.2).all()
        assert cloud.points[:, 2].min() > -0.05
        assert cloud.points[:, 2].max() < plan.height + 0.05
        corners = np.array(plan.cells)
        x, y = cloud.points[:, 0, None], cloud.points[:, 1, None]
        inside = (
            (x > corners[:, 0] - 0.2)
            & (x < corners[:, 2] + 0.2)
            & (y > corners[:, 1] - 0.2)
            & (y < corners[:, 3] + 0.2)
        ).any(1)
        assert inside.all()


def test_floor_lies_low_and_level_and_ceiling_high(rooms):
    for cloud in rooms:
        label, z = cloud.columns["classification"], cloud.points[:, 2]
        assert np.abs(z[label == LABELS["floor"]]).max() < 0.05
        assert z[label == LABELS["ceiling"]].min() > 2.4
        assert np.abs(np.percentile(z[label == LABELS["floor"]], [5, 95])).max() < 0.02


def test_floor_is_denser_near_a_standpoint_than_far_from_all(rooms):
    for cloud in rooms[:4]:
        floor = cloud.points[cloud.columns["classification"] == LABELS["floor"]]
        cells = np.floor(floor[:, :2] / 0.25).astype(int)
        _, counts = np.unique(cells, axis=0, return_counts=True)
        assert np.percentile(counts, 95) > 3 * np.percentile(counts, 20)


def test_color_alone_does_not_give_the_class_away(rooms):
    """Nearest class mean in color, fitted on other rooms, is far from a labelling."""
    label = [cloud.columns["classification"] for cloud in rooms]
    rgb = [colors(cloud).astype(float) for cloud in rooms]
    train_label, train_rgb = np.concatenate(label[:8]), np.concatenate(rgb[:8])
    means = np.array([train_rgb[train_label == c].mean(0) for c in range(13)])
    truth, seen = np.concatenate(label[8:]), np.concatenate(rgb[8:])
    guess = np.square(seen[:, None] - means).sum(2).argmin(1)
    recall = [np.mean(guess[truth == c] == c) for c in np.unique(truth)]
    assert np.mean(recall) < 0.35


def test_points_per_room_do_not_change_the_room():
    few, many = generate_room(5, points=4000), generate_room(5, points=16_000)
    assert np.allclose(np.ptp(few.points, axis=0), np.ptp(many.points, axis=0), atol=0.3)


def test_impossible_requests_are_refused():
    with pytest.raises(InputError, match="seed -1"):
        generate_room(-1)
    with pytest.raises(InputError, match="0 points"):
        generate_room(0, points=0)


def grid(columns: int = 360, rows: int = 180) -> tuple[np.ndarray, np.ndarray]:
    azimuths = (np.arange(columns) + 0.5) * 2 * np.pi / columns - np.pi
    elevations = np.linspace(-1.5, 1.5, rows)
    e, a = np.meshgrid(elevations, azimuths, indexing="ij")
    rays = np.stack([np.cos(e) * np.cos(a), np.cos(e) * np.sin(a), np.sin(e)], -1)
    return elevations, rays.astype(np.float32)


def test_a_column_hides_the_wall_behind_it():
    solids = Solids()
    Placed(solids, (0, 3, 0), 0.0, LABELS["wall"]).pane((0, 0, 1.5), 10, 3, GREY)
    Placed(solids, (0, 1.5, 0), 0.0, LABELS["column"]).box((0, 0, 1.5), (0.4, 0.4, 3), GREY)
    elevations, rays = grid()
    origin = np.array([0, 0, 1.5])
    distance, owner = cast(solids, origin, elevations, rays)
    hits = origin + distance[owner == 0][:, None] * rays[owner == 0]
    assert len(hits) > 1000
    # Seen from the origin the column covers |x| < 0.2 * 3 / 1.3 of the wall.
    assert np.abs(hits[:, 0]).min() > 0.45
    front = origin + distance[owner == 1][:, None] * rays[owner == 1]
    assert np.allclose(front[:, 1], 1.3, atol=1e-4)


@pytest.mark.parametrize(
    ("kind", "taper"), [(BOX, 1), (PANE, 1), (BALL, 1), (TAPER, 1), (TAPER, 0.5), (TAPER, 1.3)]
)
def test_windowed_casting_agrees_with_marching_along_every_ray(kind, taper):
    """Independent reference: step along the ray, test the point against the implicit shape."""
    rng = np.random.default_rng(7)
    q, _ = np.linalg.qr(rng.standard_normal((3, 3)))
    frame = q * np.array([0.5, 0.3, 0.4 if kind != PANE else 1e-3])
    center = np.array([-2.0, 0.3, 0.2])  # across the seam of azimuth
    solids = Solids()
    solids.add(kind, center, frame, 0, GREY, taper)
    elevations, rays = grid(240, 120)
    distance, owner = cast(solids, np.zeros(3), elevations, rays)
    steps = np.linspace(1.0, 3.0, 4001)
    inverse = np.linalg.inv(frame)
    flat = rays.reshape(-1, 3)
    facing = flat @ (center / np.linalg.norm(center)) > 0.9
    expected = np.full(len(flat), np.inf)
    for row in np.flatnonzero(facing):
        local = (steps[:, None] * flat[row] - center) @ inverse.T
        if kind == PANE:
            inside = (np.abs(local[:, :2]) <= 1).all(1) & (np.abs(local[:, 2]) < 0.5)
        elif kind == BOX:
            inside = (np.abs(local) <= 1).all(1)
        elif kind == BALL:
            inside = np.square(local).sum(1) <= 1
        else:
            radius = (1 + taper) / 2 + (taper - 1) / 2 * local[:, 2]
            inside = (np.abs(local[:, 2]) <= 1) & (np.hypot(local[:, 0], local[:, 1]) <= radius)
        if inside.any():
            expected[row] = steps[inside.argmax()]
    expected = expected.reshape(distance.shape)
    both = np.isfinite(expected) & np.isfinite(distance)
    assert both.sum() > 100
    # Grazing rays may differ by a step; nothing else may.
    assert (np.isfinite(expected) != np.isfinite(distance)).sum() <= 0.04 * both.sum() + 2
    assert np.percentile(np.abs(expected[both] - distance[both]), 97) < 2e-3
    assert ((owner >= 0) == np.isfinite(distance)).all()


def test_one_material_has_one_pattern_over_several_solids():
    striped = Material((200, 200, 200), scale=0.3, contrast=0.5)
    place = np.random.default_rng(0).uniform(-1, 1, (50, 3))
    light = np.ones(100)
    owner = np.repeat([0, 1], 50)
    seen = color_surfaces(
        [striped, striped], owner, np.vstack([place, place]), light, np.random.default_rng(1)
    )
    assert np.allclose(seen[:50], seen[50:])
    assert seen.std() > 1
