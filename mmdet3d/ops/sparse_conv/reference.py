"""Sparse convolution in plain PyTorch: neighbours by sorting and binary search; gather, matrix product and scatter-add.

Sites are int64 keys of a grid, in lexicographic order of (sample, x, y, z).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["sparse_convolution", "strided_neighbors", "submanifold_neighbors"]


def submanifold_neighbors(
    coordinates: Tensor, shape: Sequence[int], kernel_size: Sequence[int], dilation: Sequence[int]
) -> Tensor:
    """The row of the site that each site meets under each kernel offset.

    Args:
        coordinates: (N, 4) sample, x, y, z inside `shape`.
        shape: X, Y, Z.
        kernel_size: odd.
        dilation: per axis.

    Returns:
        (kx ky kz, N) int32, -1 for none.

    Raises:
        ValueError: a site occurs twice.
    """
    reach = [k // 2 * d for k, d in zip(kernel_size, dilation, strict=True)]
    # On a padded grid one addition moves a site by an offset and never wraps into the next row or sample.
    padded = [s + 2 * r for s, r in zip(shape, reach, strict=True)]
    steps = [range(-r, r + 1, d) for r, d in zip(reach, dilation, strict=True)]
    offsets = [(x * padded[1] + y) * padded[2] + z for x, y, z in itertools.product(*steps)]
    keys, rows = _keys(coordinates.long() + coordinates.new_tensor([0, *reach]).long(), padded).sort()
    if (keys[1:] == keys[:-1]).any():
        raise ValueError("a site occurs twice in coordinates")
    targets = keys + keys.new_tensor(offsets)[:, None]
    place = torch.searchsorted(keys, targets).clamp(max=max(len(keys) - 1, 0))
    neighbors = torch.empty(targets.shape, dtype=torch.int32, device=keys.device)
    neighbors[:, rows] = torch.where(keys[place] == targets, rows[place], -1).int()
    return neighbors


def strided_neighbors(
    coordinates: Tensor,
    shape: Sequence[int],
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> tuple[Tensor, Tensor, Tensor]:
    """Output sites are all that an input site reaches: input = output * stride - padding + offset * dilation.

    Args:
        coordinates: (N, 4) sample, x, y, z.
        shape: X, Y, Z of the output grid.
        kernel_size, stride, padding, dilation: per axis.

    Returns:
        Output sites (M, 4) int32 in lexicographic order; per kernel offset and output site the row of the input site
        (kx ky kz, M) and per input site the row of the output site (kx ky kz, N), int32, -1 for none.

    Raises:
        ValueError: a site occurs twice.
    """
    offsets = torch.tensor(list(itertools.product(*map(range, kernel_size))), device=coordinates.device)
    step, spare, spread, limit = (offsets.new_tensor(v) for v in (stride, padding, dilation, shape))
    shifted = coordinates[:, 1:].long() + spare - (offsets * spread)[:, None]  # (kx ky kz, N, 3)
    sites = torch.div(shifted, step, rounding_mode="floor")
    reached = ((shifted % step == 0) & (sites >= 0) & (sites < limit)).all(-1)
    sample = coordinates[:, :1].long().expand(len(offsets), -1, -1)
    keys, outputs = torch.unique(_keys(torch.cat([sample, sites], dim=-1)[reached], shape), return_inverse=True)
    offset, inputs = reached.nonzero(as_tuple=True)
    inverse = torch.full(reached.shape, -1, dtype=torch.int32, device=keys.device)
    inverse[reached] = outputs.int()
    neighbors = inverse.new_full((len(offsets), len(keys)), -1)
    neighbors[offset, outputs] = inputs.int()
    if (neighbors >= 0).sum() != len(inputs):
        raise ValueError("a site occurs twice in coordinates")
    return sites_of(keys, shape), neighbors, inverse


def sites_of(keys: Tensor, shape: Sequence[int]) -> Tensor:
    """(M, 4) int32 sample, x, y, z from keys (M,)."""
    nx, ny, nz = shape
    return torch.stack([keys // (nx * ny * nz), keys // (ny * nz) % nx, keys // nz % ny, keys % nz], dim=1).int()


def _keys(coordinates: Tensor, shape: Sequence[int]) -> Tensor:
    sample, x, y, z = coordinates.unbind(-1)
    nx, ny, nz = shape
    return ((sample * nx + x) * ny + y) * nz + z


def sparse_convolution(features: Tensor, weight: Tensor, neighbors: Tensor, inverse: Tensor) -> Tensor:
    """`out[o] = sum over offsets k of features[neighbors[k, o]] @ weight[k]`, sums in float32 or wider.

    Args:
        features: (N, Cin).
        weight: (K, Cin, Cout).
        neighbors: (K, M) rows of features, -1 for none.
        inverse: (K, N) rows of the output, not read.

    Returns:
        (M, Cout).
    """
    return _GatherScatter.apply(features, weight, neighbors)


class _GatherScatter(torch.autograd.Function):
    """Keeps the features only: the gathered rows, several times as large, are gathered again in the backward pass."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, weight: Tensor, neighbors: Tensor) -> Tensor:
        ctx.save_for_backward(features, weight, neighbors)
        out = features.new_zeros(neighbors.shape[1], weight.shape[2], dtype=_accumulator(features))
        for kernel, row in zip(weight, neighbors, strict=True):
            outputs = (row >= 0).nonzero().squeeze(1)
            out.index_add_(0, outputs, (features[row[outputs]] @ kernel).to(out.dtype))
        return out.to(features.dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        features, weight, neighbors = ctx.saved_tensors
        grad_features = torch.zeros_like(features, dtype=_accumulator(features))
        grad_weight = torch.zeros_like(weight)
        for k, row in enumerate(neighbors):
            outputs = (row >= 0).nonzero().squeeze(1)
            inputs, rows = row[outputs], grad[outputs]
            grad_weight[k] = features[inputs].T @ rows
            if ctx.needs_input_grad[0]:
                grad_features.index_add_(0, inputs, (rows @ weight[k].T).to(grad_features.dtype))
        return grad_features.to(features.dtype), grad_weight, None


def _accumulator(features: Tensor) -> torch.dtype:
    return torch.promote_types(features.dtype, torch.float32)
