"""Readable twin of lift-splat pooling: forms the lifted tensor, then adds its rows up."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["bev_pool", "cell_indices"]


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
    batch_size, (nx, ny, nz), channels = geometry.shape[0], shape, context.shape[1]
    dtype = torch.promote_types(torch.promote_types(depth.dtype, context.dtype), torch.float32)
    lifted = depth.to(dtype)[..., None] * context.to(dtype).permute(0, 2, 3, 1)[:, None]  # (B*N, D, h, w, C)
    cells = cell_indices(geometry, lower, cell, shape, floor).flatten()
    kept = cells >= 0
    bev = lifted.new_zeros(batch_size * nz * nx * ny, channels)
    bev = bev.index_add(0, cells[kept], lifted.reshape(-1, channels)[kept])
    bev = bev.view(batch_size, nz, nx, ny, channels).permute(0, 1, 4, 2, 3)
    return bev.reshape(batch_size, nz * channels, nx, ny).contiguous()
