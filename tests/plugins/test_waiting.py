"""Threads that wait for each other: spinning on free cores, asleep where they have none."""

from __future__ import annotations

import ctypes
import os
import platform
import struct
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dela.plugins import native

# Two threads on one processor: whoever waits takes the time of the one it waits for.
SQUEEZED = """
import ctypes, json, os, sys, time
import numpy as np
{first}
import dela
from dela.geometry import cpu as geometry
from dela.plugins import native

points = np.random.default_rng(0).random((8000, 3), dtype=np.float32)
native.library()
step = lambda: geometry.knn(points, 8, threads=2)
table = step()
before = os.sched_getaffinity(0)
def confine(processors):
    for thread in os.listdir("/proc/self/task"):
        os.sched_setaffinity(int(thread), processors)
def runtimes():
    return sorted({{line.split()[-1] for line in open("/proc/self/maps") if "libgom" in line}})
def cpu(path):
    # Teams whose threads have nothing to do but to meet.
    parallel = ctypes.CDLL(path).GOMP_parallel
    parallel.restype = None
    parallel.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
    nothing = ctypes.cast(ctypes.CDLL(None).labs, ctypes.c_void_p)
    time.sleep(0.05)
    start = time.process_time()
    for _ in range(50):
        parallel(nothing, None, 2, 0)
    return time.process_time() - start
def report(**values):
    print(json.dumps(values))
"""
needs_libgomp = pytest.mark.skipif(
    native.waiting_policy() == "other" or not sys.platform.startswith("linux"),
    reason="waiting is switched in libgomp only",
)
needs_two = pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two processors")


def squeezed(program: str, first: str = "", **variables: str) -> dict:
    import json

    kept = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "GOMP_"))}
    done = subprocess.run(
        [sys.executable, "-c", SQUEEZED.format(first=first) + program],
        env=kept | variables,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@needs_libgomp
@needs_two
@pytest.mark.parametrize("first", ["", "import torch"])
def test_short_waits_leave_the_processor_to_the_thread_they_wait_for(first):
    """Several times over: a team that ends gives spinning back, with the same results."""
    times = squeezed(
        """
confine({min(before)})
(path,) = runtimes()
spinning, short = [], []
for _ in range(3):
    native.force_waiting(False)
    assert not native.waits_shortly()
    spinning.append(cpu(path))
    native.force_waiting(True)
    assert native.waits_shortly()
    short.append(cpu(path))
    assert (step() == table).all()
report(spinning=spinning, short=short)
""",
        first,
    )
    assert min(times["spinning"]) > 3 * max(times["short"])


@needs_libgomp
@needs_two
def test_waits_become_short_by_themselves_where_threads_have_no_processor():
    done = squeezed(
        """
confine({min(before)})
end = time.monotonic() + 20
while not native.waits_shortly() and time.monotonic() < end:
    step()
report(policy=native.waiting_policy(), short=native.waits_shortly())
"""
    )
    assert done == {"policy": "watched", "short": True}


def _usual_slice() -> int:
    """Nanoseconds that a thread runs before others do; 0 where the system does not tell."""
    found = ctypes.create_string_buffer(48)
    told = ctypes.CDLL(None).syscall(315, 0, found, 48, 0) == 0
    return struct.unpack("IIQiIQQQ", found.raw)[5] if told else 0


@needs_libgomp
@pytest.mark.skipif(
    platform.machine() != "x86_64" or not _usual_slice(), reason="needs Linux 6.12 on x86-64"
)
def test_threads_ask_for_short_slices_only_while_waits_are_short():
    done = squeezed(
        """
import struct
def slices():
    found = ctypes.create_string_buffer(48)
    answer = []
    for thread in os.listdir("/proc/self/task"):
        ctypes.CDLL(None).syscall(315, int(thread), found, 48, 0)
        answer.append(struct.unpack("IIQiIQQQ", found.raw)[5])
    return answer
def forced(choice):
    # The sleeping team's threads start meanwhile.
    for _ in range(3):
        native.library().dela_force_waiting(choice)
        time.sleep(0.1)
    return slices()
step()
usual = slices()[0]
chosen = struct.pack("IIQiIQQQ", 48, 0, 0, 0, 0, 700_000, 0, 0)
ctypes.CDLL(None).syscall(314, 0, chosen, 0)
report(usual=usual, short=forced(1), restored=forced(0), again=forced(1))
"""
    )
    # A thread that was given a slice of its own keeps it.
    assert sorted(set(done["short"])) == sorted(set(done["again"])) == [100_000, 700_000]
    assert sorted(set(done["restored"])) == [700_000, done["usual"]]


@needs_libgomp
@pytest.mark.parametrize("variables", [{"OMP_WAIT_POLICY": "active"}, {"GOMP_SPINCOUNT": "1000"}])
def test_what_the_user_set_stands(variables):
    done = squeezed(
        """
confine({min(before)})
end = time.monotonic() + 1
while time.monotonic() < end:
    step()
report(policy=native.waiting_policy(), short=native.waits_shortly())
""",
        **variables,
    )
    assert done == {"policy": "set", "short": False}


@needs_libgomp
def test_a_process_ends_and_forks_while_threads_sleep():
    done = squeezed(
        """
native.force_waiting(True)
time.sleep(0.05)
child = os.fork()
if child == 0:
    geometry.knn(points, 8)
    os._exit(7)
report(child=os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    )
    assert done == {"child": 7}


@needs_libgomp
@needs_two
def test_a_second_libgomp_is_switched_too(tmp_path):
    """As a wheel brings one under a name of its own."""
    done = squeezed(
        f"""
from pathlib import Path
(ours,) = runtimes()
copy = Path({str(tmp_path)!r}) / "libgomp-copy.so"
copy.write_bytes(Path(ours).read_bytes().replace(b"libgomp.so.1", b"libgom2.so.1"))
cpu(str(copy))
confine({{min(before)}})
native.force_waiting(False)
spinning = cpu(str(copy))
native.force_waiting(True)
report(runtimes=len(runtimes()), spinning=spinning, short=cpu(str(copy)))
"""
    )
    assert done["runtimes"] == 2
    assert done["spinning"] > 3 * done["short"]


@needs_libgomp
@needs_two
def test_a_libgomp_that_is_loaded_while_waits_are_short_is_switched(tmp_path):
    done = squeezed(
        f"""
from pathlib import Path
(ours,) = runtimes()
native.force_waiting(True)
copy = Path({str(tmp_path)!r}) / "libgomp-copy.so"
copy.write_bytes(Path(ours).read_bytes().replace(b"libgomp.so.1", b"libgom2.so.1"))
cpu(str(copy))  # it counts the processors when it starts
confine({{min(before)}})
spinning = cpu(str(copy))
native.force_waiting(True)
report(runtimes=len(runtimes()), spinning=spinning, short=cpu(str(copy)))
"""
    )
    assert done["runtimes"] == 2
    assert done["spinning"] > 3 * done["short"]


@needs_libgomp
def test_where_no_thread_is_to_be_had_threads_go_on_spinning():
    """libgomp ends the process that asks it for a thread the system does not grant."""
    done = squeezed(
        """
import resource
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (4 << 20), resource.RLIM_INFINITY))
native.force_waiting(True)
short = native.waits_shortly()
resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
report(short=short, same=bool((step() == table).all()))
"""
    )
    assert done == {"short": False, "same": True}


@needs_libgomp
def test_a_single_thread_has_nobody_to_wait_for():
    done = squeezed(
        """
