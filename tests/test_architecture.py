"""ARCHITECTURE.md and CONTRIBUTING.md against the code: what they name exists, and the lists of
"Where do I add a ..." suffice: each test adds one by the entries that its list names."""

from __future__ import annotations

import ast
import copy
import importlib
import re
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

import dela
import draw_rooms
from dela.errors import DelaError
from small_networks import CONFIG, make_cloud, write_network

REPOSITORY = Path(__file__).resolve().parents[1]
PAGES = ("ARCHITECTURE.md", "CONTRIBUTING.md", "examples/README.md")
FOLDERS = "dela|plugins|training|export|runtime|tests|docs|tools|configs|examples|benchmarks"
NAMED = re.compile(rf"(?<![\w/.(])((?:{FOLDERS})/[\w./-]*)(<?)(?::([A-Za-z_][\w.]*))?")
TEXTS = {page: (REPOSITORY / page).read_text(encoding="utf-8") for page in PAGES}


def references(text: str) -> set[tuple[str, str]]:
    """Paths that a text names, each with the name after its colon or ""."""
    return {
        (path.rstrip("."), name)
        for path, placeholder, name in NAMED.findall(text)
        if not placeholder
    }


def defined(tree: ast.AST, name: str) -> bool:
    """Whether a module defines a name, or a class in it a method or an attribute."""
    first, _, rest = name.partition(".")
    for node in getattr(tree, "body", []):
        names = [node.name] if hasattr(node, "name") else []
        if isinstance(node, ast.Assign):
            names = [target.id for target in node.targets if isinstance(target, ast.Name)]
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names = [node.target.id]
        if first in names:
            return defined(node, rest) if rest else True
    return False


def entries(heading: str) -> str:
    """The list under a heading of ARCHITECTURE.md."""
    return TEXTS["ARCHITECTURE.md"].partition(f"### {heading}?\n")[2].partition("\n### ")[0]


def table(heading: str) -> tuple[ModuleType, str]:
    """The module and the name of the table that a list says to make an entry in."""
    ((path, name),) = {
        (path, name) for path, name in references(entries(heading)) if name.isupper()
    }
    parts = Path(path).with_suffix("").parts
    parts = parts if parts[0] == "dela" else ("dela", *parts)
    return importlib.import_module(".".join(parts).removesuffix(".__init__")), name


@pytest.fixture
def entry(monkeypatch):
    """Makes an entry in the table of a list, for one test."""

    def make(heading: str, key: str, value: Any) -> None:
        module, name = table(heading)
        monkeypatch.setattr(module, name, {**getattr(module, name), key: value})

    return make


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    return write_network(tmp_path_factory.mktemp("network"), CONFIG)


@pytest.mark.parametrize("page", PAGES)
def test_paths_and_functions_named_exist(page):
    missing = []
    for path, name in sorted(references(TEXTS[page])):
        file = REPOSITORY / path
        if not file.exists():
            missing.append(path)
        elif name and not defined(ast.parse(file.read_text(encoding="utf-8")), name):
            missing.append(f"{path}:{name}")
    assert missing == []


@pytest.mark.parametrize("page", [*PAGES, "README.md"])
def test_links_lead_somewhere(page):
    file = REPOSITORY / page
    for target in re.findall(r"\]\(([^)\s]+)\)", file.read_text(encoding="utf-8")):
        if target.startswith("http"):
            continue
        path, _, anchor = target.partition("#")
        other = file.parent / path if path else file
        assert other.exists(), target
        if anchor:
            headings = re.findall(r"(?m)^#+ (.*)$", other.read_text(encoding="utf-8"))
            slugs = {re.sub(r"[^\w -]", "", text.lower()).replace(" ", "-") for text in headings}
            assert anchor in slugs, target


def test_the_pages_are_short_enough_to_read():
    assert 120 <= len(TEXTS["ARCHITECTURE.md"].splitlines()) <= 250
    assert 60 <= len(TEXTS["CONTRIBUTING.md"].splitlines()) <= 150


def test_every_walk_names_its_steps_in_order():
    walks = re.findall(r"(?ms)^## Walk: (.*?)\n(.*?)(?=^## )", TEXTS["ARCHITECTURE.md"])
    assert len(walks) == 4
    for title, text in walks:
        steps = re.findall(r"(?m)^(\d+)\. ", text)
        assert [int(step) for step in steps] == list(range(1, len(steps) + 1)), title
        assert 6 <= len(steps) <= 12


