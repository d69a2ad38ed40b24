"""Camera-only lifting."""

from __future__ import annotations

from torch import Tensor, nn

from mmdet3d.models.vtransforms.base import BaseTransform
from mmdet3d.registry import MODELS
from mmdet3d.structures import Batch

__all__ = ["LSSTransform"]


@MODELS.register
class LSSTransform(BaseTransform):
    """Depth and context from image features by one 1x1 convolution. Arguments: see `BaseTransform`."""

    def _build_lift(self) -> None:
        self.depthnet = nn.Conv2d(self.in_channels, self.depth_bins + self.out_channels, 1)

    def lift(self, features: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        return self._split(self.depthnet(features))
