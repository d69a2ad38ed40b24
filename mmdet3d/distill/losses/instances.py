"""Single objects: the boxes that the teacher finds, and which of its features is whose (BEVDistill, ICLR 2023)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmdet3d.blocks import at_least, positive
from mmdet3d.distill.losses.base import DistillLoss, Shared, full_precision, level_grid, raster_of, side_channels
from mmdet3d.distill.losses.center_heads import CenterHeadLoss
from mmdet3d.distill.losses.object_points import features_at
from mmdet3d.distill.outline import Outline, head_of
from mmdet3d.models.detectors.base import Detector
from mmdet3d.models.heads.centerhead import CenterHead
from mmdet3d.models.losses import clamped_sigmoid
from mmdet3d.registry import MODELS
from mmdet3d.structures import Batch

__all__ = ["ContrastiveLoss", "InstanceLoss", "info_nce", "instance_distance"]


@MODELS.register
class InstanceLoss(CenterHeadLoss):
    """L1 distance of the student's boxes to those that the teacher is surest of (BEVDistill, sparse instances).

    Published is a matching of the teacher's boxes with the queries of a transformer. In a centre-based head a box has
    its place: the cell that its centre lies in.

    Args:
        count: boxes per sample.
    """

    needs_labels = False

    def __init__(self, count: int = 50) -> None:
        super().__init__()
        self.count = at_least(1, count, "count")

    def bind(self, teacher: Detector | Outline, student: Detector) -> None:
        super().bind(teacher, student)
        theirs = head_of(teacher)
        # Of some teachers there are only answers, told as the student's head would tell them.
        self._teacher_head = Shared(theirs) if isinstance(theirs, CenterHead) else self._student_head

    @full_precision
    def forward(
        self,
        student_value: Sequence[Mapping[str, Tensor]],
        teacher_value: Sequence[Mapping[str, Tensor]],
        batch: Batch,
    ) -> Tensor:
        """Both are head outputs: a list over tasks of dicts of (B, C, X, Y), `heatmap` in logits."""
        found = self._teacher_head.module.decode([dict(task) for task in teacher_value])
        surest = [d[d.scores.argsort(descending=True)[: self.count]] for d in found]
        head = self._student_head.module
        objects = head.objects([d.boxes for d in surest], [d.labels for d in surest])
        self.observe("the teacher detects nothing in any step of an epoch", torch.tensor(len(objects) == 0))
        distance, scores = [], []
        for classes, student, teacher in zip(self._classes(), student_value, teacher_value, strict=True):
            mine = objects.of(classes)
            told = mine.codes.clone()
            told[:, :2] -= mine.cells
            apart = (head.codes_at(student, mine) - told).abs()
            distance.append(apart @ apart.new_tensor(head.code_weights))
            q = clamped_sigmoid(teacher["heatmap"])
            scores.append(q[mine.samples, mine.labels - classes.start, mine.cells[:, 0], mine.cells[:, 1]])
        return instance_distance(torch.cat(distance), torch.cat(scores))


def instance_distance(distance: Tensor, scores: Tensor) -> Tensor:
    """Sum of distances (N,) times the squared scores (N,), over the sum of the scores or 1, whichever is more."""
    return (distance * scores.square()).sum() / scores.sum().clamp(min=1)


@MODELS.register
class ContrastiveLoss(DistillLoss):
    """The teacher's features at an object tell the student's there from those at all other objects (BEVDistill).

    Published are the points at which the queries of a transformer look; here they are the centres of labelled boxes.
    Both sides pass learned projections, which are the loss's own.

    Args:
        channels: of the student's and the teacher's map.
        width: of the vectors that are compared.
        temperature: of the cosines.
    """

    def __init__(self, channels: Sequence[int], width: int = 512, temperature: float = 0.07) -> None:
        super().__init__()
        at_least(1, width, "width")
        self.projections = nn.ModuleList(_projection(c, width) for c in side_channels(channels, "channels"))
        self.temperature = positive(temperature, "temperature")

    def bind(self, teacher: Detector | Outline, student: Detector) -> None:
        self._grid = raster_of(student, "ContrastiveLoss")

    @full_precision
    def forward(self, student_value: Tensor, teacher_value: Tensor, batch: Batch) -> Tensor:
        """Both (B, C, X, Y), on the student's raster or levels of it; 0 where there are fewer than two objects.

        Raises:
            ValueError: no ground truth.
        """
        centers = [boxes.centers[:, None, :2] for boxes in batch.require("boxes", "ContrastiveLoss")]
        alone = sum(map(len, centers)) < 2
        self.observe("fewer than two objects in every step of an epoch", torch.tensor(alone))
        if alone:
            return student_value.sum() * 0
        vectors = []
        for maps, project in zip((student_value, teacher_value), self.projections, strict=True):
            grid = level_grid(self._grid, maps, "ContrastiveLoss")
            vectors.append(F.normalize(project(features_at(maps, centers, grid)[:, 0]), dim=1))
        return info_nce(vectors[0], vectors[1], self.temperature)


def info_nce(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Cross-entropy of picking, for each unit vector of the teacher (N, D), its own of the student's (N, D)."""
    similarity = teacher @ student.T / temperature
    return F.cross_entropy(similarity, torch.arange(len(student), device=student.device))


def _projection(channels: int, width: int) -> nn.Sequential:
    hidden = [nn.Linear(channels, width), nn.Linear(width, width), nn.BatchNorm1d(width), nn.ReLU(inplace=True)]
    return nn.Sequential(*hidden, nn.Linear(width, width))
