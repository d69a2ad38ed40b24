"""Fusion by averaging."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mmdet3d.models.layers import conv_bn_relu
from mmdet3d.registry import MODELS

__all__ = ["AddFuser"]


@MODELS.register
class AddFuser(nn.Module):
    """Brings every sensor to the same channels and averages (BEVFusion).

    Args:
        in_channels: channels of each sensor's BEV.
        out_channels: channels of the result.
        dropout: probability in training that one randomly chosen sensor is left out of a step.
    """

    def __init__(self, in_channels: list[int], out_channels: int, dropout: float = 0.0) -> None:
        super().__init__()
        if dropout > 0 and len(in_channels) < 2:
            raise ValueError(f"AddFuser: dropout {dropout} would leave no sensor, in_channels names only one")
        self.dropout = dropout
        self.transforms = nn.ModuleList(
            nn.Sequential(*conv_bn_relu(channels, out_channels, 3, padding=1)) for channels in in_channels
        )

    def forward(self, inputs: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """A list of (B, C_i, X, Y) to the fused (B, C, X, Y) and the inputs."""
        features = [transform(x) for transform, x in zip(self.transforms, inputs, strict=True)]
        weights = [1.0] * len(features)
        if self.training and torch.rand(()).item() < self.dropout:
            weights[int(torch.randint(len(features), ()))] = 0.0
        return sum(w * f for w, f in zip(weights, features, strict=True)) / sum(weights), inputs
