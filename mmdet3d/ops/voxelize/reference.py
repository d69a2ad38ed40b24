"""Voxelisation by sorting cell keys: no dense grid, the same result on every device."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["dynamic_voxelize", "grid_shape", "scatter_max", "scatter_mean", "scatter_sum", "voxelize"]


def grid_shape(voxel_size: Sequence[float], point_cloud_range: Sequence[float]) -> tuple[int, int, int]:
    """Number of voxels along x, y, z in the range `(x0, y0, z0, x1, y1, z1)`, rounded."""
    lower, upper = point_cloud_range[:3], point_cloud_range[3:]
    x, y, z = (round((b - a) / s) for a, b, s in zip(lower, upper, voxel_size, strict=True))
    return x, y, z


@torch.no_grad()
def voxelize(
    points: Tensor, voxel_size: Sequence[float], point_cloud_range: Sequence[float], max_points: int, max_voxels: int
) -> tuple[Tensor, Tensor, Tensor]:
    """See `mmdet3d.ops.voxelize.voxelize`."""
    index, coordinates = dynamic_voxelize(points, voxel_size, point_cloud_range)
    kept = ((index >= 0) & (index < max_voxels)).nonzero().squeeze(1)
    index, order = index[kept].sort(stable=True)
    kept = kept[order]
    coordinates = coordinates[:max_voxels]
    counts = torch.bincount(index, minlength=len(coordinates))
    slot = torch.arange(len(index), device=points.device) - (counts.cumsum(0) - counts)[index]
    stored = slot < max_points
    voxels = points.new_zeros(len(coordinates), max_points, points.shape[1])
    voxels[index[stored], slot[stored]] = points[kept[stored]]
    return voxels, coordinates, counts.clamp(max=max_points).int()


@torch.no_grad()
def dynamic_voxelize(
    points: Tensor, voxel_size: Sequence[float], point_cloud_range: Sequence[float]
) -> tuple[Tensor, Tensor]:
    """See `mmdet3d.ops.voxelize.dynamic_voxelize`."""
    xyz = points[:, :3].to(torch.promote_types(points.dtype, torch.float32))
    _, ny, nz = shape = grid_shape(voxel_size, point_cloud_range)
    cell = ((xyz - xyz.new_tensor(point_cloud_range[:3])) / xyz.new_tensor(voxel_size)).floor()
    # Compared before the conversion to integers, which would wrap huge values and NaN into the grid.
    kept = ((cell >= 0) & (cell < cell.new_tensor(shape))).all(1).nonzero().squeeze(1)
    x, y, z = cell[kept].long().unbind(1)
    keys, voxel = torch.unique((x * ny + y) * nz + z, return_inverse=True)
    first = torch.full_like(keys, len(kept)).scatter_reduce(
        0, voxel, torch.arange(len(kept), device=voxel.device), "amin"
    )
    order = first.argsort()
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order), device=order.device)
    keys = keys[order]
    index = torch.full((len(points),), -1, dtype=torch.int64, device=points.device)
    index[kept] = rank[voxel]
    return index, torch.stack([keys // (ny * nz), keys // nz % ny, keys % nz], dim=1).int()


def scatter_sum(features: Tensor, index: Tensor, size: int) -> Tensor:
    """See `mmdet3d.ops.voxelize.scatter_sum`."""
    features, index = features[index >= 0], index[index >= 0]
    return features.new_zeros(size, features.shape[1]).index_add(0, index, features)


def scatter_mean(features: Tensor, index: Tensor, size: int) -> Tensor:
    """See `mmdet3d.ops.voxelize.scatter_mean`."""
    counts = torch.bincount(index[index >= 0], minlength=size).clamp(min=1)
    return scatter_sum(features, index, size) / counts[:, None].to(features)


def scatter_max(features: Tensor, index: Tensor, size: int) -> Tensor:
    """See `mmdet3d.ops.voxelize.scatter_max`."""
    features, index = features[index >= 0], index[index >= 0]
    target = features.new_zeros(size, features.shape[1])
    return target.scatter_reduce(0, index[:, None].expand_as(features), features, "amax", include_self=False)
