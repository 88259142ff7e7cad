"""Where the time goes from ``dela predict`` to the first point it reads.

    python benchmarks/start_up.py model.onnx scan.ply
    python benchmarks/start_up.py model.onnx scan.laz --runs 40 --json

Each run is a process of its own that ends when it is about to read the scan. ``wall`` and ``cpu``
are of whole runs, interpreter included; ``cpu`` adds up user and system time of all threads, so it
holds on a busy machine. The rows below come from runs under ``-X importtime``, which slows imports
a little: each package's modules without what they import themselves, and loading the model with
ONNX Runtime imported. Least of all runs, for each module. Files lie in the system's cache, and all
bytecode in a folder of its own, as after an installation.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from typing import Any, NamedTuple

# Stands in a child's place of `dela`: says what was used, and ends, where the scan would be read.
CHILD = """
import os, resource, sys, time

def stop(path, columns=None):
    used = resource.getrusage(resource.RUSAGE_SELF)
    print(time.monotonic(), used.ru_utime + used.ru_stime, made[0], flush=True)
    os._exit(0)

def timed(*args, **kwargs):
    start = time.perf_counter()
    backend = load(*args, **kwargs)
    made.append(time.perf_counter() - start)
    return backend

from dela.__main__ import main
import dela.cloud.formats
dela.cloud.formats.read_cloud = stop
from dela.runtime.backends import base as backends
load, backends.load_backend, made = backends.load_backend, timed, []
sys.argv = ["dela", "predict", sys.argv[2], "-m", sys.argv[1], "--json", "--overwrite"]
main()
"""
LINE = re.compile(r"import time:\s+(\d+) \|\s+\d+ \|\s+([\w.]+)")
PACKAGES = ("numpy", "dela", "onnxruntime", "typer", "pydantic", "pydantic_core", "rich", "laspy")


class Start(NamedTuple):
    """Seconds of one start; ``load`` is of the model, ``imports`` of each module itself."""

    wall: float
    cpu: float
    load: float
    imports: dict[str, float]


def run(words: list[str], bytecode: str, *flags: str) -> Start:
    """Starts ``dela predict`` in a process of its own."""
    environment = os.environ | {"PYTHONPYCACHEPREFIX": bytecode, "PYTHONDONTWRITEBYTECODE": ""}
    command = [sys.executable, *flags, "-c", CHILD, *words]
    start = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise SystemExit(done.stderr)
    end, cpu, made = map(float, done.stdout.split())
    imports = {module: int(own) / 1e6 for own, module in LINE.findall(done.stderr)}
    load = made - sum(own for name, own in imports.items() if package_of(name) == "onnxruntime")
    return Start(end - start, cpu, load, imports)


def package_of(module: str) -> str:
    package = module.partition(".")[0]
    return package if package in PACKAGES else "standard library"


def measure(words: list[str], runs: int) -> dict[str, Any]:
    """Least of several runs, in seconds, by name."""
    with tempfile.TemporaryDirectory() as bytecode:
        run(words, bytecode)
        plain = [run(words, bytecode) for _ in range(runs)]
        told = [run(words, bytecode, "-X", "importtime") for _ in range(runs)]
    parts: Counter[str] = Counter()
    for module in {name for start in told for name in start.imports}:
        each = [start.imports[module] for start in told if module in start.imports]
        parts[package_of(module)] += min(each)
    parts["load the model"] = min(start.load for start in told)
    return {
        "wall": min(start.wall for start in plain),
        "cpu": min(start.cpu for start in plain),
        "parts": dict(parts.most_common()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("scan")
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    result = measure([options.model, options.scan], options.runs)
    if options.json:
        print(json.dumps(result, indent=2))
        return
    print(f"{os.cpu_count()} cores, Python {sys.version.split()[0]}, least of {options.runs} runs")
    print(f"until the first point: wall {result['wall']:.3f} s, cpu {result['cpu']:.3f} s")
    for name, seconds in result["parts"].items():
        print(f"  {name:<18}{1000 * seconds:7.1f} ms")


if __name__ == "__main__":
    main()
