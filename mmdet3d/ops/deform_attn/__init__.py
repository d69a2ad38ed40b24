"""Multi-scale deformable attention (Zhu et al., "Deformable DETR", ICLR 2021): weighted samples of feature maps."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mmdet3d.ops.checks import check_deterministic, check_floating, check_shapes, compute_dtype
from mmdet3d.ops.deform_attn import reference
from mmdet3d.ops.native import DTYPE_CODES, Kernels

__all__ = ["multi_scale_deformable_attention"]

_kernels = Kernels("deform_attn")


def multi_scale_deformable_attention(
    value: Tensor, shapes: Sequence[tuple[int, int]], locations: Tensor, weights: Tensor
) -> Tensor:
    """Sum of weighted bilinear samples, for each query and head; differentiable in value, locations and weights.

    A location x, y of a level of h x w pixels is the point x * w - 0.5, y * h - 0.5 of its image, where integers are
    pixel centres and zeros lie outside; NaN and infinity are outside. Sums are kept in float32 at least. On CUDA the
    gradient of `value` is summed by atomic additions, so its last bits may differ between runs.

    Args:
        value: (B, S, M, C) C channels of M heads at the S pixels of all levels, row-major, one level after the other.
        shapes: height and width of each level, pixels; L levels.
        locations: (B, Q, M, L, P, 2) x and y, from 0 (left, upper edge of the image) to 1 (right, lower edge).
        weights: (B, Q, M, L, P), for instance a softmax over L and P.

    Returns:
        (B, Q, M * C), dtype of `value`.

    Raises:
        ValueError: shapes that do not fit together, or a dtype that is not floating.
        RuntimeError: in the backward on CUDA, if `torch.use_deterministic_algorithms` is on.
    """
    sizes = check_shapes(value=(value, "B S M C"), locations=(locations, "B Q M L P 2"), weights=(weights, "B Q M L P"))
    check_floating(value=value, locations=locations, weights=weights)
    shapes = [(int(h), int(w)) for h, w in shapes]
    if len(shapes) != sizes["L"] or not shapes or min(map(min, shapes)) < 1:
        raise ValueError(f"shapes must be L = {sizes['L']} pairs of positive height and width, got {shapes}")
    if sum(h * w for h, w in shapes) != sizes["S"]:
        raise ValueError(f"value has S = {sizes['S']} pixels, but shapes {shapes} have {sum(h * w for h, w in shapes)}")
    dtype = compute_dtype(value, locations, weights)
    wide = value.to(dtype), locations.to(dtype), weights.to(dtype)
    if not _kernels.available(value):
        return reference.multi_scale_deformable_attention(wide[0], shapes, *wide[1:]).to(value.dtype)
    return _attend(*wide, [n for shape in shapes for n in shape]).to(value.dtype)


@torch.library.custom_op("mmdet3d::deform_attn", mutates_args=())
def _attend(value: Tensor, locations: Tensor, weights: Tensor, shapes: list[int]) -> Tensor:
    b, q, m = weights.shape[:3]
    out = value.new_empty(b, q, m * value.shape[3])
    tensors = [t.contiguous() for t in (value, locations, weights)]
    _kernels.call("attention_forward", *_sizes(value, weights, shapes), *tensors, out)
    return out


@_attend.register_fake
def _(value: Tensor, locations: Tensor, weights: Tensor, shapes: list[int]) -> Tensor:
    b, q, m = weights.shape[:3]
    return value.new_empty(b, q, m * value.shape[3])


@torch.library.custom_op("mmdet3d::deform_attn_backward", mutates_args=())
def _attend_backward(
    grad_out: Tensor, value: Tensor, locations: Tensor, weights: Tensor, shapes: list[int]
) -> tuple[Tensor, Tensor, Tensor]:
    check_deterministic("deform_attn backward", value)
    tensors = [t.contiguous() for t in (value, locations, weights, grad_out)]
    grads = torch.zeros_like(tensors[0]), torch.empty_like(tensors[1]), torch.empty_like(tensors[2])
    _kernels.call("attention_gradient", *_sizes(value, weights, shapes), *tensors, *grads)
    return grads


@_attend_backward.register_fake
def _(
    grad_out: Tensor, value: Tensor, locations: Tensor, weights: Tensor, shapes: list[int]
) -> tuple[Tensor, Tensor, Tensor]:
    value, locations, weights = (
        torch.empty_like(t, memory_format=torch.contiguous_format) for t in (value, locations, weights)
    )
    return value, locations, weights


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.shapes = inputs
    ctx.save_for_backward(*tensors)


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return *_attend_backward(grad, *ctx.saved_tensors, ctx.shapes), None


_attend.register_autograd(_differentiate, setup_context=_save)


def _sizes(value: Tensor, weights: Tensor, shapes: list[int]) -> list[Any]:
    """The arguments that both kernels begin with."""
    _, s, m, c = value.shape
    b, q, _, levels, p = weights.shape
    return [DTYPE_CODES[value.dtype], b, s, m, c, q, levels, p, _level_table(tuple(shapes), value.device)]


@functools.lru_cache(maxsize=64)
def _level_table(shapes: tuple[int, ...], device: torch.device) -> Tensor:
    """(L, 3) int64: height, width and first pixel of each level."""
    pairs = torch.tensor(shapes).view(-1, 2)
    pixels = pairs.prod(1)
    return torch.cat([pairs, (pixels.cumsum(0) - pixels)[:, None]], dim=1).to(device)
