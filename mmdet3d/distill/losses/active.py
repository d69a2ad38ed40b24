"""Features where the student's sensor measures, and where it alone does (RadarDistill, CVPR 2024: activation-based)."""

from __future__ import annotations

from torch import Tensor

from mmdet3d.blocks import not_negative
from mmdet3d.distill.losses.base import DistillLoss, full_precision, require_same_shape
from mmdet3d.registry import MODELS
from mmdet3d.structures import Batch

__all__ = ["ActiveFeatureLoss", "active_cells", "active_distance"]


@MODELS.register
class ActiveFeatureLoss(DistillLoss):
    """Squared feature distance in the student's active cells (RadarDistill, activation-based feature distillation).

    Cells in which the teacher alone is active get nothing: a radar cannot know what it did not measure. A cell is
    active where its channels sum to more than 0, so both maps should come out of a ReLU.

    Published weights belong to a sum over channels, here it is their mean: the defaults are those for 256 channels.

    Args:
        shared: weight of a cell that is active on both sides.
        alone: weight of all cells together in which the student alone is active, in units of one weight per shared
            cell.
        activity: factor of the L1 distance of the squashed sums of the student's channels to the teacher's activity,
            which is in the published program and not in the paper; 0 switches it off.
    """

    needs_labels = False

    def __init__(self, shared: float = 0.0768, alone: float = 0.0128, activity: float = 1.0) -> None:
        super().__init__()
        self.shared, self.alone = not_negative(shared, "shared"), not_negative(alone, "alone")
        self.activity = not_negative(activity, "activity")

    @full_precision
    def forward(self, student_value: Tensor, teacher_value: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Both (B, C, X, Y).

        Returns:
            `features`, and `activity` if it is on.

        Raises:
            ValueError: maps of different shapes.
        """
        require_same_shape(self, student_value, teacher_value)
        ours, theirs = active_cells(student_value), active_cells(teacher_value)
        self.observe("no cell is active on both sides in any step of an epoch", ~(ours & theirs).any())
        terms = {"features": active_distance(student_value, teacher_value, self.shared, self.alone)}
        if self.activity:
            squashed = student_value.sum(1).sigmoid()
            terms["activity"] = self.activity * (squashed - theirs.to(squashed)).abs().mean()
        return terms


def active_cells(maps: Tensor) -> Tensor:
    """(B, C, X, Y) to (B, X, Y) bool."""
    return maps.detach().sum(1) > 0


def active_distance(student: Tensor, teacher: Tensor, shared: float, alone: float) -> Tensor:
    """Weighted sum over cells of the mean squared channel distance of maps (B, C, X, Y), divided by the samples.

    Cells active on both sides weigh `shared`; those active in the student alone `alone` times the number of the first
    over their own, so that sparse measurements are not drowned by what is invented around them.
    """
    ours, theirs = active_cells(student), active_cells(teacher)
    both, mine = ours & theirs, ours & ~theirs
    ratio = both.sum() / mine.sum().clamp(min=1)
    weight = shared * both + alone * ratio * mine
    return (weight * (student - teacher).square().mean(1)).sum() / len(student)
