"""The ``dela`` command: a table of commands, each imported only when it runs.

The table names its targets as text, so this module imports nothing above it and ``dela --help``
stays quick; each command lives in a module of its name in its folder's ``cli``.
"""

from __future__ import annotations

import codecs
import contextlib
import importlib
import inspect
import io
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Any

import typer

from dela import __version__
from dela.errors import DelaError, MissingDependencyError, ScanWarning
from dela.text import cut, visible

# name -> (where its function or group of commands lives, the line shown by --help)
COMMANDS: dict[str, tuple[str, str]] = {
    "demo": (
        "dela.cli.demo:demo",
        "The main job in one go: train, export, predict an unseen room, verify.",
    ),
    "data": ("dela.training.cli.data:data", "Prepare datasets for training."),
    "train": ("dela.training.cli.train:train", "Train a network from a TOML configuration."),
    "summary": (
        "dela.training.cli.summary:summary",
        "Draw a training run: curves, confusion matrix, classes.",
    ),
    "eval": ("dela.cli.eval:evaluate", "Score a network of any backend on labelled data."),
    "export": ("dela.export.cli.export:export", "Write a checkpoint as one portable ONNX file."),
    "build": ("dela.export.cli.build:build", "Build a TensorRT engine from an exported file."),
    "predict": ("dela.runtime.cli.predict:predict", "Label scans: files or folders of them."),
    "verify": (
        "dela.runtime.cli.verify:verify",
        "Prove on a scan that a model file gives PyTorch's answer.",
    ),
    "bench": (
        "dela.runtime.cli.bench:bench",
        "Measure the latency of models on backends, side by side.",
    ),
    "info": ("dela.runtime.cli.info:info", "Describe a checkpoint, a model file or a scan."),
    "view": ("dela.runtime.cli.view:view", "Draw a scan and its labels as a PNG."),
    "room": ("dela.training.cli.room:room", "Generate a labelled indoor room."),
    "import-checkpoint": (
        "dela.cli.import_checkpoint:import_checkpoint",
        "Convert a checkpoint of the reference implementation.",
    ),
    "doctor": ("dela.runtime.cli.doctor:doctor", "Check this installation."),
}

# top-level module of an optional package -> the extra of dela that installs it
EXTRAS = {
    "torch": "train",
    "onnx": "train",
    "onnxscript": "train",
    "onnxruntime": "onnxruntime",
    "h5py": "train",
    "PIL": "view",
    "tensorrt": "tensorrt",
    "cuda": "cuda",
}

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of ``dela``; ends the process with 0 (done), 1 (failed) or 2 (usage)."""
    _tolerate_any_name(sys.stdout)
    sys.exit(_run_guarded(sys.argv[1:] if argv is None else list(argv)))


def export_main() -> None:
    """Entry point of ``dela-export``: ``dela export`` under its own name."""
    main(["export", *sys.argv[1:]])


def run_command(argv: Sequence[str]) -> Any:
    """Runs one command line in this process and returns what its function returned.

    Raises:
        DelaError: the command failed.
        SystemExit: a usage error in the command line (code 2), or an interruption (130).
    """
    argv = list(argv)
    try:
        app = _application(requested=_requested(argv))
        result = app(args=argv, prog_name="dela", standalone_mode=False)
    except ModuleNotFoundError as error:
        missing = _missing_dependency(error)
        if missing is None:
            raise
        raise missing from error
    except Exception as error:
        message = _usage_message(error)
        if message is None:
            raise
        print(visible(message), file=sys.stderr)
        raise SystemExit(EXIT_USAGE) from error
    # No command returns a number: one is the exit code of an early end inside Typer (Ctrl-C).
    if type(result) is int and result != 0:
        if result == EXIT_INTERRUPTED:
            print("interrupted", file=sys.stderr)
        raise SystemExit(result)
    return result


def _tolerate_any_name(stream: Any) -> None:
    """File names are bytes: what the stream's encoding lacks is written as the byte or escaped."""
    if isinstance(stream, io.TextIOWrapper):
        utf8 = codecs.lookup(stream.encoding).name == "utf-8"
        stream.reconfigure(errors="surrogateescape" if utf8 else "backslashreplace")


