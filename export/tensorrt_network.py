"""An exported file as a TensorRT network, its operators as plugins or spelled out."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any

from dela.artifacts.metadata import ModelMetadata
from dela.errors import EngineError
from dela.export import function_bodies
from dela.plugins.tensorrt import messages, operators

if TYPE_CHECKING:
    import onnx

_TYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}


@dataclass(frozen=True)
class ParsedNetwork:
    """A network ready to be built.

    Attributes:
        network: TensorRT's ``INetworkDefinition``.
        plugin_layers: operator -> number of its layers; empty without plugins.
        parser: kept because the network refers to its weights.
    """

    network: Any
    plugin_layers: dict[str, int]
    parser: Any


def parse_network(
    trt: ModuleType,
    builder: Any,
    proto: onnx.ModelProto,
    metadata: ModelMetadata,
    plugins: str,
    source: str,
) -> ParsedNetwork:
    """Parses an exported file into a strongly typed network: precision is that of the file.

    Args:
        trt: the bindings.
        builder: TensorRT's ``Builder``.
        proto: the file; it is changed.
        metadata: of the file.
        plugins: one of :data:`dela.artifacts.sidecar.PLUGIN_FORMS`. The plugins of that form must
        be
            registered.
        source: how errors name the file.

    Raises:
        EngineError: the parser refuses the file, a plugin layer is missing, or a matrix product is
            of another precision than the file says.
    """
    wanted = Counter(
        node.op_type for node in proto.graph.node if node.domain == function_bodies.DOMAIN
    )
    _choose_form(proto, plugins)
    flags = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = builder.create_network(flags)
    parser = trt.OnnxParser(network, messages.logger(trt))
    if not parser.parse(proto.SerializeToString()):
        reason = messages.first_error(trt)
        if parser.num_errors:
            error = parser.get_error(0)
            reason = f"{error.node_operator()}: {' '.join(error.desc().split())}"
        raise EngineError(f"{source}: TensorRT's parser refuses it: {reason}")
    layers = [network.get_layer(i) for i in range(network.num_layers)]
    found = sum(layer.type == trt.LayerType.PLUGIN_V3 for layer in layers)
    expected = 0 if plugins == "none" else wanted.total()
    if found != expected:
        raise EngineError(
            f"{source}: {found} of its {expected} operators became plugin layers; another plugin "
            "library may have taken their names in this process"
        )
    _check_precision(trt, layers, metadata.dtype, plugins, source)
    return ParsedNetwork(network, dict(wanted) if expected else {}, parser)


def _choose_form(proto: onnx.ModelProto, plugins: str) -> None:
    """Leaves one way to run each operator: its plugin, or else its function body.

    The parser falls back to a body without a word where no plugin is registered, so with plugins
    the bodies go.
    """
    namespaces = {
        "native": operators.NATIVE_NAMESPACE,
        "python": operators.NAMESPACE,
        "ahead-of-time": operators.AHEAD_OF_TIME_NAMESPACE,
    }
    if plugins != "none":
        function_bodies.detach(proto)
        proto.opset_import.add(domain=namespaces[plugins], version=function_bodies.DOMAIN_VERSION)
    for node in proto.graph.node:
        if node.domain != function_bodies.DOMAIN:
            continue
        kept = [entry for entry in node.attribute if entry.name != "plugin_namespace"]
        del node.attribute[:]
        node.attribute.extend(kept)
        if plugins != "none":
            # Where it finds no plugin of this namespace, the parser tries the domain.
            node.domain = namespaces[plugins]
            entry = node.attribute.add(name="plugin_namespace", s=node.domain.encode())
            entry.type = entry.STRING


def _check_precision(
    trt: ModuleType, layers: list[Any], dtype: str, plugins: str, source: str
) -> None:
    """Matrix products hold nearly all the arithmetic between the operators.

    Not every one is of the file's precision: a classification head stays float32, and so do the
    products in function bodies.
    """
    wanted = getattr(trt, _TYPES[dtype])
    kinds = [
        layer.get_output(0).dtype for layer in layers if layer.type == trt.LayerType.MATRIX_MULTIPLY
    ]
    fitting = kinds.count(wanted)
    if fitting < (1 if plugins == "none" else len(kinds) / 2):
        raise EngineError(
            f"{source} says it is {dtype}, but only {fitting} of its {len(kinds)} matrix products "
            "are; export it again"
        )
