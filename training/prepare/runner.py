"""Preparing a dataset: scenes in parallel processes, finished ones kept, broken ones reported."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

import dela
from dela.errors import DelaError, InputError
from dela.threads import count_threads
from dela.training.prepare import dataset_module
from dela.training.prepare.encode import encode
from dela.training.prepare.plan import SPLITS, MalformedFiles, Options, Plan, Unit
from dela.training.prepare.store import (
    MANIFEST,
    SCENES,
    damage,
    raw_digest,
    read_manifest,
    read_scene,
    remove_partial,
    write_manifest,
    write_scene,
)

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
# What the manifest repeats of each scene, so that opening the data reads one file.
_SUMMARY = ("points", "counts", "ignored", "grid", "voxels", "voxel_counts", "clouds", "origin")


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


@dataclass
class Summary:
    """What a preparation did.

    Attributes:
        failed: scene (or set of clouds) -> a line for each of its malformed files.
        notes: what was repaired or left out.
        left_over: scenes in the folder that the raw data no longer has; they are in no split.
    """

    output: Path
    manifest: dict[str, Any]
    prepared: int = 0
    kept: int = 0
    failed: dict[str, list[str]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    left_over: list[str] = field(default_factory=list)

    @property
    def malformed(self) -> int:
        """How many raw files could not be used."""
        return sum(len(messages) for messages in self.failed.values())

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        splits = {}
        for split, names in self.manifest["splits"].items():
            scenes = [self.manifest["scenes"][name] for name in names]
            splits[split] = {
                "scenes": len(scenes),
                "clouds": sum(scene.get("clouds", 1) for scene in scenes),
                "points": sum(scene["points"] for scene in scenes),
            }
        return {
            "output": str(self.output),
            "dataset": self.manifest["dataset"],
            "prepared": self.prepared,
            "kept": self.kept,
            "failed": self.failed,
            "malformed_files": self.malformed,
            "notes": self.notes,
            "left_over": self.left_over,
            "splits": splits,
        }


# Called with (units done, units in all, name of the last) after each unit.
Progress = Callable[[int, int, str], None]


def prepare(
    dataset: str,
    raw: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    options: Options | None = None,
    workers: int | None = None,
    overwrite: bool = False,
    log: Callable[[str], None] = print,
    progress: Progress | None = None,
) -> Summary:
    """Prepare a dataset for training.

    A scene whose raw files and stored columns still have their checksums is kept; all others are
    made, each whole or not at all. A malformed file costs its scene alone. The result does not
    depend on the number of workers.

    Args:
        dataset: a name in :data:`~dela.training.prepare.DATASETS`.
        raw: folder of the raw data.
        out: folder to make or to go on with.
        workers: processes; 1 works in this one, None takes a process per core.
        overwrite: make every scene anew, also over another dataset's preparation.
        log: receives a line for each malformed file, repair and omission.

    Raises:
        InputError: raw data that has not the dataset's layout, an ``out`` that is something else,
            another preparation at work in it, a full disk, or a worker that was killed.
    """
    raw, out = Path(raw), Path(out)
    options = options or Options()
    if not raw.is_dir():
        what = "is not a folder" if raw.exists() else "does not exist"
        raise InputError(f"{raw} {what}; give the folder of the raw data")
    plan = dataset_module(dataset).plan(raw, options)
    if not plan.units:
        raise InputError(f"{raw} holds nothing of {dataset}; docs/datasets.md shows its layout")
    _refuse_foreign(out, plan, overwrite)
    header = _header(plan, raw)
    summary = Summary(out, {}, notes=list(plan.notes))
    for note in plan.notes:
        log(note)
    outcomes: dict[str, Outcome] = {}
    with _locked(out):
        write_manifest(out, header | {"complete": False})
        (out / SCENES).mkdir(exist_ok=True)
        remove_partial(out)
        try:
            for outcome in _outcomes(plan, raw, out, workers, overwrite):
                if outcome.status == "stop":
                    raise InputError(
                        f"{outcome.messages[0]}; {len(outcomes)} of {len(plan.units)} scenes "
                        "are done: repeat the command to go on"
                    )
                outcomes[outcome.name] = outcome
                for line in (*outcome.notes, *outcome.messages):
                    log(line)
                if progress is not None:
                    progress(len(outcomes), len(plan.units), outcome.name)
        except BrokenProcessPool as error:
            raise InputError(
                "a worker process was killed, perhaps for want of memory; "
                f"{len(outcomes)} of {len(plan.units)} scenes are done: repeat the command "
                "with fewer --workers"
            ) from error
        finally:
            remove_partial(out)
        summary.manifest = header | _contents(plan, outcomes)
        write_manifest(out, summary.manifest)
        names = {unit.name for unit in plan.units}
        summary.left_over = sorted(
            folder.name for folder in (out / SCENES).iterdir() if folder.name not in names
        )
    for unit in plan.units:
        outcome = outcomes[unit.name]
        summary.prepared += outcome.status == "prepared"
        summary.kept += outcome.status == "kept"
        summary.notes += outcome.notes
        if outcome.messages:
            summary.failed[unit.name] = list(outcome.messages)
    return summary


@dataclass(frozen=True)
class _Job:
    """A unit with all that a worker needs to make it."""

    unit: Unit
    dataset: str
    task: str
    classes: int
    grid: float | None
    raw: Path
    folder: Path
    recipe: dict[str, Any]
    overwrite: bool


def _outcomes(
    plan: Plan, raw: Path, out: Path, workers: int | None, overwrite: bool
) -> Iterator[Outcome]:
    """Outcomes as they come."""
    jobs = [
        _Job(
            unit,
            plan.dataset,
            plan.task,
            len(plan.classes),
            plan.grid,
            raw,
            out / SCENES / unit.name,
            {
                "dataset": plan.dataset,
                "task": plan.task,
                "classes": [info.name for info in plan.classes],
                "grid": plan.grid,
                "facts": dict(unit.facts),
            },
            overwrite,
        )
        for unit in plan.units
    ]
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


def _make(job: _Job) -> Outcome:
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


def _refuse_foreign(out: Path, plan: Plan, overwrite: bool) -> None:
    """Nothing but a preparation of the same dataset is gone on with."""
    if not out.exists():
        return
    if not out.is_dir():
        raise InputError(f"{out} is not a folder; give the folder to prepare the data in")
    if not (out / MANIFEST).exists():
        if any(entry.name != ".lock" for entry in out.iterdir()):
            raise InputError(f"{out} is not empty and holds no prepared data; give a new folder")
        return
    if overwrite:
        return
    there = read_manifest(out, complete=False).get("dataset")
    if there != plan.dataset:
        raise InputError(
            f"{out} holds the prepared dataset {there!r}; choose another folder or pass --overwrite"
        )


@contextlib.contextmanager
def _locked(out: Path) -> Iterator[None]:
    """One preparation at a time in a folder."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        stream = (out / ".lock").open("w")
    except OSError as error:
        raise InputError(f"cannot write to {out}: {error.strerror or error}") from error
    with stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(f"another preparation is at work in {out}; wait for it") from error
        yield


