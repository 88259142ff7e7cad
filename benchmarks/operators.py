"""Times both operators on a room-like cloud: native kernels against PyTorch formulations.

    python benchmarks/operators.py --points 30000 --neighbors 24 --channels 64

One process runs every formulation on the same inputs, best of several runs each:

- naive: plain PyTorch that materialises [N, k, C];
- strong: the fastest eager PyTorch found. SPSE as one matrix product over the monomials of the
  offsets (inexact: it expands the quadratic form), SPAMP with its distances from a matrix product;
- compiled (``--compile``): the best of torch.compile over both formulations.

Memory is what a call adds to the resident set at its peak, measured in a fresh process each and
divided by the bytes of its results. With glibc's own settings naive PyTorch spends much of its time
in page faults; ``--keep-memory`` tells glibc to keep freed memory (``ALLOCATOR`` below).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable

ALLOCATOR = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(2**40),
    "MALLOC_TOP_PAD_": str(2**26),
}
# Case: operator, attributes, directions.
CASES = {
    "spse": ("spse", 0, 0),
    "spse+4": ("spse", 4, 0),
    "spse+4+3": ("spse", 4, 3),
    "spamp": ("spamp", 0, 0),
}


def naive_spse(points, neighbors, weight, epsilon, directions):
    import torch

    channels, attributes = weight.shape[1], weight.shape[0] - 12 - directions
    matrix, center = weight[:9].t().reshape(channels, 3, 3), weight[9:12].t()
    there = points[neighbors]
    offset = there[..., :3] - points[:, None, :3]
    axes = torch.einsum("nki,cio->nkco", offset, matrix)
    value = (axes - torch.einsum("ci,cio->co", center, matrix)).square().sum(-1)
    if attributes:
        scalars, q = there[:, :, None, 3 : 3 + attributes], weight[12 : 12 + attributes].t()
        value = value + (scalars - q).square().sum(-1)
    if directions:
        value = value + there[..., 3 + attributes :] @ weight[12 + attributes :]
    return (value.min(1)[0] + epsilon).sqrt()


def strong_spse(points, neighbors, weight, epsilon, directions):
    import torch

    channels, attributes = weight.shape[1], weight.shape[0] - 12 - directions
    matrix, center = weight[:9].t().reshape(channels, 3, 3), weight[9:12].t()
    square = matrix @ matrix.transpose(1, 2)
    linear = (square @ center[:, :, None])[..., 0]
    q, d = weight[12 : 12 + attributes], weight[12 + attributes :]
    constant = (center * linear).sum(1) + q.square().sum(0)
    upper = torch.triu_indices(3, 3)
    twice = 2.0 - (upper[0] == upper[1]).float()
    quadratic = square[:, upper[0], upper[1]] * twice
    form = torch.cat([quadratic.t(), -2 * linear.t(), constant[None], -2 * q, d])
    there = points[neighbors]
    offset = there[..., :3] - points[:, None, :3]
    scalars, vectors = there[..., 3 : 3 + attributes], there[..., 3 + attributes :]
    monomials = [
        offset[..., upper[0]] * offset[..., upper[1]],
        offset,
        torch.ones_like(offset[..., :1]),
        scalars,
        vectors,
    ]
    if attributes:
        monomials.append(scalars.square().sum(-1, keepdim=True))
        form = torch.cat([form, torch.ones(1, channels)])
    value = (torch.cat(monomials, -1).flatten(0, 1) @ form).view(*neighbors.shape, channels)
    return (value.min(1)[0] + epsilon).clamp_min(0).sqrt()


def naive_spamp(features, points, neighbors, weight):
    import torch

    offset = points[neighbors] - points[:, None]
    distance = (offset[:, :, None] - weight[:3].t()).square().sum(-1) + 1e-8
    falloff = torch.exp(-weight[3] * distance).repeat_interleave(4, -1)
    return ((features[neighbors] - features[:, None]) * falloff).max(1)[0]


def strong_spamp(features, points, neighbors, weight):
    import torch

    n, k, channels = *neighbors.shape, features.shape[1]
    offset = points[neighbors] - points[:, None]
    p = weight[:3]
    distance = offset.square().sum(-1, keepdim=True) - 2 * (offset @ p) + p.square().sum(0) + 1e-8
    falloff = torch.exp(-weight[3] * distance)
    difference = (features[neighbors] - features[:, None]).view(n, k, channels // 4, 4)
    return (difference * falloff[..., None]).view(n, k, channels).max(1)[0]


def make_inputs(case: str, n: int, k: int, channels: int, train: bool) -> tuple[list, list]:
    """Positional arguments, neighbors as int32, and the tensors that take a gradient."""
    import numpy as np
    import torch
    from network import room_cloud

    from dela.geometry.cpu import knn

    operator, attributes, directions = CASES[case]
    rng = np.random.default_rng(0)
    cloud = room_cloud(n, 0.04)
    neighbors = torch.from_numpy(knn(cloud, k))
    points = torch.from_numpy(cloud) * 25  # voxels about one unit apart

    def normal(*shape: int) -> torch.Tensor:
        return torch.from_numpy(rng.normal(size=shape).astype(np.float32))

    if operator == "spamp":
        weight = torch.cat([normal(3, channels // 4), normal(1, channels // 4).square() / 10])
        arguments = [normal(n, channels), points, neighbors, weight]
        trained = [arguments[0], weight]
    else:
        extra = [torch.rand(n, attributes)]
        extra.append(torch.nn.functional.normalize(normal(n, directions), dim=1))
        weight = normal(12 + attributes + directions, channels) / 2
        epsilon = 1.0001 if directions else 1e-8
        arguments = [torch.cat([points, *extra], 1), neighbors, weight, epsilon, directions]
        trained = [weight]
    for tensor in trained:
        tensor.requires_grad_(train)
    return arguments, trained


def make_call(
    function: Callable, arguments: list, trained: list, train: bool, native: bool
) -> Callable[[], object]:
    """A forward pass, or forward and backward. PyTorch gets the int64 table that it indexes by."""
    import torch

    given = [
        value.long() if not native and getattr(value, "dtype", None) == torch.int32 else value
        for value in arguments
    ]
    like = arguments[0] if len(trained) > 1 else arguments[0][:, :1].expand(-1, trained[0].shape[1])
    like = torch.ones_like(like.detach(), memory_format=torch.contiguous_format)

    def forward():
        with torch.no_grad():
            return function(*given)

    def forward_backward():
        for tensor in trained:
            tensor.grad = None
        out = function(*given)
        out.backward(like)
        return out, *(tensor.grad for tensor in trained)

    return forward_backward if train else forward


def formulations(case: str) -> dict[str, Callable]:
    from dela import ops

    if CASES[case][0] == "spamp":
        return {"native": ops.spamp, "naive": naive_spamp, "strong": strong_spamp}
    return {"native": ops.spse, "naive": naive_spse, "strong": strong_spse}


def best_time(call: Callable[[], object], repeats: int) -> float:
    """Seconds of the fastest of ``repeats`` runs, after one more to warm up."""
    call()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def peak_growth(call: Callable[[], object]) -> tuple[int, int]:
    """Bytes that a call adds to the resident set at its peak, and the bytes of its results."""
    import torch

    page = os.sysconf("SC_PAGE_SIZE")

    def resident() -> int:
        with open("/proc/self/statm") as statm:
            return int(statm.read().split()[1]) * page

    stop, highest = threading.Event(), [0]

    def watch() -> None:
        while not stop.wait(0.0002):
            highest[0] = max(highest[0], resident())

    before = resident()
    watcher = threading.Thread(target=watch)
    watcher.start()
    results = call()
    highest[0] = max(highest[0], resident())
    stop.set()
    watcher.join()
    results = [results] if isinstance(results, torch.Tensor) else results
    return highest[0] - before, sum(result.nbytes for result in results)


def measure_memory(arguments: argparse.Namespace, case: str, train: bool, name: str) -> float:
    """Peak growth over the results' bytes, of the first large call in a process of its own."""
    command = [sys.executable, __file__, "--memory-of", f"{case}/{name}/{int(train)}"]
    for option in ("points", "neighbors", "channels", "isa"):
        command += [f"--{option}", str(getattr(arguments, option))]
    environment = {name: value for name, value in os.environ.items() if name not in ALLOCATOR}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    grown, results = json.loads(done.stdout.splitlines()[-1])
    return grown / results


