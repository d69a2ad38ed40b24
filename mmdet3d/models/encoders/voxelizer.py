"""The `voxelize` block of a config."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mmdet3d.blocks import ConfigKeyError
from mmdet3d.ops.voxelize import dynamic_voxelize, grid_shape, scatter_mean, voxelize
from mmdet3d.structures import BEVGrid

__all__ = ["DynamicVoxelizer", "VoxelizeBlock", "Voxelizer", "build_voxelizer", "check_coordinates", "voxelize_batch"]


@dataclass(frozen=True)
class VoxelizeBlock:
    """Points to voxels.

    Args:
        max_num_points: slots per voxel; 0 or less voxelises without bounds.
        point_cloud_range: x0, y0, z0, x1, y1, z1, metres.
        voxel_size: x, y, z, metres.
        max_voxels: most voxels of a sample, or a pair (training, evaluation); needed unless there are no bounds.
    """

    max_num_points: int
    point_cloud_range: Sequence[float]
    voxel_size: Sequence[float]
    max_voxels: int | Sequence[int] | None = None

    def __post_init__(self) -> None:
        if self.max_num_points > 0 and self.max_voxels is None:
            raise ConfigKeyError("max_voxels", " is missing")


class _Grid(nn.Module):
    def __init__(self, point_cloud_range: Sequence[float], voxel_size: Sequence[float]) -> None:
        super().__init__()
        if len(point_cloud_range) != 6 or len(voxel_size) != 3:
            raise ValueError(
                "voxelize needs a point_cloud_range of 6 and a voxel_size of 3 numbers, got "
                f"{list(point_cloud_range)} and {list(voxel_size)}"
            )
        extents = [b - a for a, b in zip(point_cloud_range[:3], point_cloud_range[3:], strict=True)]
        if min(extents) <= 0 or min(voxel_size) <= 0:
            raise ValueError(
                f"voxelize covers nothing: point_cloud_range {list(point_cloud_range)}, voxel_size {list(voxel_size)}"
            )
        self.point_cloud_range = list(point_cloud_range)
        self.voxel_size = list(voxel_size)
        self.grid_shape = grid_shape(self.voxel_size, self.point_cloud_range)

    @property
    def block(self) -> VoxelizeBlock:
        """What `build_voxelizer` makes one like this of."""
        bounds = (getattr(self, "max_num_points", -1), getattr(self, "max_voxels", None))
        return VoxelizeBlock(bounds[0], self.point_cloud_range, self.voxel_size, bounds[1])

    def bev_grid(self, shape: Sequence[int]) -> BEVGrid:
        """The raster of `shape` (X, Y) cells over this range, for an encoder with that `output_shape`."""
        x0, y0, _, x1, y1, _ = self.point_cloud_range
        return BEVGrid.from_range(self.point_cloud_range, [(x1 - x0) / shape[0], (y1 - y0) / shape[1]])


class Voxelizer(_Grid):
    """Hard voxelisation in float32, without gradient; has no state.

    Args:
        max_num_points: slots per voxel.
        point_cloud_range: x0, y0, z0, x1, y1, z1, metres.
        voxel_size: x, y, z, metres.
        max_voxels: bound on the voxels of a sample, or a pair (training mode, evaluation mode).

    Raises:
        ValueError: an empty range or bounds that are not positive.
    """

    def __init__(
        self,
        max_num_points: int,
        point_cloud_range: Sequence[float],
        voxel_size: Sequence[float],
        max_voxels: int | Sequence[int],
    ) -> None:
        super().__init__(point_cloud_range, voxel_size)
        self.max_num_points = max_num_points
        self.max_voxels = (max_voxels, max_voxels) if isinstance(max_voxels, int) else tuple(max_voxels)
        if len(self.max_voxels) != 2 or min(max_num_points, *self.max_voxels) < 1:
            raise ValueError(
                "voxelize needs max_num_points >= 1 and max_voxels >= 1, one number or (training, evaluation), got "
                f"{max_num_points} and {max_voxels}"
            )

    def forward(self, points: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Points (P, F) to voxels (M, slots, F) float32, coordinates (M, 3) int32 x, y, z, counts (M,) int32."""
        max_voxels = self.max_voxels[0 if self.training else 1]
        return voxelize(points.float(), self.voxel_size, self.point_cloud_range, self.max_num_points, max_voxels)


