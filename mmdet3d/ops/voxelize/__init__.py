"""Points to voxels."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from mmdet3d.ops.checks import check_shapes
from mmdet3d.ops.voxelize import reference
from mmdet3d.ops.voxelize.reference import grid_shape, scatter_max, scatter_mean

__all__ = ["dynamic_voxelize", "grid_shape", "scatter_max", "scatter_mean", "voxelize"]


def voxelize(
    points: Tensor,
    voxel_size: Sequence[float],
    point_cloud_range: Sequence[float],
    max_points: int,
    max_voxels: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Hard voxelisation (VoxelNet): first come, first served in the order of the points.

    A voxel is opened by the first point in it as long as there are fewer than `max_voxels`; it stores its first
    `max_points` points. A point on a lower border belongs to the voxel above it. Points outside the range and points
    that are not finite are dropped. No gradient.

    Args:
        points: (P, F), columns 0..2 are x, y, z in metres.
        voxel_size: extent along x, y, z, metres.
        point_cloud_range: x0, y0, z0, x1, y1, z1, metres.
        max_points: slots per voxel.
        max_voxels: bound on M.

    Returns:
        voxels (M, max_points, F), unused slots zero; coordinates (M, 3) int32 as x, y, z; counts (M,) int32. Voxels are
        in the order in which they were opened.

    Raises:
        ValueError: another shape, integer points, or bounds that are not positive.
    """
    _check(points, voxel_size, point_cloud_range)
    for name, value in {"max_points": max_points, "max_voxels": max_voxels}.items():
        if value < 1:
            raise ValueError(f"{name} must be positive, got {value} (dynamic_voxelize has no such bounds)")
    return reference.voxelize(points, voxel_size, point_cloud_range, max_points, max_voxels)


def dynamic_voxelize(
    points: Tensor, voxel_size: Sequence[float], point_cloud_range: Sequence[float]
) -> tuple[Tensor, Tensor]:
    """Voxel of every point, without bounds on points or voxels (dynamic voxelisation, MVF).

    Args:
        points: (P, F), columns 0..2 are x, y, z in metres.
        voxel_size: extent along x, y, z, metres.
        point_cloud_range: x0, y0, z0, x1, y1, z1, metres.

    Returns:
        index (P,) int64, the voxel of each point, -1 for a point outside the range or not finite; coordinates (M, 3)
        int32 as x, y, z. Voxels are in the order of their first point.

    Raises:
        ValueError: another shape or integer points.
    """
    _check(points, voxel_size, point_cloud_range)
    return reference.dynamic_voxelize(points, voxel_size, point_cloud_range)


def _check(points: Tensor, voxel_size: Sequence[float], point_cloud_range: Sequence[float]) -> None:
    sizes = check_shapes(points=(points, "P F"))
    if sizes["F"] < 3 or not points.is_floating_point():
        raise ValueError(
            f"points must be floating point with x, y, z in front, got {points.dtype} of shape {tuple(points.shape)}"
        )
    if len(voxel_size) != 3 or len(point_cloud_range) != 6:
        raise ValueError(
            f"voxel_size needs 3 values and point_cloud_range 6, got {list(voxel_size)} and {list(point_cloud_range)}"
        )
