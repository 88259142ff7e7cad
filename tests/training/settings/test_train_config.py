"""The training configuration: what is accepted, derived, refused, and how refusals read."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import pytest

from dela.errors import ConfigError, InputError
from dela.families.dela.config import PRESETS
from dela.training.run.folder import to_toml
from dela.training.settings.train import TrainConfig, load_config

CONFIGS = Path(__file__).resolve().parents[3] / "configs"
FOLDER = """\
[data]
train = ["a.laz"]
ignore = [0]

[[data.classes]]
name = "ground"
codes = [2, 8]

[[data.classes]]
name = "tree"
codes = [5]
code = 50
color = [1, 2, 3]

[model]
dims = [16, 32]
depths = [1, 1]
neighbors = 8
grid = [0.04, 0.08]
attributes = ["height", {name = "intensity", scale = 500}]

[train]
epochs = 2
"""


@pytest.fixture
def write(tmp_path):
    def write(text: str = FOLDER) -> Path:
        path = tmp_path / "config.toml"
        path.write_text(text)
        return path

    return write


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.toml")), ids=lambda path: path.stem)
def test_every_shipped_configuration_loads(path):
    config = load_config(path)
    assert config.model.num_classes >= 2
    assert TrainConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.toml")), ids=lambda path: path.stem)
def test_a_runs_own_configuration_loads_as_the_one_it_was_started_with(path, tmp_path):
    config = load_config(path, data_root=tmp_path)
    (tmp_path / "config.toml").write_text(to_toml(config), encoding="utf-8")
    assert load_config(tmp_path / "config.toml") == config


def test_the_published_recipes_are_those_of_the_presets():
    for name in ("s3dis", "scannet", "scanobjectnn"):
        config = load_config(CONFIGS / f"{name}.toml")
        published = PRESETS[name]
        assert dataclasses.replace(config.model, classes=published.classes) == published
        named = [info.name for info in published.classes]
        assert [info.name for info in config.model.classes] == named
    assert [c.code for c in load_config(CONFIGS / "scannet.toml").model.classes][-3:] == [
        34,
        36,
        39,
    ]


def test_a_logarithmic_column_without_a_scale_gets_a_usual_one(write):
    given = """["height", {name = "height", log = 0.1}, {name = "intensity", log = 100},
        {name = "intensity", log = 100, scale = 2}, {name = "depth", log = 10}]"""
    text = FOLDER.replace('["height", {name = "intensity", scale = 500}]', given)
    columns = load_config(write(text)).model.attributes
    assert [info.log for info in columns] == [0, 0.1, 100, 100, 10]
    expected = [3.3, math.log(1 + 3.3 / 0.1), math.log(1 + 1000 / 100), 2, 1]
    assert [info.scale for info in columns] == pytest.approx(expected)


def test_part_categories_are_named_by_their_parts(write):
    text = (
        FOLDER
        + """
[[model.categories]]
name = "park"
classes = ["ground", "tree"]
"""
    )
    (category,) = load_config(write(text)).model.categories
    assert (category.name, category.classes) == ("park", (0, 1))
    with pytest.raises(ConfigError, match="category 'park' has the class 'bench'"):
        load_config(write(text.replace('"tree"]', '"bench"]')))
    with pytest.raises(ConfigError, match=r"model\.categories is 'chairs'"):
        load_config(write(), ["model.categories=chairs"])
    parts = load_config(CONFIGS / "shapenetpart.toml").model
    assert len(parts.categories) == 16
    assert sorted(i for c in parts.categories for i in c.classes) == list(range(50))


def test_objects_need_points_and_spread_and_prepared_data(write):
    objects = """[data]
kind = "prepared"
classes = "modelnet40"

