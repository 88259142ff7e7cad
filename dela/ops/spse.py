"""SPSE, Specialized Point Set Embedding: distance to the nearest neighbor in C learned metrics."""

from __future__ import annotations

import torch
from torch import Tensor

from dela.errors import InputError
from dela.ops import _autocast, _cuda, _native, _register, reference, select


def spse(
    points: Tensor, neighbors: Tensor, weight: Tensor, epsilon: float, directions: int = 0
) -> Tensor:
    """Distance from every point to its nearest neighbor, in C learned metrics.

    ``out[n, c] = sqrt(min over j in neighbors[n] of epsilon + |W_c^T (x_j - x_n - p_c)|^2
    + sum_e (a_je - q_ce)^2 + sum_l d_jl w_cl)``, as in DeLA v2 but with the root inside. The first
    of equally near neighbors wins, gradients flow through the winner to ``weight`` only.

    Args:
        points: [N, 3 + E + L] float32: coordinates, E attributes, L direction components.
        neighbors: [N, k] int32 rows of ``points``, 1 <= k <= 65535.
        weight: [12 + E + L, C] float32: rows 0-8 ``W`` row major (row ``3a + b`` maps coordinate a
            to axis b), 9-11 ``p``, then ``q``, then ``w``.
        epsilon: added under the root; above 1 with directions, whose term can reach -1.
        directions: L.

    Returns:
        [N, C] float32. NaN where no neighbor has a finite distance.

    On CUDA tensors the kernels run on torch's current stream; an index outside [0, N) is no error
    there, because looking at the values would wait for the device: it counts as the point itself.

    Raises:
        InputError: a shape, a dtype or, on the CPU, a neighbor index that does not fit.
        MissingDependencyError: CUDA tensors without the package that talks to the driver.
    """
    if _native.exporting():
        return torch.onnx.ops.symbolic(
            "dela::SPSE",
            (points, neighbors, weight),
            {
                "epsilon": float(epsilon),
                "directions": int(directions),
                "plugin_namespace": "dela",
            },
            dtype=torch.float32,
            shape=(neighbors.shape[0], weight.shape[1]),
            version=1,
        )
    if select.current() == "reference":
        _check(points, neighbors, weight, directions, points.dtype)
        _native.check_indices("neighbors", neighbors, points.shape[0])
        return reference.spse(points, neighbors, weight, epsilon, directions)
    _native.check_device("spse", points)
    if torch.is_grad_enabled() and weight.requires_grad:
        return torch.ops.dela.spse_training(points, neighbors, weight, epsilon, directions)[0]
    return torch.ops.dela.spse(points, neighbors, weight, epsilon, directions)


def _check(
    points: Tensor, neighbors: Tensor, weight: Tensor, directions: int, dtype: torch.dtype
) -> None:
    _native.check_matrix("points", points, dtype, "[N, 3 + attributes + directions]")
    _native.check_matrix("weight", weight, dtype, "[12 + attributes + directions, C]")
    _native.check_neighbors(neighbors)
    if directions < 0 or points.shape[1] < 3 + directions:
        raise InputError(
            f"points has shape {_native.shape(points)}, with {directions} directions; expected at "
            f"least {3 + max(directions, 0)} columns"
        )
    if weight.shape[0] != points.shape[1] + 9:
        raise InputError(
            f"weight has shape {_native.shape(weight)}; points of {points.shape[1]} columns need "
            f"[{points.shape[1] + 9}, C]"
        )
    if neighbors.shape[0] != points.shape[0]:
        raise InputError(
            f"neighbors has shape {_native.shape(neighbors)}; expected one row for each of the "
            f"{points.shape[0]} points"
        )


def _forward(
    points: Tensor,
    neighbors: Tensor,
    weight: Tensor,
    epsilon: float,
    directions: int,
    winner: Tensor | None,
) -> Tensor:
    _native.check_indices("neighbors", neighbors, points.shape[0])
    out = points.new_empty(points.shape[0], weight.shape[1])
    _native.call(
        "dela_spse_forward",
        points.data_ptr(),
        points.stride(0),
        neighbors.data_ptr(),
        weight.data_ptr(),
        *_sizes(points, neighbors, weight, directions),
        epsilon,
        out.data_ptr(),
        None if winner is None else winner.data_ptr(),
    )
    return out


def _sizes(points: Tensor, neighbors: Tensor, weight: Tensor, directions: int) -> tuple[int, ...]:
    attributes = points.shape[1] - 3 - directions
    return points.shape[0], neighbors.shape[1], weight.shape[1], attributes, directions


