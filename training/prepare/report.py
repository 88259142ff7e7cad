"""What a preparation shows while it runs and when it ends, and what `dela data info` prints."""

from __future__ import annotations

import math
import sys
import time
from typing import Any

from dela.cli.console import ProgressBar, note
from dela.training.prepare.runner import Summary

# Seconds between two lines of the plain log.
_LOG_EVERY = 10.0


class PrepareProgress:
    """A bar on a terminal's stderr, a line every ten seconds elsewhere; a context manager."""

    def __init__(self) -> None:
        self._bar = ProgressBar("preparing")
        self._quiet_until = math.inf if sys.stderr.isatty() else time.monotonic() + _LOG_EVERY

    def __enter__(self) -> PrepareProgress:
        self._bar.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.__exit__(*error)

    def __call__(self, done: int, total: int, name: str) -> None:
        """``done`` of ``total`` scenes, ``name`` the last."""
        self._bar.update(done, total, name)
        if time.monotonic() > self._quiet_until and done < total:
            self._quiet_until = time.monotonic() + _LOG_EVERY
            note(f"{done} of {total}: {name}")

    def line(self, text: str) -> None:
        """A line on stderr, above the bar."""
        with self._bar.paused():
            note(text)


def summary_text(summary: Summary) -> str:
    """The closing lines of `dela data prepare`."""
    facts = summary.to_dict()
    parts = [f"{summary.prepared} prepared"]
    if summary.kept:
        parts.append(f"{summary.kept} kept from before")
    if summary.failed:
        parts.append(f"{summary.malformed} malformed files in {len(summary.failed)}")
    splits = ", ".join(
        f"{split} {counts['clouds']:,} clouds ({counts['points']:,} points)"
        for split, counts in facts["splits"].items()
        if counts["scenes"]
    )
    lines = [f"{summary.output}: {', '.join(parts)}; {splits or 'nothing to train on'}"]
    if summary.left_over:
        lines.append(
            f"{len(summary.left_over)} folders of an earlier run are in no split any more, such as "
            f"{summary.left_over[0]}"
        )
    return "\n".join(lines)


def manifest_text(out: object, manifest: dict[str, Any]) -> str:
    """The description that `dela data info` prints."""
    scenes = manifest["scenes"]
    columns = sorted({name for scene in scenes.values() for name in scene["columns"]})
    lines = [
        f"{out}: {manifest['dataset']}, {manifest['task']}, format {manifest['version']}, "
        f"made by dela {manifest['dela_version']} of {manifest['source']}",
        f"columns: {', '.join(columns) or 'none'}",
    ]
    if manifest["grid"] is not None:
        lines.append(f"voxels of {manifest['grid']:g} m are indexed")
    for split, names in manifest["splits"].items():
        if not names:
            continue
        chosen = [scenes[name] for name in names]
        points = sum(scene["points"] for scene in chosen)
        clouds = sum(scene.get("clouds", 0) for scene in chosen)
        what = f"{clouds:,} clouds in {len(names)} sets" if clouds else f"{len(names):,} scenes"
        voxels = sum(scene.get("voxels", 0) for scene in chosen)
        indexed = f", {voxels:,} voxels" if voxels else ""
        lines.append(f"{split}: {what}, {points:,} points{indexed}")
    if manifest["failed"]:
        lines.append(
            f"with malformed files: {len(manifest['failed'])} "
            f"({', '.join(list(manifest['failed'])[:5])})"
        )
    lines += ["", *_class_table(manifest)]
    return "\n".join(lines)


def _class_table(manifest: dict[str, Any]) -> list[str]:
    splits = [split for split, names in manifest["splits"].items() if names]
    width = max(len(info["name"]) for info in manifest["classes"])
    rows = [f"{'class':<{width}} {'code':>5}" + "".join(f"{split:>16}" for split in splits)]
    for number, info in enumerate(manifest["classes"]):
        cells = "".join(f"{manifest['counts'][split][number]:>16,}" for split in splits)
        rows.append(f"{info['name']:<{width}} {info['code']:>5}{cells}")
    return rows
