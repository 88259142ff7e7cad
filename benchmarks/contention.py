"""Times a small network alone and beside busy processes: dela, spinning threads, plain PyTorch.

    python benchmarks/contention.py            # a table
    python benchmarks/contention.py --markdown # the README's

Every variant is a process of its own, on the same two processors; they take turns, and sleep while
another is timed. "Spinning" is dela with libgomp's and ONNX Runtime's own waiting; "plain PyTorch"
is the same network with the naive operators of benchmarks/network.py and nothing of ours loaded.
Busy processes compute without a pause. The fair share of n of them beside two threads of ours on
two processors is the time alone, times (n + 2) / 2. Alone, what ran while other processes took a
tenth of a processor or more is measured again; a note says where that did not help.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import pickle
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

# libgomp's own spin count: setting it changes nothing but that dela leaves waiting alone.
SPINNING = {"GOMP_SPINCOUNT": "300000"}
JOBS = {
    "training": "training step",
    "inference": "inference, PyTorch",
    "onnx": "inference, ONNX Runtime",
}
# name -> title, variables, jobs
VARIANTS: dict[str, tuple[str, dict[str, str], tuple[str, ...]]] = {
    "dela": ("dela", {}, tuple(JOBS)),
    "spinning": ("dela, spinning", SPINNING, tuple(JOBS)),
    "passive": ("dela, passive", {"OMP_WAIT_POLICY": "passive"}, tuple(JOBS)),
    "plain": ("plain PyTorch", {}, ("training", "inference")),
}
PROCESSORS = 2
QUIET = 0.1  # processors that others may take while we measure "alone"
BUSY = """
import os
parent = os.getppid()
while os.getppid() == parent:
    for _ in range(1_000_000):
        pass
"""


@dataclass
class Case:
    """One variant of one job, and what was measured of it.

    Attributes:
        turns: busy processes -> (wall, CPU) seconds a step, one entry a turn.
        disturbed: turns alone that other work disturbed and that count for want of better ones.
    """

    variant: str
    job: str
    process: subprocess.Popen[str]
    turns: dict[int, list[tuple[float, float]]] = field(default_factory=dict)
    disturbed: int = 0

    def wall(self, busy: int) -> float:
        return statistics.median(wall for wall, _ in self.turns[busy])

    def cpu(self, busy: int) -> float:
        return statistics.median(cpu for _, cpu in self.turns[busy])

    def of_fair_share(self, busy: int) -> float:
        return self.wall(busy) / (self.wall(0) * (busy + PROCESSORS) / PROCESSORS)


def prepare(folder: Path, points: int) -> None:
    """Writes the network's input and its ONNX file into ``folder``."""
    import dataclasses

    import numpy as np
    from network import room_cloud

    import dela
    from dela.export.onnx_export import export_onnx

    large = dela.PRESETS["s3dis"]
    config = dataclasses.replace(
        large,
        dims=(32, 64, 128),
        depths=(2, 2, 2),
        neighbors=(16, 16, 16),
        grid=large.grid[:3],
        spread=large.spread[:3],
    )
    cloud = room_cloud(points, config.grid[0])
    attributes = np.random.default_rng(0).random(
        (points, len(config.input_columns)), dtype=np.float32
    )
    pyramid = dela.build_pyramid(cloud, attributes, config)
    distances = dela.measure_neighbor_distances([pyramid], config)
    (folder / "input.pickle").write_bytes(pickle.dumps((config, distances, pyramid)))
    model = dela.create_model(config, distances, seed=0).eval()
    export_onnx(model, folder / "network.onnx", check=False)


