"""The command ``dela export``, also installed as ``dela-export``."""

from __future__ import annotations

import dataclasses
import time
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dela.cli.console import note, print_json
from dela.cli.options import Json, Overwrite

if TYPE_CHECKING:
    from dela.export.check import CheckResult


class DtypeName(StrEnum):
    """Choices of ``--dtype``."""

    fp32 = "fp32"
    fp16 = "fp16"
    bf16 = "bf16"


def export(
    checkpoint: Annotated[Path, typer.Argument(help="Checkpoint (.pt) written by dela.")],
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="File to write; beside the checkpoint when left out."),
    ] = None,
    dtype: Annotated[
        DtypeName, typer.Option(help="Precision of the layers between the operators.")
    ] = DtypeName.fp32,
    overwrite: Overwrite = False,
    no_check: Annotated[
        bool, typer.Option("--no-check", help="Leave out the comparison with PyTorch.")
    ] = False,
    json: Json = False,
) -> dict[str, Any]:
    """Write a checkpoint as one portable ONNX file.

    The file runs in any ONNX runtime: both operators carry a standard ONNX body, and our kernels
    take over where they are registered. Before it is put in place its logits are compared with
    PyTorch's: ONNX Runtime with our kernels, with the bodies alone, and ONNX's own evaluator.

    Examples:

    $ dela export runs/mine/best.pt -o model.onnx
    $ dela export runs/mine/best.pt --dtype fp16 -o model.fp16.onnx
    """
    from dela.export.onnx_export import export_onnx

    output = checkpoint.with_suffix(".onnx") if output is None else output
    start = time.perf_counter()
    results: list[CheckResult] = []

    def show(result: CheckResult) -> None:
        results.append(result)
        if not json:
            note(_check_line(result))

    export_onnx(checkpoint, output, dtype.value, overwrite, not no_check, report=show)
    summary = describe(output)
    summary["seconds"] = round(time.perf_counter() - start, 2)
    summary["checks"] = [dataclasses.asdict(result) for result in results]
    if json:
        print_json(summary)
    else:
        _print_summary(summary)
    return summary


def describe(path: Path) -> dict[str, Any]:
    """Inputs, outputs, nodes per operator and size of an exported file."""
    import onnx

    proto = onnx.load(str(path), load_external_data=False)
    nodes: dict[str, int] = {}
    for node in proto.graph.node:
        nodes[node.op_type] = nodes.get(node.op_type, 0) + 1
    properties = {entry.key: entry.value for entry in proto.metadata_props}
    return {
        "file": str(path),
        "bytes": path.stat().st_size,
        "dtype": properties["dtype"],
        "inputs": {value.name: _type_text(value) for value in proto.graph.input},
        "outputs": {value.name: _type_text(value) for value in proto.graph.output},
        "nodes": dict(sorted(nodes.items(), key=lambda item: (-item[1], item[0]))),
        "parameters": sum(_elements(weight.dims) for weight in proto.graph.initializer),
    }


def _elements(sizes: Any) -> int:
    count = 1
    for size in sizes:
        count *= size
    return count


def _type_text(value: Any) -> str:
    import onnx

    tensor = value.type.tensor_type
    name = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).name
    sizes = (
        str(size.dim_value) if size.HasField("dim_value") else size.dim_param or "?"
        for size in tensor.shape.dim
    )
    return f"{name}[{', '.join(sizes)}]"


def _check_line(result: CheckResult) -> str:
    if result.skipped:
        return f"left out  {result.name}: {result.skipped}"
    if result.error is None:
        return f"passed    {result.name}"
    return (
        f"passed    {result.name}: largest error {result.error:.1e} of the largest logit "
        f"({result.tolerance:.0e} allowed)"
    )


def _print_summary(summary: dict[str, Any]) -> None:
    nodes = summary["nodes"]
    listed = ", ".join(f"{count} {name}" for name, count in nodes.items())
    inputs = ", ".join(f"{name} {text}" for name, text in summary["inputs"].items())
    outputs = ", ".join(f"{name} {text}" for name, text in summary["outputs"].items())
    print(f"inputs    {inputs}")
    print(f"outputs   {outputs}")
    print(f"nodes     {sum(nodes.values())}: {listed}")
    print(
        f"wrote     {summary['file']}: {summary['bytes'] / 1e6:.1f} MB, "
        f"{summary['parameters']:,} parameters, {summary['dtype']}, {summary['seconds']:.1f} s"
    )
    if not summary["checks"]:
        print("not checked (--no-check)")
