"""Batch normalisation of voxels, of which a batch may hold none."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["VoxelBatchNorm", "build_norm1d"]


class VoxelBatchNorm(nn.BatchNorm1d):
    """BatchNorm1d on (M, C) or (M, C, slots) that uses its running statistics where a batch has fewer than two values.

    The statistics of no value are NaN and would poison the running ones; those of one value erase it.
    """

    def forward(self, x: Tensor) -> Tensor:
        if self.training and x.numel() < 2 * self.num_features:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)
        return super().forward(x)


def build_norm1d(cfg: Mapping[str, Any] | None, channels: int) -> VoxelBatchNorm:
    """From a `norm_cfg` with `type` (BN1d or BN), `eps`, `momentum`; None: eps 1e-3, momentum 0.01.

    Raises:
        ValueError: another type or key.
    """
    arguments = dict(cfg or {"type": "BN1d", "eps": 1e-3, "momentum": 0.01})
    if arguments.pop("type", None) not in ("BN1d", "BN") or set(arguments) - {"eps", "momentum"}:
        raise ValueError(f"norm_cfg of a point encoder must be {{type: BN1d, eps, momentum}}, got {dict(cfg or {})}")
    return VoxelBatchNorm(channels, **arguments)
