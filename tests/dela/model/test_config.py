"""The model's configuration refuses what cannot be and survives JSON."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest

from dela.errors import ConfigError
from dela.families import resolve_config
from dela.families.dela.config import EPSILON, EPSILON_WITH_DIRECTIONS, PRESETS, DelaConfig
from dela.model.contract import AttributeInfo, ClassInfo


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_survive_json(preset):
    config = PRESETS[preset]
    again = DelaConfig.from_dict(json.loads(json.dumps(config.to_dict())))
    assert again == config
    assert hash(again) == hash(config)


def test_columns_saved_without_a_logarithm_are_linear():
    values = PRESETS["scannet"].to_dict()
    for info in (*values["attributes"], *values["directions"]):
        del info["log"]
    assert DelaConfig.from_dict(values) == PRESETS["scannet"]


def test_the_published_recipes():
    assert [len(PRESETS[name].dims) for name in ("s3dis", "scannet", "scanobjectnn")] == [4, 5, 3]
    assert [config.num_classes for config in PRESETS.values()] == [13, 20, 15]
    assert [len(config.input_columns) for config in PRESETS.values()] == [4, 7, 0]
    columns = [info.name for info in PRESETS["scannet"].input_columns]
    assert columns == ["red", "green", "blue", "height", "normal_x", "normal_y", "normal_z"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": "detection"}, "task is 'detection'"),
        ({"dims": ()}, "dims is empty"),
        ({"dims": (64, 128, 256, 510)}, "dims holds 510"),
        ({"depths": (1, 2)}, "depths has 2 entries, dims has 4"),
        ({"depths": (1, 2, -1, 1)}, "no entry may be negative"),
        ({"neighbors": (24, 0, 32, 32)}, "every entry must be above 0"),
        ({"spread": (1.6, 3.8, float("nan"), 1.0)}, "every entry must be above 0"),
        ({"grid": (0.04, 0.08, 0.08, 0.16)}, "each stage must be coarser"),
        ({"head_dim": 0}, "head_dim is 0"),
        ({"classes": ()}, "classes is empty"),
        ({"classes": (ClassInfo("a", 1), ClassInfo("b", 1))}, "share a label code"),
        ({"classes": (ClassInfo("a", 1), ClassInfo("a", 2))}, "share a name"),
        ({"coordinate_scale": 0.0}, "coordinate_scale is 0.0"),
        ({"attributes": (AttributeInfo("red", 0.0),)}, "attribute red: scale 0.0"),
        ({"attributes": (AttributeInfo("red", log=-0.1),)}, "attribute red: log is -0.1"),
        ({"attributes": (AttributeInfo("red", log=math.nan),)}, "attribute red: log is nan"),
        ({"directions": (AttributeInfo("normal_x", log=0.1),)}, "direction normal_x: log is 0.1"),
        ({"vote_axis": "up"}, "vote_axis is 'up'"),
        ({"drop_path": -0.1}, "drop_path is -0.1"),
        ({"head_drop": 1.0}, "head_drop is 1.0"),
        ({"bn_momentum": 0.0}, "bn_momentum is 0.0"),
        ({"mlp_ratio": 0.0}, "mlp_ratio is 0.0"),
        ({"epsilon": -1.0}, "epsilon is -1.0"),
    ],
)
def test_values_out_of_range_are_named(changes, message):
    with pytest.raises(ConfigError) as caught:
        dataclasses.replace(PRESETS["s3dis"], **changes)
    assert message in str(caught.value)


def test_classification_has_rules_of_its_own():
    config = PRESETS["scanobjectnn"]
    with pytest.raises(ConfigError, match="at most the last one"):
        dataclasses.replace(config, points=(256, 1024, 64))
    with pytest.raises(ConfigError, match="coordinates alone"):
        dataclasses.replace(config, attributes=(AttributeInfo("red"),))


def test_unknown_and_missing_keys_are_refused():
    values = PRESETS["s3dis"].to_dict()
    with pytest.raises(ConfigError, match="unknown model key 'colour'"):
        DelaConfig.from_dict(values | {"colour": 1})
    del values["dims"]
    with pytest.raises(ConfigError, match="dims"):
        DelaConfig.from_dict(values)


def test_epsilon_knows_directions_only_at_the_first_stage():
    assert PRESETS["s3dis"].spse_epsilon(0) == EPSILON
    assert PRESETS["scannet"].spse_epsilon(0) == EPSILON_WITH_DIRECTIONS
    assert PRESETS["scannet"].spse_epsilon(1) == EPSILON
    assert resolve_config("scannet", epsilon=0.5).spse_epsilon(0) == 0.5


def test_overrides_take_lists_for_tuples():
    config = resolve_config("s3dis", neighbors=[8, 8, 8, 8])
    assert config.neighbors == (8, 8, 8, 8)
    assert resolve_config(config) == config


@pytest.mark.parametrize("preset", [3, None, {"dims": (16,)}])
def test_what_is_no_preset_is_refused_in_words(preset):
    with pytest.raises(ConfigError, match="give one of s3dis"):
        resolve_config(preset)