def _rows(points: Tensor, neighbors: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The three as the native library reads them."""
    return _native.as_rows(points), neighbors.contiguous(), weight.contiguous()


def _spse(
    points: Tensor, neighbors: Tensor, weight: Tensor, epsilon: float, directions: int = 0
) -> Tensor:
    _check(points, neighbors, weight, directions, torch.float32)
    return _forward(*_rows(points, neighbors, weight), epsilon, directions, None)


def _spse_cuda(points, neighbors, weight, epsilon, directions=0):
    _check(points, neighbors, weight, directions, torch.float32)
    return _cuda.spse_forward(points, neighbors, weight, epsilon, directions, False)[0]


def _spse_fake(points, neighbors, weight, epsilon, directions=0):
    _check(points, neighbors, weight, directions, torch.float32)
    return points.new_empty(points.shape[0], weight.shape[1])


def _spse_training(
    points: Tensor, neighbors: Tensor, weight: Tensor, epsilon: float, directions: int = 0
) -> tuple[Tensor, Tensor]:
    """The output and, for the backward pass, the winner's slot of each."""
    _check(points, neighbors, weight, directions, torch.float32)
    winner = torch.empty(points.shape[0], weight.shape[1], dtype=_native.winner_dtype(neighbors))
    rows = _rows(points, neighbors, weight)
    return _forward(*rows, epsilon, directions, winner), winner


def _spse_training_cuda(points, neighbors, weight, epsilon, directions=0):
    _check(points, neighbors, weight, directions, torch.float32)
    return _cuda.spse_forward(points, neighbors, weight, epsilon, directions, True)


def _spse_training_fake(points, neighbors, weight, epsilon, directions=0):
    _check(points, neighbors, weight, directions, torch.float32)
    out = points.new_empty(points.shape[0], weight.shape[1])
    return out, torch.empty_like(out, dtype=_native.winner_dtype(neighbors))


def _spse_backward(
    gradient: Tensor,
    points: Tensor,
    neighbors: Tensor,
    weight: Tensor,
    out: Tensor,
    winner: Tensor,
    directions: int,
) -> Tensor:
    points, neighbors, weight = _rows(points, neighbors, weight)
    gradient, out, winner = gradient.contiguous(), out.contiguous(), winner.contiguous()
    weight_gradient = torch.empty_like(weight)
    _native.call(
        "dela_spse_backward",
        points.data_ptr(),
        points.stride(0),
        neighbors.data_ptr(),
        weight.data_ptr(),
        *_sizes(points, neighbors, weight, directions),
        out.data_ptr(),
        gradient.data_ptr(),
        winner.data_ptr(),
        weight_gradient.data_ptr(),
    )
    return weight_gradient


def _spse_backward_fake(gradient, points, neighbors, weight, out, winner, directions):
    return torch.empty_like(weight, memory_format=torch.contiguous_format)


def _save(ctx, inputs, output) -> None:
    points, neighbors, weight, _epsilon, directions = inputs
    out, winner = output
    ctx.mark_non_differentiable(winner)
    ctx.set_materialize_grads(False)  # no zeros for the winner
    ctx.save_for_backward(points, neighbors, weight, out, winner)
    ctx.directions = directions


def _backward(ctx, gradient, _winner_gradient):
    points, neighbors, weight, out, winner = ctx.saved_tensors
    weight_gradient = None
    if ctx.needs_input_grad[2]:
        weight_gradient = torch.ops.dela.spse_backward(
            gradient, points, neighbors, weight, out, winner, ctx.directions
        )
    return None, None, weight_gradient, None, None


def _save_inputs(ctx, inputs, output) -> None:
    points, neighbors, weight, ctx.epsilon, ctx.directions = inputs
    ctx.save_for_backward(points, neighbors, weight)


def _backward_again(ctx, gradient):
    """For callers of ``torch.ops.dela.spse`` itself, which keeps no winners: finds them again."""
    points, neighbors, weight = ctx.saved_tensors
    weight_gradient = None
    if ctx.needs_input_grad[2]:
        out, winner = torch.ops.dela.spse_training(
            points, neighbors, weight, ctx.epsilon, ctx.directions
        )
        weight_gradient = torch.ops.dela.spse_backward(
            gradient, points, neighbors, weight, out, winner, ctx.directions
        )
    return None, None, weight_gradient, None, None


_FORWARD = "(Tensor points, Tensor neighbors, Tensor weight, float epsilon, SymInt directions=0)"

_register.operator(
    f"spse{_FORWARD} -> Tensor",
    cpu=_spse,
    cuda=_spse_cuda,
    fake=_spse_fake,
    backward=_backward_again,
    setup_context=_save_inputs,
)
_register.operator(
    f"spse_training{_FORWARD} -> (Tensor, Tensor)",
    cpu=_spse_training,
    cuda=_spse_training_cuda,
    fake=_spse_training_fake,
    backward=_backward,
    setup_context=_save,
)
_register.operator(
    "spse_backward(Tensor gradient, Tensor points, Tensor neighbors, Tensor weight, Tensor out, "
    "Tensor winner, SymInt directions) -> Tensor",
    cpu=_spse_backward,
    cuda=_cuda.spse_backward,
    fake=_spse_backward_fake,
)
for _name in ("spse", "spse_training"):
    _autocast.keep_float32(_name, ("points", "weight"))
