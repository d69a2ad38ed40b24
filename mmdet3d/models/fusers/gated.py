"""Fusion in which each sensor is gated by what all see."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmdet3d.models.layers import convolve_together
from mmdet3d.registry import MODELS

__all__ = ["GatedFuser"]


@MODELS.register
class GatedFuser(nn.Module):
    """Two sensors, each multiplied per channel and cell by a gate computed from both (CRKD's gated network).

    Args:
        in_channels: channels of the two BEVs.
        out_channels: channels of the result.

    Raises:
        ValueError: not exactly two sensors.
    """

    def __init__(self, in_channels: list[int], out_channels: int) -> None:
        super().__init__()
        if len(in_channels) != 2:
            raise ValueError(f"GatedFuser joins two sensors, in_channels names {len(in_channels)}: {list(in_channels)}")
        first, second = in_channels
        total = first + second
        self.input_conv_sensor_1 = nn.Conv2d(total, first, 3, padding=1)
        self.input_conv_sensor_2 = nn.Conv2d(total, second, 3, padding=1)
        self.output_fuser_conv_norm = nn.Sequential(
            nn.Conv2d(total, out_channels, 3, padding=1, bias=False), nn.BatchNorm2d(out_channels)
        )

    def forward(self, inputs: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Two (B, C_i, X, Y) to the fused (B, C, X, Y) and the two inputs after their gates."""
        both = torch.cat(inputs, dim=1)
        gates = convolve_together([self.input_conv_sensor_1, self.input_conv_sensor_2], both).sigmoid()
        gated = both * gates
        return F.relu(self.output_fuser_conv_norm(gated)), list(gated.split([x.shape[1] for x in inputs], dim=1))
