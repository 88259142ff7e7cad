"""What a preparation is to make: the units of a dataset and the facts that hold for all of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias

from dela.errors import InputError
from dela.model.contract import ClassInfo
from dela.training.prepare.store import Record

# Called with (scans done, scans in all, the name of the one at hand).
ScanProgress: TypeAlias = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Unit:
    """One scene (or one set of small clouds) to be made.

    Attributes:
        name: of its folder.
        split: ``train``, ``val`` or ``test``.
        files: raw files it is read from, all of them, sorted.
        facts: what its reader needs beside; plain JSON types.
    """

    name: str
    split: str
    files: tuple[Path, ...]
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """All units of a dataset.

    Attributes:
        dataset: its name on the command line.
        task: ``segmentation`` (scenes), ``classification`` or ``parts`` (sets of small clouds).
        classes: in label order; for ``parts`` the parts.
        units: in the order of the manifest.
        categories: name of each category and the class indices of its parts (``parts``).
        grid: voxel size in meters at which scenes are indexed; None for sets of small clouds.
        notes: what was left out, shown before the work starts.
    """

    dataset: str
    task: Literal["segmentation", "classification", "parts"]
    classes: tuple[ClassInfo, ...]
    units: tuple[Unit, ...]
    categories: tuple[tuple[str, tuple[int, ...]], ...] = ()
    grid: float | None = None
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        seen: dict[str, Unit] = {}
        for unit in self.units:
            other = seen.setdefault(unit.name, unit)
            if other is not unit:
                raise InputError(
                    f"{other.files[0]} and {unit.files[0]} would both be the scene {unit.name!r}; "
                    "rename one"
                )


@dataclass(frozen=True)
class Options:
    """What the user may say about a preparation beside the raw folder.

    Attributes:
        grid: instead of the dataset's own voxel size.
        lists: scene lists by split (ScanNet).
        config: training configuration with the class map, splits and columns (``folder``).
        workers: processes; 1 works in this one, None takes a process per core.
        overwrite: make every scene anew, also over another dataset's preparation.
    """

    grid: float | None = None
    lists: Mapping[str, Path] = field(default_factory=dict)
    config: Path | None = None
    workers: int | None = None
    overwrite: bool = False


class MalformedFiles(InputError):
    """Raw files of one unit that cannot be used; ``messages`` has a line for each."""

    def __init__(self, messages: list[str]) -> None:
        super().__init__("\n".join(messages))
        self.messages = tuple(messages)

    def __reduce__(self) -> Any:
        return MalformedFiles, (list(self.messages),)


class Source(Protocol):
    """What the module of a dataset holds.

    Attributes:
        TITLE: which data and which version, in words.
        KIND: ``scenes`` (a label per point), ``objects`` (a label per cloud) or ``parts`` (objects
            with a label per point).
        CLASSES: in label order; empty where a configuration tells them.
    """

    TITLE: str
    KIND: Literal["scenes", "objects", "parts"]
    CLASSES: tuple[ClassInfo, ...]

    def plan(self, raw: Path, options: Options) -> Plan:
        """The units of a raw folder.

        Raises:
            InputError: it has not the dataset's layout.
        """

    def read(self, unit: Unit) -> Record:
        """One unit; called in a worker.

        Raises:
            InputError: it cannot be used; :class:`MalformedFiles` for several files.
        """