class DynamicVoxelizer(_Grid):
    """Voxelisation without bounds; a voxel's feature is the mean of its points. Float32, no gradient, no state.

    Args:
        point_cloud_range: x0, y0, z0, x1, y1, z1, metres.
        voxel_size: x, y, z, metres.
    """

    @torch.no_grad()
    def forward(self, points: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Points (P, F) to means (M, F) float32, coordinates (M, 3) int32 x, y, z, counts (M,) int32."""
        index, coordinates = dynamic_voxelize(points.float(), self.voxel_size, self.point_cloud_range)
        counts = torch.bincount(index[index >= 0], minlength=len(coordinates))
        return scatter_mean(points.float(), index, len(coordinates)), coordinates, counts.int()


def build_voxelizer(block: VoxelizeBlock) -> Voxelizer | DynamicVoxelizer:
    """Raises ValueError for an empty range, or bounds that are not positive."""
    if block.max_voxels is None or block.max_num_points <= 0:
        return DynamicVoxelizer(block.point_cloud_range, block.voxel_size)
    return Voxelizer(block.max_num_points, block.point_cloud_range, block.voxel_size, block.max_voxels)


@torch.no_grad()
def voxelize_batch(
    voxelizer: Voxelizer | DynamicVoxelizer, points: Sequence[Tensor], reduce: bool
) -> tuple[Tensor, Tensor, Tensor, int]:
    """Voxels of all samples, one after the other.

    Args:
        voxelizer: from `build_voxelizer`.
        points: per sample (P_i, F); any may be empty.
        reduce: average the points of a voxel (`voxelize_reduce` of a config).

    Returns:
        features (M, F) if `reduce`, else (M, slots, F); coordinates (M, 4) int32: sample, x, y, z; counts (M,) int32;
        number of samples.

    Raises:
        ValueError: no samples, or points of dynamic voxels asked for one by one.
    """
    if not points:
        raise ValueError("cannot voxelise a batch of no samples")
    if isinstance(voxelizer, DynamicVoxelizer) and not reduce:
        raise ValueError("dynamic voxelisation (max_num_points <= 0) gives averages only; set voxelize_reduce: true")
    features, coordinates, counts = zip(*(voxelizer(p) for p in points), strict=True)
    sites = torch.cat([nn.functional.pad(c, (1, 0), value=i) for i, c in enumerate(coordinates)])
    count = torch.cat(counts)
    feature = torch.cat(features)
    if reduce and feature.ndim == 3:
        feature = feature.sum(1) / count.clamp(min=1)[:, None]
    return feature, sites, count, len(points)


def check_coordinates(coordinates: Tensor, batch_size: int, shape: Sequence[int], user: str) -> None:
    """Raises ValueError if a voxel (M, 4) lies outside `batch_size` grids of `shape`; it would overwrite another.

    An exported program looks at no values: what voxelises for it keeps to the grid.
    """
    if torch.compiler.is_exporting() or len(coordinates) == 0:
        return
    bounds = coordinates.new_tensor([batch_size, *shape])
    columns = coordinates[:, : len(bounds)]
    outside = ((columns < 0) | (columns >= bounds)).any(1)
    if outside.any():
        raise ValueError(
            f"{user} covers {batch_size} samples of {tuple(shape)} voxels, but got voxel "
            f"{tuple(coordinates[outside][0].tolist())} (sample, x, y, z); its shape must fit point_cloud_range and "
            "voxel_size of the voxelize block"
        )
