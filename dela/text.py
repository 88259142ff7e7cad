"""Text of others: parsed without surprises, and shown without what a terminal would obey.

Names of classes and files, messages of libraries and whole configurations come from files that
anybody may have written.
"""

from __future__ import annotations

import json
import re
import tomllib
from typing import Any

# C0 and C1 controls but for tab and line feed, marks that turn the direction of writing, and halves
# of characters, which no encoding writes (but for those that stand for a byte of a file's name).
_UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069"
    "\ud800-\udc7f\udd00-\udfff]"
)

_SHOWN = 60
_LONGEST_LINE = 2000


def visible(text: str) -> str:
    r"""Text with characters that steer a terminal written out: an escape becomes ``\x1b``."""
    return _UNSEEN.sub(_written_out, text)


def brief(value: Any) -> str:
    """A value as errors show it: as Python writes it, cut where it is long."""
    # A number of thousands of digits does not even become text.
    if isinstance(value, int) and value.bit_length() > 200:
        return f"a number of {value.bit_length()} bits"
    shown = repr(value)
    return shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]}..."


def cut(text: str) -> str:
    """A message whose lines are no longer than anybody reads."""
    lines = (
        line if len(line) <= _LONGEST_LINE else f"{line[:_LONGEST_LINE]}..."
        for line in text.splitlines()
    )
    return "\n".join(lines)


def parse_json(text: str) -> Any:
    """The value of a JSON document.

    Raises:
        ValueError: no JSON, or nested deeper and numbers longer than Python reads.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("its JSON is nested too deeply") from None


def parse_toml(text: str) -> dict[str, Any]:
    """The values of a TOML document.

    Raises:
        ValueError: no TOML, or nested deeper and numbers longer than Python reads.
    """
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _written_out(found: re.Match[str]) -> str:
    code = ord(found[0])
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
