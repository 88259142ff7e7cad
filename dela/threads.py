"""How many threads compute, why so many, and how they wait for each other.

The number follows ``OMP_NUM_THREADS``, the processor affinity and the container's quota, in this
order of precedence, and stays for the life of a process: results that depend on it (sums per
thread) come out the same whatever else the machine does. What follows the load is the waiting, see
``plugins/cpu/waiting.cpp``. Nothing here imports more than the standard library.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator, Mapping, MutableMapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

# Variables of OpenMP with which a user decides about waiting; any of them stands.
WAITING_VARIABLES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")

# Where waiting cannot follow the load, libgomp spins so often: nearly as fast on free cores as its
# own 300,000, a fifth of the loss on busy ones.
_FIXED_SPIN = "10000"

# Microseconds that ONNX Runtime's threads spin for work: as fast as its own, far longer
# spinning on free cores, and little lost on busy ones. Known to its releases from 1.26.
_SESSION_SPIN = 50


@dataclass(frozen=True)
class Threads:
    """How many threads compute.

    Attributes:
        count: at least 1.
        source: what decided, in words.
        limited: a container's quota decided: OpenMP itself would start more.
    """

    count: int
    source: str
    limited: bool = False


# What this process wrote into OMP_NUM_THREADS, and why.
_settled: dict[int, Threads] = {}
# Stands beside GOMP_SPINCOUNT where this package set it, for child processes too.
_SPIN_IS_OURS = "DELA_SPIN_SETTLED"


def settle(environ: MutableMapping[str, str] = os.environ) -> None:
    """Has OpenMP start as many threads as the container's quota has processors.

    OpenMP knows affinity but no quota, and reads its variables once: a torch imported before keeps
    its threads. A variable that is set stands. Where the system does not tell how long threads wait
    for a processor, their spinning is shortened for good.
    """
    if not os.path.exists("/proc/thread-self/schedstat") and not chosen_waiting(environ):
        environ["GOMP_SPINCOUNT"] = environ[_SPIN_IS_OURS] = _FIXED_SPIN
    threads = count_threads(environ)
    if threads.limited:
        environ["OMP_NUM_THREADS"] = str(threads.count)
        _settled[threads.count] = threads


def current_threads() -> Threads:
    """How many threads this process computes with, and what decided before :func:`settle`."""
    threads = count_threads(os.environ)
    return _settled.get(threads.count, threads)


def count_threads(
    environ: Mapping[str, str],
    usable: int | None = None,
    quota: float | None = None,
    root: Path = Path("/"),
) -> Threads:
    """Chooses the number of threads.

    A quota of 1.5 processors gives one thread: the second would be stopped for part of every
    period, and the first would wait for it.

    Args:
        environ: the process's variables.
        usable: processors this process may run on; None asks the system.
        quota: processors' worth of time it is given; None reads the control groups.
        root: where ``proc`` and ``sys`` are looked for.
    """
    wished = _first_number(environ.get("OMP_NUM_THREADS", ""))
    if wished is not None:
        return Threads(wished, f"OMP_NUM_THREADS={environ['OMP_NUM_THREADS']}")
    usable = len(usable_processors()) if usable is None else usable
    quota = cpu_quota(root) if quota is None else quota
    if quota is not None and quota < usable:
        source = f"the container's quota of {quota:.4g} of {usable} processors"
        return Threads(max(1, math.floor(quota)), source, limited=True)
    present = os.cpu_count() or usable
    if usable < present:
        return Threads(usable, f"affinity to {usable} of {present} processors")
    return Threads(usable, f"{usable} processors")


def usable_processors() -> set[int]:
    """Numbers of the processors this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return set(os.sched_getaffinity(0))
    return set(range(os.cpu_count() or 1))


def cpu_quota(root: Path = Path("/")) -> float | None:
    """Processors' worth of time that the control groups leave this process; None: no limit.

    The least of its own group and all groups around it that can be seen, of version 2 (``cpu.max``)
    and version 1 (``cpu.cfs_quota_us``).
    """
    try:
        groups = (root / "proc/self/cgroup").read_text(errors="surrogateescape").splitlines()
        mounts = (root / "proc/self/mountinfo").read_text(errors="surrogateescape").splitlines()
    except OSError:
        return None
    limits = [
        limit
        for folder in _group_folders(groups, mounts, root)
        for limit in (_limit_of(folder),)
        if limit is not None
    ]
    return min(limits, default=None)


