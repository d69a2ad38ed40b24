"""DLAUp: iterative aggregation of a pyramid up to its finest map (Yu et al. 2018; the variant of GUPNet)."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mmdet3d.models.layers import conv_bn_relu
from mmdet3d.registry import MODELS

__all__ = ["DLAUp"]


def _projection(in_channels: int, out_channels: int) -> nn.Sequential:
    """3x3 convolution, BatchNorm and ReLU by the names of published checkpoints."""
    layers = conv_bn_relu(in_channels, out_channels, 3, padding=1)
    return nn.Sequential(OrderedDict(zip(("conv", "bn", "relu"), layers, strict=True)))


class _Aggregation(nn.Module):
    """Merges maps from left to right: each is projected, doubled in size and joined with the one before.

    Args:
        in_channels: of the maps; all have half the size of the first, or the first's size once they were merged.
    """

    def __init__(self, in_channels: Sequence[int]) -> None:
        super().__init__()
        width = in_channels[0]
        for i, channels in enumerate(in_channels[1:], start=1):
            self.add_module(f"proj_{i}", _projection(channels, width))
            up = nn.ConvTranspose2d(width, width, 4, 2, 1, groups=width, bias=False)
            _fill_bilinear(up.weight)
            self.add_module(f"up_{i}", up)
            self.add_module(f"node_{i}", _projection(2 * width, width))

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """One merged map per input but the first, all of the first one's size."""
        merged = [maps[0]]
        for i, x in enumerate(maps[1:], start=1):
            x = getattr(self, f"up_{i}")(getattr(self, f"proj_{i}")(x))
            merged.append(getattr(self, f"node_{i}")(torch.cat([merged[-1], x], dim=1)))
        return merged[1:]


@MODELS.register
class DLAUp(nn.Module):
    """Neck over four maps of which each has half the size of the one before.

    Args:
        in_channels: of the maps, finest first.
    """

    def __init__(self, in_channels: Sequence[int] = (64, 128, 256, 512)) -> None:
        super().__init__()
        self.in_channels = tuple(in_channels)
        self.out_channels = (self.in_channels[-1], *self.in_channels[-2::-1])
        widths = list(self.in_channels)
        for stage in range(len(widths) - 1):
            first = len(widths) - 2 - stage
            self.add_module(f"ida_{stage}", _Aggregation(widths[first:]))
            widths[first + 1 :] = [widths[first]] * (stage + 1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Maps (B, C_i, h_i, w_i), finest first, to as many, coarsest first: the coarsest as it is, then the merged."""
        maps = list(maps)
        outputs = [maps[-1]]
        for stage in range(len(maps) - 1):
            first = len(maps) - 2 - stage
            maps[first + 1 :] = getattr(self, f"ida_{stage}")(maps[first:])
            outputs.append(maps[-1])
        return outputs


@torch.no_grad()
def _fill_bilinear(weight: Tensor) -> None:
    """Bilinear interpolation by 2: (C, 1, 4, 4)."""
    profile = weight.new_tensor([0.25, 0.75, 0.75, 0.25])
    weight.copy_(profile[:, None] * profile)
