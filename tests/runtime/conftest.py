"""Small networks exported once per session, and a scan."""

from __future__ import annotations

import pytest

from dela.cloud.point_cloud import PointCloud
from small_networks import CLASSIFICATION, CONFIG, Trained, make_cloud, write_network


@pytest.fixture(scope="session")
def network(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Segmentation: colors and height, three classes."""
    return write_network(tmp_path_factory.mktemp("network"), CONFIG)


@pytest.fixture(scope="session")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Classification of whole clouds."""
    return write_network(tmp_path_factory.mktemp("classifier"), CLASSIFICATION)


@pytest.fixture
def cloud() -> PointCloud:
    return make_cloud()