import subprocess
confine({min(before)})
busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(3)]
try:
    end, seen = time.time() + 1.5, False
    while time.time() < end:
        geometry.knn(points, 8, threads=1)
        seen = seen or native.waits_shortly()
finally:
    for process in busy:
        process.kill()
        process.wait()
report(seen=seen, threads=len(os.listdir("/proc/self/task")))
""",
        OMP_NUM_THREADS="1",
    )
    assert not done["seen"]


def modes(shares: list[float]) -> list[int]:
    judge = native.library().dela_judge_waiting
    judge.restype, judge.argtypes = None, [ctypes.c_void_p, ctypes.c_int32, ctypes.c_void_p]
    history, answer = np.array(shares), np.full(len(shares), -1, dtype=np.int32)
    judge(history.ctypes.data, len(history), answer.ctypes.data)
    return answer.tolist()


def test_one_bad_moment_changes_nothing_and_two_in_a_row_do():
    assert modes([0.0, 0.9, 0.0, 0.9, 0.0]) == [0, 0, 0, 0, 0]
    assert modes([0.0, 0.9, 0.9, 0.0]) == [0, 0, 1, 1]


def test_spinning_returns_after_half_a_second_of_calm():
    assert modes([0.5, 0.5] + [0.01] * 10 + [0.05]) == [0] + [1] * 10 + [0, 0]
    # One window in which something woke up does not count; a share that stays up does.
    assert modes([0.5, 0.5] + [0.01] * 9 + [0.06]) == [0] + [1] * 10 + [0]
    assert modes([0.5, 0.5] + [0.06] * 20) == [0] + [1] * 21


@given(st.lists(st.floats(0, 1), max_size=60))
def test_waits_are_short_when_crowding_was_seen_later_than_calm(shares):
    expected, short = [], 0
    for end in range(1, len(shares) + 1):
        if end >= 2 and min(shares[end - 2 : end]) > 0.10:
            short = 1
        elif end >= 10 and sum(shares[end - 10 : end]) / 10 < 0.04:
            short = 0
        expected.append(short)
    assert modes(shares) == expected
