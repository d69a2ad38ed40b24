"""The student's features read by the teacher's head (CrossKD, CVPR 2024, for centre-based heads)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from mmdet3d.blocks import not_negative
from mmdet3d.distill.losses.base import Shared, full_precision, require_same_shape, side_channels
from mmdet3d.distill.losses.center_heads import CenterHeadLoss, center_head
from mmdet3d.distill.losses.response import quality_focal_loss
from mmdet3d.distill.outline import Outline
from mmdet3d.models.detectors.base import Detector
from mmdet3d.models.heads.centerhead import REGRESSION
from mmdet3d.models.losses import clamped_sigmoid
from mmdet3d.registry import MODELS
from mmdet3d.structures import Batch

__all__ = ["CrossHeadLoss", "aligned"]


@MODELS.register
class CrossHeadLoss(CenterHeadLoss):
    """What the frozen teacher's head makes of the student's features, against what it makes of the teacher's.

    Labels and teacher never pull on the same output: the student's own head, which detects, sees labels alone.

    Args:
        projection: (student's channels, teacher's channels) of a learned 1x1 convolution in front of the head.
        align: give each channel of the student's map the mean and deviation of the teacher's; without it the head
            starts far outside of what it knows.
        beta: focusing power of the quality focal loss.
        velocity: compare velocities; off for students that cannot see any (cameras without history).
    """

    needs_labels = False
    uses_teacher = True
    by_class = True

    def __init__(
        self,
        projection: Sequence[int] | None = None,
        align: bool = True,
        beta: float = 1.0,
        velocity: bool = True,
    ) -> None:
        super().__init__()
        self.projection = nn.Identity() if projection is None else nn.Conv2d(*side_channels(projection), 1)
        self.align, self.beta = align, not_negative(beta, "beta")
        self.quantities = [name for name in REGRESSION if velocity or name != "vel"]

    def bind(self, teacher: Detector | Outline, student: Detector) -> None:
        super().bind(teacher, student)
        self._head = Shared(center_head(teacher, "teacher", "CrossHeadLoss"))

    @full_precision
    def forward(
        self, student_value: Tensor, teacher_value: tuple[Tensor, Sequence[Mapping[str, Tensor]]], batch: Batch
    ) -> dict[str, Tensor]:
        """The student's map (B, C, X, Y); the teacher's map in front of its head, and its head output.

        Returns:
            `heatmap/task{t}` and `bbox/task{t}`.

        Raises:
            ValueError: maps of different shapes.
        """
        teacher, answers = teacher_value
        student = self.projection(student_value)
        require_same_shape(self, student, teacher)
        crossed = self._head.module.eval()(aligned(student, teacher) if self.align else student)
        terms = {}
        for t, (ours, theirs) in enumerate(zip(crossed, answers, strict=True)):
            p, q = (self._gate(clamped_sigmoid(side["heatmap"]), t) for side in (ours, theirs))
            terms[f"heatmap/task{t}"] = quality_focal_loss(p, q, self.beta)
            terms[f"bbox/task{t}"] = self._box_distance(ours, theirs, q.amax(1))
        return terms

    def _box_distance(self, ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor], response: Tensor) -> Tensor:
        """Mean absolute difference of the box parameters over cells weighted by a response above 0.1."""
        weight = torch.where(response > 0.1, response, 0)
        distance = torch.cat([(ours[name] - theirs[name]).abs() for name in self.quantities], dim=1).mean(1)
        return (weight * distance).sum() / weight.sum().clamp(min=1e-4)


def aligned(student: Tensor, teacher: Tensor) -> Tensor:
    """The student's map (B, C, X, Y) with mean and deviation of each of the teacher's channels (CrossKD)."""
    dims = (0, 2, 3)
    mean, deviation = (
        (student.mean(dims, True), teacher.mean(dims, True)),
        (student.std(dims, keepdim=True), teacher.std(dims, keepdim=True)),
    )
    return (student - mean[0]) / (deviation[0] + 1e-6) * deviation[1] + mean[1]