def make_step(variant: str, job: str, folder: Path) -> Callable[[], object]:
    """What is timed, in this process."""
    config, distances, pyramid = pickle.loads((folder / "input.pickle").read_bytes())
    if job == "onnx":
        from dela.runtime.backends.onnx_runtime import OnnxRuntimeBackend

        backend = OnnxRuntimeBackend(folder / "network.onnx")
        return lambda: backend.run(pyramid)
    import torch
    from network import naive_spamp, naive_spse

    import dela
    from dela import ops

    if variant == "plain":
        ops.spse, ops.spamp = naive_spse, naive_spamp
    model = dela.create_model(config, distances, seed=0)
    tensors = pyramid.to_tensors(torch.device("cpu"))
    if job == "inference":
        model.eval()

        def infer() -> object:
            with torch.inference_mode():
                return model(tensors)

        return infer
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    labels = torch.randint(0, len(config.classes), (pyramid.points.shape[0],))

    def step() -> None:
        logits, coordinate_loss = model.train()(tensors)
        loss = torch.nn.functional.cross_entropy(logits, labels) + 0.1 * coordinate_loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def serve(variant: str, job: str, folder: Path) -> None:
    """Runs the turns that stdin asks for: seconds of steps before, least seconds, most steps."""
    from dela.plugins import native

    step = make_step(variant, job, folder)
    step(), step()
    if variant == "plain" and native.library.cache_info().currsize:
        raise SystemExit("plain PyTorch loaded the native library")
    print("ready", flush=True)
    for line in sys.stdin:
        before, least, most = map(float, line.split())
        start = time.perf_counter()
        while time.perf_counter() - start < before:
            step()
        start, cpu, steps = time.perf_counter(), time.process_time(), 0
        while steps < most and (steps == 0 or time.perf_counter() - start < least):
            step()
            steps += 1
        wall, cpu = time.perf_counter() - start, time.process_time() - cpu
        print(json.dumps([wall / steps, cpu / steps, wall]), flush=True)


