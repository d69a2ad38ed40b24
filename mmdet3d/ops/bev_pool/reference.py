"""Readable twin of lift-splat pooling: forms the lifted tensor, then adds its rows up.

A suffix of a name says its shape: B samples, P = B*N images, D depth bins, h x w feature pixels, K points, X x Y x Z
cells, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["bev_pool", "cell_indices", "lift", "lift_splat", "splat"]


def cell_indices(
    geometry: Tensor, lower: Sequence[float], cell: Sequence[float], shape: Sequence[int], floor: bool = False
) -> Tensor:
    """Flat cell of every point, -1 outside the grid.

    Args:
        geometry: (B, ..., 3) metres.
        lower, cell, shape, floor: see `mmdet3d.ops.bev_pool.bev_pool`.

    Returns:
        (B, ...) int64: `((b * Z + z) * X + x) * Y + y`.
    """
    wide = geometry.detach().to(torch.promote_types(geometry.dtype, torch.float32))
    position = (wide - wide.new_tensor(lower)) / wide.new_tensor(cell)
    position = position.floor() if floor else position.trunc()
    # Compared before the conversion to integers, which would wrap huge values and NaN into the grid.
    inside = ((position >= 0) & (position < wide.new_tensor(shape))).all(-1)
    x, y, z = torch.where(inside[..., None], position, 0).long().unbind(-1)
    nx, ny, nz = shape
    sample = torch.arange(geometry.shape[0], device=geometry.device).view(-1, *[1] * (geometry.ndim - 2))
    return torch.where(inside, ((sample * nz + z) * nx + x) * ny + y, -1)


def bev_pool(
    depth: Tensor,
    context: Tensor,
    geometry: Tensor,
    lower: Sequence[float],
    cell: Sequence[float],
    shape: Sequence[int],
    floor: bool = False,
) -> Tensor:
    """See `mmdet3d.ops.bev_pool.bev_pool`. Needs memory for D x h x w x C values per image."""
    cells = cell_indices(geometry, lower, cell, shape, floor)
    return lift_splat(depth, context, cells, geometry.shape[0], shape)


def lift(depth: Tensor, context: Tensor) -> Tensor:
    """(P, D, h, w) x (P, C, h, w) to (P, D, h, w, C), at least float32."""
    dtype = torch.promote_types(torch.promote_types(depth.dtype, context.dtype), torch.float32)
    context_PhwC = context.to(dtype).permute(0, 2, 3, 1)
    return depth.to(dtype)[..., None] * context_PhwC[:, None]


def lift_splat(depth: Tensor, context: Tensor, cells: Tensor, batch_size: int, shape: Sequence[int]) -> Tensor:
    """(P, D, h, w) x (P, C, h, w) to (B, Z*C, X, Y), with `cells` (B, N, D, h, w) from `cell_indices`."""
    lifted_PDhwC = lift(depth, context)
    return splat(lifted_PDhwC.reshape(cells.numel(), context.shape[1]), cells.flatten(), batch_size, shape)


def splat(features: Tensor, cells: Tensor, batch_size: int, shape: Sequence[int]) -> Tensor:
    """(K, C) to (B, Z*C, X, Y), with `cells` (K,), -1 for points to drop."""
    (nx, ny, nz), channels = shape, features.shape[1]
    features_KC = features.to(torch.promote_types(features.dtype, torch.float32))
    kept_K = cells >= 0
    sums = features_KC.new_zeros(batch_size * nz * nx * ny, channels).index_add(0, cells[kept_K], features_KC[kept_K])
    bev_BZCXY = sums.view(batch_size, nz, nx, ny, channels).permute(0, 1, 4, 2, 3)
    return bev_BZCXY.reshape(batch_size, nz * channels, nx, ny).contiguous()
