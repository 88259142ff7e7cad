"""The folder of one training run: configuration, checkpoints, metrics by epoch, final scores."""

from __future__ import annotations

import contextlib
import csv
import fcntl
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from dela.errors import InputError
from dela.files import atomic_path
from dela.text import parse_json
from dela.training.settings.train import TrainConfig


class RunFolder:
    """Paths and small files of a run.

    ``config.toml`` (the effective configuration), ``best.pt``, ``last.pt``, ``metrics.csv`` (one
    line an epoch), ``metrics.json`` (scores of the last validation), ``summary.html`` (both to
    look at), ``events/`` (TensorBoard, when asked for). Files are replaced whole, so a run that is
    killed leaves each as it was before or after.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.config = self.path / "config.toml"
        self.best = self.path / "best.pt"
        self.last = self.path / "last.pt"
        self.log = self.path / "metrics.csv"
        self.scores = self.path / "metrics.json"
        self.summary = self.path / "summary.html"
        self.events = self.path / "events"

    @property
    def _files(self) -> tuple[Path, ...]:
        return self.config, self.best, self.last, self.log, self.scores, self.summary

    @contextlib.contextmanager
    def claimed(self) -> Iterator[None]:
        """Hold the folder, made when missing, against another run; clear away torn files.

        The system gives the folder free when the process ends, however it ends.

        Raises:
            InputError: another process trains here, or the folder cannot be made.
        """
        made = [folder for folder in (self.path, *self.path.parents) if not folder.exists()]
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            handle = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        except OSError as error:
            raise InputError(f"cannot make the run folder {self.path}: {error.strerror}") from error
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise InputError(
                    f"another process trains in {self.path}; give another folder with -o"
                ) from None
            except OSError:
                pass  # a file system without locks
            for known in self._files:
                for torn in self.path.glob(f".{known.stem}.????????{known.suffix}"):
                    torn.unlink(missing_ok=True)
            yield
        finally:
            os.close(handle)
            with contextlib.suppress(OSError):  # one that holds something stays, and those above
                for folder in made:
                    folder.rmdir()

    def refuse_existing(self) -> None:
        """Raises InputError when a run is there already."""
        for file in (self.last, self.best, self.log):
            if file.exists():
                raise InputError(
                    f"{self.path} holds a run already ({file.name}); continue it with --resume, "
                    "replace it with --overwrite, or give another folder with -o"
                )

    def start(self, config: TrainConfig) -> None:
        """Make the folder, remove what an earlier run left in it, write ``config.toml``.

        Raises:
            InputError: the folder cannot be made or written.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            for file in self._files:
                file.unlink(missing_ok=True)
            for events in self.events.glob("events.out.*"):
                events.unlink()
        except OSError as error:
            raise InputError(f"cannot make the run folder {self.path}: {error.strerror}") from error
        with atomic_path(self.config, overwrite=True) as temporary:
            temporary.write_text(to_toml(config), encoding="utf-8")

    def keep_log_until(self, step: int) -> None:
        """Drop the lines of epochs that a resumed run will write again."""
        if not self.log.exists():
            return
        with self.log.open(newline="", encoding="utf-8") as file:
            header, *rows = list(csv.reader(file)) or [[]]
        column = header.index("step") if "step" in header else 0
        # A killed run may leave a torn last line.
        kept = [row for row in rows if len(row) == len(header) and int(row[column]) <= step]
        with (
            atomic_path(self.log, overwrite=True) as temporary,
            temporary.open("w", newline="", encoding="utf-8") as file,
        ):
            csv.writer(file).writerows([header, *kept] if header else [])

    def append_log(self, row: dict[str, Any]) -> None:
        """Add one line to ``metrics.csv``; undefined values stay empty."""
        try:
            new = not self.log.exists()
            with self.log.open("a", newline="", encoding="utf-8") as file:
                writer = csv.writer(file)
                if new:
                    writer.writerow(row)
                writer.writerow(_cell(value) for value in row.values())
        except OSError as error:
            raise InputError(f"cannot write {self.log}: {error.strerror}") from error

    def read_scores(self) -> dict[str, Any]:
        """The contents of ``metrics.json``.

        Raises:
            InputError: it cannot be read or is something else.
        """
        try:
            scores = parse_json(self.scores.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise InputError(f"cannot read {self.scores}: {error}") from error
        if not isinstance(scores, dict):
            raise InputError(f"{self.scores} is not of a training run: it holds no table")
        return scores

    def write_scores(self, scores: dict[str, Any]) -> None:
        with atomic_path(self.scores, overwrite=True) as temporary:
            temporary.write_text(json.dumps(scores, indent=2) + "\n", encoding="utf-8")


def _cell(value: Any) -> Any:
    if value is None or value != value:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else value


def to_toml(config: TrainConfig) -> str:
    """The configuration as TOML that :func:`~dela.training.settings.train.load_config` reads
    back."""
    sections = config.to_dict()
    # The classes are those of [data].
    model = {key: value for key, value in sections["model"].items() if key != "classes"}
    data = dict(sections["data"])
    classes = data.pop("classes")
    lines = ["# The effective configuration of this run, every default written out.", ""]
    lines += ["[data]", *_assignments(data), ""]
    for info in classes:
        lines += ["[[data.classes]]", *_assignments(info), ""]
    for name, values in (("model", model), *((n, sections[n]) for n in ("augment", "train"))):
        lines += [f"[{name}]", *_assignments(values), ""]
    return "\n".join(lines[:-1]) + "\n"


def _assignments(values: dict[str, Any]) -> list[str]:
    return [f"{key} = {_toml(value)}" for key, value in values.items() if value is not None]


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        # A JSON string is a TOML basic string, except that TOML also wants DEL escaped.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{k} = {_toml(v)}" for k, v in value.items()) + " }"
    if isinstance(value, Sequence):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    return repr(value)
