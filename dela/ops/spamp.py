"""SPAMP, Specialized Position Aware Max Pooling of feature differences."""

from __future__ import annotations

import torch
from torch import Tensor

from dela.errors import InputError
from dela.ops import _autocast, _cuda, _native, _register, reference, select

FEATURE_TYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}


def spamp(
    features: Tensor,
    points: Tensor,
    neighbors: Tensor,
    weight: Tensor,
    centers: Tensor | None = None,
) -> Tensor:
    """Largest feature difference to the center among its neighbors, weighted by position.

    ``out[m, c] = max over j in neighbors[m] of (f[j, c] - f[i, c])
    * exp(-s_g (1e-8 + |x_j - x_i - p_g|^2))`` with ``i = centers[m]`` (or ``m``) and
    ``g = c // 4``, as in DeLA v2. The first of equals wins; gradients flow through the winner to
    ``features`` and ``weight``, none to ``points``.

    Args:
        features: [N, C] float32, float16 or bfloat16, C a multiple of 4.
        points: [N, 3] float32.
        neighbors: [M, k] int32 rows of ``points``, 1 <= k <= 65535.
        weight: [4, C / 4] float32: rows 0-2 ``p``, row 3 ``s`` >= 0.
        centers: [M] int32 rows of ``points``; None when M = N and row m belongs to point m.

    Returns:
        [M, C] in the dtype of ``features``; arithmetic is float32. NaN where no neighbor's value
        is a number.

    On CUDA tensors the kernels run on torch's current stream; an index outside [0, N) is no error
    there, because looking at the values would wait for the device: a neighbor counts as the row's
    own center, a center as point 0.

    Raises:
        InputError: a shape, a dtype or, on the CPU, an index that does not fit.
        MissingDependencyError: CUDA tensors without the package that talks to the driver.
    """
    if _native.exporting():
        if centers is None:
            centers = torch.arange(neighbors.shape[0], dtype=torch.int32, device=neighbors.device)
        return torch.onnx.ops.symbolic(
            "dela::SPAMP",
            (features, points, neighbors, centers, weight),
            {"plugin_namespace": "dela"},
            dtype=features.dtype,
            shape=(neighbors.shape[0], features.shape[1]),
            version=1,
        )
    if select.current() == "reference":
        check(features, points, neighbors, weight, centers, points.dtype)
        check_indices(points, neighbors, centers)
        return reference.spamp(features, points, neighbors, weight, centers)
    _native.check_device("spamp", features)
    if torch.is_grad_enabled() and (features.requires_grad or weight.requires_grad):
        return torch.ops.dela.spamp_training(features, points, neighbors, weight, centers)[0]
    return torch.ops.dela.spamp(features, points, neighbors, weight, centers)


def check(
    features: Tensor,
    points: Tensor,
    neighbors: Tensor,
    weight: Tensor,
    centers: Tensor | None,
    dtype: torch.dtype,
) -> None:
    """Raises InputError for arguments of SPAMP that do not fit; points are to be of ``dtype``."""
    if features.dim() != 2 or features.shape[1] % 4:
        raise InputError(
            f"features has shape {_native.shape(features)}; expected [N, C], C a multiple of 4"
        )
    if dtype == torch.float32 and features.dtype not in FEATURE_TYPES:
        raise InputError(f"features is {features.dtype}; expected float32, float16 or bfloat16")
    _native.check_matrix("points", points, dtype, "[N, 3]")
    _native.check_matrix("weight", weight, dtype, "[4, C / 4]")
    _native.check_neighbors(neighbors)
    if points.shape[1] != 3 or points.shape[0] != features.shape[0]:
        raise InputError(
            f"points has shape {_native.shape(points)}; expected [{features.shape[0]}, 3]"
        )
    if weight.shape[0] != 4 or 4 * weight.shape[1] != features.shape[1]:
        raise InputError(
            f"weight has shape {_native.shape(weight)}; features of {features.shape[1]} channels "
            f"need [4, {features.shape[1] // 4}]"
        )
    if centers is None:
        if neighbors.shape[0] != points.shape[0]:
            raise InputError(
                f"neighbors has shape {_native.shape(neighbors)}; expected one row for each of "
                f"the {points.shape[0]} points, or give centers"
            )
        return
    if centers.dim() != 1 or centers.shape[0] != neighbors.shape[0]:
        raise InputError(
            f"centers has shape {_native.shape(centers)}; expected [{neighbors.shape[0]}], one "
            "for each row of neighbors"
        )
    if centers.dtype != torch.int32:
        raise InputError(f"centers is {centers.dtype}; expected torch.int32: centers.int()")


def check_indices(points: Tensor, neighbors: Tensor, centers: Tensor | None) -> None:
    """Raises InputError for rows outside the points, which only the CPU's are looked at for."""
    _native.check_indices("neighbors", neighbors, points.shape[0])
    if centers is not None:
        _native.check_indices("centers", centers, points.shape[0])


def _forward(
    features: Tensor,
    points: Tensor,
    neighbors: Tensor,
    weight: Tensor,
    centers: Tensor | None,
    with_winner: bool,
) -> tuple[Tensor, Tensor]:
    check(features, points, neighbors, weight, centers, torch.float32)
    features, neighbors, weight = features.contiguous(), neighbors.contiguous(), weight.contiguous()
    points = _native.as_rows(points)
    centers = None if centers is None else centers.contiguous()
    check_indices(points, neighbors, centers)
    out = features.new_empty(neighbors.shape[0], features.shape[1])
    winner = torch.empty(out.shape if with_winner else (0,), dtype=_native.winner_dtype(neighbors))
    _native.call(
        "dela_spamp_forward",
        features.data_ptr(),
        FEATURE_TYPES[features.dtype],
        points.data_ptr(),
        points.stride(0),
        neighbors.data_ptr(),
        None if centers is None else centers.data_ptr(),
        weight.data_ptr(),
        points.shape[0],
        neighbors.shape[0],
        neighbors.shape[1],
        features.shape[1],
        out.data_ptr(),
        winner.data_ptr() if with_winner else None,
    )
    return out, winner


