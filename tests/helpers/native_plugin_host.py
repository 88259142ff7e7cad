"""Calls libdela_trt.so as TensorRT does: through tables of virtual functions, by their numbers.

The numbers and structs stand here a second time, from TensorRT's documentation, so that they check
``plugins/tensorrt_native/trt_abi.h`` instead of repeating its mistakes. First of every table come
the language, the interface's kind and version, and two destructors.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import CFUNCTYPE, POINTER, byref, c_bool, c_char_p, c_float, c_int32, c_int64, c_void_p
from pathlib import Path
from typing import Any

TYPES = {"float32": 0, "float16": 1, "int8": 2, "int32": 3, "bfloat16": 7, "int64": 8}
LINEAR, CHW4 = 0, 3
RUNTIME = 1  # phase
CORE, BUILDING, RUNNING = 0, 1, 2  # capabilities
FIELD_FLOAT32, FIELD_INT32, FIELD_INT64 = 1, 5, 10
INTERFACE_INFO, DELETE = 1, 3


_LISTENER = CFUNCTYPE(None, c_char_p)


class Dims(ctypes.Structure):
    _fields_ = (("rank", c_int32), ("size", c_int64 * 8))


class TensorDesc(ctypes.Structure):
    _fields_ = (("dims", Dims), ("type", c_int32), ("format", c_int32), ("scale", c_float))


class DynamicTensorDesc(ctypes.Structure):
    _fields_ = (("desc", TensorDesc), ("min", Dims), ("max", Dims), ("opt", Dims))


class DimsExprs(ctypes.Structure):
    _fields_ = (("rank", c_int32), ("size", c_void_p * 8))


class Field(ctypes.Structure):
    _fields_ = (("name", c_char_p), ("data", c_void_p), ("type", c_int32), ("length", c_int32))


class FieldCollection(ctypes.Structure):
    _fields_ = (("count", c_int32), ("fields", POINTER(Field)))


class InterfaceInfo(ctypes.Structure):
    _fields_ = (("kind", c_char_p), ("major", c_int32), ("minor", c_int32))


def call(thing: int, slot: int, result: Any, *arguments: tuple[Any, Any]) -> Any:
    """Calls function ``slot`` of an object's table with (type, value) arguments."""
    table = c_void_p.from_address(thing).value
    assert table is not None
    function = c_void_p.from_address(table + 8 * slot).value
    kinds = [kind for kind, _ in arguments]
    return CFUNCTYPE(result, c_void_p, *kinds)(function)(thing, *(value for _, value in arguments))


def descriptions(tensors: Sequence[tuple[str, Sequence[int]]], layout: int = LINEAR) -> Any:
    """An array of ``PluginTensorDesc`` for (type, shape) pairs."""
    array = (TensorDesc * len(tensors))()
    for desc, (kind, shape) in zip(array, tensors, strict=True):
        desc.dims.rank, desc.type, desc.format = len(shape), TYPES[kind], layout
        desc.dims.size[: len(shape)] = shape
    return array


