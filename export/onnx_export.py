"""A network as one ONNX file: traced, tidied, described, checked, then put in place."""

from __future__ import annotations

import contextlib
import logging
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor, nn

import dela
from dela.artifacts.checkpoint import load_checkpoint
from dela.artifacts.metadata import OUTPUT, ModelMetadata
from dela.errors import ConfigError
from dela.export import function_bodies
from dela.export.check import CheckResult, check_export
from dela.families import family_of
from dela.files import atomic_path, check_writable
from dela.model.contract import Contract
from dela.model.inputs import RowSize, check_specs

TORCH_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}

# Sizes the graph is traced with; any other size runs as well.
_TRACED_POINTS = 150
_TRACED_CLOUDS = 2


def export_onnx(
    source: str | os.PathLike[str] | nn.Module,
    output: str | os.PathLike[str],
    dtype: str = "fp32",
    overwrite: bool = False,
    check: bool = True,
    report: Callable[[CheckResult], None] | None = None,
) -> Path:
    """Writes a network as one portable ONNX file, whole or not at all.

    Args:
        source: a checkpoint file or a network.
        output: the file to write, usually ``*.onnx``.
        dtype: ``fp32``, ``fp16`` or ``bf16``: precision of the layers between the operators.
            Inputs, coordinates, SPSE and logits are float32 in every case.
        overwrite: whether an existing file may be replaced.
        check: compare the file with PyTorch before it is put in place (:mod:`dela.export.check`).
        report: called with each check that passed or was left out.

    Returns:
        The path of the file.

    Raises:
        CheckpointError: ``source`` is not a usable checkpoint.
        ConfigError: an unknown ``dtype``.
        InputError: ``output`` cannot be written, or is ``source``.
        ParityError: the file does not give PyTorch's answer; nothing is left behind.
    """
    if dtype not in TORCH_DTYPES:
        raise ConfigError(f"dtype is {dtype!r}; choose one of {', '.join(TORCH_DTYPES)}")
    if not isinstance(source, nn.Module):
        check_writable(output, overwrite, inputs=(source,))
    with atomic_path(output, overwrite) as temporary:
        extra: dict[str, Any] = {}
        if isinstance(source, nn.Module):
            model, sha256 = source, ""
        else:
            checkpoint = load_checkpoint(source)
            model, sha256, extra = checkpoint.model, checkpoint.sha256, checkpoint.extra
        metadata = ModelMetadata(
            model.config,
            dtype,
            sha256,
            dela.__version__,
            stage_ratios=tuple(extra.get("stage_ratios", ())),
        )
        onnx.save_model(build_onnx(model, metadata), str(temporary))
        if check:
            for result in check_export(temporary, model):
                if report is not None:
                    report(result)
    return Path(output)


def build_onnx(model: nn.Module, metadata: ModelMetadata) -> onnx.ModelProto:
    """The ONNX model of a network in memory: operators as nodes with bodies, metadata attached."""
    config: Any = model.config
    frozen = family_of(config).freeze(model, TORCH_DTYPES[metadata.dtype])
    traced = _trace(frozen, config)
    _index_with_int32(traced.graph)
    _strip_traces(traced)
    _name_sizes(traced.graph, config)
    function_bodies.attach(traced)
    traced.producer_name, traced.producer_version = "dela", metadata.dela_version
    traced.graph.name = "dela"
    onnx.helper.set_model_props(traced, metadata.to_properties())
    return traced


class _FlatInputs(nn.Module):
    """A network's inference form over the inputs of the graph, one argument each."""

    def __init__(self, network: nn.Module, names: Sequence[str]) -> None:
        super().__init__()
        self.network = network
        self.names = tuple(names)

    def forward(self, *tensors: Tensor) -> Tensor:
        from_tensors: Any = self.network.from_tensors
        return from_tensors(dict(zip(self.names, tensors, strict=True)))


def _trace(network: nn.Module, config: Contract) -> onnx.ModelProto:
    family = family_of(config)
    clouds = config.task == "classification"
    example = family.example(config, _TRACED_CLOUDS if clouds else _TRACED_POINTS)
    specs = family.inputs(config)
    check_specs(family.sizes(config), specs, clouds)
    sizes = _dimensions(family.sizes(config))
    tensors = dict(example.to_tensors().inputs())
    with _quiet(), torch.no_grad():
        program = torch.onnx.export(
            _FlatInputs(network, [spec.name for spec in specs]).eval(),
            tuple(tensors[spec.name] for spec in specs),
            dynamo=True,
            opset_version=function_bodies.OPSET,
            dynamic_shapes={"tensors": tuple({0: sizes[spec.rows]} for spec in specs)},
            input_names=[spec.name for spec in specs],
            output_names=[OUTPUT],
            verbose=False,
        )
    assert program is not None
    return program.model_proto


def _dimensions(sizes: Sequence[RowSize]) -> dict[str, Any]:
    """Sizes as torch's exporter wants them: free ones, and multiples of the number of clouds."""
    clouds = torch.export.Dim("clouds")
    dimensions: dict[str, Any] = {"clouds": clouds}
    for size in sizes:
        if not size.per_cloud:
            dimensions[size.name] = torch.export.Dim(size.name)
        else:
            dimensions[size.name] = size.per_cloud * clouds if size.per_cloud > 1 else clouds
    return dimensions


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps the exporter's notes on absent packages and renamed axes off the terminal."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _index_with_int32(graph: onnx.GraphProto) -> None:
    """Lets every Gather read its int32 rows as they come in.

    The exporter flattens rows and widens them to int64 first; Gather needs neither.
    """
    producers = {output: node for node in graph.node for output in node.output}
    tables = {value.name for value in graph.input if len(value.type.tensor_type.shape.dim) == 1}

    def origin(name: str) -> str:
        node = producers.get(name)
        while node is not None and node.op_type in ("Cast", "Reshape"):
            name = node.input[0]
            node = producers.get(name)
        return name

    for node in graph.node:
        if node.op_type == "Gather" and origin(node.input[1]) in tables:
            node.input[1] = origin(node.input[1])
    _drop_unused(graph)


def _drop_unused(graph: onnx.GraphProto) -> None:
    """Removes nodes and initializers that no output depends on."""
    needed = {value.name for value in graph.output}
    nodes = []
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            needed.update(node.input)
            nodes.append(node)
    weights = [weight for weight in graph.initializer if weight.name in needed]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(reversed(nodes))
    graph.initializer.extend(weights)


def _strip_traces(model: onnx.ModelProto) -> None:
    """Removes what the exporter notes on every node: source lines and paths of this machine."""
    del model.metadata_props[:], model.graph.metadata_props[:], model.graph.value_info[:]
    for node in model.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    for value in (*model.graph.input, *model.graph.output, *model.graph.initializer):
        del value.metadata_props[:]


def _name_sizes(graph: onnx.GraphProto, config: Contract) -> None:
    """Names the dynamic sizes of inputs and output: n0, n1 ... per stage, or ``clouds``."""
    family = family_of(config)
    rows = {spec.name: spec.rows for spec in family.inputs(config)}
    for value in graph.input:
        value.type.tensor_type.shape.dim[0].dim_param = rows[value.name]
    (output,) = graph.output
    output.type.tensor_type.shape.dim[0].dim_param = (
        family.sizes(config)[0].name if config.task == "segmentation" else "clouds"
    )
