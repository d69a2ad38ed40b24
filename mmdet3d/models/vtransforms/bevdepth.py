"""Lifting with supervised, camera-aware depth (BEVDepth).

A suffix of a name says its shape, with the letters of `vtransforms.base`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mmdet3d.models.layers import conv_bn_relu
from mmdet3d.models.vtransforms.base import BaseTransform
from mmdet3d.models.vtransforms.depth_map import DepthMap, DrawnPoints
from mmdet3d.models.vtransforms.depth_net import DepthNet, FrustumRefinement, camera_vector
from mmdet3d.ops.bev_pool import PoolPlan
from mmdet3d.registry import MODELS
from mmdet3d.structures import Batch, point_sensors

__all__ = ["AwareBEVDepth", "AwareDBEVDepth"]


@MODELS.register
class AwareBEVDepth(BaseTransform):
    """Camera-aware depth from image features, trained with `depth_loss` (BEVDepth, Li et al., AAAI 2023).

    Args:
        bevdepth_downsample: stride of the features in the image; None takes image_size / feature_size.
        bevdepth_refine: convolve the lifted features over depth and image column before pooling. This forms the lifted
            tensor, which costs memory.
        mid_channels: width of the depth network; None takes that of the image features.
        dcn_groups: see `DepthNet`.
        others: see `BaseTransform`.

    Raises:
        ValueError: `bevdepth_downsample` contradicts image_size and feature_size.
    """

    measured_channels = 0

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        image_size: Sequence[int],
        feature_size: Sequence[int],
        xbound: Sequence[float],
        ybound: Sequence[float],
        zbound: Sequence[float],
        dbound: Sequence[float],
        downsample: int = 1,
        bevdepth_downsample: int | None = None,
        bevdepth_refine: bool = True,
        depth_loss_factor: float = 3.0,
        mid_channels: int | None = None,
        pool_floor: bool = False,
        dcn_groups: int = 0,
    ) -> None:
        super().__init__(
            in_channels,
            out_channels,
            image_size,
            feature_size,
            xbound,
            ybound,
            zbound,
            dbound,
            downsample=downsample,
            depth_loss_factor=depth_loss_factor,
            pool_floor=pool_floor,
        )
        if bevdepth_downsample not in (None, self.stride):
            raise ValueError(
                f"{type(self).__name__}: bevdepth_downsample {bevdepth_downsample} contradicts image_size "
                f"{list(self.image_size)} and feature_size {list(self.feature_size)}; set it to {self.stride} or leave "
                "it out"
            )
        channels = in_channels + self.measured_channels
        self.depthnet = DepthNet(channels, mid_channels or in_channels, out_channels, self.depth_bins, dcn_groups)
        self.refinement = FrustumRefinement(out_channels) if bevdepth_refine else None

    @property
    def lift_reads(self) -> tuple[str, ...]:
        """What `camera_vector` reads."""
        return tuple(f"calibration.{n}" for n in ("intrinsics", "image_aug", "lidar_aug", "camera2ego"))

    def lift(self, features: Tensor, batch: Batch, drawn: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._split(self.depthnet(features, camera_vector(batch.calibration)))

    def splat(self, depth: Tensor, context: Tensor, geometry: Tensor | PoolPlan) -> Tensor:
        if self.refinement is None:
            return super().splat(depth, context, geometry)
        lifted_PCDhw = self.refinement(depth[:, None] * context[:, :, None])
        return self._planned(geometry).pool_lifted(lifted_PCDhw.permute(0, 2, 3, 4, 1))


@MODELS.register
class AwareDBEVDepth(AwareBEVDepth):
    """Camera-aware depth from image features and from points drawn into the images (CRKD).

    Args:
        use_points: name of the sensor whose points are drawn, such as `lidar` or `radar`.
        depth_input: `scalar` draws depth in metres, `one-hot` one channel per depth bin.
        height_expand: draw each point as a column, for radar.
        add_depth_features: draw all values of a point too.
        point_channels: values per point; None takes those of the sensor, 5 for LiDAR and 45 for radar.
        pixel_depth: `nearest` or `last`, see `DepthMap`.
        others: see `AwareBEVDepth` and `BaseTransform`.

    Raises:
        ValueError: an unknown `use_points` or `depth_input`, or features at a stride that is not a multiple of 4.
    """

    measured_channels = 64

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        image_size: Sequence[int],
        feature_size: Sequence[int],
        xbound: Sequence[float],
        ybound: Sequence[float],
        zbound: Sequence[float],
        dbound: Sequence[float],
        downsample: int = 1,
        bevdepth_downsample: int | None = None,
        bevdepth_refine: bool = True,
        depth_loss_factor: float = 3.0,
        mid_channels: int | None = None,
        use_points: str = "lidar",
        depth_input: str = "scalar",
        height_expand: bool = False,
        add_depth_features: bool = False,
        point_channels: int | None = None,
        pool_floor: bool = False,
        pixel_depth: str = "nearest",
    ) -> None:
        super().__init__(
            in_channels,
            out_channels,
            image_size,
            feature_size,
            xbound,
            ybound,
            zbound,
            dbound,
            downsample=downsample,
            bevdepth_downsample=bevdepth_downsample,
            bevdepth_refine=bevdepth_refine,
            depth_loss_factor=depth_loss_factor,
            mid_channels=mid_channels,
            pool_floor=pool_floor,
        )
        sensors = {sensor.name: sensor for sensor in point_sensors()}
        if use_points not in sensors:
            raise ValueError(f"AwareDBEVDepth use_points must be one of {', '.join(sensors)}, got {use_points!r}")
        sensor = sensors[use_points]
        if add_depth_features and not (point_channels or sensor.values):
            raise ValueError(f"AwareDBEVDepth needs point_channels, the values per point of {use_points}, to draw them")
        if depth_input not in ("scalar", "one-hot"):
            raise ValueError(f"AwareDBEVDepth depth_input must be scalar or one-hot, got {depth_input!r}")
        if self.stride % 4:
            raise ValueError(f"AwareDBEVDepth needs features at a stride of 4, 8, 12, ... pixels, got {self.stride}")
        self.source = sensor.field
        one_hot = depth_input == "one-hot"
        self.depth_map = DepthMap(
            self.image_size,
            dbound=self.dbound if one_hot else None,
            point_channels=(point_channels or sensor.values or 0) if add_depth_features else 0,
            height_expand=height_expand,
            pixel_depth=pixel_depth,
        )
        stem = 32 if one_hot else 8
        self.dtransform = nn.Sequential(
            *conv_bn_relu(self.depth_map.channels, stem, 1, bias=True),
            *conv_bn_relu(stem, 32, 5, stride=self.stride // 4, padding=2, bias=True),
            *conv_bn_relu(32, 64, 5, stride=2, padding=2, bias=True),
            *conv_bn_relu(64, self.measured_channels, 5, stride=2, padding=2, bias=True),
        )

    @property
    def drawing(self) -> DrawnPoints:
        """See `BaseTransform.drawing`."""
        return DrawnPoints(self.source, self.depth_map)

    def lift(self, features: Tensor, batch: Batch, drawn: Tensor | None = None) -> tuple[Tensor, Tensor]:
        measured_PChw = self.dtransform(self.draw(batch) if drawn is None else drawn)
        return super().lift(torch.cat([measured_PChw, features], dim=1), batch)
