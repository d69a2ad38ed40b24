"""The two-level feature pyramid of Lift-Splat-Shoot."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmdet3d.models.layers import conv_bn_relu
from mmdet3d.registry import MODELS

__all__ = ["LSSFPN"]


@MODELS.register
class LSSFPN(nn.Module):
    """Joins a coarse and a fine level, then enlarges (Lift-Splat-Shoot, BEVFusion).

    Args:
        in_indices: which inputs are the coarse and the fine level.
        in_channels: their channels.
        out_channels: channels of the result.
        scale_factor: enlargement of the fine level's size.
    """

    def __init__(
        self, in_indices: Sequence[int], in_channels: Sequence[int], out_channels: int, scale_factor: int = 1
    ) -> None:
        super().__init__()
        self.in_indices = tuple(in_indices)
        self.scale_factor = scale_factor
        self.fuse = nn.Sequential(
            *conv_bn_relu(sum(in_channels), out_channels, 1), *conv_bn_relu(out_channels, out_channels, 3, padding=1)
        )
        self.upsample = nn.Sequential()
        if scale_factor > 1:
            enlarge = nn.Upsample(scale_factor=scale_factor, mode="bilinear", align_corners=True)
            self.upsample = nn.Sequential(enlarge, *conv_bn_relu(out_channels, out_channels, 3, padding=1))

    def output_stride(self, strides: Sequence[int]) -> float:
        """The result's stride, given those of the backbone's outputs."""
        return strides[self.in_indices[1]] / self.scale_factor

    def forward(self, features: list[Tensor]) -> Tensor:
        """Backbone outputs (B, C_i, X_i, Y_i) to (B, C, X, Y)."""
        coarse, fine = (features[i] for i in self.in_indices)
        coarse = F.interpolate(coarse, size=fine.shape[-2:], mode="bilinear", align_corners=True)
        return self.upsample(self.fuse(torch.cat([coarse, fine], dim=1)))
