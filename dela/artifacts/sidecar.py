"""The description that stands beside an engine: ``model.engine`` and ``model.engine.json``.

An engine runs on one kind of GPU and one version of TensorRT only, and says neither in words. The
sidecar does, so that a misfit is told before TensorRT refuses the file. No torch, no TensorRT.
"""

from __future__ import annotations

import dataclasses
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dela.artifacts.metadata import ModelMetadata
from dela.errors import ConfigError, EngineError
from dela.model.fields import read_fields
from dela.text import brief, parse_json

FORMAT = "dela-engine"
FORMAT_VERSION = 1
SUFFIX = ".engine"
FLAVOURS = ("tensorrt", "tensorrt-rtx")
# How the operators run: by our native plugin library, our kernels launched from Python, our kernels
# inside the engine, or standard layers in their place.
PLUGIN_FORMS = ("native", "python", "ahead-of-time", "none")
# Which GPUs besides those it was built for an engine runs on.
COMPATIBILITIES = ("none", "same-compute-capability", "ampere-plus")


@dataclass(frozen=True)
class SizeRange:
    """Smallest, best and largest size of one stage."""

    min: int
    opt: int
    max: int

    def __str__(self) -> str:
        return f"{self.min}:{self.opt}:{self.max}"


@dataclass(frozen=True)
class Profile:
    """What one optimization profile of an engine was built for.

    Attributes:
        stages: per stage the range of its points over all clouds of a batch.
    """

    stages: tuple[SizeRange, ...]

    def __str__(self) -> str:
        return ",".join(map(str, self.stages))