def _group_folders(groups: list[str], mounts: list[str], root: Path) -> Iterator[Path]:
    """The folders of this process's groups that control processors, inner ones first."""
    paths = {}
    for line in groups:
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if "cpu" in controllers.split(","):
            paths["cgroup"] = path
        elif number == "0" and not controllers:
            paths["cgroup2"] = path
    for line in mounts:
        # mountinfo: "36 35 0:30 /root /mount/point options ... - type source super-options"
        before, separator, after = line.partition(" - ")
        fields, mounted = before.split(), after.split()
        if not separator or len(fields) < 5 or not mounted or mounted[0] not in paths:
            continue
        kind, options = mounted[0], mounted[-1].split(",")
        if kind == "cgroup" and "cpu" not in options:
            continue
        top = root / _unescaped(fields[4]).lstrip("/")
        inner = PurePosixPath(paths[kind])
        base = PurePosixPath(_unescaped(fields[3]))
        # A group outside of what is mounted (a namespace of its own): the mount's top counts.
        parts = inner.relative_to(base).parts if inner.is_relative_to(base) else ()
        if ".." in parts:
            parts = ()
        for depth in range(len(parts), -1, -1):
            yield top.joinpath(*parts[:depth])


def _limit_of(folder: Path) -> float | None:
    """Processors' worth of time that one group may use; None: no limit, or nothing to read."""
    try:
        if (folder / "cpu.max").is_file():
            quota, period = (folder / "cpu.max").read_text(errors="surrogateescape").split()
        else:
            quota = (folder / "cpu.cfs_quota_us").read_text(errors="surrogateescape")
            period = (folder / "cpu.cfs_period_us").read_text(errors="surrogateescape")
        limit = float(quota) / float(period)
    except (OSError, ValueError, ZeroDivisionError):
        return None
    return limit if limit > 0 else None


def tune_session(options: Any, threads: int | None = None) -> None:
    """Sets threads and waiting in an ``onnxruntime.SessionOptions``.

    Args:
        threads: None takes :func:`session_threads`.
    """
    options.intra_op_num_threads = session_threads() if threads is None else threads
    for name, value in session_settings().items():
        options.add_session_config_entry(name, value)


def session_threads(root: Path = Path("/")) -> int:
    """Threads for a session of ONNX Runtime: one per core, of the processors that are given.

    ONNX Runtime's own choice ties threads to cores and knows no quota.
    """
    threads = current_threads()
    if threads.source.startswith("OMP_NUM_THREADS"):
        return threads.count
    return min(threads.count, physical_cores(usable_processors(), root))


def physical_cores(processors: set[int], root: Path = Path("/")) -> int:
    """How many cores these processors are; two threads of one core count once."""
    cores = set()
    for processor in processors:
        file = root / f"sys/devices/system/cpu/cpu{processor}/topology/thread_siblings_list"
        try:
            cores.add(file.read_text(errors="surrogateescape").strip())
        except OSError:
            cores.add(str(processor))
    return max(1, len(cores))


def session_settings(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Entries of ONNX Runtime's session configuration: how its threads wait for work.

    A policy the user set for OpenMP holds here too: ``active`` leaves ONNX Runtime its long
    spinning, ``passive`` or a spin count of 0 forbids it. Releases that do not know an entry pass
    over it.
    """
    if not chosen_waiting(environ):
        return {"session.intra_op.spin_duration_us": str(_SESSION_SPIN)}
    passive = environ.get("OMP_WAIT_POLICY", "").strip().lower() == "passive"
    if passive or environ.get("GOMP_SPINCOUNT", "").strip() == "0":
        return {"session.intra_op.allow_spinning": "0"}
    return {}


def chosen_waiting(environ: Mapping[str, str] = os.environ) -> str:
    """What the user set about waiting, such as ``OMP_WAIT_POLICY=passive``; empty for nothing."""
    if environ.get(_SPIN_IS_OURS):
        return ""
    return ", ".join(f"{name}={environ[name]}" for name in WAITING_VARIABLES if environ.get(name))


def others_load(seconds: float = 0.25) -> float | None:
    """How many of the usable processors other processes keep busy; None: the system does not say.

    Measures for so many ``seconds``.
    """
    before, own = busy_seconds(), time.process_time()
    if before is None:
        return None
    start = time.perf_counter()
    time.sleep(seconds)
    after, elapsed = busy_seconds(), time.perf_counter() - start
    if after is None:
        return None
    return max(0.0, (after - before - (time.process_time() - own)) / elapsed)


def busy_seconds() -> float | None:
    """Seconds for which the usable processors were not idle, since the machine started."""
    names = {f"cpu{number}" for number in usable_processors()}
    try:
        lines = Path("/proc/stat").read_text(errors="surrogateescape").splitlines()
        ticks = os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError):
        return None
    total = 0
    for line in lines:
        name, *values = line.split()
        if name in names:
            # user nice system idle iowait irq softirq steal; guests are in user already
            user, nice, system, _, _, *rest = map(int, values[:8])
            total += user + nice + system + sum(rest)
    return total / ticks


def _first_number(text: str) -> int | None:
    """The threads of the outermost level in a value such as ``4`` or ``4,2``."""
    first = text.partition(",")[0].strip()
    return int(first) if first.isdecimal() and int(first) > 0 else None


def _unescaped(field: str) -> str:
    """A path of mountinfo, which writes blanks as octal."""
    return field.replace("\\040", " ").replace("\\011", "\t").replace("\\134", "\\")
