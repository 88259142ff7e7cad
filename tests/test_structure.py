"""The structure that ARCHITECTURE.md promises: rooms in their order, sizes a reader can hold."""

from __future__ import annotations

import ast
import graphlib
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
FOLDERS = ("plugins", "dela", "training", "export", "runtime")

# Lowest first; a room imports those before it and, above the core, all of the folders below.
ROOMS = {
    "plugins": ("native", "onnxruntime", "capi", "cuda", "tensorrt"),
    "dela": (
        "errors",
        "text",
        "files",
        "threads",
        "model",
        "cloud",
        "geometry",
        "scores",
        "ops",
        "pyramid",
        "families",
        "artifacts",
        "scan",
        "cli",
    ),
    "training": (
        "settings",
        "augment",
        "rooms",
        "prepare",
        "data",
        "optimize",
        "evaluate",
        "run",
        "cli",
    ),
    "export": ("", "cli"),
    "runtime": ("backends", "predict", "", "cli"),
}
# What a folder may import besides itself.
BELOW = {
    "plugins": set(),
    "dela": {"plugins"},
    "training": {"plugins", "dela"},
    "export": {"plugins", "dela"},
    "runtime": {"plugins", "dela"},
}
MOST_MODULES = 15
LONGEST_MODULE = 500
LONGEST_FUNCTION = 60
MOST_LONG_FUNCTIONS = 5
LONGEST_EVER = 100
MOST_PARAMETERS = 6
# Signatures that users call, or that another library calls, and so stay as they are.
WIDE = {
    "dela.training.optimize.synced_norm.forward",  # of torch's autograd functions
}


def modules() -> Iterator[tuple[str, Path]]:
    """Dotted name and file of every module of the package, each once."""
    for folder in FOLDERS:
        root = REPOSITORY / folder
        for path in sorted(root.rglob("*.py")):
            if "__pycache__" in path.parts or any(parent.is_symlink() for parent in path.parents):
                continue
            parts = list(path.relative_to(REPOSITORY).with_suffix("").parts)
            if folder != "dela":
                parts.insert(0, "dela")
            if parts[-1] == "__init__":
                parts.pop()
            yield ".".join(parts), path


MODULES = dict(modules())
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in MODULES.items()}


def imports(name: str) -> Iterator[str]:
    """Modules of the package that a module imports, also inside its functions; what stands under
    ``if TYPE_CHECKING`` is never run."""
    waiting: list[ast.AST] = [TREES[name]]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "dela":
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield whole if whole in MODULES else node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] == "dela")
        waiting.extend(ast.iter_child_nodes(node))


def place(name: str) -> tuple[str, str]:
    """Folder and room of a module."""
    parts = name.split(".")[1:]
    folder = parts.pop(0) if parts and parts[0] in FOLDERS[2:] + FOLDERS[:1] else "dela"
    room = parts[0] if parts else ""
    return folder, room if room in ROOMS[folder] else ""


def is_table_of_names(name: str) -> bool:
    """Packages whose ``__init__`` only names what their modules hold, imported when used."""
    path = MODULES[name]
    return path.name == "__init__.py" and (
        "def __getattr__" in path.read_text() or not any(imports(name))
    )


def test_no_module_imports_itself_by_a_detour():
    graph = {
        name: {other for other in imports(name) if other != name and not is_table_of_names(other)}
        for name in MODULES
        if not is_table_of_names(name)
    }
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_arrows_between_rooms_point_down():
    upward = []
    for name in MODULES:
        folder, room = place(name)
        for other in imports(name):
            target, below = place(other)
            if target == folder and name.count(".") > 1 and other != "dela":
                order = ROOMS[folder]
                if room in order and below in order and order.index(below) > order.index(room):
                    upward.append(f"{name} -> {other}")
            elif target != folder and target not in BELOW[folder] and other != "dela":
                upward.append(f"{name} -> {other}")
    assert not upward


def test_every_module_stands_in_a_room():
    for name in MODULES:
        folder, room = place(name)
        if folder in ("dela", "training") and name.count(".") > (1 if folder == "dela" else 2):
            assert room, f"{name} is in no room; add it to ROOMS and to ARCHITECTURE.md"


def test_no_folder_holds_more_modules_than_a_reader_can_scan():
    counts: dict[Path, int] = {}
    for path in MODULES.values():
        if path.name != "__init__.py":
            counts[path.parent] = counts.get(path.parent, 0) + 1
    assert {str(folder): count for folder, count in counts.items() if count > MOST_MODULES} == {}


def functions() -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    for name, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield name, node


def test_functions_and_modules_can_be_held_in_the_head():
    lengths = {
        f"{name}.{node.name}": (node.end_lineno or 0) - node.lineno + 1
        for name, node in functions()
    }
    long = {name: length for name, length in lengths.items() if length > LONGEST_FUNCTION}
    assert len(long) <= MOST_LONG_FUNCTIONS, long
    assert max(lengths.values()) <= LONGEST_EVER, long
    lines = {name: len(path.read_text().splitlines()) for name, path in MODULES.items()}
    assert {name: count for name, count in lines.items() if count > LONGEST_MODULE} == {}


def test_functions_take_few_parameters():
    many = {}
    for name, node in functions():
        in_commands = ".cli." in name
        launches = name.startswith(("dela.plugins.cuda", "dela.plugins.tensorrt", "dela.ops"))
        arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        count = sum(argument.arg not in ("self", "cls") for argument in arguments)
        if f"{name}.{node.name}" in WIDE or in_commands or launches:
            continue
        if count > MOST_PARAMETERS:
            many[f"{name}.{node.name}"] = count
    assert many == {}
