"""Response distillation of the map: the teacher's probabilities as soft targets in every cell."""

from __future__ import annotations

from torch import Tensor

from mmdet3d.blocks import not_negative
from mmdet3d.distill.losses.base import DistillLoss, full_precision, require_same_shape
from mmdet3d.distill.losses.response import quality_focal
from mmdet3d.distill.outline import Outline, head_of
from mmdet3d.models.detectors.base import Detector
from mmdet3d.models.heads.segmentation import BEVSegmentationHead
from mmdet3d.models.losses import clamped_sigmoid
from mmdet3d.registry import MODELS
from mmdet3d.structures import Batch

__all__ = ["MapResponseLoss"]


@MODELS.register
class MapResponseLoss(DistillLoss):
    """Quality focal loss on the probabilities of two heads `map`, cell by cell: BCE(p, q) |p - q|^beta.

    As CRKD's heat maps are taught (`ResponseLoss`), but averaged over all cells, because areas, unlike objects, fill
    the ground. A cell that both see alike costs nothing, so the many easy cells do not drown the others.

    Args:
        beta: focusing power.
    """

    needs_labels = False

    def __init__(self, beta: float = 2.0) -> None:
        super().__init__()
        self.beta = not_negative(beta, "beta")

    def bind(self, teacher: Detector | Outline, student: Detector) -> None:
        head = head_of(student, "map")
        if not isinstance(head, BEVSegmentationHead):
            raise ValueError(
                "MapResponseLoss compares maps of the ground, but the student has no head `map`; switch this loss off "
                "(null)"
            )
        other = head_of(teacher, "map")  # of recorded answers nothing is known but their shape
        if isinstance(other, BEVSegmentationHead) and (
            other.classes != head.classes or not other.map_grid.matches(head.map_grid)
        ):
            raise ValueError(
                f"MapResponseLoss needs the same map on both sides: the student's has {', '.join(head.classes)} over "
                f"{head.map_grid}, the teacher's {', '.join(other.classes)} over {other.map_grid}"
            )
        self._classes = head.classes

    @full_precision
    def forward(self, student_value: Tensor, teacher_value: Tensor, batch: Batch) -> dict[str, Tensor]:
        """A term per class of the logits (B, C, X, Y) of both, the mean over all cells.

        Raises:
            ValueError: maps of different shapes.
        """
        require_same_shape(self, student_value, teacher_value)
        cells = quality_focal(clamped_sigmoid(student_value), clamped_sigmoid(teacher_value), self.beta)
        return {name: cells[:, k].mean() for k, name in enumerate(self._classes)}