@dataclass(frozen=True)
class Sidecar:
    """How an engine was built and what it needs.

    Attributes:
        flavour: ``tensorrt`` or ``tensorrt-rtx``.
        tensorrt_version: of the library that built it, such as ``10.13.3.9``.
        compute_capabilities: of the GPUs it was built for, such as ``("8.6", "8.9")``.
        compatibility: one of :data:`COMPATIBILITIES`: other GPUs it runs on.
        dtype: precision of the layers between the operators: ``fp32``, ``fp16`` or ``bf16``.
        tf32: whether float32 products may be rounded to TF32's 10 bits.
        plugins: one of :data:`PLUGIN_FORMS`.
        plugin_layers: operator -> number of plugin layers; empty without plugins.
        kernels_sha256: of the compiled kernels, "" without plugins. Kernels of the native library
            or launched from Python are those installed; kernels inside the engine are these.
        profiles: in the order of the engine.
        engine_sha256: of the engine file.
        properties: the text properties of the ONNX file
        (:class:`dela.artifacts.metadata.ModelMetadata`). dela_version: of the package that built
        it.
    """

    flavour: str
    tensorrt_version: str
    compute_capabilities: tuple[str, ...]
    compatibility: str
    dtype: str
    tf32: bool
    plugins: str
    plugin_layers: dict[str, int]
    kernels_sha256: str
    profiles: tuple[Profile, ...]
    engine_sha256: str
    properties: dict[str, str] = field(repr=False)
    dela_version: str = ""

    def metadata(self, source: str = "this engine") -> ModelMetadata:
        """The network's own description.

        Raises:
            CheckpointError: it is damaged, or of a newer dela.
        """
        return ModelMetadata.from_properties(self.properties, source)

    def check_runtime(
        self,
        flavour: str,
        tensorrt_version: str,
        compute_capability: tuple[int, int],
        source: str = "this engine",
    ) -> None:
        """Whether the engine fits the library and the GPU at hand.

        Args:
            flavour: ``tensorrt`` or ``tensorrt-rtx``.
            tensorrt_version: of the installed library.
            compute_capability: of the GPU, such as ``(8, 9)``.
            source: how errors name the engine.

        Raises:
            EngineError: what differs, and that it must be built again here.
        """
        again = "build it again on this machine with `dela build`"
        if flavour != self.flavour:
            raise EngineError(
                f"{source} is an engine of {self.flavour}, not {flavour}; choose --backend "
                f"{self.flavour}"
            )
        if tensorrt_version.split(".")[:3] != self.tensorrt_version.split(".")[:3]:
            raise EngineError(
                f"{source} was built by {flavour} {self.tensorrt_version}, installed is "
                f"{tensorrt_version}; {again}, or install that version"
            )
        if not self.runs_on(compute_capability):
            built_for = ", ".join(self.compute_capabilities)
            raise EngineError(
                f"{source} was built for compute capability {built_for}, this GPU has "
                f"{compute_capability[0]}.{compute_capability[1]}; {again}"
            )

    def runs_on(self, compute_capability: tuple[int, int]) -> bool:
        """Whether a GPU of this compute capability can run the engine."""
        if self.compatibility == "ampere-plus":
            return compute_capability >= (8, 0)
        major, minor = compute_capability
        return f"{major}.{minor}" in self.compute_capabilities

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types only."""
        return {"format": FORMAT, "format_version": FORMAT_VERSION, **dataclasses.asdict(self)}

    def write(self, path: str | os.PathLike[str]) -> None:
        """Writes the JSON text to ``path`` itself."""
        Path(path).write_text(json.dumps(self.to_dict(), indent=2) + "\n", encoding="utf-8")

    @classmethod
    def from_dict(cls, values: Any, source: str = "this sidecar") -> Sidecar:
        """Inverse of :meth:`to_dict`; unknown keys are left alone.

        Raises:
            EngineError: not written by dela, by a newer one, or damaged.
        """
        if not isinstance(values, dict) or values.get("format") != FORMAT:
            raise EngineError(f"{source} does not describe a dela engine; build one: `dela build`")
        version = values.get("format_version")
        if not isinstance(version, int) or version > FORMAT_VERSION:
            raise EngineError(
                f"{source} has format version {brief(version)}, this dela reads up to "
                f"{FORMAT_VERSION}; install dela {str(values.get('dela_version', '?'))[:20]} or "
                "newer, which wrote it"
            )
        missing = [field.name for field in dataclasses.fields(cls) if field.name not in values]
        if missing:
            raise EngineError(f"{source} lacks {missing[0]!r}; build the engine again")
        try:
            sidecar = cls(**read_fields(cls, values))
        except ConfigError as error:
            raise EngineError(f"{source} is damaged: {error}; build the engine again") from error
        for name, value, choices in (
            ("flavour", sidecar.flavour, FLAVOURS),
            ("plugins", sidecar.plugins, PLUGIN_FORMS),
            ("compatibility", sidecar.compatibility, COMPATIBILITIES),
        ):
            if value not in choices:
                raise EngineError(
                    f"{source}: {name} {brief(value)} is not one of {', '.join(choices)}"
                )
        return sidecar


def sidecar_path(engine: str | os.PathLike[str]) -> Path:
    """``model.engine`` -> ``model.engine.json``."""
    engine = Path(engine)
    return engine.with_name(engine.name + ".json")


def read_sidecar(engine: str | os.PathLike[str], check_digest: bool = True) -> Sidecar:
    """The description beside an engine.

    Args:
        engine: the engine file.
        check_digest: whether the engine file must be the one described.

    Raises:
        EngineError: no engine, no sidecar, a damaged one, or one of another engine.
    """
    engine, path = Path(engine), sidecar_path(engine)
    if not engine.is_file():
        raise EngineError(f"there is no engine at {engine}; build one: `dela build`")
    if not path.is_file():
        raise EngineError(
            f"{engine} has no {path.name} beside it, which says what it needs; keep both files "
            "together, or build the engine again with `dela build`"
        )
    try:
        values = parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise EngineError(f"{path} cannot be read: {error}; build the engine again") from error
    sidecar = Sidecar.from_dict(values, str(path))
    if check_digest and digest_of(engine) != sidecar.engine_sha256:
        raise EngineError(
            f"{engine} is not the engine that {path.name} describes; copy both again, or build "
            "again with `dela build`"
        )
    return sidecar


def digest_of(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file, hexadecimal."""
    import hashlib

    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
