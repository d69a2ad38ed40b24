"""Depth of every cell as one of several classes (after MonoMMKD, of whose depth branch no layers were published)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor, nn
from torch.nn import functional as F

from mmdet3d.models.heads.mono.depth_bins import DepthBins
from mmdet3d.models.layers import ConvModule

__all__ = ["DepthBranch", "DepthBranchBlock"]


@dataclass(frozen=True)
class DepthBranchBlock:
    """See `DepthBranch`.

    Args:
        width: channels inside.
        bins: what the classes are.
    """

    width: int = 128
    bins: DepthBins = field(default_factory=DepthBins)


class DepthBranch(nn.Module):
    """Three blocks of growing size over the last three maps of the neck, then a class per cell.

    With the published neck and the default arguments it has 627,937 parameters.

    Args:
        in_channels: of three maps, each twice the size of the one before.
        width: channels inside.
        bins: what the classes are.
    """

    def __init__(self, in_channels: Sequence[int], width: int, bins: DepthBins) -> None:
        super().__init__()
        self.bins = bins
        coarse, *finer = in_channels
        self.blocks = nn.ModuleList([ConvModule(coarse, width, 3), *(ConvModule(width, width, 3) for _ in finer)])
        self.laterals = nn.ModuleList(nn.Conv2d(channels, width, 1) for channels in finer)
        self.classify = nn.Conv2d(width, bins.classes, 1)
        for conv in (*self.laterals, self.classify):
            nn.init.kaiming_normal_(conv.weight)
            nn.init.zeros_(conv.bias)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Maps (B, C_i, h_i, w_i), coarsest first, to logits (B, classes, h, w) of the size of the last."""
        x = self.blocks[0](maps[0])
        for block, lateral, finer in zip(self.blocks[1:], self.laterals, maps[1:], strict=True):
            x = F.interpolate(x, tuple(finer.shape[-2:]), mode="bilinear", align_corners=False)
            x = block(x + lateral(finer))
        return self.classify(x)
