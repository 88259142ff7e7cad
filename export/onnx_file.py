"""An exported file, read and known to be ours."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from dela.artifacts.metadata import ModelMetadata
from dela.errors import CheckpointError, MissingDependencyError

if TYPE_CHECKING:
    import onnx

Signature = dict[str, tuple[str, list[int | str | None]]]


def read_onnx(path: str | os.PathLike[str]) -> tuple[onnx.ModelProto, ModelMetadata]:
    """An exported network and its description, its inputs and output checked against it.

    Raises:
        CheckpointError: no ONNX file, not written by dela, or inputs that do not fit its metadata.
        MissingDependencyError: the package onnx is not installed.
    """
    try:
        import onnx
    except ImportError as error:
        raise MissingDependencyError(
            "reading an exported network needs the package onnx; pip install onnx"
        ) from error
    from google.protobuf.message import DecodeError

    path = os.fspath(path)
    if not os.path.isfile(path):
        raise CheckpointError(f"there is no ONNX file at {path}")
    if path.lower().endswith((".pt", ".pth")):
        raise CheckpointError(f"{path} is a checkpoint; export it first: `dela export {path}`")
    try:
        proto = onnx.load(path)
    except DecodeError as error:
        raise CheckpointError(f"{path} is not an ONNX file, or it is cut short") from error
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from error
    properties = {entry.key: entry.value for entry in proto.metadata_props}
    metadata = ModelMetadata.from_properties(properties, path)
    inputs, outputs = signature(proto)
    metadata.check_graph(inputs, {name: shape for name, (_, shape) in outputs.items()}, path)
    return proto, metadata


def signature(proto: onnx.ModelProto) -> tuple[Signature, Signature]:
    """Inputs and outputs by name: numpy dtype and shape, a varying size being a name."""
    import onnx

    def of(values: object) -> Signature:
        return {
            value.name: (
                onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type).name,
                [
                    size.dim_value if size.HasField("dim_value") else size.dim_param
                    for size in value.type.tensor_type.shape.dim
                ],
            )
            for value in values  # type: ignore[attr-defined]
        }

    return of(proto.graph.input), of(proto.graph.output)
