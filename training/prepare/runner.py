"""Preparing a dataset: scenes in parallel processes, finished ones kept, broken ones reported."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import dela
from dela.errors import InputError
from dela.training.prepare import dataset_module
from dela.training.prepare.plan import Options, Plan, ScanProgress
from dela.training.prepare.store import (
    MANIFEST,
    SCENES,
    read_manifest,
    remove_partial,
    write_manifest,
)
from dela.training.prepare.worker import Job, Outcome, outcomes
from dela.training.settings.data import SPLITS

# What the manifest repeats of each scene, so that opening the data reads one file.
_SUMMARY = ("points", "counts", "ignored", "grid", "voxels", "voxel_counts", "clouds", "origin")


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


def prepare(
    dataset: str,
    raw: str | os.PathLike[str],
    out: str | os.PathLike[str],
    options: Options | None = None,
    *,
    log: Callable[[str], None] = print,
    progress: ScanProgress | None = None,
) -> Summary:
    """Prepare a dataset for training.

    A scene whose raw files and stored columns still have their checksums is kept; all others are
    made, each whole or not at all. A malformed file costs its scene alone. The result does not
    depend on the number of workers.

    Args:
        dataset: a name in :data:`~dela.training.prepare.DATASETS`.
        raw: folder of the raw data.
        out: folder to make or to go on with.
        log: receives a line for each malformed file, repair and omission.
        progress: called after each scene.

    Raises:
        InputError: raw data that has not the dataset's layout, an ``out`` that is something else,
            another preparation at work in it, a full disk, or a worker that was killed.
    """
    raw, out = Path(raw), Path(out)
    options = options or Options()
    plan = _plan(dataset, raw, options)
    _refuse_foreign(out, plan, options.overwrite)
    for note in plan.notes:
        log(note)
    header = _header(plan, raw)
    with _locked(out):
        write_manifest(out, header | {"complete": False})
        (out / SCENES).mkdir(exist_ok=True)
        remove_partial(out)
        try:
            done = _make_all(plan, _jobs(plan, raw, out, options), options.workers, log, progress)
        finally:
            remove_partial(out)
        manifest = header | _contents(plan, done)
        write_manifest(out, manifest)
        return _summary(out, plan, manifest, done)


def _plan(dataset: str, raw: Path, options: Options) -> Plan:
    """What the raw folder is to become."""
    if not raw.is_dir():
        what = "is not a folder" if raw.exists() else "does not exist"
        raise InputError(f"{raw} {what}; give the folder of the raw data")
    plan = dataset_module(dataset).plan(raw, options)
    if not plan.units:
        raise InputError(f"{raw} holds nothing of {dataset}; docs/datasets.md shows its layout")
    return plan


def _jobs(plan: Plan, raw: Path, out: Path, options: Options) -> list[Job]:
    recipe = {
        "dataset": plan.dataset,
        "task": plan.task,
        "classes": [info.name for info in plan.classes],
        "grid": plan.grid,
    }
    return [
        Job(
            unit,
            plan.dataset,
            plan.task,
            len(plan.classes),
            plan.grid,
            raw,
            out / SCENES / unit.name,
            recipe | {"facts": dict(unit.facts)},
            options.overwrite,
        )
        for unit in plan.units
    ]


def _make_all(
    plan: Plan,
    jobs: list[Job],
    workers: int | None,
    log: Callable[[str], None],
    progress: ScanProgress | None,
) -> dict[str, Outcome]:
    """The outcome of every unit, by name."""
    done: dict[str, Outcome] = {}
    try:
        for outcome in outcomes(jobs, workers):
            if outcome.status == "stop":
                raise InputError(
                    f"{outcome.messages[0]}; {len(done)} of {len(plan.units)} scenes "
                    "are done: repeat the command to go on"
                )
            done[outcome.name] = outcome
            for line in (*outcome.notes, *outcome.messages):
                log(line)
            if progress is not None:
                progress(len(done), len(plan.units), outcome.name)
    except BrokenProcessPool as error:
        raise InputError(
            "a worker process was killed, perhaps for want of memory; "
            f"{len(done)} of {len(plan.units)} scenes are done: repeat the command "
            "with fewer --workers"
        ) from error
    return done


def _summary(
    out: Path, plan: Plan, manifest: dict[str, Any], done: Mapping[str, Outcome]
) -> Summary:
    names = {unit.name for unit in plan.units}
    left_over = sorted(entry.name for entry in (out / SCENES).iterdir() if entry.name not in names)
    summary = Summary(out, manifest, notes=list(plan.notes), left_over=left_over)
    for unit in plan.units:
        outcome = done[unit.name]
        summary.prepared += outcome.status == "prepared"
        summary.kept += outcome.status == "kept"
        summary.notes += outcome.notes
        if outcome.messages:
            summary.failed[unit.name] = list(outcome.messages)
    return summary


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


def _contents(plan: Plan, done: Mapping[str, Outcome]) -> dict[str, Any]:
    """The manifest's account of the scenes, in the order of the plan."""
    scenes: dict[str, Any] = {}
    splits: dict[str, list[str]] = {split: [] for split in SPLITS}
    counts = {split: np.zeros(len(plan.classes), np.int64) for split in SPLITS}
    failed = {}
    for unit in plan.units:
        outcome = done[unit.name]
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
