"""Areas of the ground by class, as a raster."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mmdet3d.structures.grid import BEVGrid

__all__ = ["BEVMasks"]


@dataclass
class BEVMasks:
    """Which class covers which cell. Classes overlap: a cell may belong to several or to none.

    Args:
        values: (C, X, Y); bool for ground truth, probabilities for predictions. Augmented LiDAR frame of the sample.
        classes: name of each channel.
        grid: where the cells lie.

    Raises:
        ValueError: another number of channels or cells.
    """

    values: Tensor
    classes: tuple[str, ...]
    grid: BEVGrid

    def __post_init__(self) -> None:
        wanted = (len(self.classes), *self.grid.shape)
        if tuple(self.values.shape) != wanted:
            raise ValueError(f"BEVMasks of {wanted} (classes, cells along x and y) got {tuple(self.values.shape)}")

    def to(self, device: torch.device | str, non_blocking: bool = False) -> BEVMasks:
        return replace(self, values=self.values.to(device, non_blocking=non_blocking))
