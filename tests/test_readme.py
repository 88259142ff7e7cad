"""What README.md and docs/ show: command lines exist, and what can run on small data runs."""

from __future__ import annotations

import dataclasses
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer

import dela
from dela.cli import main as cli
from dela.families import FAMILIES, find_family
from documents import PAGES, REPOSITORY, Block, blocks, commands
from small_networks import CONFIG, make_cloud, scene_pyramid, write_network

README = REPOSITORY / "README.md"
BLOCKS = [block for page in PAGES for block in blocks(page)]
COMMANDS = [command for block in BLOCKS for command in commands(block)]

# Heading of a block of README.md that is not run -> why; all other command lines there are.
NOT_RUN = {
    "How well does it do on real lidar?": "trains for 23 minutes on six tiles of lidar",
    "How do I reproduce S3DIS / ScanNet / ScanObjectNN?": "the archives are not at hand",
    "How do I use several GPUs?": "needs GPUs; tests/training/run/test_distributed.py runs it",
    "I have a released DeLA v2 checkpoint. Can I use it?": (
        "needs one; tests/dela/families/test_reference_import.py makes its own"
    ),
    "How do I build an engine?": "runs on a GPU; tests/export/test_engine.py builds engines",
}
# One step of a small training in place of hours; appended to `dela train`.
SHORT = ("train.epochs=1", "train.steps_per_epoch=1", "train.batch_size=1", "data.points=500")
RUN_BLOCKS = [
    block
    for block in BLOCKS
    if block.page == README and block.heading not in NOT_RUN and list(commands(block))
]


def named(value: Any) -> str:
    return value.name if isinstance(value, Block) else f"{value.block.name} {value.text}"


def block_of(page: str, heading: str, language: str) -> Block:
    """The first block of a language under a heading."""
    return next(
        block
        for block in BLOCKS
        if (block.page.name, block.heading, block.language) == (page, heading, language)
    )


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    return write_network(tmp_path_factory.mktemp("network"), CONFIG)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of the README's configuration after one step."""
    folder = tmp_path_factory.mktemp("trained")
    write_tiles(folder / "scans")
    write_config(folder / "my.toml")
    overrides = [word for text in SHORT for word in ("--set", text)]
    words = ["train", str(folder / "my.toml"), "--data", str(folder / "scans"), *overrides]
    cli.run_command([*words, "-o", str(folder / "run")])
    return folder / "run" / "best.pt"


@pytest.fixture
def folder(tmp_path, monkeypatch, network, trained):
    """The current folder, with the files that the README's lines name."""
    monkeypatch.chdir(tmp_path)
    scan = make_cloud(1500, (2.0, 2.0, 1.0))
    Path("scans").mkdir()
    for name in ("scan.laz", "scan.ply", "scans/a.laz", "scans/b.laz"):
        dela.write_cloud(name, scan)
    write_config(Path("my.toml"))
    shutil.copy(network.onnx, "model.onnx")
    shutil.copy(network.checkpoint, "best.pt")
    Path("runs/big").mkdir(parents=True)
    shutil.copy(trained, "runs/big/best.pt")
    return tmp_path


def write_config(path: Path) -> None:
    """The README's own configuration."""
    block = block_of("README.md", "How do I train on my own scans?", "toml")
    path.write_text(block.text, encoding="utf-8")


def write_tiles(folder: Path) -> None:
    """Scans as the README's configuration wants them: every class in each."""
    folder.mkdir(parents=True, exist_ok=True)
    for seed, name in enumerate(("tile_77050_a", "tile_77055_a", "tile_77060_a")):
        tile = make_cloud(1500, (20.0, 20.0, 5.0), seed)
        rng = np.random.default_rng(seed)
        tile.columns["return_number"] = rng.integers(1, 4, len(tile)).astype(np.uint8)
        tile.columns["number_of_returns"] = np.full(len(tile), 3, np.uint8)
        tile.columns["classification"] = rng.choice([2, 4, 5], len(tile)).astype(np.uint8)
        dela.write_cloud(folder / f"{name}.laz", tile, overwrite=True)


