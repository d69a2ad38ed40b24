"""Batch normalisation of voxels, of which a batch may hold none."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["Norm1d", "VoxelBatchNorm", "build_norm1d"]


@dataclass(frozen=True)
class Norm1d:
    """Batch normalisation of voxels.

    Args:
        type: both mean the same.
        eps: added to the variance.
        momentum: share of a batch in the running statistics.
    """

    type: Literal["BN1d", "BN"] = "BN1d"
    eps: float = 1e-3
    momentum: float = 0.01


class VoxelBatchNorm(nn.BatchNorm1d):
    """BatchNorm1d on (M, C) or (M, C, slots) that uses its running statistics where a batch has fewer than two values.

    The statistics of no value are NaN and would poison the running ones; those of one value erase it.
    """

    def forward(self, x: Tensor) -> Tensor:
        if self.training and x.numel() < 2 * self.num_features:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)
        return super().forward(x)


def build_norm1d(cfg: Norm1d | None, channels: int) -> VoxelBatchNorm:
    """From a `norm_cfg`."""
    cfg = cfg or Norm1d()
    return VoxelBatchNorm(channels, cfg.eps, cfg.momentum)