def test_the_picture_is_of_the_rooms_as_they_are():
    drawn = draw_rooms.PICTURE.read_text(encoding="utf-8")
    assert drawn == draw_rooms.draw(), "run `python tools/draw_rooms.py`"
    rooms = draw_rooms.structure().ROOMS
    for folder, names in rooms.items():
        assert f">{folder}/</text>" in drawn
        for name in filter(None, names):
            assert f">{name}</text>" in drawn


def test_a_family_is_its_folder_and_a_line(entry, tmp_path):
    from dela.export import export_onnx
    from dela.runtime import Predictor, load_backend
    from pointnet_family.family import FAMILY

    entry("family of networks", "pointnet", "pointnet_family.family:FAMILY")
    model = dela.create_model("tiny-pointnet", seed=0).eval()
    dela.save_checkpoint(tmp_path / "model.pt", model)
    export_onnx(tmp_path / "model.pt", tmp_path / "model.onnx")  # compared with PyTorch
    scan = make_cloud(800, (1.0, 1.0, 0.5))
    labels = [
        Predictor(load_backend(tmp_path / name)).predict(scan).labels
        for name in ("model.pt", "model.onnx")
    ]
    assert np.mean(labels[0] == labels[1]) > 0.999
    preset = FAMILY.presets["tiny-pointnet"]
    assert load_backend(tmp_path / "model.onnx").config == preset
    with pytest.raises(DelaError, match="unknown family 'other'"):
        dela.families.find_family("other")


def test_a_format_is_its_module_and_an_entry(entry, tmp_path):
    from dela.cloud import formats

    def read(path):
        return dela.PointCloud(np.loadtxt(path, ndmin=2))

    def write(path, cloud):
        np.savetxt(path, cloud.points)

    assert ("dela/cloud/formats/__init__.py", "Format") in references(entries("file format"))
    entry("file format", ".toy", formats.Format("TOY", read, write))
    scan = dela.PointCloud(np.random.default_rng(0).uniform(0, 1, (50, 3)))
    dela.write_cloud(tmp_path / "scan.toy", scan)
    np.testing.assert_array_equal(dela.read_cloud(tmp_path / "scan.toy").points, scan.points)
    assert formats.find_scans([tmp_path]) == [tmp_path / "scan.toy"]
    with pytest.raises(DelaError, match="exists"):
        dela.write_cloud(tmp_path / "scan.toy", scan)


def test_a_dataset_is_its_module_and_a_line(entry, tmp_path, monkeypatch):
    from dela.cli import main as cli
    from dela.model.contract import numbered_classes
    from dela.training.prepare.plan import Plan, Unit
    from dela.training.prepare.store import Record, load_column, read_manifest

    rng = np.random.default_rng(0)
    scene = rng.uniform(0, 2, (500, 3))
    toy: Any = ModuleType("toy_dataset")
    classes = numbered_classes("floor wall")
    units = (Unit("one", "train", (tmp_path / "raw" / "one.npy",)),)
    toy.TITLE, toy.KIND, toy.CLASSES = "a toy", "scenes", classes
    toy.plan = lambda raw, options: Plan("toy", "segmentation", classes, units, grid=0.1)
    labels = (np.arange(500) % 2).astype(np.int16)
    toy.read = lambda unit: Record({"points": np.load(unit.files[0]), "labels": labels})
    monkeypatch.setitem(sys.modules, "toy_dataset", toy)
    (tmp_path / "raw").mkdir()
    np.save(tmp_path / "raw" / "one.npy", scene)

    # The command's choices are made of the table when its module is imported.
    monkeypatch.delitem(sys.modules, "dela.training.cli.data", raising=False)
    entry("dataset", "toy", "toy_dataset")
    words = ["data", "prepare", "toy", str(tmp_path / "raw"), "-o", str(tmp_path / "out")]
    cli.run_command([*words, "--workers", "1"])
    manifest = read_manifest(tmp_path / "out")
    assert manifest["splits"]["train"] == ["one"]
    assert [info["name"] for info in manifest["classes"]] == ["floor", "wall"]
    stored = load_column(tmp_path / "out" / "scenes" / "one", "labels")
    np.testing.assert_array_equal(stored, labels)


