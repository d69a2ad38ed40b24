"""Residual BEV backbones with plain two-convolution blocks."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from operator import mul

from torch import Tensor, nn
from torch.nn import functional as F

from mmdet3d.models.layers import PointwiseConv2d
from mmdet3d.registry import MODELS

__all__ = ["BEVResNet", "GeneralizedResNet"]


class _ResidualBlock(nn.Module):
    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.downsample: nn.Module = nn.Identity()
        if stride != 1 or in_channels != channels:
            self.downsample = nn.Sequential(
                PointwiseConv2d(in_channels, channels, stride, bias=False), nn.BatchNorm2d(channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(out + self.downsample(x))


def _stage(in_channels: int, depth: int, channels: int, stride: int) -> nn.Sequential:
    first = _ResidualBlock(in_channels, channels, stride)
    return nn.Sequential(first, *(_ResidualBlock(channels, channels, 1) for _ in range(depth - 1)))


@MODELS.register
class GeneralizedResNet(nn.ModuleList):
    """Stages of residual blocks (BEVFusion's BEV backbone).

    Args:
        in_channels: channels of the input.
        blocks: per stage (number of blocks, channels, stride of its first block).

    Attributes:
        strides: of each output with respect to the input.
    """

    def __init__(self, in_channels: int, blocks: Sequence[tuple[int, int, int]]) -> None:
        super().__init__()
        for depth, channels, stride in blocks:
            self.append(_stage(in_channels, depth, channels, stride))
            in_channels = channels
        self.strides = list(accumulate((stride for _, _, stride in blocks), mul))

    def forward(self, x: Tensor) -> list[Tensor]:
        """(B, C, X, Y) to one (B, C_i, X_i, Y_i) per stage."""
        outputs = []
        for stage in self:
            x = stage(x)
            outputs.append(x)
        return outputs


@MODELS.register
class BEVResNet(nn.Module):
    """A ResNet without max pooling whose input is its first output (BEVDepth's BEV backbone, Li et al., AAAI 2023).

    Args:
        in_channels: channels of the input.
        blocks: per stage (number of blocks, channels, stride of its first block). The stem, a 7x7 convolution of stride
            2, has the channels of the first stage.

    Attributes:
        strides: of each output with respect to the input, which is the first of them.
    """

    def __init__(self, in_channels: int, blocks: Sequence[tuple[int, int, int]]) -> None:
        super().__init__()
        self.in_channels = in_channels
        stem = blocks[0][1]
        self.conv1 = nn.Conv2d(in_channels, stem, 7, 2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(stem)
        channels = stem
        self._stages = [f"layer{i + 1}" for i in range(len(blocks))]
        for name, (depth, width, stride) in zip(self._stages, blocks, strict=True):
            self.add_module(name, _stage(channels, depth, width, stride))
            channels = width
        self.strides = [1, *(2 * s for s in accumulate((stride for _, _, stride in blocks), mul))]
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, _ResidualBlock):
                nn.init.zeros_(module.bn2.weight)

    def forward(self, x: Tensor) -> list[Tensor]:
        """(B, C, X, Y) to [the input, one (B, C_i, X_i, Y_i) per stage]."""
        outputs = [x]
        x = F.relu(self.bn1(self.conv1(x)))
        for name in self._stages:
            x = getattr(self, name)(x)
            outputs.append(x)
        return outputs
