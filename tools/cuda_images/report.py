"""What the assembler made of the CUDA kernels, and the time that lets one expect.

    PYTHONPATH=tools python -m cuda_images.report             prints the tables
    PYTHONPATH=tools python -m cuda_images.report --write     puts them into docs/kernels.md

Everything is read from the shipped binaries with ``nvdisasm`` (of the wheel
``nvidia-cuda-nvdisasm`` or of a CUDA toolkit); no GPU is needed. Times are a plain roofline, not
measurements; the formula stands below the table.
"""

from __future__ import annotations

import argparse
import functools
import importlib.metadata
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from cuda_images.compile import BINARY_ARCHITECTURES, IMAGES, SUBJECTS

PAGE = Path(__file__).parents[2] / "docs" / "kernels.md"
_MARKERS = ("<!-- tables: begin -->", "<!-- tables: end -->")
_REGISTERS = re.compile(
    r"EIATTR_REGCOUNT\n(?:.*\n){2,6}?.*index@\((\w+)\)\n.*\.word\s+0x(\w+)", re.MULTILINE
)
_LABEL_OR_INSTRUCTION = re.compile(
    r"^(?:(\.L_\w+):|[ \t]+/\*[0-9a-f]{4,}\*/[ \t]+([^;\n]+?)[ \t]*;)", re.MULTILINE
)
_BRANCH = re.compile(r"\bBRA\b.*?(\.L_\w+)")
_LOCAL = re.compile(r"\b(LDL|STL)\b")
_WHEEL = "nvidia-cuda-nvdisasm"
INSTALL = f"pip install {_WHEEL}"


class ReportError(RuntimeError):
    """The disassembler or the page is missing, or the disassembler fails."""


@dataclass(frozen=True)
class Kernel:
    """One kernel in one binary.

    Attributes:
        registers: per thread.
        local: instructions that touch local memory: spilled registers and indexed local arrays.
        shared: bytes of shared memory per block, as the assembler sets them aside.
        instructions: all of them.
        loop: those of the innermost loop that takes the most minima or maxima: the loop over
            neighbors, several neighbors unrolled. Empty where there is none.
    """

    registers: int
    local: int
    shared: int
    instructions: tuple[str, ...]
    loop: tuple[str, ...]

    @property
    def wide_loads(self) -> int:
        """16-byte loads of global memory in the loop."""
        return sum(".128" in text and "LDG" in text for text in self.loop)

    @property
    def per_value(self) -> float | None:
        """Instructions of the loop per neighbor and channel: per minimum or maximum taken."""
        values = _extrema(self.loop)
        return len(self.loop) / values if values else None


@dataclass(frozen=True)
class Gpu:
    """What the roofline needs to know of a GPU.

    Attributes:
        processors: streaming multiprocessors; each issues 4 warp instructions a clock.
        clock: boost, GHz.
        cache: TB/s that the multiprocessors draw from the L2 cache, as the limits assume.
    """

    name: str
    architecture: int
    processors: int
    clock: float
    cache: float

    def issue_time(self, thread_instructions: float) -> float:
        """Microseconds to issue so many instructions of single threads, 32 at a time."""
        return thread_instructions / 32 / (self.processors * 4 * self.clock * 1e3)

    def cache_time(self, moved: float) -> float:
        """Microseconds to bring so many bytes from the L2 cache."""
        return moved / (self.cache * 1e6)


GPUS = (
    Gpu("RTX 4090", 89, 128, 2.52, 4.6),
    Gpu("H100 SXM", 90, 132, 1.98, 5.1),
)

# Microseconds the design asks for, for 30,000 points, 24 neighbors, 64 channels.
LIMITS = {
    "SPSE": (15, 18),
    "SPAMP float32": (40, 36),
    "S3DIS network, float32": (493, 458),
    "S3DIS network, float16": (271, 257),
}

_TIME_NOTE = """\
Microseconds for 30,000 points, 24 neighbors, 64 channels; the network is every operator of one
S3DIS pass, each stage with a quarter of the points before. Estimated, not measured: issue = N k C
I / (32 * 4 * multiprocessors * clock), I being the instructions per neighbor and channel above;
gather = N k C * bytes per feature / L2 bandwidth; the estimate is the larger of both for each
operator. {gpus} of L2 bandwidth. NVIDIA does not publish that bandwidth: it is what the limits
assume, so SPAMP meets its limit if features come from L2 at that rate, and does better where
neighbors meet in L1. What a thread does outside the loop over neighbors adds about a tenth to
SPSE; latency, launches and uneven last waves are not counted."""


