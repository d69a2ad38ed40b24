"""Features near objects: where they are now (BEVDistill, ICLR 2023), and where they came from (VCD, NeurIPS 2023)."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from mmdet3d.blocks import at_least, positive
from mmdet3d.distill.losses.base import DistillLoss, full_precision, level_grid, raster_of, require_same_shape
from mmdet3d.distill.losses.partition import masked_distance
from mmdet3d.distill.masks import gaussian_mask
from mmdet3d.distill.outline import Outline
from mmdet3d.models.detectors.base import Detector
from mmdet3d.registry import MODELS
from mmdet3d.structures import Batch, Boxes3D

__all__ = ["GaussianFeatureLoss", "TrajectoryFeatureLoss", "standardised", "trajectory_distance", "went_back"]

_OVERLAP, _MIN_RADIUS = 0.1, 1  # of the Gaussians; radius in cells


@MODELS.register
class GaussianFeatureLoss(DistillLoss):
    """Mean, weighted by how near any object is, of the squared distance summed over channels (BEVDistill, dense)."""

    def bind(self, teacher: Detector | Outline, student: Detector) -> None:
        self._grid = raster_of(student, type(self).__name__)

    @full_precision
    def forward(self, student_value: Tensor, teacher_value: Tensor, batch: Batch) -> Tensor:
        """Both (B, C, X, Y), on the student's raster or a level of it.

        Raises:
            ValueError: maps of different shapes, or no ground truth.
        """
        require_same_shape(self, student_value, teacher_value)
        return masked_distance(student_value, teacher_value, self._near(student_value, batch, 0))

    def _near(self, maps: Tensor, batch: Batch, seconds: float) -> Tensor:
        """(B, X, Y): how near a cell is to where an object was some `seconds` ago."""
        name = type(self).__name__
        boxes = [went_back(b, seconds) for b in batch.require("boxes", name)]
        near = gaussian_mask(boxes, level_grid(self._grid, maps, name), _OVERLAP, _MIN_RADIUS)
        self.observe("no cell is near an object in any step of an epoch", ~near.any())
        return near.to(maps)


@MODELS.register
class TrajectoryFeatureLoss(GaussianFeatureLoss):
    """Squared distance, summed over channels, along the way that objects came (VCD, trajectory-based distillation).

    Features fused over time leave a streak behind a moving object. The teacher's map is standardised channel by channel
    over the batch, the student's is not. The published mask draws the annotations of earlier frames in this one's
    coordinates; here every object went back as fast as it moves now.

    Args:
        frames: how many earlier positions count.
        interval: seconds between them.
    """

    def __init__(self, frames: int = 4, interval: float = 0.5) -> None:
        super().__init__()
        self.frames, self.interval = at_least(1, frames, "frames"), positive(interval, "interval")

    @full_precision
    def forward(self, student_value: Tensor, teacher_value: Tensor, batch: Batch) -> Tensor:
        """See `GaussianFeatureLoss.forward`."""
        require_same_shape(self, student_value, teacher_value)
        mask = self._near(student_value, batch, 0)
        for frame in range(1, self.frames + 1):
            mask = mask.maximum(self._near(student_value, batch, frame * self.interval))
        return trajectory_distance(student_value, standardised(teacher_value), mask)


def went_back(boxes: Boxes3D, seconds: float) -> Boxes3D:
    """Where the boxes were, if they kept their velocity; those of unknown (NaN) velocity stayed."""
    moved = boxes.tensor.clone()
    moved[:, :2] -= seconds * boxes.velocity.nan_to_num()
    return Boxes3D(moved)


def standardised(maps: Tensor) -> Tensor:
    """(B, C, X, Y) with mean 0 and variance 1 in each channel, over samples and cells."""
    return F.batch_norm(maps, None, None, training=True)


def trajectory_distance(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    """Sum of the squared distance of (mask times student) and (mask times teacher), over the sum of `mask` (B, X, Y).

    Where the mask sums to less than 1, it is a sum.
    """
    return (mask.square() * (student - teacher).square().sum(1)).sum() / mask.sum().clamp(min=1)
