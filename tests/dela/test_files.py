"""Files appear whole or not at all."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from dela.errors import InputError
from dela.files import atomic_path, check_writable


def test_file_appears_only_after_the_block(tmp_path: Path) -> None:
    target = tmp_path / "scan.laz"
    with atomic_path(target) as temporary:
        assert temporary.suffix == ".laz"
        assert temporary.parent == tmp_path
        temporary.write_bytes(b"whole")
        assert not target.exists()
    assert target.read_bytes() == b"whole"
    assert os.listdir(tmp_path) == ["scan.laz"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_failure_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, error: type[BaseException]
) -> None:
    target = tmp_path / "model.pt"
    target.write_bytes(b"old")
    with pytest.raises(error), atomic_path(target, overwrite=True) as temporary:
        temporary.write_bytes(b"half")
        raise error
    assert target.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["model.pt"]


def test_existing_file_is_kept_without_overwrite(tmp_path: Path) -> None:
    target = tmp_path / "a.ply"
    target.write_bytes(b"old")
    with pytest.raises(InputError, match="--overwrite"), atomic_path(target):
        pytest.fail("the block must not run")
    assert target.read_bytes() == b"old"


def test_file_that_appears_meanwhile_is_kept(tmp_path: Path) -> None:
    target = tmp_path / "a.ply"
    with pytest.raises(InputError, match="exists"), atomic_path(target) as temporary:
        temporary.write_bytes(b"mine")
        target.write_bytes(b"theirs")
    assert target.read_bytes() == b"theirs"
    assert os.listdir(tmp_path) == ["a.ply"]


def test_new_file_has_the_ordinary_permissions(tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.write_bytes(b"")
    with atomic_path(tmp_path / "atomic") as temporary:
        temporary.write_bytes(b"")
    assert (tmp_path / "atomic").stat().st_mode == plain.stat().st_mode


def test_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    target = tmp_path / "real" / "a.npz"
    target.write_bytes(b"old")
    link = tmp_path / "link.npz"
    link.symlink_to(target)
    with atomic_path(link, overwrite=True) as temporary:
        temporary.write_bytes(b"new")
    assert link.is_symlink()
    assert target.read_bytes() == b"new"


def test_longest_name_works(tmp_path: Path) -> None:
    target = tmp_path / ("n" * 250 + ".laz")
    with atomic_path(target) as temporary:
        temporary.write_bytes(b"x")
    assert target.exists()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("missing/a.ply", "does not exist"),
        ("file/a.ply", "is not a folder"),
        (".", "is a folder"),
        ("/dev/full", "not an ordinary file"),
        ("/dev/null", "not an ordinary file"),
    ],
)
def test_unusable_places_are_named(tmp_path: Path, name: str, words: str) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(InputError, match=words):
        check_writable(tmp_path / name, overwrite=True)
    with pytest.raises(InputError, match=words), atomic_path(tmp_path / name, overwrite=True):
        pytest.fail("the block must not run")
    assert Path("/dev/null").is_char_device()


def test_an_input_is_never_replaced(tmp_path: Path) -> None:
    scan = tmp_path / "scan.laz"
    scan.write_bytes(b"precious")
    (tmp_path / "link.laz").symlink_to(scan)
    for name in ("scan.laz", "link.laz"):
        with pytest.raises(InputError, match="is the input itself"):
            check_writable(tmp_path / name, overwrite=True, inputs=[tmp_path / "no.pt", scan])
    check_writable(tmp_path / "other.laz", inputs=[scan])


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_unwritable_folder(tmp_path: Path) -> None:
    folder = tmp_path / "locked"
    folder.mkdir(mode=0o500)
    with pytest.raises(InputError, match="may write"):
        check_writable(folder / "a.ply")
    with pytest.raises(InputError, match="may write"), atomic_path(folder / "a.ply"):
        pytest.fail("the block must not run")


def test_folder_that_refuses_new_files() -> None:
    with pytest.raises(InputError, match="cannot write /proc"), atomic_path("/proc/a.ply"):
        pytest.fail("the block must not run")


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_full_disk_is_said_in_one_line(tmp_path: Path, code: int) -> None:
    with pytest.raises(InputError) as raised, atomic_path(tmp_path / "a.ply"):
        raise OSError(code, os.strerror(code))
    assert "disk is full" in str(raised.value)
    assert "\n" not in str(raised.value)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("suffix", ["laz", "las", "ply", "pcd", "npy", "npz", "csv"])
def test_writer_that_meets_a_full_disk_leaves_nothing(tmp_path: Path, suffix: str) -> None:
    script = f"""
        import resource, signal
        import numpy as np
        from dela.cloud.point_cloud import PointCloud
        from dela.errors import InputError
        from dela.cloud.formats import write_cloud

        cloud = PointCloud(np.random.default_rng(0).normal(size=(20000, 3)))
        write_cloud("warm.{suffix}", cloud.select(np.arange(3)))  # imports before the limit
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))
        try:
            write_cloud("a.{suffix}", cloud)
        except InputError as error:
            print(error)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert f"cannot write a.{suffix}" in done.stdout
    assert "disk is full" in done.stdout
    assert done.stdout.count("\n") == 1
    assert os.listdir(tmp_path) == [f"warm.{suffix}"]


def test_format_that_cannot_hold_the_cloud_leaves_nothing(tmp_path: Path) -> None:
    from dela.cloud.formats import write_cloud
    from dela.cloud.point_cloud import PointCloud

    cloud = PointCloud(np.full((3, 3), np.nan))
    with pytest.raises(InputError, match="3 points have NaN"):
        write_cloud(tmp_path / "a.las", cloud)
    assert os.listdir(tmp_path) == []
