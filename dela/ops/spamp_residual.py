"""SPAMP's residual form: a base plus a scale times SPAMP, written once instead of three times."""

from __future__ import annotations

import torch
from torch import Tensor

from dela.errors import InputError
from dela.ops import _autocast, _cuda, _native, _register, reference, select
from dela.ops.spamp import FEATURE_TYPES, check, check_indices


def spamp_residual(
    features: Tensor,
    points: Tensor,
    neighbors: Tensor,
    weight: Tensor,
    base: Tensor,
    scale: Tensor,
    centers: Tensor | None = None,
) -> Tensor:
    """``base + scale * spamp(features, points, neighbors, weight, centers)``.

    What a residual block with a normalization in evaluation computes after its projection. On
    float16 and bfloat16 features the sum is rounded once. Gradients flow to ``features``,
    ``weight``, ``base`` and ``scale``; the winners are found again for them.

    Args:
        features, points, neighbors, weight, centers: as :func:`dela.ops.spamp` takes them.
        base: [M, C], of the dtype of ``features``.
        scale: [C] float32.

    Returns:
        [M, C] in the dtype of ``features``.

    Raises:
        InputError: a shape, a dtype or, on the CPU, an index that does not fit.
        MissingDependencyError: CUDA tensors without the package that talks to the driver.
    """
    if _native.exporting():
        if centers is None:
            centers = torch.arange(neighbors.shape[0], dtype=torch.int32, device=neighbors.device)
        return torch.onnx.ops.symbolic(
            "dela::SPAMPResidual",
            (features, points, neighbors, centers, weight, base, scale),
            {"plugin_namespace": "dela"},
            dtype=features.dtype,
            shape=(neighbors.shape[0], features.shape[1]),
            version=1,
        )
    if select.current() == "reference":
        _check(features, points, neighbors, weight, base, scale, centers, points.dtype)
        check_indices(points, neighbors, centers)
        return reference.spamp_residual(features, points, neighbors, weight, base, scale, centers)
    _native.check_device("spamp_residual", features)
    return torch.ops.dela.spamp_residual(features, points, neighbors, weight, base, scale, centers)


def _check(
    features: Tensor,
    points: Tensor,
    neighbors: Tensor,
    weight: Tensor,
    base: Tensor,
    scale: Tensor,
    centers: Tensor | None,
    dtype: torch.dtype = torch.float32,
) -> None:
    check(features, points, neighbors, weight, centers, dtype)
    rows, channels = neighbors.shape[0], features.shape[1]
    if base.dim() != 2 or tuple(base.shape) != (rows, channels):
        raise InputError(
            f"base has shape {_native.shape(base)}; expected [{rows}, {channels}], as the output"
        )
    if base.dtype != features.dtype:
        raise InputError(
            f"base is {base.dtype}, features {features.dtype}; make them one: "
            "base.to(features.dtype)"
        )
    if scale.dim() != 1 or scale.shape[0] != channels:
        raise InputError(f"scale has shape {_native.shape(scale)}; expected [{channels}]")
    if scale.dtype != dtype:
        raise InputError(f"scale is {scale.dtype}; expected {dtype}: scale.to({dtype})")


def _residual(features, points, neighbors, weight, base, scale, centers=None):
    _check(features, points, neighbors, weight, base, scale, centers)
    features, neighbors, weight = features.contiguous(), neighbors.contiguous(), weight.contiguous()
    base, scale, points = base.contiguous(), scale.contiguous(), _native.as_rows(points)
    centers = None if centers is None else centers.contiguous()
    check_indices(points, neighbors, centers)
    out = torch.empty_like(base)
    _native.call(
        "dela_spamp_residual",
        features.data_ptr(),
        FEATURE_TYPES[features.dtype],
        points.data_ptr(),
        points.stride(0),
        neighbors.data_ptr(),
        None if centers is None else centers.data_ptr(),
        weight.data_ptr(),
        base.data_ptr(),
        scale.data_ptr(),
        points.shape[0],
        neighbors.shape[0],
        neighbors.shape[1],
        features.shape[1],
        out.data_ptr(),
    )
    return out


def _residual_cuda(features, points, neighbors, weight, base, scale, centers=None):
    _check(features, points, neighbors, weight, base, scale, centers)
    return _cuda.spamp_residual(features, points, neighbors, weight, base, scale, centers)


def _residual_fake(features, points, neighbors, weight, base, scale, centers=None):
    _check(features, points, neighbors, weight, base, scale, centers)
    return base.new_empty(base.shape)


def _save(ctx, inputs, output) -> None:
    features, points, neighbors, weight, _, scale, centers = inputs
    ctx.save_for_backward(features, points, neighbors, weight, scale, centers)


def _backward(ctx, gradient):
    features, points, neighbors, weight, scale, centers = ctx.saved_tensors
    needs_features, _, _, needs_weight, needs_base, needs_scale, _ = ctx.needs_input_grad
    feature_gradient = weight_gradient = scale_gradient = None
    if needs_features or needs_weight or needs_scale:
        pooled, winner = torch.ops.dela.spamp_training(features, points, neighbors, weight, centers)
    if needs_scale:
        scale_gradient = (gradient.float() * pooled.float()).sum(0)
    if needs_features or needs_weight:
        passed = (gradient.float() * scale).to(features.dtype)
        feature_gradient, weight_gradient = torch.ops.dela.spamp_backward(
            passed, points, neighbors, weight, centers, pooled, winner
        )
    return (
        feature_gradient if needs_features else None,
        None,
        None,
        weight_gradient if needs_weight else None,
        gradient if needs_base else None,
        scale_gradient,
        None,
    )


_register.operator(
    "spamp_residual(Tensor features, Tensor points, Tensor neighbors, Tensor weight, Tensor base, "
    "Tensor scale, Tensor? centers=None) -> Tensor",
    cpu=_residual,
    cuda=_residual_cuda,
    fake=_residual_fake,
    backward=_backward,
    setup_context=_save,
)
_autocast.keep_float32("spamp_residual", ("points", "weight", "scale"))
