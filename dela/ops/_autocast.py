"""Autocast for the operators: coordinates and weights stay float32, features as they come."""

from __future__ import annotations

from typing import Any

import torch

from dela.ops._register import library


def keep_float32(name: str, arguments: tuple[str, ...]) -> None:
    """Has autocast turn 16-bit values of some arguments of an operator into float32.

    ``torch.library.register_autocast`` casts every argument to one dtype; ours take features of 16
    bits beside float32 coordinates.
    """
    operator = getattr(torch.ops.dela, name).default
    wide = {
        position
        for position, argument in enumerate(operator._schema.arguments)
        if argument.name in arguments
    }
    for device in ("CPU", "CUDA"):
        keys = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, f"Autocast{device}"))

        def rule(_keys: Any, *given: Any, keys: Any = keys) -> Any:
            with torch._C._ExcludeDispatchKeyGuard(keys):
                return operator(
                    *(
                        value.float()
                        if position in wide and value.dtype in (torch.float16, torch.bfloat16)
                        else value
                        for position, value in enumerate(given)
                    )
                )

        library.impl(name, rule, f"Autocast{device}", with_keyset=True)
