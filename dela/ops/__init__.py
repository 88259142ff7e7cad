"""DeLA's operators in PyTorch: kernels for CPU and CUDA tensors, a PyTorch reference beside.

:func:`spse`, :func:`spamp` and :func:`spamp_residual` pick the kernels unless
:func:`implementation` says otherwise. During ONNX export each becomes one ``dela::SPSE``,
``dela::SPAMP`` or ``dela::SPAMPResidual`` node.
"""

from dela.ops.select import implementation
from dela.ops.spamp import spamp
from dela.ops.spamp_residual import spamp_residual
from dela.ops.spse import spse

__all__ = ["implementation", "spamp", "spamp_residual", "spse"]