def test_an_adapter_is_a_function_given_to_train(tmp_path):
    import torch
    from torch import nn

    from dela.artifacts.checkpoint import load_checkpoint
    from dela.training import load_config, train

    class Shifted(nn.Module):
        """The head's last layer with a trained shift; merged into its bias."""

        def __init__(self, layer):
            super().__init__()
            self.layer, self.shift = layer, nn.Parameter(torch.zeros(layer.out_features))

        def forward(self, x):
            return self.layer(x) + self.shift

        def merged(self):
            plain = copy.deepcopy(self.layer)
            plain.bias.data += self.shift.data
            return plain

    def adapt(model):
        model.requires_grad_(False)
        name = [
            name
            for name, part in model.named_modules()
            if type(part) is nn.Linear and part.bias is not None
        ][-1]
        parent = model.get_submodule(name.rpartition(".")[0])
        setattr(parent, name.rpartition(".")[2], Shifted(model.get_submodule(name)))
        changed.append(f"{name}.bias")

    changed: list[str] = []
    scan = make_cloud(1500, (2.0, 2.0, 1.0))
    dela.write_cloud(tmp_path / "scan.npz", scan)
    classes = "".join(f'[[data.classes]]\nname = "c{c}"\ncodes = [{c}]\n' for c in (2, 5, 6))
    (tmp_path / "small.toml").write_text(
        f'[data]\nkind = "folder"\ntrain = ["scan.npz"]\nlabel = "classification"\npoints = 400\n'
        f"{classes}[model]\ndims = [16, 32]\ndepths = [1, 1]\nneighbors = 8\ngrid = [0.1, 0.2]\n"
        "[train]\nepochs = 1\nsteps_per_epoch = 2\nbatch_size = 1\nlearning_rate = 0.05\n"
    )
    config = load_config(tmp_path / "small.toml", [], tmp_path)
    plain = train(config, tmp_path / "plain", log=lambda line: None)
    start = load_checkpoint(plain.last_path).model.state_dict()
    config = load_config(tmp_path / "small.toml", [f'train.init="{plain.last_path}"'], tmp_path)
    tuned = train(config, tmp_path / "tuned", log=lambda line: None, adapt=adapt)
    found = load_checkpoint(tuned.last_path).model.state_dict()
    weights = {
        name for name, value in found.items() if "running" not in name and "num_" not in name
    }
    assert {name for name in weights if not found[name].equal(start[name])} == set(changed)


def test_a_backend_is_its_module_and_an_entry(entry, network, tmp_path, monkeypatch):
    from dela.runtime import Predictor, load_backend
    from dela.runtime.backends.base import BackendKind

    checkpoint = load_backend(network.checkpoint)
    toy: Any = ModuleType("toy_backend")

    def load(path, options):
        assert options.name == "toy"
        facts = {name: getattr(checkpoint, name) for name in ("config", "metadata", "sha256")}
        return SimpleNamespace(name="toy", path=path, max_points=None, run=checkpoint.run, **facts)

    toy.load = load
    monkeypatch.setitem(sys.modules, "toy_backend", toy)
    entry("backend", "toy", BackendKind((".toy",), "toy_backend:load"))
    (tmp_path / "model.toy").write_bytes(b"toy")
    scan = make_cloud(800, (2.0, 2.0, 1.0))
    backend = load_backend(tmp_path / "model.toy")
    assert backend.name == "toy"
    np.testing.assert_array_equal(
        Predictor(backend).predict(scan).labels, Predictor(checkpoint).predict(scan).labels
    )
    assert load_backend(network.checkpoint, "toy").name == "toy"


def test_an_operator_is_in_every_place_that_its_list_names():
    listed = entries("operator")
    for name in ("spse", "spamp"):
        places = {path for path, _ in references(listed.replace("<name>", name))}
        for path in places:
            text = (REPOSITORY / path).read_text(encoding="utf-8")
            assert re.search(name, text, re.IGNORECASE), f"{path} has no {name}"
        assert f"plugins/math/{name}.h" in places


def test_a_command_is_a_module_and_a_line(entry, monkeypatch, capsys):
    from dela.cli import main as cli

    toy: Any = ModuleType("toy_command")

    def greet(name: str) -> None:
        """Greet a point."""
        print(f"hello {name}")

    toy.greet = greet
    monkeypatch.setitem(sys.modules, "toy_command", toy)
    entry("command", "greet", ("toy_command:greet", "Greet a point."))
    cli.run_command(["greet", "cloud"])
    assert capsys.readouterr().out == "hello cloud\n"