@pytest.mark.parametrize("command", COMMANDS, ids=named)
def test_a_documented_command_line_is_understood(command):
    words = list(command.words)
    parser: Any = typer.main.get_command(cli._application(words[0]))
    while hasattr(parser, "commands"):
        name = words.pop(0)
        assert name in parser.commands, f"{command.text}: there is no command {name}"
        parser = parser.commands[name]
    try:
        parser.make_context("dela", words)
    except Exception as error:
        pytest.fail(f"{named(command)}: {error}")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_documented_settings_exist(page):
    from dela.training.settings.augment import AugmentConfig
    from dela.training.settings.data import DataConfig
    from dela.training.settings.train import ScheduleConfig

    kinds = {
        "train": (ScheduleConfig,),
        "data": (DataConfig,),
        "augment": (AugmentConfig,),
        "model": tuple(find_family(name).config for name in FAMILIES),
    }
    sections = {
        name: {field.name for config in configs for field in dataclasses.fields(config)}
        for name, configs in kinds.items()
    }
    sections["model"] |= {"family", "preset"}
    text = page.read_text(encoding="utf-8")
    for block in blocks(page):
        if block.language == "python":
            text = text.replace(block.text, "")
    for section, key in re.findall(r"[`\s'](train|data|augment|model)\.([a-z_]+)\b(?!\()", text):
        if key not in ("pt", "onnx", "engine", "toml", "eval", "config"):
            assert key in sections[section], f"{page.name} names {section}.{key}"


@pytest.mark.parametrize("block", RUN_BLOCKS, ids=named)
def test_the_readmes_command_lines_run(block, folder):
    write_tiles(folder / "scans")
    if block.heading == "How do I run it on my own scan?":
        for path in (folder / "scans").glob("tile_*"):
            path.unlink()  # the network wants colors
    else:
        shutil.move("scans", "labelled")
        shutil.copytree("labelled", "scans", ignore=lambda *_: ["a.laz", "b.laz"])
        shutil.copytree("scans", "other/labelled/scans")
    for command in commands(block):
        words = ["scans" if word == "/path/to/scans" else word for word in command.words]
        if words[0] == "train":
            words += [word for text in SHORT for word in ("--set", text)]
        if words[0] == "export":
            Path(words[-1]).unlink()  # of another block
        cli.run_command(words)
    made = {
        "How do I run it on my own scan?": ("scan_labelled.laz", "labelled/b_labelled.laz"),
        "How do I train on my own scans?": ("runs/mine/best.pt", "model.onnx"),
        "How do I fine-tune?": ("runs/tuned/best.pt",),
    }
    for name in made.get(block.heading, ()):
        assert (folder / name).is_file()


def test_the_readmes_predictor_labels_every_point(folder):
    names: dict[str, Any] = {}
    exec(block_of("README.md", "How do I run it on my own scan?", "python").text, names)
    assert names["prediction"].labels.shape == names["prediction"].confidence.shape == (1500,)


def test_the_readmes_operators_and_network_run():
    import torch

    block = block_of(
        "README.md", "How do I use the operators or the network in my own code?", "python"
    )
    inputs = scene_pyramid(CONFIG, 1000, side=1.0)
    points, neighbors = (torch.from_numpy(array) for array in (inputs.points, inputs.neighbors[0]))
    names: dict[str, Any] = {
        "points": points,
        "neighbors": neighbors,
        "attributes": np.zeros((len(points), 4), np.float32),
        "features": torch.randn(len(points), 8),
        "weight": torch.rand(12, 8),
        "centers": torch.arange(len(points), dtype=torch.int32),
    }
    first, pooled, rest = re.split(r"(?m)^(?=pooled =|model =)", block.text)
    exec(first, names)
    exec("from dela import ops\n" + pooled, names | {"weight": torch.rand(4, 2)})
    exec("import dela\n" + rest, names)
    assert names["distance"].shape == (len(points), 8)
    assert names["logits"].shape == (len(points), 7)


