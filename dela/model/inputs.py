"""What a network takes: named arrays, what their sizes mean, and how they are checked and packed.

Export, engines, profiles, padding and checks read :class:`InputSpec` and :class:`RowSize` alone, so
they serve networks of any family. Numpy only; tensors are made on request.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol, Self

import numpy as np

from dela.errors import InputError


@dataclass(frozen=True)
class RowSize:
    """A size that varies from one input to the next, such as the points of a stage.

    Attributes:
        name: as it stands in exported files: ``n0``, ``n1`` ..
        per_cloud: rows of one cloud where every cloud has as many; 0 where that varies too.
        mean_share, max_share: its share of the first size where nothing was measured: what is
            usual, and the most that happens.
    """

    name: str
    per_cloud: int = 0
    mean_share: float = 1.0
    max_share: float = 1.0


@dataclass(frozen=True)
class InputSpec:
    """One input of a network's graph.

    Attributes:
        name: of the graph input.
        dtype: ``float32`` or ``int32``.
        rows: name of the :class:`RowSize` that its first dimension has.
        columns: its other dimensions, which never vary.
        padding: what fills rows beyond the real ones: ``zero``, or ``repeat`` for row 0 once more.
        indexes: for int32, name of the size whose rows its values name; "" for other numbers.
    """

    name: str
    dtype: Literal["float32", "int32"]
    rows: str
    columns: tuple[int, ...] = ()
    padding: Literal["zero", "repeat"] = "zero"
    indexes: str = ""


def check_specs(sizes: Sequence[RowSize], specs: Sequence[InputSpec], clouds: bool) -> None:
    """Whether a family's description of a network's inputs holds together.

    Args:
        sizes, specs: of the family.
        clouds: the network labels whole clouds.

    Raises:
        InputError: a size that no input has, an input of an unknown size, or clouds of unknown
            size.
    """
    known, used = {size.name for size in sizes}, {spec.rows for spec in specs}
    if known != used:
        raise InputError(
            f"sizes {sorted(known)} and the inputs' rows {sorted(used)} differ; a family describes "
            "each size by an input"
        )
    free = [size.name for size in sizes if clouds and not size.per_cloud]
    if free:
        raise InputError(f"size {free[0]} has no per_cloud; classification needs whole clouds")


class Inputs(Protocol):
    """A network's input: clouds packed one after the other, numpy arrays or tensors alike.

    ``lengths`` holds for every :class:`RowSize` the rows of each cloud.
    """

    @property
    def lengths(self) -> tuple[tuple[int, ...], ...]: ...

    @property
    def rows(self) -> int:
        """Rows of the first size over all clouds: points of stage 0."""
        ...

    def inputs(self) -> Iterator[tuple[str, Any]]:
        """Name and array of every graph input, in the order of the exported file."""
        ...

    def validate(self) -> Self:
        """Raises InputError for a shape, dtype or index that does not fit."""
        ...

    def each(self, change: Callable[[Any], Any]) -> Self:
        """The same with ``change`` applied to every array."""
        ...

    @classmethod
    def packed(cls, parts: Sequence[Any]) -> Self:
        """One input of several: clouds one after the other, indices moved along."""
        ...

    def to_tensors(self, device: Any = None) -> Self:
        """The same as torch tensors, float32 and int32, on ``device`` (None: the CPU)."""
        ...


@dataclass(frozen=True)
class NamedInputs:
    """Inputs as their specifications describe them, for families without a class of their own.

    Attributes:
        arrays: name -> array [rows, *columns], in the order of ``specs``.
        lengths: for every size the rows of each cloud.
        sizes: the family's sizes, in the order of ``lengths``.
        specs: of the arrays.
    """

    arrays: dict[str, Any]
    lengths: tuple[tuple[int, ...], ...]
    sizes: tuple[RowSize, ...]
    specs: tuple[InputSpec, ...]

    @property
    def rows(self) -> int:
        return sum(self.lengths[0])

    def inputs(self) -> Iterator[tuple[str, Any]]:
        for spec in self.specs:
            yield spec.name, self.arrays[spec.name]

    def each(self, change: Callable[[Any], Any]) -> NamedInputs:
        return replace(self, arrays={name: change(value) for name, value in self.arrays.items()})

    def validate(self) -> NamedInputs:
        """Checks names, dtypes, shapes, numbers and indices.

        Raises:
            InputError: names the array and what does not fit.
        """
        counts = {
            size.name: sum(lengths) for size, lengths in zip(self.sizes, self.lengths, strict=True)
        }
        for spec in self.specs:
            if spec.name not in self.arrays:
                raise InputError(f"the inputs lack {spec.name}; prepare them for this network")
            _check_array(spec, host_array(self.arrays[spec.name]), counts)
        return self

    @classmethod
    def packed(cls, parts: Sequence[NamedInputs]) -> NamedInputs:
        return _pack_named(parts)

    def to_tensors(self, device: Any = None) -> NamedInputs:
        import torch

        dtypes = {"float32": torch.float32, "int32": torch.int32}
        tensors = {
            spec.name: torch.as_tensor(
                self.arrays[spec.name], dtype=dtypes[spec.dtype], device=device
            )
            for spec in self.specs
        }
        return replace(self, arrays=tensors)


def pack_inputs(parts: Sequence[Any]) -> Any:
    """One input of several of the same network.

    Raises:
        InputError: nothing to pack, or inputs of different networks.
    """
    if not parts:
        raise InputError("nothing to pack; give at least one input")
    return type(parts[0]).packed(parts)


def _pack_named(parts: Sequence[NamedInputs]) -> NamedInputs:
    first = parts[0]
    for number, part in enumerate(parts):
        if part.specs != first.specs:
            raise InputError(f"input {number} is of another network than input 0; pack one's alone")
    offsets = {
        size.name: np.cumsum([0, *(sum(part.lengths[index]) for part in parts)])
        for index, size in enumerate(first.sizes)
    }
    arrays = {}
    for spec in first.specs:
        moved = [np.asarray(part.arrays[spec.name]) for part in parts]
        if spec.indexes:
            starts = offsets[spec.indexes]
            moved = [values + np.int32(start) for values, start in zip(moved, starts, strict=False)]
        arrays[spec.name] = np.concatenate(moved).astype(spec.dtype, copy=False)
    lengths = tuple(
        tuple(length for part in parts for length in part.lengths[index])
        for index in range(len(first.sizes))
    )
    return NamedInputs(arrays, lengths, first.sizes, first.specs)


def host_array(values: Any) -> np.ndarray:
    """A numpy array of an array or tensor on any device."""
    return np.asarray(values.detach().cpu() if hasattr(values, "detach") else values)


def _check_array(spec: InputSpec, array: np.ndarray, counts: Mapping[str, int]) -> None:
    wanted = (counts[spec.rows], *spec.columns)
    if array.dtype.kind != np.dtype(spec.dtype).kind:
        raise InputError(f"{spec.name} is {array.dtype}; expected {spec.dtype}")
    if array.shape != wanted:
        raise InputError(f"{spec.name} has shape {list(array.shape)}; expected {list(wanted)}")
    if spec.dtype == "float32" and not np.isfinite(array).all():
        at = tuple(np.argwhere(~np.isfinite(array))[0])
        raise InputError(f"{spec.name} row {at[0]} holds {array[at]}; expected numbers")
    if spec.indexes and array.size:
        limit = counts[spec.indexes]
        if array.min() < 0 or array.max() >= limit:
            at = tuple(np.argwhere((array < 0) | (array >= limit))[0])
            raise InputError(
                f"{spec.name} row {at[0]} holds {array[at]}; every value must be in [0, {limit})"
            )
