"""Lift-splat pooling as weighted sums of table rows.

Sorted by cell, the frustum points are bags of (pixel, depth weight) pairs and a cell is the weighted sum of its pixels'
context rows; sorted by pixel, the gradient of the context is the same operation with the roles exchanged. So the lifted
tensor (B*N, D, h, w, C) never exists, and sums have a fixed order.

A suffix of a name says its shape: R = P*h*w pixels of P = B*N images, Q = R*D points, pixel by pixel, K of them that
lie in a cell, X x Y x Z cells of B samples, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["lift_splat", "splat"]

_CHUNK = 1 << 16  # points whose rows the depth gradient holds at once: 20 MB at 80 channels


def lift_splat(depth: Tensor, context: Tensor, cells: Tensor, batch_size: int, shape: Sequence[int]) -> Tensor:
    """Pool into cells that are known.

    Args:
        depth: (B*N, D, h, w).
        context: (B*N, C, h, w).
        cells: (B, N, D, h, w) int64 from `cell_indices`, -1 for points to drop.
        batch_size: B.
        shape: X, Y, Z.

    Returns:
        (B, Z*C, X, Y), at least float32.
    """
    dtype = torch.promote_types(torch.promote_types(depth.dtype, context.dtype), torch.float32)
    rows_RC = context.to(dtype).permute(0, 2, 3, 1).reshape(-1, context.shape[1])
    # Depth last, so that the points of one pixel are neighbours.
    cells_Q = cells.flatten(0, 1).permute(0, 2, 3, 1).reshape(-1)
    weights_Q = depth.to(dtype).permute(0, 2, 3, 1).reshape(-1)
    kept_K = (cells_Q >= 0).nonzero().squeeze(1)
    return _raster(weights_Q[kept_K], rows_RC, kept_K // depth.shape[1], cells_Q[kept_K], batch_size, shape)


def splat(features: Tensor, cells: Tensor, batch_size: int, shape: Sequence[int]) -> Tensor:
    """Pool features that are lifted already, (K, C), into (B, Z*C, X, Y); `cells` (K,) int64, -1 to drop."""
    rows = features.to(torch.promote_types(features.dtype, torch.float32))
    kept = (cells >= 0).nonzero().squeeze(1)
    return _raster(rows.new_ones(kept.shape), rows, kept, cells[kept], batch_size, shape)


def _raster(
    weights: Tensor, rows: Tensor, pixels: Tensor, cells: Tensor, batch_size: int, shape: Sequence[int]
) -> Tensor:
    (nx, ny, nz), channels = shape, rows.shape[1]
    sums = _LiftSplat.apply(weights, rows, pixels, cells, batch_size * nz * nx * ny)
    bev_BZCXY = sums.view(batch_size, nz, nx, ny, channels).permute(0, 1, 4, 2, 3)
    return bev_BZCXY.reshape(batch_size, nz * channels, nx, ny).contiguous()


class _LiftSplat(torch.autograd.Function):
    """`out[cells[k]] += weights[k] * rows[pixels[k]]`, with `pixels` ascending."""

    @staticmethod
    def forward(ctx: Any, weights: Tensor, rows: Tensor, pixels: Tensor, cells: Tensor, num_cells: int) -> Tensor:
        ctx.save_for_backward(weights, rows, pixels, cells)
        order = torch.argsort(cells.int() if num_cells < 2**31 else cells, stable=True)
        return _sum_rows(rows, pixels[order], weights[order], cells, num_cells)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        weights, rows, pixels, cells = ctx.saved_tensors
        grad = grad.contiguous()
        grad_weights = grad_rows = None
        if ctx.needs_input_grad[0]:
            pairs = zip(cells.split(_CHUNK), pixels.split(_CHUNK), strict=True)
            grad_weights = torch.cat([(grad[c] * rows[p]).sum(1) for c, p in pairs])
        if ctx.needs_input_grad[1]:
            grad_rows = _sum_rows(grad, cells, weights, pixels, rows.shape[0])
        return grad_weights, grad_rows, None, None, None


def _sum_rows(table: Tensor, index: Tensor, weights: Tensor, owner: Tensor, num_owners: int) -> Tensor:
    """(num_owners, C): weighted sums of `table[index]`, with `index` and `weights` grouped by ascending owner."""
    if index.numel() == 0:
        return table.new_zeros(num_owners, table.shape[1])
    counts = torch.bincount(owner, minlength=num_owners)
    return F.embedding_bag(index, table, counts.cumsum(0) - counts, mode="sum", per_sample_weights=weights)