def _header(plan: Plan, raw: Path) -> dict[str, Any]:
    return {
        "dataset": plan.dataset,
        "task": plan.task,
        "source": str(raw.absolute()),
        "dela_version": dela.__version__,
        "classes": [asdict(info) for info in plan.classes],
        "categories": [{"name": name, "parts": list(parts)} for name, parts in plan.categories],
        "grid": plan.grid,
    }


def _contents(plan: Plan, outcomes: dict[str, Outcome]) -> dict[str, Any]:
    """The manifest's account of the scenes, in the order of the plan."""
    scenes: dict[str, Any] = {}
    splits: dict[str, list[str]] = {split: [] for split in SPLITS}
    counts = {split: np.zeros(len(plan.classes), np.int64) for split in SPLITS}
    failed = {}
    for unit in plan.units:
        outcome = outcomes[unit.name]
        if outcome.messages:
            failed[unit.name] = {"split": unit.split, "messages": list(outcome.messages)}
        if outcome.facts is None:
            continue
        scenes[unit.name] = {key: outcome.facts[key] for key in _SUMMARY if key in outcome.facts}
        scenes[unit.name]["columns"] = sorted(outcome.facts["columns"])
        splits[unit.split].append(unit.name)
        counts[unit.split] += np.array(outcome.facts["counts"], np.int64)
    return {
        "complete": True,
        "scenes": scenes,
        "splits": splits,
        "counts": {split: values.tolist() for split, values in counts.items()},
        "failed": failed,
    }
