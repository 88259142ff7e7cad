"""The operators as TensorRT plugins: launched from Python, or compiled into the engine.

Works with ``tensorrt`` and ``tensorrt_rtx`` alike; nothing of either is imported before it is asked
for.
"""
