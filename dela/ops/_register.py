"""How an operator is made known to torch: schema, kernels, shapes, gradient.

``torch.library.custom_op`` would do the same, but its kernels import ``torch._dynamo`` when they
are first called: over a second that only a process that compiles has a use for.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any

import torch

library = torch.library.Library("dela", "FRAGMENT")


def operator(
    schema: str,
    *,
    cpu: Callable[..., Any],
    cuda: Callable[..., Any],
    fake: Callable[..., Any],
    backward: Callable[..., Any] | None = None,
    setup_context: Callable[..., None] | None = None,
) -> None:
    """Defines ``torch.ops.dela.<name>``.

    Args:
        schema: name, arguments and results, as ``torch.library.define`` takes them.
        cpu, cuda: kernels of the two devices.
        fake: empty results of the right shapes and dtypes, for tracing.
        backward, setup_context: as of ``torch.library.register_autograd``; without them a backward
            pass through the operator is refused.
    """
    name = schema[: schema.index("(")]
    library.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    library.impl(name, _untraced(cpu), "CPU")
    library.impl(name, _untraced(cuda), "CUDA")
    torch.library.register_fake(f"dela::{name}", fake, lib=library)

    def refuse(*_: Any) -> Any:
        raise RuntimeError(f"dela::{name} has no backward pass: there are no second derivatives")

    torch.library.register_autograd(
        f"dela::{name}", backward or refuse, setup_context=setup_context, lib=library
    )


def _untraced(kernel: Callable[..., Any]) -> Callable[..., Any]:
    """A kernel whose Python ``torch.compile`` does not look into, where anything is compiled."""
    untraced = torch._disable_dynamo(kernel)

    @functools.wraps(kernel)
    def run(*arguments: Any) -> Any:
        chosen = untraced if "torch._dynamo" in sys.modules else kernel
        return chosen(*arguments)

    return run