class Plugin:
    """A plugin of the library; ``delete`` it, as TensorRT does."""

    def __init__(self, address: int) -> None:
        self.address = address

    def interface(self, number: int) -> int | None:
        return call(self.address, 4, c_void_p, (c_int32, number))

    def delete(self) -> None:
        call(self.address, DELETE, None)

    def clone(self) -> Plugin:
        return Plugin(call(self.address, 5, c_void_p))

    def names(self) -> list[str]:
        core = self.interface(CORE)
        return [call(core, slot, c_char_p).decode() for slot in (4, 5, 6)]

    # building

    def configure(self, inputs: Sequence[tuple[str, Sequence[int]]]) -> int:
        tensors = (DynamicTensorDesc * len(inputs))()
        for tensor, desc in zip(tensors, descriptions(inputs), strict=True):
            tensor.desc = desc
        return call(
            self.interface(BUILDING), 4, c_int32,
            (c_void_p, tensors), (c_int32, len(inputs)), (c_void_p, None), (c_int32, 1),
        )  # fmt: skip

    def output_types(self, inputs: Sequence[str]) -> int | None:
        """Number of the output's type; None where the plugin refuses."""
        given = (c_int32 * len(inputs))(*(TYPES[kind] for kind in inputs))
        found = (c_int32 * 1)(-1)
        status = call(
            self.interface(BUILDING), 5, c_int32,
            (c_void_p, found), (c_int32, 1), (c_void_p, given), (c_int32, len(inputs)),
        )  # fmt: skip
        return found[0] if status == 0 else None

    def output_shape(self, shapes: Sequence[Sequence[int]]) -> list[int] | None:
        """The output's sizes, which are addresses of the inputs' expressions."""
        given, found = (DimsExprs * len(shapes))(), (DimsExprs * 1)()
        for expressions, shape in zip(given, shapes, strict=True):
            expressions.rank = len(shape)
            expressions.size[: len(shape)] = shape
        status = call(
            self.interface(BUILDING), 6, c_int32,
            (c_void_p, given), (c_int32, len(shapes)), (c_void_p, None), (c_int32, 0),
            (c_void_p, found), (c_int32, 1), (c_void_p, None),
        )  # fmt: skip
        return list(found[0].size[: found[0].rank]) if status == 0 else None

    def accepts(self, kinds: Sequence[str], layout: int = LINEAR) -> list[bool]:
        """Which positions are accepted, asked in order; the last one is the output."""
        tensors = (DynamicTensorDesc * len(kinds))()
        for tensor, desc in zip(
            tensors, descriptions([(kind, (8, 8)) for kind in kinds], layout), strict=True
        ):
            tensor.desc = desc
        return [
            call(
                self.interface(BUILDING), 7, c_bool, (c_int32, position), (c_void_p, tensors),
                (c_int32, len(kinds) - 1), (c_int32, 1),
            )
            for position in range(len(kinds))
        ]  # fmt: skip

    # running

    def attach(self) -> Plugin | None:
        address = call(self.interface(RUNNING), 7, c_void_p, (c_void_p, None))
        return Plugin(address) if address else None

    def on_shape_change(self, inputs: Sequence[tuple[str, Sequence[int]]], outputs: int = 1) -> int:
        return call(
            self.interface(RUNNING), 5, c_int32,
            (c_void_p, descriptions(inputs)), (c_int32, len(inputs)),
            (c_void_p, None), (c_int32, outputs),
        )  # fmt: skip

    def enqueue(self, inputs: Sequence[int], output: int, stream: int) -> int:
        addresses = (c_void_p * len(inputs))(*inputs)
        return call(
            self.interface(RUNNING), 6, c_int32, (c_void_p, None), (c_void_p, None),
            (c_void_p, addresses), (c_void_p, (c_void_p * 1)(output)), (c_void_p, None),
            (c_void_p, stream),
        )  # fmt: skip

    def serialized(self) -> FieldCollection:
        address = call(self.interface(RUNNING), 8, c_void_p)
        return FieldCollection.from_address(address)


class Library:
    """The library, with a listener of ours.

    Attributes:
        messages: errors that its plugins told.
    """

    def __init__(self, path: Path) -> None:
        self.messages: list[str] = []
        library = ctypes.CDLL(str(path))
        self._listener = _LISTENER(lambda line: self.messages.append(line.decode()))
        self._library = library
        library.dela_trt_set_listener.argtypes = [_LISTENER]
        library.setLoggerFinder(None)  # as TensorRT does first
        library.dela_trt_set_listener(self._listener)
        library.getCreators.restype = POINTER(c_void_p)
        count = c_int32()
        found = library.getCreators(byref(count))
        self.creators: dict[str, int] = {
            call(found[i], 6, c_char_p).decode(): int(found[i] or 0) for i in range(count.value)
        }

    def close(self) -> None:
        """Errors go to stderr again."""
        self._library.dela_trt_set_listener(_LISTENER())

    def interface_info(self, address: int) -> tuple[str, int, int]:
        info = call(address, INTERFACE_INFO, InterfaceInfo)
        return info.kind.decode(), info.major, info.minor

    def create(self, name: str, fields: FieldCollection | None = None) -> Plugin | None:
        address = call(
            self.creators[name], 4, c_void_p, (c_char_p, name.encode()),
            (c_void_p, None if fields is None else ctypes.addressof(fields)), (c_int32, RUNTIME),
        )  # fmt: skip
        return Plugin(address) if address else None


def fields(**values: tuple[int, Any]) -> FieldCollection:
    """A collection of named (field type, ctypes array) values."""
    array = (Field * len(values))(
        *(
            Field(name.encode(), ctypes.addressof(data), kind, len(data))
            for name, (kind, data) in values.items()
        )
    )
    collection = FieldCollection(len(values), array)
    collection.kept = (array, values)
    return collection
