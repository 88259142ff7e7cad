"""Fixtures every test may use."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest_plugins = ["cuda_emulator.plugin"]

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """Ctrl-C is heard, here and by processes started, also where the tests run in the background.

    (Started there, a process ignores SIGINT, and so do its children.)
    """
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="session")
def lidar_dir() -> Path:
    """Folder of six airborne lidar tiles (IGN - LiDAR HD); skips the test where it is absent."""
    folder = SHARED_DATA / "ign_lidar_hd"
    if not folder.is_dir():
        pytest.skip(f"no lidar tiles at {folder}")
    return folder


@pytest.fixture(scope="session")
def hostile_dir() -> Path:
    """Folder of damaged and hostile files; skips the test where it is absent."""
    folder = SHARED_DATA / "hostile_cases"
    if not folder.is_dir():
        pytest.skip(f"no hostile files at {folder}")
    return folder


@pytest.fixture(scope="session")
def field_dir() -> Path:
    """Folder of files as other programs write them; skips the test where it is absent."""
    folder = SHARED_DATA / "field_cases"
    if not folder.is_dir():
        pytest.skip(f"no field cases at {folder}")
    return folder


@pytest.fixture(scope="session")
def reference_shapes_dir() -> Path:
    """Folder with the tensor shapes of the published checkpoints; skipped where it is absent."""
    folder = SHARED_DATA / "reference_checkpoints"
    if not folder.is_dir():
        pytest.skip(f"no reference checkpoint shapes at {folder}")
    return folder


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Prints what tests measured (``record_property("figure", line)``), with xdist as well."""
    lines = [
        value
        for report in terminalreporter.getreports("passed")
        for name, value in report.user_properties
        if name == "figure" and report.when == "call"
    ]
    if lines:
        terminalreporter.section("figures")
        for line in lines:
            terminalreporter.write_line(line)
