"""The operators on CUDA tensors: the shipped kernels on torch's current stream.

Torch allocates every output and workspace, nothing waits for the device, and nothing depends on
values, so calls may be captured into a CUDA graph (after one call outside, which loads the
kernels). Nothing is compiled, and no CUDA package but cuda-bindings is needed beside torch.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from dela.errors import InputError, MissingDependencyError
from dela.ops import _native
from dela.plugins.cuda.driver import CudaUnavailable, Device
from dela.plugins.cuda.kernels import Kernels
from dela.plugins.cuda.launch import chunks

ALIGNMENT = 16  # bytes; the kernels load four floats at once

_DTYPE_NAMES = {
    torch.float32: "float32",
    torch.float16: "float16",
    torch.bfloat16: "bfloat16",
}


@functools.cache
def _kernels(ordinal: int) -> Kernels:
    try:
        return Kernels.of(Device(ordinal))
    except CudaUnavailable as error:
        raise MissingDependencyError(str(error)) from error


@contextmanager
def _queue(tensor: Tensor) -> Iterator[tuple[Kernels, int]]:
    """The kernels of the tensor's device, current within the block, and torch's stream there."""
    with torch.cuda.device(tensor.device):
        stream = torch.cuda.current_stream(tensor.device).cuda_stream
        yield _kernels(tensor.device.index), stream


def _ready(tensor: Tensor) -> Tensor:
    """The tensor as the kernels read it: without gaps, at an aligned address."""
    tensor = tensor.contiguous()
    return tensor.clone() if tensor.data_ptr() % ALIGNMENT else tensor


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _check(operator: str, points: Tensor, others: dict[str, Tensor | None]) -> None:
    """Raises InputError for tensors on several devices, or rows around no points at all."""
    for name, tensor in others.items():
        if tensor is not None and tensor.device != points.device:
            raise InputError(
                f"{operator}: {name} is on {tensor.device}, points on {points.device}; move all "
                f"to one device: {name}.to({str(points.device)!r})"
            )
    neighbors = others["neighbors"]
    if neighbors is not None and len(neighbors) and not len(points):
        raise InputError(f"{operator}: {len(neighbors)} rows of neighbors, but there are no points")


def _spse_sizes(
    points: Tensor, neighbors: Tensor, weight: Tensor, directions: int
) -> tuple[int, int, int, int, int]:
    attributes = points.shape[1] - 3 - directions
    return points.shape[0], neighbors.shape[1], weight.shape[1], attributes, directions


def spse_forward(
    points: Tensor,
    neighbors: Tensor,
    weight: Tensor,
    epsilon: float,
    directions: int,
    with_winner: bool,
) -> tuple[Tensor, Tensor | None]:
    """SPSE, and its winners when asked for; shapes and dtypes have been checked."""
    _check("spse", points, {"neighbors": neighbors, "weight": weight})
    points, neighbors, weight = _ready(points), _ready(neighbors), _ready(weight)
    out = points.new_empty(points.shape[0], weight.shape[1])
    winner = None
    if with_winner:
        winner = torch.empty_like(out, dtype=_native.winner_dtype(neighbors))
    with _queue(points) as (kernels, stream):
        kernels.spse(
            *map(_address, (points, neighbors, weight, out, winner)),
            sizes=_spse_sizes(points, neighbors, weight, directions),
            epsilon=epsilon,
            stream=stream,
        )
    return out, winner


def spse_backward(
    gradient: Tensor,
    points: Tensor,
    neighbors: Tensor,
    weight: Tensor,
    out: Tensor,
    winner: Tensor,
    directions: int,
) -> Tensor:
    """Gradient of SPSE's weight."""
    points, neighbors, weight = _ready(points), _ready(neighbors), _ready(weight)
    gradient, out, winner = _ready(gradient), _ready(out), _ready(winner)
    sizes = _spse_sizes(points, neighbors, weight, directions)
    moments = weight.new_empty(chunks(points.shape[0]), weight.shape[0] - 3, weight.shape[1])
    weight_gradient = torch.empty_like(weight)
    with _queue(points) as (kernels, stream):
        kernels.spse_backward(
            *map(_address, (points, neighbors, weight, out, winner, gradient)),
            *map(_address, (moments, weight_gradient)),
            sizes=sizes,
            stream=stream,
        )
    return weight_gradient


