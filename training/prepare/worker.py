"""One scene (or one set of small clouds) made, in this process or in one of several workers."""

from __future__ import annotations

import contextlib
import errno
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from dela.errors import DelaError, InputError
from dela.threads import count_threads
from dela.training.prepare import dataset_module
from dela.training.prepare.encode import encode
from dela.training.prepare.plan import MalformedFiles, Unit
from dela.training.prepare.store import damage, raw_digest, read_scene, write_scene

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True)
class Outcome:
    """What became of one unit.

    Attributes:
        status: ``prepared``, ``kept`` (an earlier run's, its checksums stand), ``failed``, or
            ``stop`` when no other unit can do better (the disk is full).
        messages: a line for each malformed file: those for which it failed, or which a set of
            small clouds is without.
        notes: what was repaired or made anew.
        facts: of ``scene.json``, None when it failed.
    """

    name: str
    status: Literal["prepared", "kept", "failed", "stop"]
    messages: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    facts: dict[str, Any] | None = None


@dataclass(frozen=True)
class Job:
    """A unit with all that a worker needs to make it.

    Attributes:
        classes: how many; ``grid``: voxel size of the stored index, None for none.
        raw: the raw folder; ``folder``: the scene's own, in the prepared folder.
        recipe: the settings that a scene depends on beside its raw files.
        overwrite: make it anew, whatever is there.
    """

    unit: Unit
    dataset: str
    task: str
    classes: int
    grid: float | None
    raw: Path
    folder: Path
    recipe: dict[str, Any]
    overwrite: bool


def outcomes(jobs: Sequence[Job], workers: int | None) -> Iterator[Outcome]:
    """Outcomes as they come.

    Args:
        workers: processes; 1 works in this one, None takes one per processor that is given.

    Raises:
        BrokenProcessPool: a worker was killed.
    """
    count = min(workers or count_threads({}).count, len(jobs))
    if count <= 1:
        yield from map(_make, jobs)
        return
    context = multiprocessing.get_context("spawn")
    others = set(multiprocessing.active_children())
    with ProcessPoolExecutor(count, mp_context=context, initializer=_start_worker) as pool:
        try:
            with _without_interrupts():
                futures = [pool.submit(_make, job) for job in jobs]
            for future in as_completed(futures):
                yield future.result()
        except BaseException:  # Ctrl-C, a full disk: nothing under way is worth waiting for
            pool.shutdown(wait=False, cancel_futures=True)
            for worker in set(multiprocessing.active_children()) - others:
                worker.terminate()
            raise


@contextlib.contextmanager
def _without_interrupts() -> Iterator[None]:
    """Ctrl-C waits till the block's end; processes started within never see it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start_worker() -> None:
    """No worker outlives the process that started it."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def leave_with_parent() -> None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=leave_with_parent, daemon=True).start()


def _make(job: Job) -> Outcome:
    """One unit, in a worker."""
    name = job.unit.name
    try:
        digest = raw_digest(job.raw, job.unit.files, job.recipe)
        notes = []
        if job.folder.exists() and not job.overwrite:
            reason = _stale(job.folder, digest)
            if reason is None:
                facts = read_scene(job.folder)
                return Outcome(name, "kept", tuple(facts["malformed"]), facts=facts)
            notes = [f"{name} is made anew: {reason}"]
        record = dataset_module(job.dataset).read(job.unit)
        try:
            columns, facts = encode(record, job.task, job.classes, job.grid)
        except InputError as error:
            raise InputError(f"{_where(job.unit)}: {error}") from error
        facts = write_scene(job.folder, columns, facts | {"name": name, "raw": digest})
        said = (*notes, *record.notes)
        return Outcome(name, "prepared", tuple(record.malformed), said, facts)
    except MalformedFiles as error:
        return Outcome(name, "failed", error.messages)
    except DelaError as error:
        return Outcome(name, "failed", (str(error),))
    except OSError as error:
        if error.errno in _NO_SPACE:
            return Outcome(name, "stop", (f"cannot write {job.folder}: {error.strerror}",))
        where = error.filename or _where(job.unit)
        return Outcome(name, "failed", (f"{where}: {error.strerror or error}",))
    except Exception as error:  # one odd file must not end the work on all the others
        message = " ".join(str(error).split())[:300]
        return Outcome(name, "failed", (f"{_where(job.unit)}: {type(error).__name__}: {message}",))


def _stale(folder: Path, digest: str) -> str | None:
    """Why a scene has to be made anew, or None."""
    with contextlib.suppress(InputError):
        if read_scene(folder).get("raw") != digest:
            return "its raw files or settings have changed"
    return damage(folder)


def _where(unit: Unit) -> str:
    return str(unit.files[0] if len(unit.files) == 1 else unit.files[0].parent)
