"""Values from files: of the types that a dataclass says, or refused in words."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dela.errors import ConfigError
from dela.families.dela.config import PRESETS, DelaConfig
from dela.model.fields import read_dataclass, read_fields


@dataclasses.dataclass(frozen=True)
class Inner:
    name: str
    color: tuple[int, int, int] = (1, 2, 3)


@dataclasses.dataclass(frozen=True)
class Outer:
    count: int
    share: float = 0.5
    named: bool = False
    rows: tuple[float, ...] = ()
    limit: float | None = None
    inner: tuple[Inner, ...] = ()
    layers: dict[str, int] = dataclasses.field(default_factory=dict)


def test_tables_and_lists_become_dataclasses_and_tuples():
    values = {
        "count": 3,
        "share": 1,
        "rows": [1, 2.5],
        "limit": None,
        "inner": [{"name": "a"}, {"name": "b", "color": [4, 5, 6]}],
        "layers": {"SPSE": 4},
    }
    assert read_dataclass(Outer, values, "outer") == Outer(
        3, 1.0, False, (1.0, 2.5), None, (Inner("a"), Inner("b", (4, 5, 6))), {"SPSE": 4}
    )
    assert isinstance(read_fields(Outer, {"share": 1})["share"], float)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"count": 1.0}, "outer.count is 1.0; expected a whole number"),
        ({"count": True}, "outer.count is True; expected a whole number"),
        ({"count": 2**70}, "outer.count is .*; expected at most 63 bits"),
        ({"share": 10**5000}, "outer.share is a number of 16610 bits"),
        ({"share": "0.5"}, "outer.share is '0.5'; expected a number"),
        ({"named": 1}, "outer.named is 1; expected true or false"),
        ({"rows": 3}, "outer.rows is 3; expected a list"),
        ({"rows": [[1]]}, r"outer.rows is \[1\]; expected a number"),
        ({"limit": []}, r"outer.limit is \[\]; expected a number"),
        ({"inner": [3]}, "outer.inner is 3; expected a table"),
        ({"inner": [{"name": "a", "color": [1]}]}, "inner.color is .*; expected 3 values"),
        ({"inner": [{"color": [1, 2, 3]}]}, "outer.inner.name is missing"),
        ({"inner": [{"nam": "a"}]}, r"unknown key 'nam' in \[outer.inner\] \(did you mean 'name'"),
        ({"layers": {"SPSE": "four"}}, "expected a whole number"),
        ({"layers": [1]}, r"outer.layers is \[1\]; expected a table"),
        ({"other": 1}, r"unknown key 'other' in \[outer\]"),
    ],
)
def test_other_types_are_named_with_what_is_expected(change, message):
    with pytest.raises(ConfigError, match=message):
        read_dataclass(Outer, {"count": 1} | change, "outer")


ODD = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=3)
    | st.sampled_from([2**40, -(2**70), 1e308, math.inf, math.nan]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=4,
)


@given(
    st.sampled_from(sorted(PRESETS)),
    st.sampled_from([field.name for field in dataclasses.fields(DelaConfig)]),
    ODD,
)
def test_any_value_in_a_network_s_configuration_is_taken_or_refused(preset, key, value):
    values = json.loads(json.dumps(PRESETS[preset].to_dict()))
    try:
        config = DelaConfig.from_dict(values | {key: value})
    except ConfigError as error:
        assert len(str(error)) < 500
    else:
        assert DelaConfig.from_dict(config.to_dict()) == config
