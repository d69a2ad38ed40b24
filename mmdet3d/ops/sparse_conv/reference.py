"""Sparse convolution as gather, matrix product and scatter-add, one kernel offset at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["sparse_convolution"]


def sparse_convolution(
    features: Tensor, weight: Tensor, pairs: Sequence[tuple[Tensor, Tensor]], num_outputs: int
) -> Tensor:
    """`out[o] = sum over offsets k and pairs (i, o) of k of features[i] @ weight[k]` (cross-correlation).

    Under autocast the products run in its dtype; sums are always kept in float32 or wider.

    Args:
        features: (N, Cin).
        weight: (kx, ky, kz, Cin, Cout).
        pairs: per flattened kernel offset the rows (P_k,) of input and of output sites.
        num_outputs: M.

    Returns:
        (M, Cout) in the dtype of the products.
    """
    if torch.is_autocast_enabled(features.device.type):
        dtype = torch.get_autocast_dtype(features.device.type)
        features, weight = features.to(dtype), weight.to(dtype)
    return _GatherScatter.apply(features, weight, pairs, num_outputs)


class _GatherScatter(torch.autograd.Function):
    """Keeps the features only: the gathered rows, several times as large, are gathered again in the backward pass."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, weight: Tensor, pairs: Sequence, num_outputs: int) -> Tensor:
        ctx.save_for_backward(features, weight)
        ctx.pairs = pairs
        out = features.new_zeros(num_outputs, weight.shape[-1], dtype=_accumulator(features))
        for kernel, (inputs, outputs) in zip(weight.flatten(0, 2), pairs, strict=True):
            if inputs.numel():
                out.index_add_(0, outputs, (features[inputs] @ kernel).to(out.dtype))
        return out.to(features.dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        features, weight = ctx.saved_tensors
        kernels = weight.flatten(0, 2)
        grad_features = torch.zeros_like(features, dtype=_accumulator(features))
        grad_kernels = torch.zeros_like(kernels)
        for k, (inputs, outputs) in enumerate(ctx.pairs):
            if inputs.numel():
                rows = grad[outputs]
                grad_kernels[k] = features[inputs].T @ rows
                if ctx.needs_input_grad[0]:
                    grad_features.index_add_(0, inputs, (rows @ kernels[k].T).to(grad_features.dtype))
        return grad_features.to(features.dtype), grad_kernels.view_as(weight), None, None


def _accumulator(features: Tensor) -> torch.dtype:
    return torch.promote_types(features.dtype, torch.float32)
