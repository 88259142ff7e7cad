"""Builds the emulated driver and the kernels it runs; everything is cached by source hash.

The results lie under ``build/cuda_emulator/`` of the repository, in folders named by a hash of all
sources, headers and options, so that processes that need the same library share it.
"""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parents[1]
CACHE = REPOSITORY / "build" / "cuda_emulator"
PLUGINS = REPOSITORY / "plugins"
PROJECT_KERNELS = PLUGINS / "cuda"
OLDEST_HEADERS = 12080  # CUDA_VERSION of the oldest cuda.h with every type used here

# Every load and store of a kernel becomes a call into the emulator (gcc's outlined kernel-address
# checks), and a misaligned vector access becomes an illegal instruction, which it traps.
KERNEL_FLAGS = (
    "-fsanitize=kernel-address,alignment",
    "-fsanitize-undefined-trap-on-error",
    "-fsanitize-sections=emulated_shared",
    *("--param", "asan-instrumentation-with-call-threshold=0"),
    *("--param", "asan-stack=0"),
    *("--param", "asan-globals=1"),
    "-fno-strict-aliasing",  # as nvcc compiles
    "-fno-exceptions",
    "-ffp-contract=off",
)


class BuildError(RuntimeError):
    """A source of the emulator, or a kernel given to it, does not compile."""


def include_folders() -> list[Path]:
    """Folders that may hold NVIDIA's headers: the toolkit's, then the runtime wheel's."""
    folders = [Path(os.environ.get("CUDA_HOME", "/usr/local/cuda")) / "include"]
    found = importlib.util.find_spec("nvidia")
    for parent in found.submodule_search_locations or () if found else ():
        folders += sorted(Path(parent).glob("*/include"))
    return [folder for folder in folders if (folder / "cuda.h").is_file()]


@cache
def headers() -> Path | None:
    """The first folder whose cuda.h is recent enough and that holds the float16 headers too."""
    for folder in include_folders():
        version = re.search(r"#define CUDA_VERSION (\d+)", (folder / "cuda.h").read_text("latin-1"))
        if version and int(version[1]) >= OLDEST_HEADERS and (folder / "cuda_fp16.h").is_file():
            return folder
    return None


@cache
def missing() -> str | None:
    """Why nothing can be emulated on this machine, or None where it can."""
    if shutil.which("g++") is None:
        return "no g++ to build the emulated CUDA driver with"
    if headers() is None:
        return (
            f"no cuda.h of CUDA {OLDEST_HEADERS // 1000} or newer to build the emulated CUDA "
            "driver with (a toolkit, or pip install nvidia-cuda-runtime)"
        )
    if not importlib.util.find_spec("cuda") or not importlib.util.find_spec("cuda.bindings"):
        return "cuda-bindings is not installed (pip install cuda-bindings)"
    return None


