"""What cannot be written is found before the network runs."""

from __future__ import annotations

import laspy
import numpy as np
import pytest

from dela.cli import main as cli
from dela.cloud.formats import read_cloud, write_cloud
from dela.cloud.point_cloud import PointCloud
from dela.errors import InputError
from dela.model.contract import ClassInfo
from dela.runtime.backends.onnx_runtime import OnnxRuntimeBackend
from dela.runtime.predict import labelled
from dela.runtime.predict.labelled import check_target
from small_networks import make_cloud

GROUND = ClassInfo("ground", 2)


@pytest.fixture
def las(tmp_path):
    """A scan of an old point format or a newer one."""

    def made(point_format, version):
        data = laspy.LasData(laspy.LasHeader(point_format=point_format, version=version))
        data.x, data.y, data.z = np.random.default_rng(0).normal(size=(3, 4))
        data.write(tmp_path / "scan.las")
        return read_cloud(tmp_path / "scan.las")

    return made


@pytest.mark.parametrize("suffix", [".las", ".laz"])
def test_codes_that_a_point_format_cannot_hold(las, tmp_path, suffix):
    target = tmp_path / f"out{suffix}"
    classes = (GROUND, ClassInfo("bridge", 40))
    with pytest.raises(InputError, match="holds 40; point format 1 stores") as caught:
        check_target(las(1, "1.2"), classes, target)
    assert str(target) in str(caught.value)
    check_target(las(6, "1.4"), classes, target)
    with pytest.raises(InputError, match="label codes 0 to 255, the model has 300"):
        check_target(las(6, "1.4"), (GROUND, ClassInfo("roof", 300)), target)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["scan.las"]


def test_points_without_coordinates_go_into_no_las(tmp_path):
    points = np.random.default_rng(1).normal(size=(50, 3))
    points[33, 1] = np.nan
    cloud = PointCloud(points, {})
    check_target(cloud, (GROUND,), tmp_path / "out.las")  # such a scan is refused anyway
    with pytest.raises(InputError, match="finite"):
        check_target(cloud, (GROUND,), tmp_path / "out.las", drop_invalid=True)
    check_target(cloud, (GROUND,), tmp_path / "out.ply", drop_invalid=True)


def test_a_result_that_could_not_be_read_again_is_refused(tmp_path, monkeypatch):
    """As headers of damaged files can have it, which a library writes as they are."""

    def write(path, cloud):
        path.write_bytes(b"ply\nformat binary_little_endian 1.0\nelement vertex 9\n")

    monkeypatch.setattr(labelled, "write_cloud", write)
    target = tmp_path / "out.ply"
    with pytest.raises(InputError, match="no end_header line") as caught:
        check_target(make_cloud(50), (GROUND,), target)
    assert str(target) in str(caught.value)


@pytest.mark.parametrize("points", [0, 1, 2])
def test_fewer_points_than_classes_are_enough(tmp_path, points):
    cloud = PointCloud(np.zeros((points, 3)), {"label": np.zeros(points)})
    classes = tuple(ClassInfo(f"class {code}", code) for code in range(5))
    for suffix in (".las", ".ply", ".pcd", ".npz", ".npy", ".txt"):
        check_target(cloud, classes, tmp_path / f"out{suffix}")


def test_predict_finds_it_before_the_network_runs(network, tmp_path, monkeypatch, capsys):
    cloud = make_cloud(500)
    cloud.points[7] = np.inf
    scan = write_cloud(tmp_path / "scan.npz", cloud)

    def run(self, pyramid):
        raise AssertionError("the network ran")

    monkeypatch.setattr(OnnxRuntimeBackend, "run", run)
    words = ["predict", scan, "-m", network.onnx, "-o", tmp_path / "out.las", "--drop-invalid"]
    with pytest.raises(SystemExit) as ended:
        cli.main([str(word) for word in words])
    assert ended.value.code == 1
    assert "finite" in capsys.readouterr().err
    assert not (tmp_path / "out.las").exists()
