"""Fusion by one convolution over all channels."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mmdet3d.models.layers import conv_bn_relu
from mmdet3d.registry import MODELS

__all__ = ["ConvFuser"]


@MODELS.register
class ConvFuser(nn.Sequential):
    """Concatenation, 3x3 convolution, BatchNorm, ReLU (BEVFusion).

    Args:
        in_channels: channels of each sensor's BEV.
        out_channels: channels of the result.
    """

    def __init__(self, in_channels: list[int], out_channels: int) -> None:
        super().__init__(*conv_bn_relu(sum(in_channels), out_channels, 3, padding=1))

    def forward(self, inputs: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """A list of (B, C_i, X, Y) to the fused (B, C, X, Y) and the inputs."""
        return super().forward(torch.cat(inputs, dim=1)), inputs
