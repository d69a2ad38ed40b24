"""Lift-splat pooling for exported programs: gather, multiply, scatter-add; no operation depends on values.

Points that are dropped go to a cell behind the last. Of a plan that is known (`PoolPlan.kept`) they are left out.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["lift_splat", "splat"]


def lift_splat(
    depth: Tensor, context: Tensor, cells: Tensor, batch_size: int, shape: Sequence[int], kept: Tensor | None
) -> Tensor:
    """See `mmdet3d.ops.bev_pool.bev_pool`.

    Args:
        depth: (B*N, D, h, w).
        context: (B*N, C, h, w).
        cells: (B, N, D, h, w) int64, -1 for points to drop; with `kept` (K,) of those points alone.
        kept: (K,) int64, flat points.
    """
    images, bins, height, width = depth.shape
    rows = context.permute(0, 2, 3, 1)
    if kept is not None:
        pixels = height * width
        pixel = kept // (bins * pixels) * pixels + kept % pixels
        return _raster([(cells, depth.flatten()[kept, None] * rows.flatten(0, 2)[pixel])], batch_size, shape)
    # One image at a time: lifted features of all would take hundreds of megabytes.
    parts = []
    for image, cell in zip(range(images), cells.flatten(0, 1).unbind(), strict=True):
        lifted = depth[image, ..., None] * rows[image]
        parts.append((cell.flatten(), lifted.flatten(0, 2)))
    return _raster(parts, batch_size, shape)


def splat(rows: Tensor, cells: Tensor, batch_size: int, shape: Sequence[int], kept: Tensor | None) -> Tensor:
    """See `mmdet3d.ops.bev_pool.bev_pool_lifted`; (P, C) rows at (P,) cells, with `kept` at (K,) cells."""
    return _raster([(cells.flatten(), rows if kept is None else rows[kept])], batch_size, shape)


def _raster(parts: Sequence[tuple[Tensor, Tensor]], batch_size: int, shape: Sequence[int]) -> Tensor:
    (nx, ny, nz), channels = shape, parts[0][1].shape[1]
    count = batch_size * nz * nx * ny
    bev = parts[0][1].new_zeros(count + 1, channels)
    for cell, rows in parts:
        bev = bev.index_put((torch.where(cell >= 0, cell, count),), rows, accumulate=True)
    bev = bev[:count].view(batch_size, nz, nx, ny, channels).permute(0, 1, 4, 2, 3)
    return bev.reshape(batch_size, nz * channels, nx, ny)
