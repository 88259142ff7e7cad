"""An exported file with ONNX Runtime and numpy alone: nothing of dela is imported.

Its operators then run as the function bodies that the file carries. The inputs come from wherever
the scan is prepared, where dela is installed:

    part = dela.build_pyramid(points, attributes, dela.load_checkpoint("best.pt").config)
    np.savez("inputs.npz", **dict(part.inputs()))

    python examples/plain_onnxruntime.py model.onnx inputs.npz
"""

import json
import sys

import numpy as np
import onnxruntime


def main(model: str, inputs: str) -> tuple[np.ndarray, list[str]]:
    """Logits [points, classes] of the inputs in an NPZ, and the names of the classes."""
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    with np.load(inputs) as arrays:
        feeds = {entry.name: arrays[entry.name] for entry in session.get_inputs()}
    (logits,) = session.run(["logits"], feeds)
    config = json.loads(session.get_modelmeta().custom_metadata_map["config"])
    return logits, [info["name"] for info in config["classes"]]


if __name__ == "__main__":
    answer, names = main(*sys.argv[1:3])
    counts = np.bincount(answer.argmax(axis=1), minlength=len(names))
    for name, count in zip(names, counts, strict=True):
        print(f"{name:20} {count:,}")
