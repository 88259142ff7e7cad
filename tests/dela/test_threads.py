"""How many threads compute and why: variables, affinity, control groups of both versions."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dela import threads
from dela.threads import Threads, count_threads, cpu_quota

V2 = "30 24 0:26 {base} /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
V1 = (
    "33 32 0:29 {base} /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct\n"
    "34 32 0:30 {base} /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n"
)


def machine(root: Path, group: str, mounts: str, limits: dict[str, str]) -> Path:
    """A tree with the files that tell a process its control groups; folder -> "quota period"."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(group)
    (root / "proc/self/mountinfo").write_text(f"22 1 8:1 / / rw - ext4 /dev/sda rw\n{mounts}")
    for folder, limit in limits.items():
        place = root / "sys/fs/cgroup" / folder
        place.mkdir(parents=True, exist_ok=True)
        if "cpuacct" in folder:
            quota, period = limit.split()
            (place / "cpu.cfs_quota_us").write_text(f"{quota}\n")
            (place / "cpu.cfs_period_us").write_text(f"{period}\n")
        else:
            (place / "cpu.max").write_text(f"{limit}\n")
    return root


def version2(root: Path, limits: dict[str, str], path: str = "/a/b/c", base: str = "/") -> Path:
    return machine(root, f"0::{path}\n", V2.format(base=base), limits)


def version1(root: Path, limits: dict[str, str], path: str = "/a/b/c", base: str = "/") -> Path:
    group = f"5:memory:/elsewhere\n4:cpu,cpuacct:{path}\n3:cpuset:/\n0::/unified\n"
    limits = {f"cpu,cpuacct/{folder}": limit for folder, limit in limits.items()}
    return machine(root, group, V1.format(base=base), limits)


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ({"a/b/c": "100000 100000"}, 1.0),
        ({"a/b/c": "max 100000", "a/b": "150000 100000", "a": "300000 100000"}, 1.5),
        ({"a/b/c": "400000 100000", "a": "50000 100000"}, 0.5),  # the outer group is stricter
        ({"a/b/c": "max 100000", "": "max 100000"}, None),
        ({"another": "100000 100000"}, None),
        ({"a/b/c": "nonsense", "a": "20000 10000"}, 2.0),
    ],
)
def test_the_strictest_of_nested_groups_counts(tmp_path, limits, expected):
    assert cpu_quota(version2(tmp_path, limits)) == expected


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ({"a/b/c": "100000 100000"}, 1.0),
        ({"a/b/c": "-1 100000", "a": "250000 100000"}, 2.5),
        ({"a/b/c": "-1 100000", "": "-1 100000"}, None),
    ],
)
def test_version_1_groups_are_read_too(tmp_path, limits, expected):
    assert cpu_quota(version1(tmp_path, limits)) == expected


@pytest.mark.parametrize("make", [version1, version2])
def test_a_container_sees_its_group_at_the_top_of_what_is_mounted(tmp_path, make):
    """Without a namespace of its own the path is the host's, and so is the mount's base."""
    limits = {"": "100000 100000"}
    assert cpu_quota(make(tmp_path, limits, "/docker/1f", "/docker/1f")) == 1.0


@pytest.mark.parametrize("path", ["/", "/../outside", "/host/side"])
def test_a_group_outside_the_mounted_tree_takes_the_tree_s_limit(tmp_path, path):
    root = version2(tmp_path, {"": "150000 100000"}, path, "/mine" if path != "/" else "/")
    assert cpu_quota(root) == 1.5


def test_no_control_groups_is_no_quota(tmp_path):
    assert cpu_quota(tmp_path) is None


