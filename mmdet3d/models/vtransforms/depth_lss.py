"""Lifting with a depth map measured by LiDAR."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mmdet3d.models.layers import conv_bn_relu
from mmdet3d.models.vtransforms.base import BaseTransform
from mmdet3d.models.vtransforms.depth_map import DepthMap, DrawnPoints
from mmdet3d.registry import MODELS
from mmdet3d.structures import Batch

__all__ = ["DepthLSSTransform"]

_STRIDE = 8


@MODELS.register
class DepthLSSTransform(BaseTransform):
    """Depth and context from image features and the LiDAR points drawn into the images (BEVFusion, ICRA 2023).

    Reads `batch.points`.

    Args:
        pixel_depth: `nearest` or `last`, see `DepthMap`.
        others: see `BaseTransform`; `image_size` must be 8 times `feature_size`.
    """

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
        depth_loss_factor: float = 0.0,
        pool_floor: bool = False,
        compensation: Mapping[str, Any] | None = None,
        pixel_depth: str = "nearest",
    ) -> None:
        self._pixel_depth = pixel_depth  # before the base class builds what needs it
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
            compensation=compensation,
        )

    def _build_lift(self) -> None:
        expected = tuple(-(-n // _STRIDE) for n in self.image_size)
        if self.feature_size != expected:
            raise ValueError(
                f"DepthLSSTransform reduces the depth map {_STRIDE} times: feature_size must be {list(expected)} for "
                f"image_size {list(self.image_size)}, got {list(self.feature_size)}"
            )
        self.depth_map = DepthMap(self.image_size, pixel_depth=self._pixel_depth)
        self.dtransform = nn.Sequential(
            *conv_bn_relu(self.depth_map.channels, 8, 1, bias=True),
            *conv_bn_relu(8, 32, 5, stride=4, padding=2, bias=True),
            *conv_bn_relu(32, 64, 5, stride=2, padding=2, bias=True),
        )
        self.depthnet = self._conv_depthnet(self.in_channels + 64)

    @property
    def drawing(self) -> DrawnPoints:
        """See `BaseTransform.drawing`."""
        return DrawnPoints("points", self.depth_map)

    def lift(self, features: Tensor, batch: Batch, drawn: Tensor | None = None) -> tuple[Tensor, Tensor]:
        depth = self.dtransform(self.draw(batch) if drawn is None else drawn)
        return self._split(self.depthnet(torch.cat([depth, features], dim=1)))