def _spamp(
    features: Tensor,
    points: Tensor,
    neighbors: Tensor,
    weight: Tensor,
    centers: Tensor | None = None,
) -> Tensor:
    return _forward(features, points, neighbors, weight, centers, with_winner=False)[0]


def _spamp_cuda(features, points, neighbors, weight, centers=None):
    check(features, points, neighbors, weight, centers, torch.float32)
    return _cuda.spamp_forward(features, points, neighbors, weight, centers, False)[0]


def _spamp_fake(features, points, neighbors, weight, centers=None):
    check(features, points, neighbors, weight, centers, torch.float32)
    return features.new_empty(neighbors.shape[0], features.shape[1])


def _spamp_training(
    features: Tensor,
    points: Tensor,
    neighbors: Tensor,
    weight: Tensor,
    centers: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The output and, for the backward pass, the winner's slot of each."""
    return _forward(features, points, neighbors, weight, centers, with_winner=True)


def _spamp_training_cuda(features, points, neighbors, weight, centers=None):
    check(features, points, neighbors, weight, centers, torch.float32)
    return _cuda.spamp_forward(features, points, neighbors, weight, centers, True)


def _spamp_training_fake(features, points, neighbors, weight, centers=None):
    check(features, points, neighbors, weight, centers, torch.float32)
    out = features.new_empty(neighbors.shape[0], features.shape[1])
    return out, torch.empty_like(out, dtype=_native.winner_dtype(neighbors))


def _spamp_backward(
    gradient: Tensor,
    points: Tensor,
    neighbors: Tensor,
    weight: Tensor,
    centers: Tensor | None,
    out: Tensor,
    winner: Tensor,
) -> tuple[Tensor, Tensor]:
    points, neighbors, weight = (
        _native.as_rows(points),
        neighbors.contiguous(),
        weight.contiguous(),
    )
    gradient, out, winner = gradient.contiguous(), out.contiguous(), winner.contiguous()
    centers = None if centers is None else centers.contiguous()
    feature_gradient = torch.empty(points.shape[0], out.shape[1])
    weight_gradient = torch.empty_like(weight)
    _native.call(
        "dela_spamp_backward",
        FEATURE_TYPES[out.dtype],
        points.data_ptr(),
        points.stride(0),
        neighbors.data_ptr(),
        None if centers is None else centers.data_ptr(),
        weight.data_ptr(),
        points.shape[0],
        neighbors.shape[0],
        neighbors.shape[1],
        out.shape[1],
        out.data_ptr(),
        gradient.data_ptr(),
        winner.data_ptr(),
        feature_gradient.data_ptr(),
        weight_gradient.data_ptr(),
    )
    return feature_gradient.to(out.dtype), weight_gradient


def _spamp_backward_fake(gradient, points, neighbors, weight, centers, out, winner):
    return (
        out.new_empty(points.shape[0], out.shape[1]),
        torch.empty_like(weight, memory_format=torch.contiguous_format),
    )


def _gradients(ctx, gradient, points, neighbors, weight, centers, out, winner):
    feature_gradient, weight_gradient = torch.ops.dela.spamp_backward(
        gradient, points, neighbors, weight, centers, out, winner
    )
    return (
        feature_gradient if ctx.needs_input_grad[0] else None,
        None,
        None,
        weight_gradient if ctx.needs_input_grad[3] else None,
        None,
    )


def _save(ctx, inputs, output) -> None:
    _, points, neighbors, weight, centers = inputs
    out, winner = output
    ctx.mark_non_differentiable(winner)
    ctx.set_materialize_grads(False)  # no zeros for the winner
    ctx.save_for_backward(points, neighbors, weight, centers, out, winner)


def _backward(ctx, gradient, _winner_gradient):
    points, neighbors, weight, centers, out, winner = ctx.saved_tensors
    return _gradients(ctx, gradient, points, neighbors, weight, centers, out, winner)


def _save_inputs(ctx, inputs, output) -> None:
    ctx.save_for_backward(*inputs)


def _backward_again(ctx, gradient):
    """For callers of ``torch.ops.dela.spamp`` itself, which keeps no winners: finds them again."""
    features, points, neighbors, weight, centers = ctx.saved_tensors
    out, winner = torch.ops.dela.spamp_training(features, points, neighbors, weight, centers)
    return _gradients(ctx, gradient, points, neighbors, weight, centers, out, winner)


_FORWARD = "(Tensor features, Tensor points, Tensor neighbors, Tensor weight, Tensor? centers=None)"

_register.operator(
    f"spamp{_FORWARD} -> Tensor",
    cpu=_spamp,
    cuda=_spamp_cuda,
    fake=_spamp_fake,
    backward=_backward_again,
    setup_context=_save_inputs,
)
_register.operator(
    f"spamp_training{_FORWARD} -> (Tensor, Tensor)",
    cpu=_spamp_training,
    cuda=_spamp_training_cuda,
    fake=_spamp_training_fake,
    backward=_backward,
    setup_context=_save,
)
_register.operator(
    "spamp_backward(Tensor gradient, Tensor points, Tensor neighbors, Tensor weight, "
    "Tensor? centers, Tensor out, Tensor winner) -> (Tensor, Tensor)",
    cpu=_spamp_backward,
    cuda=_cuda.spamp_backward,
    fake=_spamp_backward_fake,
)
for _name in ("spamp", "spamp_training"):
    _autocast.keep_float32(_name, ("points", "weight"))
