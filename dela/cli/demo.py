"""The command ``dela demo``: the main job from nothing to proof, made of the other commands."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from dela.cli.console import console, table
from dela.cli.options import Overwrite
from dela.errors import InputError

# Rooms of the shipped configuration are generated from seeds far below.
UNSEEN_ROOM = 1_000_012


def demo(
    output: Annotated[
        Path, typer.Option("-o", "--output", help="Folder for everything it leaves.")
    ] = Path("demo"),
    config: Annotated[
        str, typer.Option(help="Training configuration: a shipped name or a TOML file.")
    ] = "demo",
    seed: Annotated[int, typer.Option(help="Seed of the unseen room.")] = UNSEEN_ROOM,
    points: Annotated[
        int, typer.Option(min=1000, help="About how many points the unseen room has.")
    ] = 150_000,
    epochs: Annotated[
        int | None, typer.Option(help="Train shorter or longer than the configuration says.")
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Train on generated rooms, export, predict an unseen room, verify, and draw the result.

    Each step is an ordinary command, printed before it runs; a CPU with 2 cores needs less than
    ten minutes.

    Examples:

    $ dela demo
    $ dela demo --epochs 2 -o quick --overwrite
    """
    if output.exists() and not output.is_dir():
        raise InputError(f"{output} is a file; give a folder with -o")
    if output.is_dir() and any(output.iterdir()) and not overwrite:
        raise InputError(f"{output} is not empty; pass --overwrite or another folder with -o")
    output.mkdir(parents=True, exist_ok=True)

    steps = _Steps(["--overwrite"] if overwrite else [])
    room, model = output / "room.ply", output / "model.onnx"
    checkpoint = output / "run" / "best.pt"
    labelled = output / "room_labelled.ply"
    length = [] if epochs is None else ["--epochs", epochs]
    steps.run("train", "train", config, "-o", output / "run", *length)
    steps.run("generate an unseen room", "room", "--seed", seed, "--points", points, "-o", room)
    steps.run("export to ONNX", "export", checkpoint, "-o", model)
    (scores,) = steps.run(
        "predict (ONNX Runtime)",
        *("predict", room, "-m", model, "-o", labelled, "--truth", "classification"),
    )
    steps.run(
        "predict, written as LAS",
        *("predict", room, "-m", model, "-o", output / "room_labelled.las"),
    )
    parity = steps.run(
        "verify against PyTorch",
        *("verify", model, "--checkpoint", checkpoint, "--input", room),
        repeatable=True,
    )
    steps.run(
        "draw",
        *("view", labelled, "-m", model, "-o", output / "room.png"),
        *("--title", "A room the network has never seen"),
        *("--subtitle", "generated indoor scan, predicted from the exported ONNX file on the CPU"),
    )
    _close(output, steps, scores, parity)


class _Steps:
    """Runs command lines one after the other and notes what each took."""

    def __init__(self, extra: list[str]) -> None:
        from dela.cli.main import run_command

        self._run: Callable[[list[str]], Any] = run_command
        self._extra = extra
        self.times: list[tuple[str, float]] = []

    def run(self, name: str, *words: Any, repeatable: bool = False) -> Any:
        """Runs ``dela`` with these words; ``repeatable`` commands take no --overwrite."""
        line = [str(word) for word in words] + ([] if repeatable else self._extra)
        print(f"\n$ dela {shlex.join(line)}", flush=True)
        start = time.perf_counter()
        result = self._run(line)
        self.times.append((name, time.perf_counter() - start))
        return result


def _close(
    output: Path, steps: _Steps, scores: dict[str, Any], parity: list[dict[str, Any]]
) -> None:
    drawn = table("step", "time")
    for name, seconds in steps.times:
        drawn.add_row(name, f"{seconds:.1f} s")
    drawn.add_section()
    drawn.add_row("in all", f"{sum(seconds for _, seconds in steps.times):.1f} s")
    screen = console()
    screen.print()
    screen.print(drawn)
    screen.print()
    found = scores["scores"]
    screen.print(
        f"unseen room: mIoU {100 * found['miou']:.1f} %, overall accuracy "
        f"{100 * found['oa']:.1f} %, {scores['points']:,} points"
    )
    for item in parity:
        screen.print(
            f"parity with PyTorch, {item['backend']}: error {item['max_relative_error']:.1e} of "
            f"the largest logit, labels agree on {100 * item['label_agreement']:.3f} %"
        )
    screen.print(
        f"look at {output / 'room.png'}, {output / 'room_labelled.ply'}, "
        f"{output / 'room_labelled.las'}",
        soft_wrap=True,
    )
