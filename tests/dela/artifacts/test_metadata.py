"""The description inside exported files: round trip and refusals in words."""

from __future__ import annotations

import subprocess
import sys

import pytest

from dela.artifacts.metadata import ModelMetadata
from dela.errors import CheckpointError
from dela.families.dela.config import PRESETS

RATIOS = tuple({"min": m / 2, "mean": m, "max": min(1.0, 2 * m)} for m in (1.0, 0.3, 0.08, 0.02))


@pytest.fixture
def metadata():
    return ModelMetadata(PRESETS["s3dis"], "fp16", "ab" * 32, "0.1.0", stage_ratios=RATIOS)


@pytest.mark.parametrize("preset", PRESETS)
def test_round_trip(preset):
    written = ModelMetadata(PRESETS[preset], "bf16", "cd" * 32, "1.2.3")
    properties = written.to_properties()
    assert all(isinstance(value, str) for value in properties.values())
    assert ModelMetadata.from_properties(properties) == written


def test_ratios_and_foreign_properties_survive(metadata):
    properties = {**metadata.to_properties(), "somebody": "else"}
    assert ModelMetadata.from_properties(properties) == metadata


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": None}, "model.onnx is not a dela network: it carries no dela metadata"),
        ({"format": "yolo"}, "format property is 'yolo'"),
        ({"format_version": "2"}, "format version 2, this dela reads up to 1; install dela 0.1.0"),
        ({"format_version": "one"}, "format version 'one'"),
        ({"format_version": "²"}, "format version '²' is not a number above 0"),
        ({"format_version": "9" * 6000}, "format version '9999"),
        ({"config": "[" * 100_000}, "metadata is damaged: its JSON is nested too deeply"),
        ({"config": None}, "lacks 'config'; export it again"),
        ({"config": "{"}, "metadata is damaged"),
        ({"config": "[]"}, "metadata is damaged"),
        ({"config": '{"task": "detection"}'}, "metadata is damaged"),
        ({"dtype": "int8"}, "dtype 'int8' is not one of fp32, fp16, bf16"),
        ({"stage_ratios": "[{}]"}, "lacks 'min'"),
        ({"stage_ratios": "[1]"}, "metadata is damaged"),
        ({"stage_ratios": '[{"min": 1, "mean": 1, "max": 1}]'}, "has 1 entries; 4 stages"),
    ],
)
def test_foreign_newer_and_damaged_files_are_refused(metadata, change, message):
    properties = metadata.to_properties()
    for key, value in change.items():
        if value is None:
            del properties[key]
        else:
            properties[key] = value
    with pytest.raises(CheckpointError, match=message.replace("[", r"\[")):
        ModelMetadata.from_properties(properties, "model.onnx")


def graph_of(metadata):
    inputs = {
        name: (dtype, list(shape)) for name, (dtype, shape) in metadata.expected_inputs().items()
    }
    return inputs, {"logits": ["n0", metadata.config.num_classes]}


def test_expected_inputs_follow_the_task():
    segmentation = ModelMetadata(PRESETS["scannet"], "fp32").expected_inputs()
    assert segmentation["attributes"] == ("float32", (None, 7))
    assert list(segmentation)[-1] == "nearest_4"
    classification = ModelMetadata(PRESETS["scanobjectnn"], "fp32").expected_inputs()
    assert list(classification) == [
        "points", "neighbors_0", "neighbors_1", "neighbors_2", "kept_1", "kept_2",
    ]  # fmt: skip


def test_a_fitting_graph_passes(metadata):
    inputs, outputs = graph_of(metadata)
    inputs["points"] = ("tensor(float)", ["n0", 3])
    metadata.check_graph(inputs, outputs)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"attributes": None}, "missing: attributes"),
        ({"normals": ("float32", [None, 3])}, "unexpected: normals"),
        ({"attributes": ("float32", ["n", 5])}, r"attributes is float32 \[n, 5\].*\[\?, 4\]"),
        ({"neighbors_2": ("int64", ["n", 32])}, "neighbors_2 is int64"),
        ({"kept_1": ("int32", ["n", 1])}, r"kept_1 is int32 \[n, 1\]"),
    ],
)
def test_inputs_that_do_not_fit_are_named(metadata, change, message):
    inputs, outputs = graph_of(metadata)
    for name, value in change.items():
        if value is None:
            del inputs[name]
        else:
            inputs[name] = value
    with pytest.raises(CheckpointError, match=message):
        metadata.check_graph(inputs, outputs)


@pytest.mark.parametrize("outputs", [{"logits": ["n0", 12]}, {"scores": ["n0", 13]}, {}])
def test_an_output_that_does_not_fit_is_refused(metadata, outputs):
    with pytest.raises(CheckpointError, match=r"13 classes need logits \[\?, 13\]"):
        metadata.check_graph(graph_of(metadata)[0], outputs)


def test_reading_metadata_needs_neither_torch_nor_onnx():
    code = (
        "import sys, dela.artifacts.metadata; "
        "print({'torch', 'onnx', 'onnxruntime'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
