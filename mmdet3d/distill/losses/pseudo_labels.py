"""The teacher's detections as labels, where there are none (SCKD, AAAI 2025; SparseKD, NeurIPS 2022)."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor

from mmdet3d.blocks import nearest, not_negative, number
from mmdet3d.distill.losses.base import Shared, full_precision, sum_of
from mmdet3d.distill.losses.center_heads import CenterHeadLoss
from mmdet3d.distill.outline import Outline, head_of
from mmdet3d.models.detectors.base import Detector
from mmdet3d.models.heads.centerhead import CenterHead
from mmdet3d.registry import MODELS
from mmdet3d.structures import Batch, Boxes3D, Detections3D

__all__ = ["PseudoLabelLoss", "away_from"]


@MODELS.register
class PseudoLabelLoss(CenterHeadLoss):
    """The student head's own loss with the teacher's detections as ground truth.

    On a sample with labels the targets are the labels and those detections that are far from all labelled objects of
    their class; a sample without labels has the detections alone.

    Args:
        min_score: detections above it become labels; one number, or one per class name, `default` for all others.
        frames: `unlabelled`, samples without labels alone, or `all`.
        distance: metres on the ground within which a label of the same class makes a detection superfluous.

    Raises:
        ValueError: other frames.
    """

    needs_labels = False

    def __init__(
        self, min_score: float | Mapping[str, float] = 0.3, frames: str = "unlabelled", distance: float = 2.0
    ) -> None:
        super().__init__()
        if frames not in ("unlabelled", "all"):
            raise ValueError(f"PseudoLabelLoss: frames must be unlabelled or all, got {frames!r}")
        for score in min_score.values() if isinstance(min_score, Mapping) else (min_score,):
            number(score, "min_score")
        self.min_score, self.frames, self.distance = min_score, frames, not_negative(distance, "distance")

    def bind(self, teacher: Detector | Outline, student: Detector) -> None:
        super().bind(teacher, student)
        theirs = head_of(teacher)
        # Of some teachers there are only answers, told as the student's head would tell them.
        self._teacher_head = Shared(theirs) if isinstance(theirs, CenterHead) else self._student_head
        given = self.min_score if isinstance(self.min_score, Mapping) else {"default": self.min_score}
        classes = self._student_head.module.classes
        for name in given:
            if name not in (*classes, "default"):
                raise ValueError(f"PseudoLabelLoss.min_score: no class {name!r}{nearest(name, classes)}")
        self._least = [given.get(name, given.get("default", 0.3)) for name in classes]

    def gate(self, taught: Collection[str]) -> bool:
        classes = self._student_head.module.classes
        self._least = [least if name in taught else math.inf for name, least in zip(classes, self._least, strict=True)]
        return True

    @full_precision
    def forward(
        self,
        student_value: Sequence[Mapping[str, Tensor]],
        teacher_value: Sequence[Mapping[str, Tensor]],
        batch: Batch,
    ) -> dict[str, Tensor]:
        """Both are head outputs: a list over tasks of dicts of (B, C, X, Y).

        Returns:
            `heatmap/task{t}` and `bbox/task{t}` of the student's head, and `stats/boxes`, pseudo boxes per sample.
        """
        first = 0 if self.frames == "all" else len(batch) - batch.unlabelled
        student, teacher = (
            [{k: v[first:] for k, v in task.items()} for task in side] for side in (student_value, teacher_value)
        )
        samples = range(first, len(batch))
        if not samples:
            nothing = sum_of([value.sum() * 0 for task in student_value for value in task.values()])
            return {"heatmap/task0": nothing, "stats/boxes": nothing.detach()}
        found = self._teacher_head.module.decode(teacher)
        confident = [d[d.scores > d.scores.new_tensor(self._least)[d.labels]] for d in found]
        count = sum(map(len, confident))
        self.observe("the teacher detects nothing above min_score in any step of an epoch", torch.tensor(count == 0))
        targets = [self._targets(d, batch, i) for d, i in zip(confident, samples, strict=True)]
        boxes, labels = [boxes for boxes, _ in targets], [names for _, names in targets]
        terms = self._student_head.module.box_losses(student, boxes, labels)
        return terms | {"stats/boxes": student[0]["heatmap"].new_tensor(count / len(samples))}

    def _targets(self, found: Detections3D, batch: Batch, sample: int) -> tuple[Boxes3D, Tensor]:
        if sample >= len(batch) - batch.unlabelled:
            return found.boxes, found.labels
        boxes, labels = (batch.require(name, "PseudoLabelLoss")[sample] for name in ("boxes", "labels"))
        new = found[away_from(found, boxes, labels, self.distance)]
        return Boxes3D.cat([boxes, new.boxes]), torch.cat([labels, new.labels])


def away_from(found: Detections3D, boxes: Boxes3D, labels: Tensor, distance: float) -> Tensor:
    """(N,) bool: detections with no box of their class within `distance` metres on the ground."""
    apart = torch.cdist(found.boxes.centers[:, :2], boxes.centers[:, :2].to(found.boxes.centers))
    near = (apart < distance) & (found.labels[:, None] == labels)
    return ~near.any(1)