@contextlib.contextmanager
def _scan_warnings_as_notes() -> Iterator[None]:
    """What a reader guessed becomes one line on stderr; other warnings stay as they are."""
    with warnings.catch_warnings():
        usual = warnings.showwarning

        def show(message: Any, category: type[Warning], *place: Any, **more: Any) -> None:
            if issubclass(category, ScanWarning):
                print(visible(cut(f"note: {message}")), file=sys.stderr, flush=True)
            else:
                usual(message, category, *place, **more)

        warnings.showwarning = show
        warnings.simplefilter("always", ScanWarning)
        yield


def _run_guarded(argv: list[str]) -> int:
    """Exit code of a command line; every expected failure becomes one or two lines on stderr."""
    debug = "--debug" in argv
    argv = [word for word in argv if word != "--debug"] or ["--help"]
    try:
        with _scan_warnings_as_notes():
            run_command(argv)
    except SystemExit as request:
        return request.code if isinstance(request.code, int) else EXIT_FAILED
    except (KeyboardInterrupt, typer.Abort):
        print("interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader of our output (head, less) went away: nothing left to say to it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILED
    except Exception as error:
        if debug:
            raise
        print(visible(cut(_failure_message(error))), file=sys.stderr)
        return EXIT_FAILED
    return 0


def _requested(argv: Sequence[str]) -> str | None:
    return next((word for word in argv if not word.startswith("-")), None)


def _application(requested: str | None) -> typer.Typer:
    """The application in which only the requested command carries its real function."""
    app = typer.Typer(
        add_completion=False,
        rich_markup_mode="rich",
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_global_options)
    for name, (target, help_line) in COMMANDS.items():
        if name == requested:
            function = _resolve(target)
            if isinstance(function, typer.Typer):
                app.add_typer(_group(function), name=name)
            else:
                app.command(name, help=_unwrapped(function.__doc__ or help_line))(function)
        else:
            app.command(name, help=help_line)(_placeholder)
    return app


def _group(group: typer.Typer) -> typer.Typer:
    """A command with commands of its own, their help texts unwrapped."""
    for command in group.registered_commands:
        command.help = _unwrapped((command.callback and command.callback.__doc__) or "")
    return group


def _unwrapped(text: str) -> str:
    """Paragraphs in one line each: the terminal's width breaks them, not the source's.

    A paragraph whose lines start with ``$ `` (commands) keeps its lines.
    """
    return "\n\n".join(map(_unwrapped_paragraph, inspect.cleandoc(text).split("\n\n")))


def _unwrapped_paragraph(text: str) -> str:
    lines = text.splitlines()
    if all(line.startswith("$ ") for line in lines):
        return text
    return " ".join(text.split())


def _resolve(target: str) -> Callable[..., Any]:
    module, _, name = target.partition(":")
    return getattr(importlib.import_module(module), name)


def _placeholder() -> None:
    """Stands in the list of commands; never called."""


def _print_version(requested: bool) -> None:
    if requested:
        print(f"dela {__version__}")
        raise typer.Exit


def _global_options(
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of an error; may stand anywhere.")
    ] = False,
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version.", callback=_print_version, is_eager=True
        ),
    ] = False,
) -> None:
    """Point-cloud networks: train, export to one ONNX file, run it on raw scans."""


def _missing_dependency(error: ModuleNotFoundError) -> MissingDependencyError | None:
    package = (error.name or "").partition(".")[0]
    extra = EXTRAS.get(package)
    if extra is None:
        return None
    return MissingDependencyError(
        f"this needs the package {package}, which is not installed; "
        f"install it with: pip install 'dela[{extra}]'"
    )


def _usage_message(error: Exception) -> str | None:
    """The two lines of a usage error, or None for any other error.

    Told by their methods: the classes move between Typer releases.
    """
    if not hasattr(error, "format_message") or not hasattr(error, "exit_code"):
        return None
    context = getattr(error, "ctx", None)
    path = context.command_path if context is not None else "dela"
    message = error.format_message().replace(": Value error, ", ": ")
    return f"{path}: {message}\nTry '{path} --help'."


def _failure_message(error: Exception) -> str:
    if isinstance(error, DelaError):
        return f"error: {error}"
    first_line = (str(error).strip().splitlines() or [""])[0]
    return (
        f"error: {type(error).__name__}: {first_line}\n"
        "This one was not foreseen; repeat with --debug to see where it comes from."
    )