def disassembler() -> Path:
    """``nvdisasm`` of the wheel, or of a CUDA toolkit on the path.

    Raises:
        ReportError: there is none.
    """
    try:
        files = importlib.metadata.files(_WHEEL) or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    for file in files:
        if file.name == "nvdisasm":
            return Path(str(file.locate()))
    found = shutil.which("nvdisasm")
    if found is None:
        raise ReportError(f"nvdisasm not found: {INSTALL}")
    return Path(found)


@functools.cache
def disassemble(image: Path) -> dict[str, Kernel]:
    """Every kernel of a binary, by name.

    Raises:
        ReportError: no disassembler, or it refuses the file.
    """
    done = subprocess.run([disassembler(), image], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise ReportError(f"nvdisasm fails on {image.name}: {done.stderr.strip()}")
    registers: dict[str, int] = {}
    shared: dict[str, int] = {}
    code = {}
    for section in re.split(r"^//-{10,} ", done.stdout, flags=re.MULTILINE):
        title = section.split(maxsplit=1)[0]
        if title == ".nv.info":
            for name, count in _REGISTERS.findall(section):
                registers[name] = int(count, 16)
        elif title.startswith(".nv.shared."):
            size = re.search(r"\.zero\s+(\d+)", section)
            shared[title.removeprefix(".nv.shared.")] = int(size[1]) if size else 0
        elif title.startswith(".text."):
            code[title.removeprefix(".text.")] = _code(section)
    return {
        name: Kernel(
            registers=registers[name],
            local=sum(bool(_LOCAL.search(text)) for text in instructions),
            shared=shared.get(name, 0),
            instructions=instructions,
            loop=loop,
        )
        for name, (instructions, loop) in code.items()
    }


def _code(body: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Instructions of a kernel, and of its loop over neighbors."""
    instructions: list[str] = []
    labels: dict[str, int] = {}
    for label, text in _LABEL_OR_INSTRUCTION.findall(body):
        if label:
            labels[label] = len(instructions)
        else:
            instructions.append(text)
    loops = []
    for last, text in enumerate(instructions):
        target = _BRANCH.search(text)
        if target and labels.get(target[1], last + 1) <= last:
            loops.append((labels[target[1]], last + 1))
    inner = [
        instructions[a:b]
        for a, b in loops
        if not any(a <= c and d <= b and (a, b) != (c, d) for c, d in loops)
    ]
    chosen = max(inner, key=_extrema, default=[])
    return tuple(instructions), tuple(chosen if _extrema(chosen) else ())


def _extrema(code: tuple[str, ...] | list[str]) -> int:
    """Float minima and maxima taken; a three-input one counts as two."""
    return sum(2 if "FMNMX3" in text else 1 for text in code if "FMNMX" in text)


def read_images(subject: str) -> dict[int, dict[str, Kernel]]:
    """Kernels of every binary of a subject, by architecture and name."""
    return {
        number: disassemble(IMAGES / f"{subject}.sm_{number}.cubin")
        for number in BINARY_ARCHITECTURES
    }


def kernel_table(subject: str) -> str:
    """Markdown: registers, local memory and shared memory of every kernel, in source order."""
    images = read_images(subject)
    numbers = "/".join(map(str, images))
    lines = [
        f"| kernel | registers, sm_{numbers} | local memory instructions | shared memory, bytes |",
        "|---|---|---|---|",
    ]
    for name in reversed(images[BINARY_ARCHITECTURES[0]]):
        kernels = [kernels[name] for kernels in images.values()]
        registers = "/".join(str(kernel.registers) for kernel in kernels)
        local = max(kernel.local for kernel in kernels)
        lines.append(
            f"| `{name}` | {registers} | {local} | {min(kernel.shared for kernel in kernels)} |"
        )
    return "\n".join(lines)


def loop_table() -> str:
    """Markdown: instructions and 16-byte loads in the loops over neighbors."""
    images = read_images("operators")
    lines = [
        "| kernel | instructions per neighbor and channel, sm_80/89/90 "
        "| 16-byte loads per neighbor |",
        "|---|---|---|",
    ]
    for name in reversed(images[BINARY_ARCHITECTURES[0]]):
        kernels = [images[number][name] for number in (80, 89, 90)]
        if not re.match("dela_(spse|spamp)_", name) or kernels[0].per_value is None:
            continue
        values = " / ".join(f"{kernel.per_value:.1f}" for kernel in kernels)
        channels = 8 if name.endswith("_8") else 4
        loads = kernels[0].wide_loads * channels / _extrema(kernels[0].loop)
        lines.append(f"| `{name}` | {values} | {loads:g} |")
    return "\n".join(lines)


@dataclass(frozen=True)
class Estimate:
    """Microseconds of one operator or more: to issue its instructions, to gather its features, and
    the larger of both, operator by operator."""

    issue: float
    gather: float
    total: float

    def __add__(self, other: Estimate) -> Estimate:
        return Estimate(
            self.issue + other.issue, self.gather + other.gather, self.total + other.total
        )


def estimate(gpu: Gpu, kernel: str, m: int, k: int, c: int, size: int = 0) -> Estimate:
    """Time of ``kernel`` for ``m`` rows, ``k`` neighbors, ``c`` channels of ``size`` bytes each."""
    per_value = disassemble(IMAGES / f"operators.sm_{gpu.architecture}.cubin")[kernel].per_value
    if per_value is None:
        raise ReportError(f"{kernel} has no loop over neighbors")
    issue = gpu.issue_time(m * k * c * per_value)
    gather = gpu.cache_time(m * k * c * size)
    return Estimate(issue, gather, max(issue, gather))


def network_estimate(gpu: Gpu, vector: str, size: int) -> Estimate:
    """Every operator of one pass of the S3DIS network on 30,000 points.

    Each stage keeps a quarter of the points of the one before.
    """
    spamp = f"dela_spamp_{vector}"
    total, points, k_before = Estimate(0, 0, 0), 30_000, 0
    stages = zip((64, 128, 256, 512), (4, 4, 8, 8), (24, 32, 32, 32), strict=True)
    for stage, (c, depth, k) in enumerate(stages):
        total += estimate(gpu, f"dela_spse_{4 if stage == 0 else 0}", points, k, 64)
        if stage > 0:  # the layer that keeps a quarter of the rows
            total += estimate(gpu, spamp, points, k_before, c, size)
        for _ in range(depth):
            total += estimate(gpu, spamp, points, k, c, size)
        points, k_before = points // 4, k
    return total


def time_table() -> str:
    """Markdown: estimated microseconds beside the design's limits."""
    one = (30_000, 24, 64)
    columns = [
        {
            "SPSE": estimate(gpu, "dela_spse_0", *one),
            "SPSE, 4 attributes": estimate(gpu, "dela_spse_4", *one),
            "SPSE, 4 attributes, 3 directions": estimate(gpu, "dela_spse_4_3", *one),
            "SPAMP float32": estimate(gpu, "dela_spamp_f32", *one, 4),
            "SPAMP float16": estimate(gpu, "dela_spamp_f16_8", *one, 2),
            "S3DIS network, float32": network_estimate(gpu, "f32", 4),
            "S3DIS network, float16": network_estimate(gpu, "f16_8", 2),
        }
        for gpu in GPUS
    ]
    titles = " | ".join(f"{gpu.name}: issue | gather | estimate | limit" for gpu in GPUS)
    lines = [f"| operator | {titles} |", "|---|" + "---|" * 4 * len(GPUS)]
    for row in columns[0]:
        cells = []
        for column, limit in zip(columns, LIMITS.get(row, ("", "")), strict=True):
            found = column[row]
            cells += [f"{found.issue:.0f}", f"{found.gather:.0f}", f"{found.total:.0f}", f"{limit}"]
        lines.append(f"| {row} | {' | '.join(cells)} |")
    gpus = "; ".join(
        f"{gpu.name}: {gpu.processors} multiprocessors, {gpu.clock} GHz, {gpu.cache} TB/s"
        for gpu in GPUS
    )
    return "\n".join([*lines, "", _TIME_NOTE.format(gpus=gpus)])


def tables() -> str:
    """Everything the page shows between its markers."""
    # The images of inference hold kernels of the operators once more.
    subjects = [subject for subject in SUBJECTS if subject != "inference"]
    sections = {f"Kernels: {subject}": kernel_table(subject) for subject in subjects}
    sections["Loops over neighbors"] = loop_table()
    sections["Estimated time"] = time_table()
    return "\n\n".join(f"### {title}\n\n{table}" for title, table in sections.items())


def page_with(text: str, page: str) -> str:
    """``page`` with ``text`` between its markers.

    Raises:
        ReportError: a marker is missing.
    """
    begin, end = _MARKERS
    if begin not in page or end not in page:
        raise ReportError(f"{PAGE.name} lacks the markers {begin} and {end}")
    head, tail = page.split(begin)[0], page.split(end)[1]
    return f"{head}{begin}\n\n{text}\n\n{end}{tail}"


def main() -> int:
    """The command: 0 done, 1 failed."""
    parser = argparse.ArgumentParser(description="Report on dela's compiled CUDA kernels.")
    parser.add_argument("--write", action="store_true", help=f"write into docs/{PAGE.name}")
    write = parser.parse_args().write
    try:
        if write and not PAGE.exists():
            raise ReportError(f"{PAGE} is missing; the page is part of a checkout of dela")
        text = tables()
        if write:
            PAGE.write_text(page_with(text, PAGE.read_text()))
        else:
            print(text)
    except ReportError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
