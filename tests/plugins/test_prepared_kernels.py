"""Kernels whose arguments are packed beforehand: the layouts are those of the compiled kernels."""

from __future__ import annotations

import re
import struct

import numpy as np
import pytest

from dela.plugins.cuda import kernels, prepared

# As ptxas calls them; addresses and uint64 are alike.
KINDS = {"P": "u64", "Q": "u64", "q": "u64", "i": "u32", "d": "f64"}


def declared() -> dict[str, list[str]]:
    """Parameters of every geometry kernel, out of the PTX."""
    text = (kernels.IMAGES / "geometry.compute_80.ptx").read_text()
    found = {}
    for name, parameters in re.findall(r"\.visible \.entry (\w+)\((.*?)\)", text, re.S):
        lines = [line for line in parameters.splitlines() if ".param" in line]
        found[name] = [
            f"{size[1]}s" if (size := re.search(r"\[(\d+)\]", line)) else
            re.search(r"\.([uf]\d+)", line)[1]  # type: ignore[index]
            for line in lines
        ]  # fmt: skip
    return found


def test_layouts_are_those_of_the_compiled_kernels():
    layouts = {
        name: [KINDS.get(letter, letter) for letter in prepared.parameters(layout)]
        for name, layout in prepared.GEOMETRY.items()
    }
    assert layouts == declared()


@pytest.fixture
def gather(emulated_cuda):
    """A gather of three rows, out of arrays that are on the device."""
    from dela.plugins.cuda.arrays import DeviceArray
    from dela.plugins.cuda.driver import Device, Stream

    stream = Stream(Device())
    values = DeviceArray.from_host(np.arange(8, dtype=np.int32).reshape(4, 2), stream)
    rows = DeviceArray.from_host(np.array([3, -1, 0], np.int32), stream)
    out = DeviceArray.from_host(np.zeros((3, 2), np.int32), stream)

    def run(launch, *changed):
        words = (values.pointer, rows.pointer, 4, 3, 2, -7, out.pointer)
        launch("dela_gather_rows", 1, *(changed or words))
        return out.to_host(stream)

    return run, stream


def test_a_launch_takes_the_values_of_its_call(gather, emulated_cuda):
    run, stream = gather
    queue = prepared.PreparedKernels(stream).launch
    before = emulated_cuda.count("calls"), emulated_cuda.count("launches")
    assert np.array_equal(run(queue), [[6, 7], [-7, -7], [0, 1]])
    assert emulated_cuda.count("launches") == before[1] + 1
    expected = run(queue)
    calls = emulated_cuda.count("calls")
    queue("dela_gather_rows", 0, 0, 0, 0, 0, 0, 0, 0)
    assert emulated_cuda.count("calls") == calls
    assert np.array_equal(run(queue), expected)


def test_numbers_that_do_not_fit_and_missing_ones_are_refused(gather):
    run, stream = gather
    queue = prepared.PreparedKernels(stream).launch
    expected = run(queue)
    for words in ((0, 0, 2**31, 3, 2, 0, 0), (0, 0, 4, 3, 2, 0), (0, 0, 4.5, 3, 2, 0, 0)):
        with pytest.raises(struct.error):
            run(queue, *words)
    assert np.array_equal(run(queue), expected)


def test_a_launch_that_fails_says_which(gather):
    from dela.plugins.cuda.driver import CudaError

    run, stream = gather
    queue = prepared.PreparedKernels(stream).launch
    with pytest.raises(CudaError, match="dela_gather_rows with 1 blocks of 4096 threads failed"):
        queue("dela_gather_rows", 1, 0, 0, 0, 0, 0, 0, 0, block=4096)
    assert np.array_equal(run(queue), [[6, 7], [-7, -7], [0, 1]])
