"""Features weighted by what is in a cell: an object, what the teacher takes for one, or nothing (DistillBEV)."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmdet3d.blocks import at_least, not_negative, number
from mmdet3d.distill.losses.base import full_precision, level_grid, require_same_shape, side_channels
from mmdet3d.distill.losses.center_heads import CenterHeadLoss
from mmdet3d.distill.masks import footprints
from mmdet3d.models.layers import conv_bn_relu
from mmdet3d.models.losses import clamped_sigmoid
from mmdet3d.registry import MODELS
from mmdet3d.structures import Batch, BEVGrid, Boxes3D

__all__ = ["RegionFeatureLoss", "foreground_scale", "spatial_attention"]


@MODELS.register
class RegionFeatureLoss(CenterHeadLoss):
    """Squared feature distance, summed over cells with weights by region (DistillBEV).

    A cell of an object weighs one over the square root of the object's area in cells, so that large objects count more
    than small ones, but by far not as much as their cells. All cells that the teacher takes for an object where there
    is none weigh 1 together, and so does the background of a sample.

    Published weights belong to a sum over channels, here it is their mean: the defaults are those for 384 channels.

    Args:
        projection: (student's channels, teacher's channels) of a learned 1x1 convolution in front of the comparison;
            None compares the maps as they are.
        blocks: in place of that convolution, as many 1x1 convolutions with BatchNorm and ReLU, all but the last of the
            student's channels (published for levels of the decoder: 3).
        foreground, false_positives, background: factors of the regions; without `false_positives` there is no such
            region, and the teacher's tap is its map alone.
        spatial: factor of the L1 distance, summed over cells, of the teacher's mean channel and a learned 3x3
            convolution of the student's; 0 switches it off.
        attention: cells count as much as `spatial_attention` of both sides says.
        threshold: of heatmap probabilities, highest class: above it the teacher sees an object.

    Raises:
        ValueError: blocks without a projection.
    """

    def __init__(
        self,
        projection: Sequence[int] | None = None,
        blocks: int = 0,
        foreground: float = 2.3,
        false_positives: float = 23.0,
        background: float = 15.4,
        spatial: float = 0.0,
        attention: bool = True,
        threshold: float = 0.1,
    ) -> None:
        super().__init__()
        at_least(0, blocks, "blocks")
        if blocks and projection is None:
            raise ValueError("RegionFeatureLoss: blocks need a projection, [student's channels, teacher's channels]")
        self.projection = nn.Identity() if projection is None else _adapter(*side_channels(projection), blocks)
        self.spatial_conv = nn.Conv2d(1, 1, 3, padding=1) if spatial else None
        self.foreground = not_negative(foreground, "foreground")
        self.background = not_negative(background, "background")
        self.false_positives = not_negative(false_positives, "false_positives")
        self.spatial = not_negative(spatial, "spatial")
        self.attention, self.threshold = attention, number(threshold, "threshold")

    @full_precision
    def forward(self, student_value: Tensor, teacher_value: Any, batch: Batch) -> dict[str, Tensor]:
        """The student's map (B, C, X, Y), on its raster or a level of it; the teacher's, and its head output if read.

        Returns:
            `foreground` and `background`; `false_positives` and `spatial`, those that are on.

        Raises:
            ValueError: maps of different shapes, or no ground truth.
        """
        teacher, head = teacher_value if self.false_positives else (teacher_value, ())
        student = self.projection(student_value)
        require_same_shape(self, student, teacher)
        boxes = batch.require("boxes", "RegionFeatureLoss")
        grid = level_grid(self._grid, student, "RegionFeatureLoss")
        scale = torch.stack([foreground_scale(b, grid) for b in boxes])
        objects = scale > 0
        invented = self._invented(head, batch, grid.shape) & ~objects if self.false_positives else objects & False
        rest = ~objects & ~invented
        self.observe("no cell belongs to an object in any step of an epoch", ~objects.any())

        distance = (student - teacher).square().mean(1)
        if self.attention:
            distance = distance * (0.5 * (spatial_attention(teacher) + spatial_attention(student))).detach()
        shares = {
            "foreground": self.foreground
            * torch.where(objects, torch.maximum(scale, _share(rest).amax((1, 2), True)), 0),
            "background": self.background * _share(rest),
        }
        if self.false_positives:
            shares["false_positives"] = self.false_positives * _share(invented)
        terms = {name: (distance * share).sum() / len(distance) for name, share in shares.items()}
        if self.spatial_conv is not None:
            seen = self.spatial_conv(student.mean(1, keepdim=True))
            terms["spatial"] = self.spatial * (teacher.mean(1, keepdim=True) - seen).abs().sum() / len(seen)
        return terms

    def _invented(self, head: Sequence[Mapping[str, Tensor]], batch: Batch, size: tuple[int, int]) -> Tensor:
        """(B, X, Y) bool: cells of a level in which the teacher sees an object where the ground truth has none."""
        believed = clamped_sigmoid(torch.cat([task["heatmap"] for task in head], dim=1)).amax(1)
        believed, truth = (F.adaptive_max_pool2d(heat, size) for heat in (believed, self._heat(batch).amax(1)))
        return (believed > self.threshold) & (truth < self.threshold)


def foreground_scale(boxes: Boxes3D, grid: BEVGrid) -> Tensor:
    """(X, Y): one over the root of a box's area in cells (at least 1) in the cells of `footprints`, 0 elsewhere.

    Where boxes overlap the smaller one counts.
    """
    if len(boxes) == 0:
        return torch.zeros(grid.shape, device=boxes.device)
    area = boxes.dims[:, 0] * boxes.dims[:, 1] / (grid.cell[0] * grid.cell[1])
    scale = area.clamp(min=1).rsqrt()
    return (footprints(boxes, grid) * scale[:, None, None]).amax(0)


def spatial_attention(features: Tensor, temperature: float = 0.5) -> Tensor:
    """(B, C, X, Y) to (B, X, Y): a softmax over cells of the mean absolute feature, times the number of cells."""
    strength = features.abs().mean(1)
    return (strength.flatten(1) / temperature).softmax(1).view_as(strength) * strength[0].numel()


def _adapter(ours: int, theirs: int, blocks: int) -> nn.Module:
    if not blocks:
        return nn.Conv2d(ours, theirs, 1)
    widths = [ours] * blocks + [theirs]
    return nn.Sequential(*(layer for a, b in itertools.pairwise(widths) for layer in conv_bn_relu(a, b, 1)))


def _share(mask: Tensor) -> Tensor:
    """(B, X, Y): one over the number of cells of a sample's mask, in its cells; 0 elsewhere."""
    return mask / mask.sum((1, 2), keepdim=True).clamp(min=1)
