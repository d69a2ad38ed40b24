"""Camera-only lifting."""

from __future__ import annotations

from torch import Tensor, nn

from mmdet3d.models.layers import PointwiseConv2d
from mmdet3d.models.vtransforms.base import BaseTransform
from mmdet3d.registry import MODELS
from mmdet3d.structures import Batch

__all__ = ["ConvLSSTransform", "LSSTransform"]


@MODELS.register
class LSSTransform(BaseTransform):
    """Depth and context from image features by one 1x1 convolution. Arguments: see `BaseTransform`."""

    depthnet: nn.Module

    def _build_lift(self) -> None:
        self.depthnet = PointwiseConv2d(self.in_channels, self.depth_bins + self.out_channels)

    def lift(self, features: Tensor, batch: Batch, drawn: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._split(self.depthnet(features))


@MODELS.register
class ConvLSSTransform(LSSTransform):
    """Depth and context by two 3x3 convolutions and a 1x1: `DepthLSSTransform` without its measured depth.

    Arguments: see `BaseTransform`.
    """

    def _build_lift(self) -> None:
        self.depthnet = self._conv_depthnet(self.in_channels)
