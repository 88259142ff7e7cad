"""Compiles the CUDA kernels into the images that the package ships.

    make kernels                                          compiles what changed, renews the report
    PYTHONPATH=tools python -m cuda_images.compile         compiles into plugins/cuda/images/
    PYTHONPATH=tools python -m cuda_images.compile --check only says whether they are up to date

The compiler is NVRTC from the wheel ``nvidia-cuda-nvrtc-cu12``, and from ``nvidia-cuda-nvrtc`` for
GPUs that are newer than it, with the headers of ``nvidia-cuda-runtime-cu12``: neither a CUDA
toolkit nor a driver is needed. The same sources and the same compilers give the same bytes, so a
stale image shows. Users of the package need none of this: they load the images.

One image set per subject (:data:`SUBJECTS`), each the PTX for :data:`PTX_ARCHITECTURE` and a binary
("cubin") for each of :data:`BINARY_ARCHITECTURES`; ``manifest.json`` beside them names the compiler
and holds the hash of every source and image.
"""

from __future__ import annotations

import argparse
import ctypes
import hashlib
import importlib.metadata
import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parents[2] / "plugins" / "cuda"
IMAGES = FOLDER / "images"


@dataclass(frozen=True)
class Wheel:
    """A pinned wheel, and the file in it that is needed."""

    name: str
    version: str
    file: str

    def path(self) -> Path:
        """Where that file lies.

        Raises:
            CompileError: the wheel is missing or has another version.
        """
        try:
            found = importlib.metadata.distribution(self.name)
        except importlib.metadata.PackageNotFoundError:
            raise CompileError(f"{self.name} {self.version} is needed: {INSTALL}") from None
        if found.version != self.version:
            raise CompileError(
                f"{self.name} {self.version} is needed, found {found.version}: {INSTALL}"
            )
        for file in found.files or ():
            if file.name == self.file:
                return Path(str(file.locate()))
        raise CompileError(f"{self.file} of {self.name} is missing: {INSTALL}")


# The oldest compiler that knows most GPUs: the newer one, the newer the driver that its images ask.
NVRTC = Wheel("nvidia-cuda-nvrtc-cu12", "12.8.93", "libnvrtc.so.12")
NEWER_NVRTC = Wheel("nvidia-cuda-nvrtc", "13.0.88", "libnvrtc.so.13")
RUNTIME = Wheel("nvidia-cuda-runtime-cu12", "12.8.90", "cuda_fp16.h")
_WHEELS = (NVRTC, NEWER_NVRTC, RUNTIME)
INSTALL = "pip install " + " ".join(f"{wheel.name}=={wheel.version}" for wheel in _WHEELS)

# Sources of one image set each; files of plugins/cuda/ that hold kernels.
SUBJECTS = {
    "operators": ("spse.cu", "spamp.cu", "spse_backward.cu", "spamp_backward.cu", "reverse.cu"),
    "geometry": (
        "sort.cu",
        "attributes.cu",
        "ground.cu",
        "voxel.cu",
        "stages.cu",
        "knn.cu",
        "votes.cu",
    ),
    "inputs": ("gather.cu",),
    # What libdela_trt.so embeds: the operators without what only training needs.
    "inference": ("spse.cu", "spamp.cu"),
}
_MACROS = {"inference": ("--define-macro=DELA_INFERENCE",)}
PTX_ARCHITECTURE = 80
# PTX is marked as that of CUDA 11.8 rather than the compiler's own, which asks for driver 570.
PTX_VERSION = "7.8"
BINARY_ARCHITECTURES = (80, 86, 87, 89, 90, 100, 110, 120)
# Those that only the newer compiler knows: Jetson Thor.
NEWER_ARCHITECTURES = (110,)
OPTIONS = ("--std=c++17",)

