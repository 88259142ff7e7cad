"""A stand-in for ONNX Runtime's C API: enough of its table to drive a custom-op library by hand.

It calls the operators that the library registers for a provider, as ONNX Runtime would: with
tensors at any address (device memory, for the CUDA provider) and a stream.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

_POINTER, _INT, _SIZE = ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t
_OUT, _SIZES = ctypes.POINTER(ctypes.c_void_p), ctypes.POINTER(ctypes.c_int64)
_STATUS = ctypes.c_void_p

# Positions of the callbacks in OrtCustomOp, after its version.
_FIELDS = {"GetName": 2, "GetExecutionProviderType": 3, "GetInputType": 4, "GetInputTypeCount": 5,
           "GetOutputType": 6, "KernelDestroy": 9, "GetInputMemoryType": 12, "CreateKernelV2": 17,
           "KernelComputeV2": 18}  # fmt: skip
TYPES = {"float32": 1, "int32": 6, "float16": 10, "bfloat16": 16}


class OperatorError(RuntimeError):
    """A status that the library returned, in its words."""


@dataclass
class Tensor:
    """A tensor somewhere: its address, the name of its type and its shape."""

    address: int
    dtype: str
    shape: tuple[int, ...]


@dataclass
class _Call:
    inputs: Sequence[Tensor]
    make_output: Callable[[tuple[int, ...]], Tensor]
    stream: int


class OnnxRuntime:
    """The operators of a custom-op library, registered with a table of this stand-in."""

    def __init__(self, library: Any) -> None:
        self._objects: list[Any] = [None]  # a handle is an object's number
        self._entries = self._table()
        table = (ctypes.c_void_p * 300)()
        for slot, entry in self._entries.items():
            table[slot] = ctypes.cast(entry, ctypes.c_void_p).value
        self._kept: list[Any] = [table]
        self.table = ctypes.addressof(table)
        self.operators: list[int] = []
        get_api = ctypes.CFUNCTYPE(_POINTER, ctypes.c_uint32)(lambda version: self.table)
        get_version = ctypes.CFUNCTYPE(_POINTER)(lambda: None)
        base = (ctypes.c_void_p * 2)(
            *(ctypes.cast(entry, ctypes.c_void_p).value for entry in (get_api, get_version))
        )
        register = ctypes.CDLL(str(library)).RegisterCustomOps
        register.restype, register.argtypes = _STATUS, [_POINTER, _POINTER]
        self._check(register(None, ctypes.addressof(base)))

    def kernel(self, name: str, provider: str | None, dtype: str, **attributes: float) -> Kernel:
        """A node of an operator: the one for this provider and type of its first input.

        Raises:
            OperatorError: the operator refuses to be made.
            LookupError: there is none, or more than one.
        """
        wanted = (name, provider, TYPES[dtype])
        fitting = [
            operator
            for operator in map(_Operator, self.operators)
            if (operator.name, operator.provider, operator.input_type(0)) == wanted
        ]
        if len(fitting) != 1:
            raise LookupError(f"{len(fitting)} operators {name} for {provider} and {dtype}")
        return Kernel(self, fitting[0], attributes)

    def _handle(self, value: Any) -> int:
        self._objects.append(value)
        return len(self._objects) - 1

    def _check(self, status: int | None) -> None:
        if status:
            raise OperatorError(self._objects[status])

    def _table(self) -> dict[int, Any]:
        """Entries of OrtApi by position, as plugins/onnxruntime/ort_abi.h numbers them."""

        def entry(*arguments: Any) -> Callable[[Callable[..., Any]], Any]:
            return ctypes.CFUNCTYPE(_STATUS, *arguments)

        def write(out: Any, value: int) -> None:
            out[0] = value

        objects = self._objects

        def create_status(_code: int, message: bytes) -> int:
            return self._handle(message.decode())

        def add_op(_domain: int, operator: int) -> None:
            self.operators.append(operator)

        def sizes(tensor: int, out: Any, rank: int) -> None:
            for axis in range(rank):
                out[axis] = objects[tensor].shape[axis]

        def make_output(context: int, _index: int, shape: Any, rank: int, out: Any) -> None:
            call = objects[context]
            write(out, self._handle(call.make_output(tuple(shape[i] for i in range(rank)))))

        def attribute(info: int, name: bytes, out: Any) -> int | None:
            found = objects[info]
            if name.decode() not in found:
                return self._handle(f"no attribute {name.decode()}")
            write(out, found[name.decode()])
            return None

        floats, longs = ctypes.POINTER(ctypes.c_float), ctypes.POINTER(ctypes.c_int64)
        return {
            0: entry(_INT, ctypes.c_char_p)(create_status),
            26: entry(ctypes.c_char_p, _OUT)(lambda name, out: write(out, self._handle(name))),
            27: entry(_POINTER, _POINTER)(add_op),
            28: entry(_POINTER, _POINTER)(lambda options, domain: None),
            51: entry(_POINTER, _OUT)(lambda value, out: write(out, objects[value].address)),
            60: entry(_POINTER, ctypes.POINTER(_INT))(
                lambda tensor, out: write(out, TYPES[objects[tensor].dtype])
            ),
            61: entry(_POINTER, ctypes.POINTER(_SIZE))(
                lambda tensor, out: write(out, len(objects[tensor].shape))
            ),
            62: entry(_POINTER, _SIZES, _SIZE)(sizes),
            65: entry(_POINTER, _OUT)(lambda tensor, out: write(out, tensor)),
            85: entry(_POINTER, ctypes.c_char_p, floats)(attribute),
            86: entry(_POINTER, ctypes.c_char_p, longs)(attribute),
            90: entry(_POINTER, _SIZE, _OUT)(
                lambda context, i, out: write(out, self._handle(objects[context].inputs[i]))
            ),
            91: entry(_POINTER, _SIZE, _SIZES, _SIZE, _OUT)(make_output),
            99: ctypes.CFUNCTYPE(None, _POINTER)(lambda shape: None),
            193: entry(_POINTER, _OUT)(lambda context, out: write(out, objects[context].stream)),
        }


class _Operator:
    """One ``OrtCustomOp``."""

    def __init__(self, address: int) -> None:
        self.address = address
        self.name = self._ask("GetName", ctypes.c_char_p).decode()
        provider = self._ask("GetExecutionProviderType", ctypes.c_char_p)
        self.provider = None if provider is None else provider.decode()

    def callback(self, name: str, result: Any, *arguments: Any) -> Any:
        fields = ctypes.cast(self.address, ctypes.POINTER(ctypes.c_void_p))
        return ctypes.CFUNCTYPE(result, *arguments)(fields[_FIELDS[name]])

    def _ask(self, name: str, result: Any) -> Any:
        return self.callback(name, result, _POINTER)(self.address)

    def input_type(self, index: int) -> int:
        return self.callback("GetInputType", _INT, _POINTER, _SIZE)(self.address, index)


class Kernel:
    """A node; destroyed with :meth:`close`."""

    def __init__(self, runtime: OnnxRuntime, operator: _Operator, attributes: Any) -> None:
        self.runtime, self.operator = runtime, operator
        create = operator.callback("CreateKernelV2", _STATUS, _POINTER, _POINTER, _POINTER, _OUT)
        made = ctypes.c_void_p()
        info = runtime._handle(attributes)
        runtime._check(create(operator.address, runtime.table, info, ctypes.byref(made)))
        self.handle = made.value
        self._compute = operator.callback("KernelComputeV2", _STATUS, _POINTER, _POINTER)

    def run(
        self,
        inputs: Sequence[Tensor],
        make_output: Callable[[tuple[int, ...]], Tensor],
        stream: int,
    ) -> None:
        """One call; ``make_output`` allocates the output that is asked for.

        Raises:
            OperatorError: the operator refuses the call.
        """
        context = self.runtime._handle(_Call(inputs, make_output, stream))
        self.runtime._check(self._compute(self.handle, context))

    def close(self) -> None:
        self.operator.callback("KernelDestroy", None, _POINTER)(self.handle)
