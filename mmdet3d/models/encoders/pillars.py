"""PointPillars: a small network on the points of a pillar, pillars scattered on the ground plane."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mmdet3d.models.encoders.norm import Norm1d, build_norm1d
from mmdet3d.models.encoders.voxelizer import check_coordinates
from mmdet3d.ops.feature_decorator import feature_decorator
from mmdet3d.registry import MODELS
from mmdet3d.structures import BEVGrid

__all__ = ["PillarFeatureNet", "PillarNet", "PointLayer", "PointPillarsEncoder", "PointPillarsScatter"]


class PointLayer(nn.Module):
    """Linear, BatchNorm and ReLU on every slot: (M, S, C_in) to (M, S, C_out).

    Padded slots take part in the batch statistics, as they did when the published checkpoints were trained.
    """

    def __init__(self, in_channels: int, out_channels: int, norm_cfg: Norm1d | None) -> None:
        super().__init__()
        self.linear = nn.Linear(in_channels, out_channels, bias=False)
        self.norm = build_norm1d(norm_cfg, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.linear(x).flatten(0, 1)).unflatten(0, x.shape[:2]).relu()


class PillarNet(nn.Module):
    """What the pillar networks share: their arguments and the raster of their pillars.

    Args:
        in_channels: F of a raw point.
        feat_channels: widths of the layers.
        with_distance: append the distance to the origin to a point.
        voxel_size: of the voxeliser, x, y, z in metres.
        point_cloud_range: of the voxeliser, metres.
        norm_cfg: of all layers.

    Attributes:
        grid: raster of the pillars.
        out_channels: of a pillar.
    """

    def __init__(
        self,
        in_channels: int = 4,
        feat_channels: Sequence[int] = (64,),
        with_distance: bool = False,
        voxel_size: Sequence[float] = (0.2, 0.2, 4),
        point_cloud_range: Sequence[float] = (0, -40, -3, 70.4, 40, 1),
        norm_cfg: Norm1d | None = None,
    ) -> None:
        super().__init__()
        if not feat_channels:
            raise ValueError(f"{type(self).__name__} needs at least one layer in feat_channels")
        self.in_channels = in_channels
        self.with_distance = with_distance
        self.voxel_size = list(voxel_size)
        self.point_cloud_range = list(point_cloud_range)
        self.grid = BEVGrid.from_range(self.point_cloud_range, self.voxel_size)
        self.out_channels = feat_channels[-1]

    def decorate(self, features: Tensor, coordinates: Tensor, counts: Tensor, **flags: bool) -> Tensor:
        """Decorated points in float32; arguments as `forward`.

        Raises:
            ValueError: features of another shape.
        """
        if features.ndim != 3 or features.shape[2] != self.in_channels:
            raise ValueError(
                f"{type(self).__name__} takes (M, slots, {self.in_channels}) points of pillars (voxelize_reduce: "
                f"false), got features of shape {tuple(features.shape)}"
            )
        return feature_decorator(
            features,
            counts,
            coordinates[:, 1:],
            self.voxel_size,
            self.point_cloud_range,
            distance=self.with_distance,
            **flags,
        )


@MODELS.register
class PillarFeatureNet(PillarNet):
    """LiDAR pillars: decoration, then layers that see their pillar's maximum (PointPillars)."""

    def __init__(
        self,
        in_channels: int = 4,
        feat_channels: Sequence[int] = (64,),
        with_distance: bool = False,
        voxel_size: Sequence[float] = (0.2, 0.2, 4),
        point_cloud_range: Sequence[float] = (0, -40, -3, 70.4, 40, 1),
        norm_cfg: Norm1d | None = None,
    ) -> None:
        super().__init__(in_channels, feat_channels, with_distance, voxel_size, point_cloud_range, norm_cfg)
        width = in_channels + 5 + with_distance
        self.pfn_layers = nn.ModuleList()
        for i, channels in enumerate(feat_channels):
            own = channels if i == len(feat_channels) - 1 else channels // 2
            self.pfn_layers.append(PointLayer(width, own, norm_cfg))
            width = channels

    def forward(self, features: Tensor, coordinates: Tensor, counts: Tensor) -> Tensor:
        """Points (M, S, F) of pillars (M, 4) as sample, x, y, z with (M,) counts to (M, C)."""
        x = self.decorate(features, coordinates, counts, cluster=True)
        for layer in self.pfn_layers[:-1]:
            x = layer(x)
            x = torch.cat([x, x.max(1, keepdim=True).values.expand_as(x)], dim=2)
        return self.pfn_layers[-1](x).max(1).values


@MODELS.register
class PointPillarsScatter(nn.Module):
    """Pillars to their cells, zero elsewhere.

    Args:
        in_channels: C.
        output_shape: X, Y.
    """

    def __init__(self, in_channels: int, output_shape: Sequence[int]) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.output_shape = tuple(output_shape)

    def forward(self, features: Tensor, coordinates: Tensor, batch_size: int) -> Tensor:
        """(M, C) at (M, 4) as sample, x, y, z to (B, C, X, Y).

        Raises:
            ValueError: a pillar outside the grid.
        """
        check_coordinates(coordinates, batch_size, self.output_shape, "PointPillarsScatter's output_shape")
        nx, ny = self.output_shape
        sample, x, y, _ = coordinates.long().unbind(1)
        canvas = features.new_zeros(batch_size * nx * ny, self.in_channels)
        canvas = canvas.index_put(((sample * nx + x) * ny + y,), features)
        return canvas.view(batch_size, nx, ny, -1).permute(0, 3, 1, 2).contiguous()


@MODELS.register
class PointPillarsEncoder(nn.Module):
    """Pillar network, then scatter.

    Args:
        pts_voxel_encoder: config of a pillar network.
        pts_middle_encoder: config of the scatter.

    Attributes:
        grid: raster of the result.
        output_shape: X, Y of the result.
        out_channels: C of the result.

    Raises:
        ValueError: the two disagree about channels or cells.
    """

    has_activation = False

    def __init__(self, pts_voxel_encoder: Mapping[str, Any], pts_middle_encoder: Mapping[str, Any]) -> None:
        super().__init__()
        self.pts_voxel_encoder = MODELS.build(pts_voxel_encoder, "pts_voxel_encoder")
        self.pts_middle_encoder = MODELS.build(pts_middle_encoder, "pts_middle_encoder")
        self.grid: BEVGrid = self.pts_voxel_encoder.grid
        self.output_shape: tuple[int, int] = self.pts_middle_encoder.output_shape
        self.out_channels: int = self.pts_middle_encoder.in_channels
        if self.output_shape != self.grid.shape:
            raise ValueError(
                f"pts_middle_encoder.output_shape is {list(self.output_shape)}, but point_cloud_range and voxel_size "
                f"of pts_voxel_encoder make {list(self.grid.shape)} cells"
            )
        if self.out_channels != self.pts_voxel_encoder.out_channels:
            raise ValueError(
                f"pts_middle_encoder.in_channels is {self.out_channels}, but pts_voxel_encoder gives "
                f"{self.pts_voxel_encoder.out_channels} channels"
            )

    def forward(self, features: Tensor, coordinates: Tensor, counts: Tensor, batch_size: int) -> Tensor:
        """Pillars to BEV.

        Args:
            features: (M, S, F) points of pillars; M may be 0.
            coordinates: (M, 4) sample, x, y, z.
            counts: (M,) points per pillar.
            batch_size: B.

        Returns:
            (B, C, X, Y); zero where nothing was seen.
        """
        pillars = self.pts_voxel_encoder(features, coordinates, counts)
        return self.pts_middle_encoder(pillars, coordinates, batch_size)
