"""The emulated CUDA driver: what it runs, and the faults it must catch."""

from __future__ import annotations

import os


def test_runs_in_a_process_of_its_own(emulated_cuda):
    assert "EMULATED_CUDA_PIPES" in os.environ
    from cuda.bindings import driver

    assert driver.cuInit(0)[0] == 0
    assert driver.cuDeviceGetName(40, 0)[1].startswith(b"Emulated GPU")