def test_the_documented_adapters_train_and_merge(folder, trained):
    from dela.artifacts.checkpoint import load_checkpoint

    write_tiles(folder)
    text = (
        Path("my.toml")
        .read_text(encoding="utf-8")
        .replace("[data]", '[data]\nroot = "."\npoints = 500')
    )
    train = "\n[train]\nepochs = 1\nsteps_per_epoch = 2\nbatch_size = 1\nlearning_rate = 0.01\n"
    Path("my_scans.toml").write_text(text + train, encoding="utf-8")
    shutil.copy(trained, "s3dis.pt")
    heading = "How do I train adapters instead of all weights?"
    exec(block_of("training.md", heading, "python").text, {"__name__": "adapters"})

    before = load_checkpoint("s3dis.pt").model.state_dict()
    after = load_checkpoint("runs/gains/last.pt").model.state_dict()
    changed = {
        name
        for name in before
        if before[name].is_floating_point() and not before[name].equal(after[name])
    }
    gained = {name for name in changed if name.endswith("reduce.weight")}
    assert gained
    for name in gained:  # rows scaled, nothing else
        ratio = after[name] / before[name]
        assert (ratio / ratio[:, :1] - 1).abs().max() < 1e-3


def test_the_documented_columns_are_those_of_a_prepared_dataset(tmp_path, monkeypatch):
    from raw_layouts import write_s3dis

    monkeypatch.chdir(tmp_path)
    rooms = write_s3dis(tmp_path / "raw")
    cli.run_command(["data", "prepare", "s3dis", "raw", "-o", "data/s3dis", "--workers", "1"])
    names: dict[str, Any] = {}
    exec(block_of("datasets.md", "Prepared data from Python", "python").text, names)
    assert names["name"] in names["manifest"]["splits"]["val"]
    assert names["points"].shape == rooms[names["name"]][0].shape


def test_the_documented_gpu_pyramids_and_outputs_run(emulated_cuda, folder, network, monkeypatch):
    from dela.plugins.cuda.arrays import DeviceArray
    from dela.plugins.cuda.driver import Device, Stream
    from dela.plugins.tensorrt import bindings
    from dela.runtime import load_backend
    from standin_tensorrt import StandInTensorRT, write_engine

    trt = StandInTensorRT()
    monkeypatch.setattr(bindings, "load", lambda flavour: trt)
    write_engine(folder, network.onnx, "100:1000:6000")
    inputs = scene_pyramid(CONFIG, 800)
    expected = load_backend(network.checkpoint).run(inputs)
    stream = Stream(Device())
    names: dict[str, Any] = {
        "pyramid": inputs,
        "mine": DeviceArray.empty(expected.shape, np.float32),
        "stream": stream,
        "points": DeviceArray.from_host(inputs.points, stream),
        "attributes": DeviceArray.from_host(inputs.attributes, stream),
    }
    outputs, pyramids = (
        block.text
        for block in BLOCKS
        if (block.page.name, block.language) == ("runtime.md", "python")
    )
    exec(outputs, names)
    found = [names["mine"].to_host(stream), names["logits"].to_host(stream)]
    exec(pyramids, names)
    found.append(names["logits"].to_host(stream))
    for logits in found:
        np.testing.assert_allclose(logits, expected, atol=1e-4 * np.abs(expected).max())
    assert names["neighbors"].shape == (len(inputs.points), 24)


def test_every_documented_program_is_python():
    for block in BLOCKS:
        if block.language == "python":
            compile(block.text, block.name, "exec")


def test_every_skipped_block_is_still_there():
    headings = {block.heading for block in BLOCKS if block.page == README}
    assert set(NOT_RUN) <= headings
