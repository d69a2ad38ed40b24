"""What is done outside of an exported network: raw measurements to the tensors that it takes.

A step is a dataclass of plain values, so that it travels with the network as a block and works where no detector is
built. The other steps, from raw outputs to boxes, are the decoders of the heads.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mmdet3d.models.encoders.voxelizer import VoxelizeBlock, build_voxelizer, voxelize_batch
from mmdet3d.registry import STEPS
from mmdet3d.structures import Batch

__all__ = ["VOXELS", "ImageCrops", "PointVoxels", "step_block"]

# What a network is given of voxels.
VOXELS = ("features", "coordinates", "counts")


def step_block(step: Any) -> dict[str, Any]:
    """What `STEPS.build` makes the step of: plain values that JSON can hold."""
    return {"type": type(step).__name__, **dataclasses.asdict(step)}


@STEPS.register
@dataclass(frozen=True)
class PointVoxels:
    """Points of one sensor to voxels.

    Args:
        field: of the batch, such as `points` or `radar`.
        voxelize: the voxeliser's block.
        reduce: a voxel is the mean of its points.
    """

    field: str
    voxelize: VoxelizeBlock
    reduce: bool

    def __call__(self, batch: Batch) -> dict[str, Tensor]:
        """By the names of `VOXELS` what `voxelize_batch` gives."""
        points = batch.require(self.field, "the network")
        voxelizer = build_voxelizer(self.voxelize).eval()
        return dict(zip(VOXELS, voxelize_batch(voxelizer, points, self.reduce)[:3], strict=True))


@STEPS.register
@dataclass(frozen=True)
class ImageCrops:
    """Which part of the raw image a network that looks through one camera sees."""

    def __call__(self, batch: Batch) -> Tensor:
        """(B, 3): width and height of the raw image, pixels, and the size of the crop over that of the image."""
        rows = [[*meta["image_size"], meta["crop_scale"]] for meta in batch.metas]
        return torch.tensor(rows, dtype=torch.float32, device=batch.device)
