"""Features by their pattern alone: every channel standardised before it is compared (PKD, NeurIPS 2022)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mmdet3d.distill.losses.base import DistillLoss, full_precision, raster_of, require_same_shape, side_channels
from mmdet3d.distill.masks import footprint_mask
from mmdet3d.distill.outline import Outline
from mmdet3d.models.detectors.base import Detector
from mmdet3d.registry import MODELS
from mmdet3d.structures import Batch

__all__ = ["PearsonFeatureLoss", "pearson_distance"]

REGIONS = ("all", "occupied", "objects")

_DEAD = 1e-4  # standard deviation of a channel that says nothing


@MODELS.register
class PearsonFeatureLoss(DistillLoss):
    """One minus Pearson's correlation of the two sides, averaged over channels (PKD).

    Neither the scale nor the offset of the teacher's features is imitated, so that maps of detectors with other
    sensors, normalisations or magnitudes can be compared without a weight of their own. It cannot teach magnitude:
    keep a detection or response term beside it.

    Args:
        projection: (student's channels, teacher's channels) of a learned 1x1 convolution in front of the comparison;
            None compares the maps as they are.
        region: cells that count, for mean, deviation and distance alike: `all`; `occupied`, where the teacher responds,
            since the empty cells of a sparse map would dominate; `objects`, inside ground-truth boxes.

    Raises:
        ValueError: another region.
    """

    def __init__(self, projection: Sequence[int] | None = None, region: str = "all") -> None:
        super().__init__()
        if region not in REGIONS:
            raise ValueError(f"PearsonFeatureLoss: region must be one of {', '.join(REGIONS)}, got {region!r}")
        self.region = region
        self.needs_labels = region == "objects"
        self.projection = nn.Identity() if projection is None else nn.Conv2d(*side_channels(projection), 1)

    def bind(self, teacher: Detector | Outline, student: Detector) -> None:
        if self.region == "objects":
            self.grid = raster_of(student, "PearsonFeatureLoss on objects")

    @full_precision
    def forward(self, student_value: Tensor, teacher_value: Tensor, batch: Batch) -> Tensor:
        """(B, C, X, Y) or (B, C, H, W), after the projection both of the same shape.

        Raises:
            ValueError: maps of different shapes, or no ground truth for the region `objects`.
        """
        student = self.projection(student_value)
        require_same_shape(self, student, teacher_value)
        if self.region == "all":
            mask = torch.ones_like(teacher_value[:, 0], dtype=torch.bool)
        elif self.region == "occupied":
            mask = (teacher_value != 0).any(1)
        else:
            mask = footprint_mask(batch.require("boxes", "PearsonFeatureLoss on objects"), self.grid)
        self.observe(f"no cell of the region {self.region!r} in any step of an epoch", ~mask.any())
        chosen = [value.movedim(1, -1)[mask] for value in (student, teacher_value)]
        dead = torch.stack([value.std(0) < _DEAD for value in chosen]).any() if len(chosen[0]) > 1 else mask.any()
        self.observe("a channel of teacher or student has the same value in all cells and is left out", dead)
        return pearson_distance(*chosen)


def pearson_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Half the mean squared difference of standardised channels, which is (1 - r)(n - 1) / n.

    Channels without variance on either side are left out: their gradient, which goes with one over the deviation,
    would explode, or their target is a constant. 0 where fewer than two cells or no channel remain.

    Args:
        student, teacher: (n, C), the values of C channels in n cells.
    """
    if len(student) < 2:
        return student.sum() * 0
    alive = (student.std(0) >= _DEAD) & (teacher.std(0) >= _DEAD)
    ours, theirs = (_standardised(side[:, alive]) for side in (student, teacher))
    return 0.5 * (ours - theirs).square().sum() / max(ours.numel(), 1)


def _standardised(values: Tensor) -> Tensor:
    return (values - values.mean(0)) / (values.std(0) + 1e-6)