[model]
task = "classification"
dims = [16, 32]
depths = [1, 1]
neighbors = 8
points = [64, 16]
spread = [2.2, 4.4]
"""
    config = load_config(write(objects))
    assert config.model.task == "classification"
    assert config.model.coordinate_scale == 40
    assert config.model.num_classes == 40
    with pytest.raises(ConfigError, match=r"model\.points is missing"):
        load_config(write(objects.replace("points =", "grid =")))
    with pytest.raises(ConfigError, match="objects come from a folder of `dela data prepare`"):
        load_config(write(objects.replace('"prepared"', '"folder"')))
    with pytest.raises(ConfigError, match="one of s3dis, scannet"):
        load_config(write(objects.replace('"modelnet40"', '"modelnet"')))


def test_sections_become_the_parts_of_the_configuration(write, tmp_path):
    config = load_config(write())
    assert config.train.epochs == 2
    assert config.data.root == str(tmp_path)
    assert [(c.name, c.code) for c in config.model.classes] == [("ground", 2), ("tree", 50)]
    assert config.model.classes[1].color == (1, 2, 3)
    assert config.model.neighbors == (8, 8)
    assert [(a.name, a.scale) for a in config.model.attributes] == [
        ("height", 3.3),
        ("intensity", 500.0),
    ]


def test_votes_turn_as_the_training_does(write):
    for overrides, axis in (
        ([], "z"),
        (["augment.up=y"], "y"),
        (["augment.rotate_z=0"], ""),
        (["augment.rotate_z=0", "augment.rotate_all=true", "augment.up=x"], "x"),
        (["augment.rotate_z=0", "model.vote_axis=z"], "z"),
    ):
        assert load_config(write(), overrides).model.vote_axis == axis, overrides
    for recipe, axis in (("s3dis", "z"), ("scanobjectnn", "y"), ("shapenetpart", "")):
        assert load_config(CONFIGS / f"{recipe}.toml").model.vote_axis == axis, recipe


def test_spread_follows_the_grid_as_in_the_published_recipe(write):
    model = load_config(
        write(),
        ["model.grid=[0.04, 0.08, 0.16, 0.32]", "model.dims=[8,8,8,8]", "model.depths=[1,1,1,1]"],
    ).model
    published = PRESETS["s3dis"]
    assert model.coordinate_scale == published.coordinate_scale
    assert model.spread == published.spread


def test_a_preset_brings_its_sizes_and_a_new_grid_its_own_spread(write):
    rooms = '[data]\nkind = "rooms"\n[model]\npreset = "s3dis"\n'
    assert load_config(write(rooms)).model == PRESETS["s3dis"]
    coarse = load_config(write(rooms), ["model.grid=[0.08,0.16,0.32,0.64]"]).model
    assert coarse.coordinate_scale == 20
    assert coarse.spread == PRESETS["s3dis"].spread


def test_overrides_win_and_bare_words_are_strings(write):
    config = load_config(
        write(), ["train.epochs=7", "data.label=kind", 'data.val=["b.laz"]', "augment.tilt=5"]
    )
    assert (config.train.epochs, config.data.label) == (7, "kind")
    assert config.data.val == ("b.laz",)
    assert config.augment.tilt == 5.0


def test_data_root_can_be_given_from_outside(write, tmp_path):
    assert load_config(write(), data_root=tmp_path / "x").data.root == str(tmp_path / "x")


@pytest.mark.parametrize(
    ("section", "line", "hint"),
    [
        ("train", "epoch = 3", "did you mean 'epochs'"),
        ("augment", "rotatez = 3", "did you mean 'rotate_z'"),
        ("model", "dim = [3]", "did you mean 'dims'"),
        ("data", "labels = 'x'", "did you mean 'label'"),
    ],
)
def test_an_unknown_key_is_refused_with_its_line_and_the_known_keys(write, section, line, hint):
    text = FOLDER if f"[{section}]" in FOLDER else FOLDER + f"\n[{section}]\n"
    text = text.replace(f"[{section}]\n", f"[{section}]\n{line}\n", 1)
    number = text.splitlines().index(line) + 1
    with pytest.raises(ConfigError, match=f"line {number}: unknown key") as caught:
        load_config(write(text))
    assert hint in str(caught.value)
    assert "known: " in str(caught.value)


def test_unknown_sections_and_class_keys_are_refused(write):
    with pytest.raises(ConfigError, match="unknown key 'training'"):
        load_config(write(FOLDER + "\n[training]\nepochs = 3\n"))
    with pytest.raises(ConfigError, match=r"unknown key 'label' in \[data.classes"):
        load_config(write(FOLDER.replace("codes = [5]", "codes = [5]\nlabel = 3")))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.epochs=0", "train.epochs is 0; it must be at least 1"),
        ("train.epochs=2.5", "expected a whole number"),
        ("train.epochs=true", "expected a whole number"),
        ("train.learning_rate=-1", "must be above 0"),
        ("train.learning_rate=nan", "must be above 0"),
        ("train.label_smoothing=1.5", "must lie in 0..0.99"),
        ("augment.scale=[1.1, 0.9]", "least and largest"),
        ("augment.scale=[1, 2, 3]", "expected 2 values"),
        ("augment.flip=1", "expected true or false"),
        ("augment.up=w", "must be x, y or z"),
        ("augment.mix_end=2", "must lie in 0..1"),
        ("augment.elastic=[[0, 1]]", "a cell size above 0"),
        ("augment.elastic=[0.2, 0.4]", "expected a list"),
        ("augment.cutout=-1", "at least 0"),
        ("augment.cutout_radius=0", "above 0"),
        ("train.warmup_start=2", "must lie in 0..1"),
        ("train.batch_points=-1", "at least 0"),
        ("data.passes=-1", "at least 0"),
        ("data.points=0", "at least 1"),
        ("data.train='a.laz'", "expected a list"),
        ("data.ignore=[2]", "label 2 belongs to"),
        ("data.kind=cloud", "must be prepared, folder, rooms"),
        ("data.kind=rooms", "remove them"),
        ("data.classes=[]", r"\[\[data.classes\]\]"),
        ("model.grid=[0.1, 0]", "above 0"),
        ("model.grid=[0.1, 0.1]", "coarser"),
        ("model.dims=[6, 8]", "multiple of 4"),
        ("model.neighbors=[8]", "neighbors has 1 entries"),
        ("model.preset=s3dis2", "one of: s3dis, scannet"),
    ],
)
def test_values_out_of_range_are_refused_in_words(write, override, message):
    with pytest.raises(ConfigError, match=message):
        load_config(write(), [override])


def test_missing_parts_are_named(write):
    with pytest.raises(ConfigError, match=r"section \[model\] is missing"):
        load_config(write('[data]\nkind = "rooms"\n'))
    with pytest.raises(ConfigError, match=r"model.grid is missing"):
        load_config(write(FOLDER.replace("grid =", "#grid =")))


def test_text_that_is_not_toml_and_missing_files_are_refused(write, tmp_path):
    with pytest.raises(ConfigError, match="line 1"):
        load_config(write("[data\n"))
    with pytest.raises(InputError, match=r"none\.toml"):
        load_config(tmp_path / "none.toml")


@pytest.mark.parametrize("override", ["epochs=3", "train.epochs", "a.b.c=1", "=1"])
def test_an_override_must_be_section_key_value(write, override):
    with pytest.raises(ConfigError, match=r"section\.key=value"):
        load_config(write(), [override])
