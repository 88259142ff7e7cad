"""Inference on arrays that lie on a GPU and stay there, with a TensorRT engine.

Points go up once; voxels, neighbors, coarser stages and logits are made on the GPU. Arrays of
torch, CuPy, PyCUDA and Numba serve as well as dela's; `torch.from_dlpack(logits)` copies nothing.

    python examples/zero_copy_gpu.py model.engine scan.laz
"""

import sys
from typing import Any

import numpy as np

import dela
from dela.plugins.cuda.arrays import DeviceArray
from dela.plugins.cuda.driver import Device, Stream
from dela.pyramid.gpu import PyramidBuilder
from dela.runtime import load_backend
from dela.scan.attributes import compute_attributes


def main(model: str, path: str) -> np.ndarray:
    """Class [points] of a scan that fits into one run of the engine."""
    engine: Any = load_backend(model, graphs=False)  # then inputs are read where they lie
    scan = dela.read_cloud(path)
    attributes = compute_attributes(scan, engine.config.input_columns)

    device = Device()
    with device.current():
        stream = Stream(device)
        points = DeviceArray.from_host(scan.points, stream)
        columns = DeviceArray.from_host(attributes, stream)
        builder = PyramidBuilder(engine.config, stream)
        voxels = builder.voxels(points, columns)
        inputs = builder.tile(voxels)
        stream.synchronize()  # the engine works on a stream of its own
        logits = engine.run(inputs, output="device")  # complete; the next run writes over it
        classes = logits.to_host(stream).argmax(axis=1)
        return classes[voxels.voxel_of_point.to_host(stream)]


if __name__ == "__main__":
    found = main(*sys.argv[1:3])
    print(f"{len(found):,} points; classes {np.bincount(found).tolist()}")
