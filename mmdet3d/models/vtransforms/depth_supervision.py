"""Depth supervision of a view transform (BEVDepth, Li et al., AAAI 2023).

A suffix of a name says its shape: P = B*N images, sample by sample, D depth bins, H x W pixels, h x w feature pixels,
K feature pixels with a measurement.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["depth_loss", "depth_targets"]


def depth_loss(depth: Tensor, measured: Tensor, stride: int, dbound: tuple[float, float, float]) -> Tensor:
    """Binary cross-entropy of depth distributions where depth was measured, in float32.

    Args:
        depth: (P, D, h, w), sums to 1 over D.
        measured: (P, H, W) metres, 0 where nothing was measured; the same images in the same order.
        stride: H / h.
        dbound: nearest, farthest, bin, metres.

    Returns:
        Scalar: the sum over bins, averaged over the feature pixels with a measurement; 0 if there are none.
    """
    bins_Phw, valid_Phw = depth_targets(measured, stride, dbound)
    with torch.autocast(depth.device.type, enabled=False):
        predicted_KD = depth.float().permute(0, 2, 3, 1)[valid_Phw]
        target_KD = F.one_hot(bins_Phw[valid_Phw], depth.shape[1]).float()
        loss = F.binary_cross_entropy(predicted_KD, target_KD, reduction="sum")
        return loss / valid_Phw.sum().clamp(min=1)


def depth_targets(depths: Tensor, stride: int, dbound: tuple[float, float, float]) -> tuple[Tensor, Tensor]:
    """Depth bin of each feature pixel from measured depth, the nearest measurement of its block.

    Args:
        depths: (P, H, W) metres, 0 where nothing was measured.
        stride: side of a block, pixels.
        dbound: nearest, farthest, bin, metres.

    Returns:
        Bin (P, h, w) int64, and (P, h, w) bool: whether the block has a measurement within the bounds.
    """
    measured_PHW = depths.float().masked_fill(depths <= 0, torch.inf)
    nearest_Phw = -F.max_pool2d(-measured_PHW[:, None], stride)[:, 0]
    near, far, step = dbound
    position_Phw = (nearest_Phw - near) / step
    valid_Phw = (position_Phw >= 0) & (position_Phw < round((far - near) / step))
    return position_Phw.where(valid_Phw, 0).long(), valid_Phw
