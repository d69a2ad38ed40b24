"""The image neck of BEVFusion (Liu et al., ICRA 2023): top-down, concatenating instead of adding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmdet3d.models.layers import ConvModule, Norm2d
from mmdet3d.registry import MODELS

__all__ = ["GeneralizedLSSFPN"]


@dataclass(frozen=True)
class Activation:
    """Of all convolutions.

    Args:
        type: rectified linear units.
        inplace: not read; published configs name it.
    """

    type: Literal["ReLU"] = "ReLU"
    inplace: bool | None = None


@dataclass(frozen=True)
class Resizing:
    """Of the coarser level; see `torch.nn.functional.interpolate`.

    Args:
        mode: of the interpolation.
        align_corners: the corners' pixel centres stay where they are.
    """

    mode: str = "bilinear"
    align_corners: bool | None = True


@MODELS.register
class GeneralizedLSSFPN(nn.Module):
    """Merge levels top-down and return the finest.

    Args:
        in_channels: of each input level, finest first.
        out_channels: of the result.
        num_outs: kept for published configs; the number of levels follows from `start_level` and `end_level`.
        start_level: the finest level used, whose resolution the result has.
        end_level: the coarsest level used, -1 for the last.
        no_norm_on_lateral: lateral convolutions with bias instead of batch norm.
        norm_cfg: of all convolutions.
        act_cfg: of all convolutions.
        upsample_cfg: of the coarser level.

    Raises:
        ValueError: a level outside `in_channels`.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        out_channels: int,
        num_outs: int | None = None,
        start_level: int = 0,
        end_level: int = -1,
        no_norm_on_lateral: bool = False,
        norm_cfg: Norm2d | None = None,
        act_cfg: Activation | None = None,
        upsample_cfg: Resizing | None = None,
    ) -> None:
        super().__init__()
        top = len(in_channels) - 1 if end_level == -1 else end_level
        if not 0 <= start_level < top < len(in_channels):
            raise ValueError(
                f"GeneralizedLSSFPN needs 0 <= start_level < end_level < {len(in_channels)} (number of in_channels), "
                f"got start_level {start_level} and end_level {end_level}"
            )
        self.in_channels = tuple(in_channels)
        self.levels = range(start_level, top)
        self.resize = asdict(upsample_cfg or Resizing())
        self.lateral_convs = nn.ModuleList()
        self.fpn_convs = nn.ModuleList()
        for level in self.levels:
            above = in_channels[top] if level == top - 1 else out_channels
            lateral = ConvModule(
                in_channels[level] + above, out_channels, 1, norm_cfg=norm_cfg, norm=not no_norm_on_lateral
            )
            self.lateral_convs.append(lateral)
            self.fpn_convs.append(ConvModule(out_channels, out_channels, 3, norm_cfg=norm_cfg))

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        """List of (B, C_i, h_i, w_i) to (B, out_channels, h, w) at the size of `start_level`.

        Raises:
            ValueError: the number of levels differs from `in_channels`.
        """
        if len(levels) != len(self.in_channels):
            raise ValueError(
                f"GeneralizedLSSFPN was built for {len(self.in_channels)} levels and is given {len(levels)}; "
                "in_channels of the neck must match out_indices of the backbone"
            )
        merged = levels[self.levels.stop]
        for i in reversed(range(len(self.levels))):
            level = levels[self.levels[i]]
            above = F.interpolate(merged, level.shape[-2:], **self.resize)
            merged = self.fpn_convs[i](self.lateral_convs[i](torch.cat([level, above], dim=1)))
        return merged