def memory_of(arguments: argparse.Namespace) -> None:
    case, name, train = arguments.memory_of.split("/")
    calls = []
    for n in (200, arguments.points):  # the small call loads code and starts threads
        inputs = make_inputs(case, n, arguments.neighbors, arguments.channels, train == "1")
        function = formulations(case)[name]
        calls.append(make_call(function, *inputs, train == "1", name == "native"))
    calls[0]()
    print(json.dumps(peak_growth(calls[1])))


def run(arguments: argparse.Namespace) -> dict:
    import torch

    from dela.plugins import native

    rows = {}
    for case in arguments.cases:
        for train in (False, True):
            inputs = make_inputs(
                case, arguments.points, arguments.neighbors, arguments.channels, train
            )
            functions = formulations(case)
            if arguments.compile:
                for name in ("naive", "strong"):
                    functions[f"compiled {name}"] = torch.compile(functions[name], dynamic=False)
            row = {}
            for name, function in functions.items():
                repeats = arguments.repeats if name == "native" else arguments.slow_repeats
                call = make_call(function, *inputs, train, name == "native")
                row[name] = {"milliseconds": 1e3 * best_time(call, repeats)}
            for name in ("native", "naive") if arguments.memory else ():
                row[name]["memory_per_result"] = measure_memory(arguments, case, train, name)
            for result in row.values():
                result["slower_than_native"] = (
                    result["milliseconds"] / row["native"]["milliseconds"]
                )
            rows[f"{case} {'forward+backward' if train else 'forward'}"] = row
            if not arguments.json:
                print_row(case, train, row)
    return {
        "points": arguments.points,
        "neighbors": arguments.neighbors,
        "channels": arguments.channels,
        "threads": torch.get_num_threads(),
        "isa": native.active_isa(),
        "allocator": ALLOCATOR if arguments.keep_memory else {},
        "rows": rows,
    }


