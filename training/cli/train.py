"""The command ``dela train``."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dela.cli.console import print_json
from dela.cli.options import DataRoot
from dela.errors import ConfigError, InputError

if TYPE_CHECKING:
    from dela.training.run.loop import TrainResult

EXIT_INTERRUPTED = 130


def train(
    config: Annotated[
        str,
        typer.Argument(help="TOML file, or one of the package's own by name: demo, rooms ..."),
    ],
    data: DataRoot = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Run folder; runs/NAME when left out.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where the run stopped.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier run.")] = False,
    init: Annotated[
        Path | None,
        typer.Option(help="Checkpoint (.pt) to start from; what does not fit starts anew."),
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="Instead of train.epochs.")] = None,
    seed: Annotated[int | None, typer.Option(help="Instead of train.seed.")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")] = "cpu",
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Override one key; repeatable."),
    ] = None,
    json_: Annotated[
        bool, typer.Option("--json", help="Print the final scores as JSON; the log goes to stderr.")
    ] = False,
) -> Any:
    """Train a network: `dela train rooms -o runs/rooms`.

    The run folder receives config.toml, best.pt, last.pt, metrics.csv, metrics.json and
    summary.html. Several GPUs: `torchrun --nproc-per-node 4 -m dela train rooms --device cuda`.

    Examples:

    $ dela train my.toml --data /path/to/scans -o runs/mine
    $ dela train my.toml -o runs/mine --resume
    """
    from dela.training.run.loop import TrainingInterrupted
    from dela.training.run.loop import train as run
    from dela.training.settings.train import load_config

    if resume and overwrite:
        raise typer.BadParameter("--resume goes on with a run, --overwrite removes it; give one")
    overrides = _overrides(set_ or [], epochs, seed, init)
    path = find_config(config)
    log = _log_to(sys.stderr if json_ else sys.stdout)
    first = os.environ.get("RANK", "0") == "0"  # of the processes that torchrun started
    try:
        loaded = load_config(path, overrides, data)
        folder = output or Path("runs") / path.stem
        result = run(loaded, folder, resume=resume, overwrite=overwrite, device=device, log=log)
    except TrainingInterrupted as interruption:
        if first:
            print(interruption, file=sys.stderr)
        raise SystemExit(EXIT_INTERRUPTED) from None
    if first:
        _show_result(result, json_, log)
    return result


def _overrides(
    given: Sequence[str], epochs: int | None, seed: int | None, init: Path | None
) -> list[str]:
    """What the command line sets of the configuration, as ``section.key=value``."""
    from dela.training.settings.train import override_parts

    for override in given:
        try:
            override_parts(override)
        except ConfigError as error:
            raise typer.BadParameter(f"--set: {error}") from None
    own = {"epochs": epochs, "seed": seed}
    overrides = [
        *given,
        *(f"train.{key}={value}" for key, value in own.items() if value is not None),
    ]
    if init is not None:
        overrides.append(f"train.init={json.dumps(str(init.absolute()))}")
    return overrides


def _show_result(result: TrainResult, as_json: bool, log: Callable[[str], None]) -> None:
    if as_json:
        print_json(result.metrics, indent=None)
        return
    scores = result.metrics["validation"]
    if scores is not None:
        log(_scores_table(scores))
    log(f"network: {result.best_path}")


def find_config(name: str) -> Path:
    """A configuration file, or one of the package's own by its name.

    Raises:
        InputError: neither; the message lists the package's own.
    """
    path = Path(name)
    if path.is_file():
        return path
    folder = Path(__file__).parents[1] / "configs"
    shipped = {file.stem: file for file in sorted(folder.glob("*.toml"))}
    if name in shipped:  # also where a run left a folder of that name
        return shipped[name]
    if path.exists():
        return path
    raise InputError(
        f"there is no configuration file {name}; give a TOML file or one of: "
        f"{', '.join(sorted(shipped))}"
    )


def _log_to(stream: Any) -> Callable[[str], None]:
    return lambda text: print(text, file=stream, flush=True)


def _scores_table(scores: dict[str, Any]) -> str:
    from dela.scores.confusion import Confusion

    names = [row["name"] for row in scores["classes"]]
    return Confusion(len(names), scores["confusion"]).table(names)
