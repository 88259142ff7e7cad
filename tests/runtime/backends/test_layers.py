"""Time by layer: which events and layers count, and how often."""

from __future__ import annotations

import json

import pytest

from dela.errors import DelaError
from dela.runtime.backends.layers import LayerTime, layers_of_engine, layers_of_events


def node(name: str, operator: str, start: int, duration: int) -> dict:
    names = {"cat": "Node", "name": f"{name}_kernel_time", "args": {"op_name": operator}}
    return {**names, "ts": start, "dur": duration}


def run(start: int, duration: int) -> dict:
    return {"cat": "Session", "name": "model_run", "ts": start, "dur": duration, "args": {}}


def test_nodes_within_a_loop_and_the_first_run_are_not_counted():
    first = [node("constant", "Slice", 5, 3), run(100, 90), node("loop", "Scan", 110, 70)]
    later = []
    for start, scale in ((200, 1), (300, 3)):
        later += [
            run(start, 90),
            node("gemm", "Gemm", start, 10 * scale),
            node("loop", "Scan", start + 40, 20),
            node("inner", "Mul", start + 40, 8),
            node("inner", "Add", start + 50, 9),
            node("gelu", "Gelu", start + 60, 10),
        ]
        other = {**node("gemm", "Gemm", start, 1), "name": "gemm_fence_before"}
        later.append(other)
    # Events are written in the order in which they end, a loop's nodes before it.
    found = layers_of_events([*first, *reversed(later)])
    assert found == [
        LayerTime("gemm", "Gemm", pytest.approx(20e-6), pytest.approx(0.4)),
        LayerTime("loop", "Scan", pytest.approx(20e-6), pytest.approx(0.4)),
        LayerTime("gelu", "Gelu", pytest.approx(10e-6), pytest.approx(0.2)),
    ]
    with pytest.raises(DelaError, match="no layer reported its time; measure again"):
        layers_of_events(first)


@pytest.mark.parametrize(
    ("inspected", "kind"),
    [
        (json.dumps({"Layers": [{"Name": "a", "LayerType": "gemm"}, {"Name": "c"}]}), "gemm"),
        (json.dumps({"Layers": ["a", "b"], "Bindings": []}), ""),  # built to keep names alone
        (json.dumps(["a"]), ""),
        ("", ""),
    ],
)
def test_an_engine_that_keeps_no_kinds_still_has_times(inspected, kind):
    found = layers_of_engine({"a": 6.0, "b": 2.0}, inspected, 2)
    assert found == [LayerTime("a", kind, 0.003, 0.75), LayerTime("b", "", 0.001, 0.25)]
    assert found[0].to_dict() == {"name": "a", "operator": kind, "seconds": 0.003, "share": 0.75}