def print_row(case: str, train: bool, row: dict) -> None:
    title = f"{case} {'forward+backward' if train else 'forward'}"
    parts = [f"{title:26} native {row['native']['milliseconds']:7.2f} ms"]
    for name, result in row.items():
        if name != "native":
            parts.append(
                f"{name} {result['milliseconds']:7.1f} ms ({result['slower_than_native']:.1f}x)"
            )
    for name in ("native", "naive"):
        if "memory_per_result" in row[name]:
            parts.append(f"{name} memory {row[name]['memory_per_result']:.2f}x its results")
    print("  ".join(parts), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--points", type=int, default=30_000)
    parser.add_argument("--neighbors", type=int, default=24)
    parser.add_argument("--channels", type=int, default=64)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--isa", default="auto", help="v2, v3, v4 or auto (the best there is)")
    parser.add_argument("--repeats", type=int, default=30, help="runs of the native kernels")
    parser.add_argument("--slow-repeats", type=int, default=4, help="runs of the others")
    parser.add_argument("--compile", action="store_true", help="also torch.compile (slow to start)")
    parser.add_argument("--no-memory", dest="memory", action="store_false")
    parser.add_argument(
        "--keep-memory", action="store_true", help="glibc keeps freed memory: no page faults"
    )
    parser.add_argument("--json", action="store_true", help="print the results as JSON")
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.keep_memory and any(os.environ.get(k) != v for k, v in ALLOCATOR.items()):
        # glibc reads these when a process starts.
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | ALLOCATOR)

    import torch

    from dela.plugins import native

    native.set_isa(arguments.isa)
    if arguments.memory_of:
        memory_of(arguments)
        return
    if not arguments.json:
        memory = "keeping freed memory" if arguments.keep_memory else "with its own settings"
        print(
            f"instruction set {native.active_isa()}, {torch.get_num_threads()} threads, "
            f"glibc {memory}"
        )
    results = run(arguments)
    if arguments.json:
        print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