def _compile(*arguments: object) -> str:
    command = ["g++", "-std=c++17", "-fPIC", *(str(argument) for argument in arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BuildError(f"{' '.join(command)}\n{done.stderr[-6000:]}")
    return done.stdout


def _digest(sources: Iterable[Path], *options: object) -> str:
    digest = hashlib.sha256(repr((options, str(headers()))).encode())
    for source in sources:
        digest.update(source.name.encode() + b"\0" + source.read_bytes())
    return digest.hexdigest()[:20]


class _Building:
    """``with _Building(folder) as fresh``: one process builds, the others wait for it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __enter__(self) -> bool:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.lock = open(self.folder / "lock", "w")
        fcntl.flock(self.lock, fcntl.LOCK_EX)
        return not (self.folder / "done").exists()

    def __exit__(self, error: object, *rest: object) -> None:
        if error is None:
            (self.folder / "done").touch()
        self.lock.close()


def driver() -> Path:
    """The folder that holds the emulated ``libcuda.so.1``, built if it is not there yet."""
    sources = sorted((HERE / "driver").glob("*"))
    folder = CACHE / ("driver-" + _digest([*sources, HERE / "device" / "abi.h", Path(__file__)]))
    with _Building(folder) as fresh:
        if fresh:
            (folder / "stubs.cpp").write_text(_stubs())
            _compile(
                "-O1", "-g1", "-shared", "-Wall", "-Wextra", "-Wno-unused-parameter",
                "-fvisibility=hidden", "-isystem", headers(), "-I", HERE / "driver",
                "-I", HERE / "device", *sorted((HERE / "driver").glob("*.cpp")),
                folder / "stubs.cpp", "-Wl,-soname,libcuda.so.1", "-Wl,--no-undefined",
                "-o", folder / "libcuda.so.1", "-ldl", "-pthread",
            )  # fmt: skip
            link = folder / "libcuda.so"  # what ``-lcuda`` looks for
            link.unlink(missing_ok=True)
            link.symlink_to("libcuda.so.1")
    return folder


def _stubs() -> str:
    """A weak entry point for every function of cuda.h, and the table of them all.

    What the emulator does not define answers CUDA_ERROR_NOT_SUPPORTED and says so once.
    """
    declared = _compile(
        "-E", "-P", "-D__CUDA_API_VERSION_INTERNAL", "-isystem", headers(),
        "-x", "c++", headers() / "cuda.h",
    )  # fmt: skip
    names: set[str] = set(re.findall(r"\bCUresult\s+(?:\w+\s+)*?(cu[A-Z]\w+)\s*\(", declared))
    # Declared in a header of its own, which the runtime's wheel lacks; PyCUDA links to them.
    names |= {"cuProfilerInitialize", "cuProfilerStart", "cuProfilerStop"}
    # And what the emulator defines for callers newer than these headers.
    for source in (HERE / "driver").glob("*.cpp"):
        names |= set(re.findall(r"^CUDA_ENTRY (cu\w+)\(", source.read_text(), re.MULTILINE))
    lines = ['#include "stubs.h"', *(f"STUB({name})" for name in sorted(names))]
    lines += [
        "const EntryPoint entry_points[] = {",
        *(f"    ENTRY({name})," for name in sorted(names)),
    ]
    return "\n".join([*lines, "    {nullptr, nullptr}};", ""])


_KERNEL = re.compile(r'extern\s+"C"\s+emulated_global_\s+void\s+(\w+)\s*\(')


def kernels(sources: Sequence[Path]) -> Path:
    """A library of the kernels in some .cu files, compiled by g++ without a change to them.

    Every ``extern "C" __global__ void`` function becomes a kernel that the emulated driver runs
    when a kernel of this name, out of any image, is launched.

    Raises:
        BuildError: a file does not compile, or holds no kernel.
    """
    sources = [Path(source).resolve() for source in sources]
    folders = {PROJECT_KERNELS, PLUGINS / "math", *(source.parent for source in sources)}
    included = sorted(path for folder in folders for path in folder.glob("*.*h"))
    device = sorted(path for path in (HERE / "device").rglob("*") if path.is_file())
    folder = CACHE / ("kernels-" + _digest([*sources, *included, *device, Path(__file__)]))
    with _Building(folder) as fresh:
        if fresh:
            common = (
                "-isystem", headers(), "-I", HERE / "device", "-I", PLUGINS,
                "-idirafter", HERE / "device" / "fallback",
            )  # fmt: skip
            objects = [folder / "runtime.o"]
            _compile("-O2", "-g1", "-c", *common, HERE / "device" / "runtime.cpp", "-o", objects[0])
            for source in sources:
                text = _compile(
                    "-E", "-P", "-DEMULATED_NAMES_ONLY", *common, "-include", "emulated_cuda.h",
                    "-x", "c++", source,
                )  # fmt: skip
                names = list(dict.fromkeys(_KERNEL.findall(text)))
                if not names:
                    raise BuildError(f'{source} holds no extern "C" __global__ void function')
                unit = folder / f"{source.stem}.cpp"
                table = "\n".join(f"EMULATED_KERNEL({name})" for name in names)
                unit.write_text(f'#include "emulated_cuda.h"\n#include "{source}"\n{table}\n')
                objects.append(unit.with_suffix(".o"))
                _compile("-O2", "-g1", "-w", "-c", *KERNEL_FLAGS, *common, unit, "-o", objects[-1])
            _compile(
                "-shared", *objects, "-Wl,--no-undefined,-Bsymbolic", "-o", folder / "kernels.so"
            )
    return folder / "kernels.so"


class _Entry(ctypes.Structure):
    """``emulated::KernelEntry`` of device/abi.h."""

    _fields_ = (
        ("name", ctypes.c_char_p),
        ("count", ctypes.c_uint32),
        ("sizes", ctypes.POINTER(ctypes.c_uint32)),
        ("alignments", ctypes.POINTER(ctypes.c_uint32)),
        ("call", ctypes.c_void_p),
    )


def image(sources: Sequence[Path]) -> bytes:
    """PTX without code: names and parameters of the kernels in some .cu files.

    What the emulated driver needs to load a module of kernels that were compiled for no device.
    """
    library = ctypes.CDLL(str(kernels(sources)))
    library.emulated_kernels.restype = ctypes.POINTER(_Entry)
    count = ctypes.c_int()
    entries = library.emulated_kernels(ctypes.byref(count))
    lines = [".version 7.0", ".target sm_80", ".address_size 64"]
    for entry in entries[: count.value]:
        name = entry.name.decode()
        parameters = ",\n".join(
            f".param .align {entry.alignments[i]} .b8 {name}_param_{i}[{entry.sizes[i]}]"
            for i in range(entry.count)
        )
        lines.append(f".visible .entry {name}({parameters}\n)\n{{\n\tret;\n}}")
    return "\n".join(lines).encode() + b"\n\0"


def project_kernels() -> Path | None:
    """The library of the project's own kernels; None where it has no .cu file."""
    sources = sorted(PROJECT_KERNELS.glob("*.cu"))
    return kernels(sources) if sources else None


def environment() -> dict[str, str]:
    """This process's environment with the emulated driver as the machine's CUDA driver.

    For a process that is to be started: the dynamic linker reads it once.
    """
    folder, project = driver(), project_kernels()
    earlier = os.environ.get("LD_LIBRARY_PATH")
    return os.environ | {
        "LD_LIBRARY_PATH": f"{folder}:{earlier}" if earlier else str(folder),
        "EMULATED_CUDA_KERNELS": str(project or ""),
    }