# A hint of newer PTX: which bytes of a vector load are used.
_HINT = re.compile(rb'^\s*\.pragma "used_bytes_mask \d+";\n', re.MULTILINE)
_VERSION = re.compile(rb"^\.version \d+\.\d+$", re.MULTILINE)
_INCLUDE = re.compile(r'^#include "(.+)"$', re.MULTILINE)


class CompileError(RuntimeError):
    """The compiler is not there, is another version, or refuses a source."""


def source_files(subject: str) -> list[Path]:
    """The kernels of a subject and every header they include, directly or not.

    Raises:
        CompileError: a file is missing, as all of them are from an installed package.
    """
    found: list[Path] = []
    waiting = [FOLDER / name for name in SUBJECTS[subject]]
    while waiting:
        path = waiting.pop(0)
        if path in found:
            continue
        if not path.exists():
            raise CompileError(f"{path} is missing; kernels are compiled in a checkout of dela")
        found.append(path)
        waiting += [FOLDER.parent / name for name in _INCLUDE.findall(path.read_text())]
    return found


def source_hash(subject: str) -> str:
    """SHA-256 of a subject's sources, the compiler's version and its options."""
    versions = [wheel.version for wheel in _WHEELS]
    options = [*OPTIONS, *_MACROS.get(subject, ()), PTX_VERSION]
    digest = hashlib.sha256(json.dumps([versions, options, PTX_ARCHITECTURE]).encode())
    for path in source_files(subject):
        digest.update(f"\0{path.name}\0".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


def image_names(subject: str) -> dict[str, str]:
    """File name of every image of a subject, with its architecture as the compiler calls it."""
    names = {f"{subject}.compute_{PTX_ARCHITECTURE}.ptx": f"compute_{PTX_ARCHITECTURE}"}
    for number in BINARY_ARCHITECTURES:
        names[f"{subject}.sm_{number}.cubin"] = f"sm_{number}"
    return names


def lowered(ptx: bytes) -> bytes:
    """PTX marked as :data:`PTX_VERSION`, without the hint that is newer.

    Whether it is valid as such, the assembler says: a test runs it.

    Raises:
        CompileError: the text does not say its version.
    """
    text, marked = _VERSION.subn(f".version {PTX_VERSION}".encode(), _HINT.sub(b"", ptx))
    if marked != 1:
        raise CompileError(f"PTX with {marked} version lines; the compiler has changed its format")
    return text


class Compiler:
    """NVRTC of a pinned wheel.

    Args:
        wheel: :data:`NVRTC` or :data:`NEWER_NVRTC`.

    Raises:
        CompileError: a wheel is missing or has another version.
    """

    def __init__(self, wheel: Wheel = NVRTC) -> None:
        path = wheel.path()
        for builtins in path.parent.glob("libnvrtc-builtins.so.*"):
            ctypes.CDLL(str(builtins))  # which the compiler opens by name
        self._library = ctypes.CDLL(str(path))
        self._library.nvrtcGetErrorString.restype = ctypes.c_char_p
        self._include = RUNTIME.path().parent

    def compile(self, subject: str, architecture: str) -> bytes:
        """One image: PTX text for ``compute_80`` and its like, a binary for ``sm_90`` and its like.

        Raises:
            CompileError: with the compiler's messages.
        """
        source = "".join(f'#include "cuda/{name}"\n' for name in SUBJECTS[subject])
        options = [
            f"--gpu-architecture={architecture}",
            f"--include-path={FOLDER.parent}",
            f"--include-path={self._include}",
            *OPTIONS,
            *_MACROS.get(subject, ()),
        ]
        program = ctypes.c_void_p()
        self._call(
            "CreateProgram", ctypes.byref(program), source.encode(), f"{subject}.cu".encode(),
            0, None, None,
        )  # fmt: skip
        try:
            array = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
            status = self._library.nvrtcCompileProgram(program, len(options), array)
            if status != 0:
                log = self._result("ProgramLog", program).rstrip(b"\0").decode().strip()
                raise CompileError(f"{subject} for {architecture} does not compile:\n{log}")
            if architecture.startswith("sm_"):
                return self._result("CUBIN", program)
            return lowered(self._result("PTX", program).rstrip(b"\0"))
        finally:
            self._library.nvrtcDestroyProgram(ctypes.byref(program))

    def _result(self, what: str, program: ctypes.c_void_p) -> bytes:
        size = ctypes.c_size_t()
        self._call(f"Get{what}Size", program, ctypes.byref(size))
        buffer = ctypes.create_string_buffer(size.value)
        self._call(f"Get{what}", program, buffer)
        return buffer.raw

    def _call(self, name: str, *arguments: Any) -> None:
        status = getattr(self._library, f"nvrtc{name}")(*arguments)
        if status != 0:
            reason = self._library.nvrtcGetErrorString(status).decode()
            raise CompileError(f"nvrtc{name} failed: {reason}")


def compiler_for(architecture: str) -> Wheel:
    """Which compiler makes the image for ``sm_90`` and its like."""
    newer = architecture in {f"sm_{number}" for number in NEWER_ARCHITECTURES}
    return NEWER_NVRTC if newer else NVRTC


def read_manifest() -> dict[str, Any]:
    """``images/manifest.json``, or an empty one."""
    path = IMAGES / "manifest.json"
    return json.loads(path.read_text()) if path.exists() else {}


def stale_subjects() -> list[str]:
    """Subjects whose images were not made from the sources as they are, or are damaged."""
    known = read_manifest().get("subjects", {})
    stale = []
    for subject in SUBJECTS:
        entry = known.get(subject, {})
        fresh = entry.get("sources") == source_hash(subject)
        for name in image_names(subject):
            path = IMAGES / name
            fresh = fresh and path.exists() and entry["images"].get(name) == _hash(path)
        if not fresh:
            stale.append(subject)
    return stale


def write_images() -> list[str]:
    """Compiles the subjects that are stale and replaces their images; answers which.

    Raises:
        CompileError: no compiler, or a source that does not compile; nothing then changes.
    """
    stale = stale_subjects()
    if not stale:
        return []
    compilers = {wheel: Compiler(wheel) for wheel in (NVRTC, NEWER_NVRTC)}
    made = {
        subject: {
            name: compilers[compiler_for(architecture)].compile(subject, architecture)
            for name, architecture in image_names(subject).items()
        }
        for subject in stale
    }
    IMAGES.mkdir(exist_ok=True)
    entries = read_manifest().get("subjects", {})
    for subject, images in made.items():
        for name, data in images.items():
            (IMAGES / name).write_bytes(data)
        hashes = {name: _hash(IMAGES / name) for name in images}
        entries[subject] = {"sources": source_hash(subject), "images": hashes}
    kept = {subject: entries[subject] for subject in SUBJECTS}
    for path in IMAGES.iterdir():
        if not any(path.name in entry["images"] for entry in kept.values()):
            path.unlink()
    versions = f"NVRTC {NVRTC.version}, {NEWER_NVRTC.version} for {NEWER_ARCHITECTURES}"
    manifest = {"compiler": versions, "subjects": kept}
    (IMAGES / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")
    return stale


def _hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def main() -> int:
    """The command: 0 done or up to date, 1 stale or failed."""
    parser = argparse.ArgumentParser(description="Compile dela's CUDA kernels into images.")
    parser.add_argument("--check", action="store_true", help="only say whether they are current")
    check = parser.parse_args().check
    try:
        subjects = stale_subjects() if check else write_images()
    except CompileError as error:
        print(error, file=sys.stderr)
        return 1
    for subject in subjects:
        if check:
            print(
                f"{subject} is stale; run make kernels",
                file=sys.stderr,
            )
        else:
            print(f"{subject} compiled")
    return 1 if check and subjects else 0


if __name__ == "__main__":
    sys.exit(main())
