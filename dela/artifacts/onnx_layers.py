"""Which layer of an exported network is the first whose output is NaN or infinite.

Needs the package onnx, which a deployment may lack: the answer is then empty.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import onnx


def first_non_finite(path: Path, inputs: Mapping[str, np.ndarray], options: Any) -> str:
    """Name of the layer, or its operator's; empty where it cannot be told.

    Args:
        path: the exported file, one whose logits are not finite for ``inputs``.
        inputs: name -> array.
        options: ONNX Runtime's session options, with the operators it needs.
    """
    try:
        import onnx
    except ImportError:
        return ""
    proto = onnx.load(path)
    makers = {output: node for node in proto.graph.node for output in node.output if output}
    name = proto.graph.output[0].name
    # From the logits upwards, always to an input that is not finite either.
    while name in makers:
        node = makers[name]
        given = [source for source in node.input if source in makers]
        bad = _non_finite(proto, given, inputs, options)
        if not bad:
            return node.name or node.op_type
        name = bad[0]
    return ""


def _non_finite(
    proto: onnx.ModelProto, names: Sequence[str], inputs: Mapping[str, np.ndarray], options: Any
) -> list[str]:
    """Those of some tensors inside the network that are NaN or infinite somewhere."""
    import onnx
    import onnxruntime

    if not names:
        return []
    asked = onnx.ModelProto()
    asked.CopyFrom(proto)
    del asked.graph.output[:]
    asked.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    session = onnxruntime.InferenceSession(
        asked.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    values = session.run(list(names), dict(inputs))
    return [
        name
        for name, value in zip(names, values, strict=True)
        if isinstance(value, np.ndarray)
        and np.issubdtype(value.dtype, np.floating)
        and not np.isfinite(value).all()
    ]
