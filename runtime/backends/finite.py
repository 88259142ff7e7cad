"""Logits that are no numbers are refused: no label follows from them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from dela.errors import DelaError
from dela.model.inputs import Inputs

if TYPE_CHECKING:
    from dela.runtime.backends.base import Backend


def finite_run(backend: Backend) -> Callable[[Inputs], np.ndarray]:
    """``backend.run`` for host arrays, whose answer is looked through.

    Raises:
        DelaError: (the function returned) logits that are NaN or infinite; the message names the
            first layer that gave such values, where the backend can tell.
    """

    def run(inputs: Inputs) -> np.ndarray:
        logits = backend.run(inputs)
        # A sum is finite where every value is, unless values are as large as floats go.
        with np.errstate(all="ignore"):
            total = logits.sum()
        if not np.isfinite(total) and not np.isfinite(logits).all():
            bad = int(np.count_nonzero(~np.isfinite(logits).all(axis=1)))
            raise non_finite_error(backend, bad, len(logits), _layer(backend, inputs))
        return logits

    return run


def non_finite_error(backend: Backend, bad: int, rows: int, layer: str = "") -> DelaError:
    """The error for an answer of which ``bad`` of ``rows`` rows are NaN or infinite."""
    where = f", first after the layer {layer}" if layer else ""
    half = backend.metadata is not None and backend.metadata.dtype == "fp16"
    mend = (
        "float16 may be too narrow for it: export with --dtype bf16 or fp32"
        if half
        else "its weights are damaged or the input is far from what it was trained on"
    )
    return DelaError(
        f"{backend.path}: {bad:,} of {rows:,} rows of its logits are NaN or infinite{where}; {mend}"
    )


def _layer(backend: Backend, inputs: Inputs) -> str:
    find = getattr(backend, "first_non_finite", None)
    return find(inputs) if find is not None else ""
