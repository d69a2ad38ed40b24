"""The neck of SECOND (Yan et al., Sensors 2018): every level brought to one resolution and concatenated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from mmdet3d.models.layers import Norm2d, build_norm2d
from mmdet3d.registry import MODELS

__all__ = ["SECONDFPN"]

_NORM = Norm2d("BN", eps=1e-3, momentum=0.01)


@dataclass(frozen=True)
class Deconvolution:
    """How a level is enlarged.

    Args:
        type: a transposed convolution.
        bias: it has one.
    """

    type: Literal["deconv"] = "deconv"
    bias: bool = False


@MODELS.register
class SECONDFPN(nn.Module):
    """Resample each level by its stride and concatenate; used for images and for BEV.

    Args:
        in_channels, out_channels: of each level.
        upsample_strides: of each level; s >= 1 is a transposed convolution that enlarges s times, s < 1 a convolution
            that reduces 1 / s times.
        norm_cfg: of all branches.
        upsample_cfg: the transposed convolutions.
        use_conv_for_no_stride: an ordinary 1x1 convolution where s is 1 (the weight's layout differs in checkpoints).

    Attributes:
        upsample_strides: as given.

    Raises:
        ValueError: lists of different lengths.
    """

    def __init__(
        self,
        in_channels: Sequence[int] = (128, 128, 256),
        out_channels: Sequence[int] = (256, 256, 256),
        upsample_strides: Sequence[float] = (1, 2, 4),
        norm_cfg: Norm2d = _NORM,
        upsample_cfg: Deconvolution | None = None,
        use_conv_for_no_stride: bool = False,
    ) -> None:
        super().__init__()
        lists = {"in_channels": in_channels, "out_channels": out_channels, "upsample_strides": upsample_strides}
        if len({len(v) for v in lists.values()}) != 1:
            found = ", ".join(f"{k} {list(v)}" for k, v in lists.items())
            raise ValueError(f"SECONDFPN needs one entry per level in each list, got {found}")
        bias = (upsample_cfg or Deconvolution()).bias
        self.upsample_strides = tuple(upsample_strides)
        self.deblocks = nn.ModuleList()
        for channels, out, stride in zip(in_channels, out_channels, upsample_strides, strict=True):
            if stride > 1 or (stride == 1 and not use_conv_for_no_stride):
                side = round(stride)
                resample: nn.Module = nn.ConvTranspose2d(channels, out, side, side, bias=bias)
            else:
                side = round(1 / stride)
                resample = nn.Conv2d(channels, out, side, side, bias=False)
            self.deblocks.append(nn.Sequential(resample, build_norm2d(norm_cfg, out), nn.ReLU(inplace=True)))

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        """List of (B, C_i, h_i, w_i) to (B, sum of out_channels, h, w).

        Raises:
            ValueError: the number of levels differs, or the resampled levels differ in size.
        """
        if len(levels) != len(self.deblocks):
            raise ValueError(
                f"SECONDFPN was built for {len(self.deblocks)} levels and is given {len(levels)}; "
                "in_channels of the neck must match out_indices of the backbone"
            )
        resampled = [block(level) for block, level in zip(self.deblocks, levels, strict=True)]
        sizes = [tuple(r.shape[-2:]) for r in resampled]
        if len(set(sizes)) > 1:
            raise ValueError(f"SECONDFPN upsample_strides bring the levels to different sizes {sizes}")
        return torch.cat(resampled, dim=1)
