"""What an exported file says about itself: the model's configuration and where it came from.

Stored as text properties of the ONNX file, so a deployment needs nothing else to prepare its input
and to name its output. No torch and no onnx here: a runtime hands over the properties it read.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dela.errors import CheckpointError, ConfigError
from dela.families import FIRST, config_from_dict, config_to_dict, family_of
from dela.families.base import Family
from dela.model.parity import DTYPES
from dela.text import brief, parse_json

FORMAT = "dela-onnx"
# Files of the first family keep the version that they always had; others need a newer dela.
FORMAT_VERSION = 2
_FIRST_FAMILY_VERSION = 1
OUTPUT = "logits"


@dataclass(frozen=True)
class ModelMetadata:
    """The description of an exported network.

    Attributes:
        config: task, classes, grid, neighbors, attribute columns: what prepares the input.
        dtype: precision of the layers between the operators: ``fp32``, ``fp16`` or ``bf16``.
            Inputs and outputs are float32 in every case.
        checkpoint_sha256: of the checkpoint file the weights come from, "" for a model in memory.
        dela_version: of the package that wrote the file.
        format_version: of this description; 0 for what the family of ``config`` needs.
        stage_ratios: per stage its points over those of stage 0 on the training data, ``min``,
            ``mean`` and ``max``; guides shape profiles. Empty when nothing was measured.
    """

    config: Any
    dtype: str
    checkpoint_sha256: str = ""
    dela_version: str = ""
    format_version: int = 0
    stage_ratios: tuple[dict[str, float], ...] = ()

    def __post_init__(self) -> None:
        if not self.format_version:
            object.__setattr__(self, "format_version", newest_version(self.config.family != FIRST))

    @property
    def family(self) -> Family:
        """The family of the network."""
        return family_of(self.config)

    def to_properties(self) -> dict[str, str]:
        """Text properties, most of them readable in any viewer of ONNX files."""
        return {
            "format": FORMAT,
            "format_version": str(self.format_version),
            "task": self.config.task,
            "dtype": self.dtype,
            "dela_version": self.dela_version,
            "checkpoint_sha256": self.checkpoint_sha256,
            "stage_ratios": json.dumps(list(self.stage_ratios)),
            "config": json.dumps(config_to_dict(self.config)),
        }

    @classmethod
    def from_properties(
        cls, properties: Mapping[str, str], source: str = "this file"
    ) -> ModelMetadata:
        """Inverse of :meth:`to_properties`; unknown properties are left alone.

        Args:
            properties: as read from the file (``custom_metadata_map`` of ONNX Runtime).
            source: how errors name the file.

        Raises:
            CheckpointError: not written by dela, by a newer one, or damaged.
        """
        found = properties.get("format")
        if found != FORMAT:
            what = (
                f"its format property is {brief(found)}" if found else "it carries no dela metadata"
            )
            raise CheckpointError(
                f"{source} is not a dela network: {what}; export one with `dela export`"
            )
        version = properties.get("format_version", "")
        if not re.fullmatch("[1-9][0-9]{0,8}", version):
            raise CheckpointError(
                f"{source}: format version {brief(version)} is not a number above 0"
            )
        newest = newest_version(_names_family(properties.get("config", "")))
        if int(version) > newest:
            raise CheckpointError(
                f"{source} has format version {version}, this dela reads up to {newest}; "
                f"install dela {properties.get('dela_version', '?')[:20]} or newer, which wrote it"
            )
        try:
            config = config_from_dict(parse_json(properties["config"]))
            ratios = tuple(
                {key: float(ratio[key]) for key in ("min", "mean", "max")}
                for ratio in parse_json(properties["stage_ratios"])
            )
            dtype = properties["dtype"]
        except KeyError as error:
            raise CheckpointError(
                f"{source}: its metadata lacks {error.args[0]!r}; export it again"
            ) from error
        except (ConfigError, TypeError, ValueError, AttributeError) as error:
            raise CheckpointError(f"{source}: its metadata is damaged: {error}") from error
        if dtype not in DTYPES:
            raise CheckpointError(
                f"{source}: dtype {brief(dtype)} is not one of {', '.join(DTYPES)}"
            )
        stages = len(family_of(config).sizes(config))
        if ratios and len(ratios) != stages:
            raise CheckpointError(
                f"{source}: stage_ratios has {len(ratios)} entries; {stages} stages need one each"
            )
        return cls(
            config,
            dtype,
            properties.get("checkpoint_sha256", ""),
            properties.get("dela_version", ""),
            int(version),
            ratios,
        )

    def expected_inputs(self) -> dict[str, tuple[str, tuple[int | None, ...]]]:
        """Graph inputs by name, in order: dtype and shape, None for a size that varies."""
        return {
            spec.name: (spec.dtype, (None, *spec.columns))
            for spec in self.family.inputs(self.config)
        }

    def check_graph(
        self,
        inputs: Mapping[str, tuple[str, Sequence[int | str | None]]],
        outputs: Mapping[str, Sequence[int | str | None]],
        source: str = "this file",
    ) -> None:
        """Whether a graph's inputs and outputs are those of the configuration it carries.

        Args:
            inputs: name -> (dtype, shape); a size that varies is a name or None. ONNX Runtime's
                ``tensor(float)`` is understood as float32.
            outputs: name -> shape.
            source: how errors name the file.

        Raises:
            CheckpointError: saying which input or output differs and how.
        """
        expected = self.expected_inputs()
        missing = [name for name in expected if name not in inputs]
        unknown = [name for name in inputs if name not in expected]
        if missing or unknown:
            differences = [f"missing: {', '.join(missing)}"] if missing else []
            differences += [f"unexpected: {', '.join(unknown)}"] if unknown else []
            raise CheckpointError(
                f"{source}: its inputs do not fit its metadata; {'; '.join(differences)}"
            )
        for name, (dtype, shape) in expected.items():
            found_dtype, found_shape = inputs[name]
            found_dtype = found_dtype.removeprefix("tensor(").removesuffix(")")
            found_dtype = "float32" if found_dtype == "float" else found_dtype
            if found_dtype != dtype or not _fits(found_shape, shape):
                raise CheckpointError(
                    f"{source}: input {name} is {found_dtype} {_text(found_shape)}; its metadata "
                    f"needs {dtype} {_text(shape)}"
                )
        wanted = (None, self.config.num_classes)
        if list(outputs) != [OUTPUT] or not _fits(outputs[OUTPUT], wanted):
            found = ", ".join(f"{name} {_text(shape)}" for name, shape in outputs.items())
            raise CheckpointError(
                f"{source}: its output is {found}; {self.config.num_classes} classes need "
                f"{OUTPUT} {_text(wanted)}"
            )


def _names_family(config: str) -> bool:
    """Whether a configuration's JSON text names a family; a damaged text is told about later."""
    try:
        values = parse_json(config)
    except ValueError:
        return False
    return isinstance(values, dict) and "family" in values


def newest_version(names_family: bool) -> int:
    """The newest version that is read of files which name a family, and of those which do not."""
    return FORMAT_VERSION if names_family else _FIRST_FAMILY_VERSION


def _fits(found: Sequence[int | str | None], wanted: Sequence[int | None]) -> bool:
    return len(found) == len(wanted) and all(
        size is None or not isinstance(other, int) or other == size
        for other, size in zip(found, wanted, strict=True)
    )


def _text(shape: Sequence[int | str | None]) -> str:
    return "[" + ", ".join("?" if size is None else str(size) for size in shape) + "]"
