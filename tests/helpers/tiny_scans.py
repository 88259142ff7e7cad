"""Labeled scans small enough to train on within a test."""

from __future__ import annotations

import numpy as np

from dela.cloud.point_cloud import PointCloud


def tiny_scan(seed: int, points: int = 4000) -> PointCloud:
    """A floor (class 2), boxes on it (class 6) and a few unlabelled points (class 0)."""
    generator = np.random.default_rng(seed)
    xy = generator.uniform(0, 8, (points, 2))
    z = generator.normal(0, 0.02, points)
    label = np.full(points, 2, np.uint8)
    for x, y in generator.uniform(1, 7, (4, 2)):
        inside = (np.abs(xy[:, 0] - x) < 0.8) & (np.abs(xy[:, 1] - y) < 0.8)
        z[inside] += 1.5
        label[inside] = 6
    label[:20] = 0
    intensity = np.where(label == 6, 0.7, 0.3) + generator.normal(0, 0.2, points)
    return PointCloud(
        np.column_stack([xy, z]) + np.array([651_000.0, 6_860_000.0, 40.0]),
        {"classification": label, "intensity": intensity.astype(np.float32)},
    )
