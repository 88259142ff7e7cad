"""The operators as TensorRT plugins: in a native library, launched from Python, or in the engine.

Works with ``tensorrt`` and ``tensorrt_rtx`` alike; nothing of either is imported before it is asked
for.
"""
