"""KITTI scans and SemanticKITTI labels: read, written in kind, refused where they are not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dela.cloud.formats import find_scans, read_cloud, write_cloud
from dela.cloud.point_cloud import PointCloud
from dela.errors import InputError

VALUES = np.random.default_rng(4).uniform(0, 50, (20, 5)).astype("<f4")


def test_scans_are_read_and_written_to_the_same_bytes(tmp_path: Path) -> None:
    VALUES[:, :4].tofile(tmp_path / "a.bin")
    cloud = read_cloud(tmp_path / "a.bin")
    np.testing.assert_array_equal(cloud.points, VALUES[:, :3])
    np.testing.assert_array_equal(cloud.columns["intensity"], VALUES[:, 3])
    write_cloud(tmp_path / "b.bin", cloud)
    assert (tmp_path / "b.bin").read_bytes() == (tmp_path / "a.bin").read_bytes()
    write_cloud(tmp_path / "c.bin", PointCloud(cloud.points))
    assert not read_cloud(tmp_path / "c.bin").columns["intensity"].any()


def test_other_values_a_point_are_named(tmp_path: Path) -> None:
    VALUES.tofile(tmp_path / "a.bin")
    cloud = read_cloud(tmp_path / "a.bin", "x,y,z,intensity,ring")
    np.testing.assert_array_equal(cloud.columns["ring"], VALUES[:, 4])
    write_cloud(tmp_path / "b.bin", cloud)
    assert (tmp_path / "b.bin").read_bytes() == VALUES.tobytes()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (VALUES[:, :4].tobytes()[:-3], "no whole number of points"),
        (np.full(8, 1e6, "<f4").tobytes(), "1e[+]06 m from the sensor"),
        (b"any other binary file, 16n bytes", "m from the sensor"),
    ],
)
def test_what_is_no_scan_is_refused(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "a.bin").write_bytes(content)
    with pytest.raises(InputError, match=words):
        read_cloud(tmp_path / "a.bin")


def test_nan_and_no_points_are_for_the_caller(tmp_path: Path) -> None:
    np.array([[np.nan, 1, 2, 3]], "<f4").tofile(tmp_path / "a.bin")
    assert np.isnan(read_cloud(tmp_path / "a.bin").points[0, 0])
    (tmp_path / "b.bin").write_bytes(b"")
    assert len(read_cloud(tmp_path / "b.bin")) == 0


def test_labels_are_written_alone_and_never_read(tmp_path: Path) -> None:
    cloud = PointCloud(VALUES[:, :3], {"label": np.arange(20) * 3000, "confidence": VALUES[:, 0]})
    write_cloud(tmp_path / "a.label", cloud)
    written = np.fromfile(tmp_path / "a.label", "<u4")
    np.testing.assert_array_equal(written, np.arange(20) * 3000)
    with pytest.raises(InputError, match="labels and no points"):
        read_cloud(tmp_path / "a.label")
    with pytest.raises(InputError, match="not label, confidence"):
        write_cloud(tmp_path / "a.bin", cloud)
    for labels in (np.arange(-1, 19), np.arange(20) + 65530):
        with pytest.raises(InputError, match=r"codes 0\.\.65535"):
            write_cloud(tmp_path / "b.label", PointCloud(VALUES[:, :3], {"label": labels}))
    with pytest.raises(InputError, match="has none"):
        write_cloud(tmp_path / "b.label", PointCloud(VALUES[:, :3]))
    assert not (tmp_path / "b.label").exists()


def test_folders_hold_scans_not_labels(tmp_path: Path) -> None:
    for name in ("000000.bin", "000000.label", "000001.bin"):
        (tmp_path / name).touch()
    assert [path.name for path in find_scans([tmp_path])] == ["000000.bin", "000001.bin"]
    (tmp_path / "a.laz").touch()
    assert [path.name for path in find_scans([tmp_path])] == ["a.laz"]


def test_field_case(field_dir: Path) -> None:
    cloud = read_cloud(field_dir / "misc" / "000000.bin")
    assert len(cloud) == 300 and (cloud.columns["intensity"] == 1).all()
