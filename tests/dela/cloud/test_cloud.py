"""The point cloud in memory."""

from __future__ import annotations

import numpy as np
import pytest

from dela.cloud.point_cloud import PointCloud
from dela.errors import InputError


def test_points_become_float64_and_keep_utm_millimetres() -> None:
    cloud = PointCloud(np.array([[770500.001, 6277500.001, 20.001]]))
    assert cloud.points.dtype == np.float64
    assert cloud.points[0, 1] == 6277500.001
    assert PointCloud(np.zeros((2, 3), np.int16)).points.dtype == np.float64


@pytest.mark.parametrize("shape", [(3,), (4, 2), (2, 3, 1)])
def test_points_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=r"expected \[N, 3\]"):
        PointCloud(np.zeros(shape))


def test_column_of_another_length_is_named() -> None:
    with pytest.raises(InputError, match=r"'intensity' has shape \(3,\); expected \[4\]"):
        PointCloud(np.zeros((4, 3)), {"intensity": np.zeros(3)})


def test_selection_keeps_order_columns_and_source() -> None:
    cloud = PointCloud(np.arange(12).reshape(4, 3), {"label": np.arange(4)}, source="header")
    chosen = cloud.select(np.array([3, 1]))
    assert chosen.points.tolist() == [[9, 10, 11], [3, 4, 5]]
    assert chosen.columns["label"].tolist() == [3, 1]
    assert chosen.source == "header"
    assert len(cloud.select(np.zeros(4, bool))) == 0
