"""Native kernels of dela: one shared library, reached through ctypes or ONNX Runtime."""
