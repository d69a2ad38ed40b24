"""The plain convolutional BEV backbone of SECOND."""

from __future__ import annotations

from itertools import accumulate
from operator import mul

from torch import Tensor, nn

from mmdet3d.models.layers import Norm2d, build_norm2d
from mmdet3d.registry import MODELS

__all__ = ["SECOND"]


@MODELS.register
class SECOND(nn.Module):
    """Stages of 3x3 convolutions, the first of each strided (SECOND, PointPillars).

    Args:
        in_channels: channels of the input.
        out_channels: channels of each stage.
        layer_nums: convolutions of each stage after its strided one.
        layer_strides: stride of each stage.
        norm_cfg: of all convolutions.

    Attributes:
        strides: of each output with respect to the input.

    Raises:
        ValueError: the three lists differ in length.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: list[int],
        layer_nums: list[int],
        layer_strides: list[int],
        norm_cfg: Norm2d | None = None,
    ) -> None:
        super().__init__()
        if not len(out_channels) == len(layer_nums) == len(layer_strides):
            raise ValueError(
                "SECOND: out_channels, layer_nums and layer_strides need one entry per stage, "
                f"got {len(out_channels)}, {len(layer_nums)} and {len(layer_strides)}"
            )
        norm = norm_cfg or Norm2d("BN", eps=1e-3, momentum=0.01)
        self.blocks = nn.ModuleList()
        for channels, depth, stride in zip(out_channels, layer_nums, layer_strides, strict=True):
            layers: list[nn.Module] = []
            for i in range(depth + 1):
                layers += [
                    nn.Conv2d(in_channels, channels, 3, stride if i == 0 else 1, padding=1, bias=False),
                    build_norm2d(norm, channels),
                    nn.ReLU(inplace=True),
                ]
                in_channels = channels
            self.blocks.append(nn.Sequential(*layers))
        self.strides = list(accumulate(layer_strides, mul))

    def forward(self, x: Tensor) -> list[Tensor]:
        """(B, C, X, Y) to one (B, C_i, X_i, Y_i) per stage."""
        outputs = []
        for block in self.blocks:
            x = block(x)
            outputs.append(x)
        return outputs