@given(
    levels=st.lists(st.none() | st.integers(1_000, 10_000_000), min_size=1, max_size=5),
    usable=st.integers(1, 256),
)
def test_threads_are_the_whole_processors_of_the_least_limit(tmp_path_factory, levels, usable):
    names = ["", *("abcd"[: len(levels) - 1])]
    folders = ["/".join(names[1 : depth + 1]) for depth in range(len(names))]
    limits = {
        folder: "max 100000" if level is None else f"{level} 100000"
        for folder, level in zip(folders, levels, strict=True)
    }
    root = version2(tmp_path_factory.mktemp("root"), limits, "/" + folders[-1])
    threads = count_threads({}, usable=usable, root=root)
    given_microseconds = min([usable * 100_000, *(level for level in levels if level is not None)])
    assert threads.count == max(1, given_microseconds // 100_000)
    assert threads.limited == (given_microseconds < usable * 100_000)


@pytest.mark.parametrize(
    ("variable", "expected"),
    [("4", 4), ("3,2", 3), (" 2 ", 2), ("", 1), ("many", 1), ("0", 1), ("-3", 1)],
)
def test_omp_num_threads_wins_where_it_is_a_number(variable, expected):
    chosen = count_threads({"OMP_NUM_THREADS": variable}, usable=8, quota=1.0)
    assert chosen.count == expected
    assert chosen.limited == (expected == 1)


def test_the_source_is_told():
    assert count_threads({"OMP_NUM_THREADS": "4"}, 8).source == "OMP_NUM_THREADS=4"
    assert "quota of 1.5 of 8 processors" in count_threads({}, 8, 1.5).source
    # Affinity is what leaves fewer than there are; one more than any machine here has.
    present = os.cpu_count() or 1
    assert count_threads({}, present, 1e9).source == f"{present} processors"
    if present > 1:
        assert f"1 of {present}" in count_threads({}, 1, 1e9).source


def test_settling_writes_the_quota_s_threads_and_nothing_else(monkeypatch):
    for chosen, expected in [
        (Threads(1, "quota", limited=True), {"OMP_NUM_THREADS": "1"}),
        (Threads(2, "processors"), {}),
    ]:
        monkeypatch.setattr(threads, "count_threads", lambda environ, chosen=chosen: chosen)
        monkeypatch.setattr(threads, "_settled", {})
        variables: dict[str, str] = {}
        threads.settle(variables)
        assert variables == expected


def test_spinning_is_shortened_for_good_where_the_load_cannot_be_measured(monkeypatch):
    monkeypatch.setattr(os.path, "exists", lambda path: False)
    monkeypatch.setattr(threads, "count_threads", lambda environ: Threads(2, "processors"))
    variables: dict[str, str] = {}
    threads.settle(variables)
    assert variables.pop("DELA_SPIN_SETTLED") == variables["GOMP_SPINCOUNT"] == "10000"
    assert len(variables) == 1 and threads.chosen_waiting(variables), "the user's own stands"
    threads.settle(variables := {})
    assert threads.chosen_waiting(variables) == ""
    assert "session.intra_op.spin_duration_us" in threads.session_settings(variables)
    for name in threads.WAITING_VARIABLES:
        kept = {name: "active"}
        threads.settle(kept)
        assert kept == {name: "active"}


def python(program: str, **variables: str) -> list[str]:
    """Lines that a program prints, in a process with these variables of OpenMP alone."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "GOMP_", "MKL_"))}
    done = subprocess.run(
        [sys.executable, "-c", program], env=kept | variables, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


# What this process reads of its control groups lies below a folder.
IN_A_CONTAINER = """
import pathlib
def inside(method):
    def call(path, *arguments, **named):
        if str(path).startswith(("/proc/self", "/sys/fs/cgroup")):
            path = pathlib.Path({root!r}) / path.relative_to("/")
        return method(path, *arguments, **named)
    return call
pathlib.Path.read_text = inside(pathlib.Path.read_text)
pathlib.Path.is_file = inside(pathlib.Path.is_file)
"""
COUNT = """
import dela
import numpy as np
import onnxruntime, torch
from dela import threads
from dela.geometry import cpu as geometry
from dela.plugins import native
geometry.knn(np.random.default_rng(0).random((40000, 3), dtype=np.float32), 8)
omp = native.library().omp_get_max_threads()
options = onnxruntime.SessionOptions()
threads.tune_session(options)
print(omp, geometry._default_threads, torch.get_num_threads(), options.intra_op_num_threads)
print(threads.current_threads().source)
"""


@pytest.mark.skipif(len(threads.usable_processors()) < 2, reason="needs two processors")
@pytest.mark.parametrize("make", [version1, version2])
def test_a_quota_of_one_processor_gives_every_library_one_thread(tmp_path, make):
    root = make(tmp_path, {"a/b": "100000 100000", "a/b/c": "900000 100000"})
    counts, source = python(IN_A_CONTAINER.format(root=str(root)) + COUNT)
    assert counts == "1 1 1 1"
    assert "quota of 1 of" in source


def test_without_a_quota_torch_and_the_native_library_take_all_that_affinity_leaves():
    one = min(threads.usable_processors())
    counts, _ = python(f"import os; os.sched_setaffinity(0, [{one}])\n" + COUNT)
    assert counts == "1 0 1 1"


@pytest.mark.skipif(len(threads.usable_processors()) < 2, reason="needs two processors")
def test_the_variable_of_the_user_stands(tmp_path):
    root = version2(tmp_path, {"a": "100000 100000"})
    counts, source = python(IN_A_CONTAINER.format(root=str(root)) + COUNT, OMP_NUM_THREADS="2")
    assert counts == "2 0 2 2"
    assert source == "OMP_NUM_THREADS=2"


@pytest.mark.skipif(len(threads.usable_processors()) < 2, reason="needs two processors")
def test_a_torch_imported_before_keeps_its_threads_and_doctor_says_so(tmp_path):
    root = version2(tmp_path, {"a": "100000 100000"})
    lines = python(
        "import torch\nbefore = torch.get_num_threads()\n"
        + IN_A_CONTAINER.format(root=str(root))
        + "from dela.runtime.doctor import examine\n"
        "assert torch.get_num_threads() == before\n"
        "print(*(f'{f.subject}: {f.detail} {f.mend}' for f in examine()), sep='\\n')"
    )
    assert any("torch was imported before" in line for line in lines)
    assert any("threads: 1, from the container's quota" in line for line in lines)


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, {"session.intra_op.spin_duration_us": "50"}),
        ({"OMP_WAIT_POLICY": "PASSIVE"}, {"session.intra_op.allow_spinning": "0"}),
        ({"GOMP_SPINCOUNT": "0"}, {"session.intra_op.allow_spinning": "0"}),
        ({"OMP_WAIT_POLICY": "active"}, {}),
        ({"GOMP_SPINCOUNT": "20000"}, {}),
    ],
)
def test_sessions_wait_as_the_user_said_and_briefly_otherwise(variables, expected):
    assert threads.session_settings(variables) == expected


def test_the_threads_of_one_core_count_once(tmp_path):
    for processor, siblings in enumerate(["0,2", "1,3", "0,2", "1,3"]):
        folder = tmp_path / f"sys/devices/system/cpu/cpu{processor}/topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text(f"{siblings}\n")
    assert threads.physical_cores({0, 1, 2, 3}, tmp_path) == 2
    assert threads.physical_cores({0, 2}, tmp_path) == 1
    assert threads.physical_cores({4, 5}, tmp_path) == 2  # nothing known


def test_the_work_of_others_is_told_from_our_own():
    loop = [sys.executable, "-c", "while True: pass"]
    before = threads.others_load(0.5)
    processes = [subprocess.Popen(loop) for _ in range(2 * (os.cpu_count() or 1))]
    try:
        crowded = threads.others_load(0.5)
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert before is not None and crowded is not None
    assert crowded > 0.8 * len(threads.usable_processors())