def start_case(variant: str, job: str, folder: Path) -> Case:
    _, variables, _ = VARIANTS[variant]
    unset = {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "OMP_NUM_THREADS"}
    environment = {name: value for name, value in os.environ.items() if name not in unset}
    process = subprocess.Popen(
        [sys.executable, __file__, "--serve", variant, job, str(folder)],
        env=environment | variables,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    return Case(variant, job, process)


def ask(case: Case, before: float, least: float, most: int) -> tuple[float, float, float]:
    """One turn of a case: wall and CPU seconds a step, and processors others took meanwhile."""
    from dela.threads import busy_seconds

    assert case.process.stdin is not None and case.process.stdout is not None
    start, others = time.perf_counter(), busy_seconds() or 0.0
    own = process_seconds(case.process.pid)
    case.process.stdin.write(f"{before} {least} {most}\n")
    case.process.stdin.flush()
    answer = case.process.stdout.readline()
    if not answer:
        raise SystemExit(f"{case.variant} {case.job} ended")
    wall, cpu, _ = json.loads(answer)
    others = (busy_seconds() or 0.0) - others - (process_seconds(case.process.pid) - own)
    return wall, cpu, others / (time.perf_counter() - start)


def process_seconds(pid: int) -> float:
    """CPU seconds of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextlib.contextmanager
def busy_processes(count: int) -> Iterator[None]:
    processes = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(count)]
    try:
        time.sleep(1.0 if count else 0.0)
        yield
    finally:
        for process in processes:
            process.kill()
        for process in processes:
            process.wait()


def measure_alone(cases: list[Case], rounds: int) -> None:
    """Turns until every case has ``rounds`` quiet ones, or has had four times as many."""
    quiet: list[list[tuple[float, float]]] = [[] for _ in cases]
    loud: list[list[tuple[float, float]]] = [[] for _ in cases]
    for number in range(4 * rounds):
        print(f"alone, turn {number + 1} of {rounds} to {4 * rounds}", file=sys.stderr, flush=True)
        if all(len(good) == rounds for good in quiet):
            break
        for case, good, bad in zip(cases, quiet, loud, strict=True):
            if len(good) < rounds:
                wall, cpu, others = ask(case, 0.7, 0.5, 1000)
                (good if others < QUIET else bad).append((wall, cpu))
    for case, good, bad in zip(cases, quiet, loud, strict=True):
        case.disturbed = max(0, rounds - len(good))
        case.turns[0] = good + sorted(bad)[: case.disturbed]


def measure_beside(cases: list[Case], busy: int, rounds: int) -> None:
    with busy_processes(busy):
        for number in range(rounds):
            for case in cases:
                # Plain PyTorch has nothing to settle, and its steps take long here.
                plain = case.variant == "plain"
                if plain and number >= max(1, rounds // 3):
                    continue
                wall, cpu, _ = ask(case, 0.0 if plain else 0.5, 1.0, 1 if plain else 1000)
                case.turns.setdefault(busy, []).append((wall, cpu))


def run(points: int, rounds: int, loads: list[int], jobs: list[str]) -> list[Case]:
    cases: list[Case] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        subprocess.run(
            [sys.executable, __file__, "--prepare", name, "--points", str(points)], check=True
        )
        try:
            for job in jobs:
                for variant, (_, _, possible) in VARIANTS.items():
                    if job in possible:
                        cases.append(start_case(variant, job, folder))
                        assert cases[-1].process.stdout is not None
                        cases[-1].process.stdout.readline()
            measure_alone(cases, 2 * rounds)
            for busy in loads:
                print(f"beside {busy} busy processes", file=sys.stderr, flush=True)
                measure_beside(cases, busy, rounds)
        finally:
            for case in cases:
                case.process.kill()
                case.process.wait()
    return cases


def table(cases: list[Case], loads: list[int], markdown: bool) -> str:
    """Milliseconds a step; beside busy processes also as multiples of the fair share."""
    heads = ["", "alone", *(f"beside {busy}" for busy in loads)]
    rows = [heads]
    for case in cases:
        cells = [f"{JOBS[case.job]}, {VARIANTS[case.variant][0]}"]
        cells.append(f"{case.wall(0) * 1e3:.4g} ms" + ("*" if case.disturbed else ""))
        for busy in loads:
            cells.append(f"{case.wall(busy) * 1e3:.4g} ms ({case.of_fair_share(busy):.1f})")
        if not markdown:
            cpu = ", ".join(f"{case.cpu(busy) * 1e3:.4g}" for busy in (0, *loads))
            cells.append(f"CPU {cpu} ms")
        rows.append(cells)
    if markdown:
        rows.insert(1, ["---"] * len(heads))
        lines = ["| " + " | ".join(row) + " |" for row in rows]
    else:
        widths = [max(len(row[i]) for row in rows) for i in range(len(heads))]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=False))
            + "".join(f"  {cell}" for cell in row[len(widths) :])
            for row in rows
        ]
    if any(case.disturbed for case in cases):
        lines.append("* other work ran meanwhile: measure again on a quiet machine")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--points", type=int, default=6_000, help="points of stage 0")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each case beside a load")
    parser.add_argument("--busy", type=int, nargs="*", default=[4, 8], help="busy processes")
    parser.add_argument("--jobs", nargs="*", choices=list(JOBS), default=list(JOBS))
    parser.add_argument("--markdown", action="store_true", help="print the README's table")
    parser.add_argument("--json", action="store_true", help="print every turn as JSON")
    parser.add_argument("--serve", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--prepare", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        variant, job, folder = arguments.serve
        serve(variant, job, Path(folder))
    elif arguments.prepare:
        prepare(arguments.prepare, arguments.points)
    else:
        usable = sorted(os.sched_getaffinity(0))
        if len(usable) < PROCESSORS:
            raise SystemExit(f"{len(usable)} processor usable; this needs {PROCESSORS}")
        os.sched_setaffinity(0, usable[:PROCESSORS])
        # Ended from outside, too, it takes its processes along.
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
        cases = run(arguments.points, arguments.rounds, arguments.busy, arguments.jobs)
        if arguments.json:
            kept = [
                {"job": case.job, "variant": case.variant, "turns": case.turns} for case in cases
            ]
            print(json.dumps(kept, indent=2))
        else:
            print(table(cases, arguments.busy, arguments.markdown))


if __name__ == "__main__":
    main()
