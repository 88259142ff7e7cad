"""Time by layer: ONNX Runtime's profile by operator, TensorRT's profile and inspector by layer.

Both measure with the clock running inside the network, which costs time of its own: shares tell
what to look at, latencies are what :mod:`dela.runtime.bench` measures.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from types import ModuleType
from typing import Any

from dela.errors import DelaError

_KERNEL = "_kernel_time"


@dataclass(frozen=True)
class LayerTime:
    """A layer of a network.

    Attributes:
        name: as the backend calls it; one that TensorRT fused names all its parts.
        operator: of ONNX, or TensorRT's kind of layer; "" where the engine does not tell.
        seconds: of one run, the mean of several.
        share: of all layers' time.
    """

    name: str
    operator: str
    seconds: float
    share: float

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return asdict(self)


def layers_of_events(events: Sequence[Mapping[str, Any]]) -> list[LayerTime]:
    """Layers from the events of an ONNX Runtime profile, whose first run is left out.

    A node of a function body or loop runs within the time of the node it belongs to, and is not
    counted again.

    Args:
        events: with ``cat``, ``name``, ``ts`` and ``dur`` in microseconds, ``args``.

    Raises:
        DelaError: fewer than two runs, or no nodes among them.
    """
    runs = sorted(event["ts"] for event in events if event["name"] == "model_run")
    nodes = (
        [
            event
            for event in events
            if event["cat"] == "Node" and event["name"].endswith(_KERNEL) and event["ts"] >= runs[1]
        ]
        if len(runs) > 1
        else []
    )
    seconds: dict[tuple[str, str], float] = {}
    end = 0
    for event in sorted(nodes, key=lambda event: (event["ts"], -event["dur"])):
        if event["ts"] < end:
            continue
        end = event["ts"] + event["dur"]
        key = event["name"].removesuffix(_KERNEL), event["args"]["op_name"]
        seconds[key] = seconds.get(key, 0.0) + event["dur"] / 1e6 / (len(runs) - 1)
    return _longest_first((name, operator, value) for (name, operator), value in seconds.items())


def recorder(trt: ModuleType) -> Any:
    """An ``IProfiler`` whose ``milliseconds`` holds each layer's sum over the runs."""

    class Recorder(trt.IProfiler):  # type: ignore[name-defined]
        def __init__(self) -> None:
            trt.IProfiler.__init__(self)
            self.milliseconds: dict[str, float] = {}

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            self.milliseconds[layer_name] = self.milliseconds.get(layer_name, 0.0) + ms

    return Recorder()


def layers_of_engine(
    milliseconds: Mapping[str, float], inspected: str, repeats: int
) -> list[LayerTime]:
    """Layers from TensorRT's profile.

    Args:
        milliseconds: layer -> sum over the runs.
        inspected: what the engine's inspector says, JSON: layers by name alone, or each with its
            ``LayerType``, as the engine was built.
        repeats: runs.

    Raises:
        DelaError: no layer reported its time.
    """
    try:
        layers = json.loads(inspected)["Layers"]
    except (ValueError, KeyError, TypeError):
        layers = []
    kinds = {
        layer["Name"]: str(layer.get("LayerType", ""))
        for layer in layers
        if isinstance(layer, dict) and "Name" in layer
    }
    return _longest_first(
        (name, kinds.get(name, ""), value / 1000 / repeats) for name, value in milliseconds.items()
    )


def _longest_first(layers: Iterable[tuple[str, str, float]]) -> list[LayerTime]:
    layers = list(layers)
    total = sum(seconds for _, _, seconds in layers)
    if not total:
        raise DelaError("no layer reported its time; measure again with more repetitions")
    found = [LayerTime(name, kind, seconds, seconds / total) for name, kind, seconds in layers]
    return sorted(found, key=lambda layer: (-layer.seconds, layer.name))
