"""Ranks with a gradient, and the correlation that MonoSKD's Spearman term comes to."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mmdet3d.ops.native import DTYPE_CODES, Kernels
from mmdet3d.ops.soft_rank import reference
from mmdet3d.ops.soft_rank.spearman import spearman_closed_form

__all__ = ["soft_rank", "spearman_closed_form"]

_kernels = Kernels("soft_rank")


def soft_rank(values: Tensor, strength: float = 1.0, regularization: str = "l2") -> Tensor:
    """Ranks along the last axis, softened so that they have a gradient (Blondel et al. 2020); the smallest is about 1.

    The ranks are the point of the permutahedron (the convex hull of all orders of 1..n) nearest to values / strength:
    hard ranks as the strength goes to zero, all (n + 1) / 2 ("l2") as it grows. Sorting turns this into an isotonic
    regression, solved exactly by pooling adjacent violators in O(n log n); sums are kept in float64.

    Args:
        values: (..., n).
        strength: positive; how far apart values must be, in their own unit, to count as ranks apart.
        regularization: what "nearest" means: "l2" by squared distance; "kl" by relative entropy of exp(values /
            strength), which keeps ranks positive.

    Returns:
        (..., n), dtype of the values, at least float32. Each row sums to n (n + 1) / 2. A row with NaN or infinite
        values has NaN at least in their places.

    Raises:
        ValueError: values without an axis or not floating point, strength not positive, an unknown regularisation.
    """
    if values.ndim < 1 or not values.is_floating_point():
        raise ValueError(f"values must be floating point (..., n), got {values.dtype} {tuple(values.shape)}")
    if not 0 < strength < float("inf"):
        raise ValueError(f"strength must be positive and finite, got {strength}")
    if regularization not in ("l2", "kl"):
        raise ValueError(f"regularization must be 'l2' or 'kl', got {regularization!r}")
    rows = values.reshape(-1, values.shape[-1]) if values.numel() else values.new_zeros(0, 1) + values.sum()
    rows = rows.to(torch.promote_types(values.dtype, torch.float32))
    if not _kernels.available(values):
        ranks = reference.soft_rank(rows, strength, regularization == "kl")
    else:
        ordered, order = (rows / strength).sort(dim=1, descending=True)
        pooled, _ = _pool(ordered, regularization == "kl")
        ranks = torch.empty_like(pooled).scatter(1, order, pooled)
    return ranks.reshape(values.shape)


@torch.library.custom_op("mmdet3d::soft_rank_pool", mutates_args=())
def _pool(ordered: Tensor, entropic: bool) -> tuple[Tensor, Tensor]:
    """(R, n) descending values -> their ranks, and for each the index of the first of its block."""
    ranks = torch.empty_like(ordered, memory_format=torch.contiguous_format)
    blocks = ordered.new_empty(ordered.shape, dtype=torch.int64)
    sums = ordered.new_empty(ordered.shape, dtype=torch.float64)
    _kernels.call("soft_rank_forward", *_sizes(ordered, entropic), ordered.contiguous(), sums, blocks, ranks)
    return ranks, blocks


@_pool.register_fake
def _(ordered: Tensor, entropic: bool) -> tuple[Tensor, Tensor]:
    ranks = torch.empty_like(ordered, memory_format=torch.contiguous_format)
    return ranks, ordered.new_empty(ordered.shape, dtype=torch.int64)


@torch.library.custom_op("mmdet3d::soft_rank_pool_backward", mutates_args=())
def _pool_backward(grad_out: Tensor, ranks: Tensor, blocks: Tensor, entropic: bool) -> Tensor:
    grad = torch.empty_like(ranks)
    _kernels.call("soft_rank_gradient", *_sizes(ranks, entropic), grad_out.contiguous(), ranks, blocks, grad)
    return grad


@_pool_backward.register_fake
def _(grad_out: Tensor, ranks: Tensor, blocks: Tensor, entropic: bool) -> Tensor:
    return torch.empty_like(ranks)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.entropic = inputs[1]
    ctx.save_for_backward(*output)
    ctx.mark_non_differentiable(output[1])


def _differentiate(ctx: Any, grad: Tensor, _: Tensor | None) -> tuple[Tensor, None]:
    return _pool_backward(grad, *ctx.saved_tensors, ctx.entropic), None


_pool.register_autograd(_differentiate, setup_context=_save)


def _sizes(rows: Tensor, entropic: bool) -> list[Any]:
    """The scalar arguments that both kernels begin with."""
    return [DTYPE_CODES[rows.dtype], *rows.shape, entropic]