def spamp_forward(
    features: Tensor,
    points: Tensor,
    neighbors: Tensor,
    weight: Tensor,
    centers: Tensor | None,
    with_winner: bool,
) -> tuple[Tensor, Tensor | None]:
    """SPAMP, and its winners when asked for; shapes and dtypes have been checked."""
    others = {"features": features, "neighbors": neighbors, "weight": weight, "centers": centers}
    _check("spamp", points, others)
    features, points, neighbors = _ready(features), _ready(points), _ready(neighbors)
    weight, centers = _ready(weight), None if centers is None else _ready(centers)
    out = features.new_empty(neighbors.shape[0], features.shape[1])
    winner = None
    if with_winner:
        winner = torch.empty_like(out, dtype=_native.winner_dtype(neighbors))
    with _queue(points) as (kernels, stream):
        kernels.spamp(
            *map(_address, (features, points, neighbors, centers, weight, out, winner)),
            sizes=(points.shape[0], *neighbors.shape, features.shape[1]),
            dtype=_DTYPE_NAMES[features.dtype],
            stream=stream,
        )
    return out, winner


def spamp_residual(
    features: Tensor,
    points: Tensor,
    neighbors: Tensor,
    weight: Tensor,
    base: Tensor,
    scale: Tensor,
    centers: Tensor | None,
) -> Tensor:
    """A base plus a scale times SPAMP; shapes and dtypes have been checked."""
    others = {"features": features, "neighbors": neighbors, "weight": weight, "centers": centers}
    _check("spamp_residual", points, {**others, "base": base, "scale": scale})
    features, points, neighbors = _ready(features), _ready(points), _ready(neighbors)
    weight, centers = _ready(weight), None if centers is None else _ready(centers)
    base, scale = _ready(base), _ready(scale)
    out = torch.empty_like(base)
    with _queue(points) as (kernels, stream):
        kernels.spamp_residual(
            *map(_address, (features, points, neighbors, centers, weight, base, scale, out)),
            sizes=(points.shape[0], *neighbors.shape, features.shape[1]),
            dtype=_DTYPE_NAMES[features.dtype],
            stream=stream,
        )
    return out


def spamp_backward(
    gradient: Tensor,
    points: Tensor,
    neighbors: Tensor,
    weight: Tensor,
    centers: Tensor | None,
    out: Tensor,
    winner: Tensor,
) -> tuple[Tensor, Tensor]:
    """Gradients of SPAMP's features and weight; the same bits on every run."""
    points, neighbors, weight = _ready(points), _ready(neighbors), _ready(weight)
    gradient, out, winner = _ready(gradient), _ready(out), _ready(winner)
    centers = None if centers is None else _ready(centers)
    (rows, k), (m, channels) = points.shape[:1] + neighbors.shape[1:], out.shape
    sizes, dtype = (rows, m, k, channels), _DTYPE_NAMES[out.dtype]
    passed = weight.new_empty(m, channels)
    sums = weight.new_empty(chunks(m), 4, channels)
    # Which rows name each point, as a list per point; the last count is the length of all lists.
    counts = neighbors.new_zeros(rows + 1)
    ends, entries = neighbors.new_empty(rows), neighbors.new_empty(m * (k + 1))
    feature_gradient = out.new_empty(rows, channels)
    weight_gradient = torch.empty_like(weight)
    lists = (counts.data_ptr(), ends.data_ptr(), entries.data_ptr())
    with _queue(points) as (kernels, stream):
        kernels.spamp_backward(
            *map(_address, (points, neighbors, centers, weight, out, winner, gradient)),
            *map(_address, (passed, sums, weight_gradient)),
            sizes=sizes,
            dtype=dtype,
            stream=stream,
        )
        kernels.reverse_lists(
            _address(neighbors),
            _address(centers),
            lists[0],
            counts[rows:].data_ptr(),
            *lists[1:],
            sizes=sizes,
            stream=stream,
        )
        kernels.spamp_feature_gradient(
            _address(passed),
            _address(winner),
            *lists,
            _address(feature_gradient),
            sizes=sizes,
            dtype=dtype,
            stream=stream,
        )
    return feature_gradient, weight_gradient
