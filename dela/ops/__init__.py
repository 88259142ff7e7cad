"""The two DeLA operators in PyTorch: kernels for CPU and CUDA tensors, a PyTorch reference beside.

:func:`spse` and :func:`spamp` pick the kernels unless :func:`implementation` says otherwise.
During ONNX export both become one ``dela::SPSE`` / ``dela::SPAMP`` node.
"""

from dela.ops.select import implementation
from dela.ops.spamp import spamp
from dela.ops.spse import spse

__all__ = ["implementation", "spamp", "spse"]
