"""Features weighted by what is in a cell: an object, what the teacher takes for one, or nothing (DistillBEV)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from mmdet3d.distill.losses.base import full_precision, require_same_shape
from mmdet3d.distill.losses.center_heads import CenterHeadLoss
from mmdet3d.distill.masks import footprints
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
        foreground, false_positives, background: factors of the regions.
        attention: cells count as much as `spatial_attention` of both sides says.
        threshold: of heatmap probabilities, highest class: above it the teacher sees an object.
    """

    def __init__(
        self,
        projection: Sequence[int] | None = None,
        foreground: float = 2.3,
        false_positives: float = 23.0,
        background: float = 15.4,
        attention: bool = True,
        threshold: float = 0.1,
    ) -> None:
        super().__init__()
        self.projection = nn.Identity() if projection is None else nn.Conv2d(projection[0], projection[1], 1)
        self.foreground, self.false_positives, self.background = foreground, false_positives, background
        self.attention, self.threshold = attention, threshold

    @full_precision
    def forward(
        self, student_value: Tensor, teacher_value: tuple[Tensor, Sequence[Mapping[str, Tensor]]], batch: Batch
    ) -> dict[str, Tensor]:
        """The student's map (B, C, X, Y); the teacher's and its head output.

        Returns:
            `foreground`, `false_positives` and `background`.

        Raises:
            ValueError: maps of different shapes, or no ground truth.
        """
        teacher, head = teacher_value
        student = self.projection(student_value)
        require_same_shape(self, student, teacher)
        boxes = batch.require("boxes", "RegionFeatureLoss")
        scale = torch.stack([foreground_scale(b, self._grid) for b in boxes])
        believed = clamped_sigmoid(torch.cat([task["heatmap"] for task in head], dim=1)).amax(1)
        objects = scale > 0
        invented = ~objects & (believed > self.threshold) & (self._heat(batch).amax(1) < self.threshold)
        rest = ~objects & ~invented
        self.observe("no cell belongs to an object in any step of an epoch", ~objects.any())

        distance = (student - teacher).square().mean(1)
        if self.attention:
            distance = distance * (0.5 * (spatial_attention(teacher) + spatial_attention(student))).detach()
        shares = {
            "foreground": self.foreground
            * torch.where(objects, torch.maximum(scale, _share(rest).amax((1, 2), True)), 0),
            "false_positives": self.false_positives * _share(invented),
            "background": self.background * _share(rest),
        }
        return {name: (distance * share).sum() / len(distance) for name, share in shares.items()}


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


def _share(mask: Tensor) -> Tensor:
    """(B, X, Y): one over the number of cells of a sample's mask, in its cells; 0 elsewhere."""
    return mask / mask.sum((1, 2), keepdim=True).clamp(min=1)
