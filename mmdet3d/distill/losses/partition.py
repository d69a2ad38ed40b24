"""Feature partitioning: a share of the student's channels imitates the labels, another the LiDAR teacher."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from mmdet3d.blocks import ConfigKeyError, at_least
from mmdet3d.distill.losses.base import DistillLoss, detection_head, full_precision
from mmdet3d.distill.outline import Outline
from mmdet3d.models.detectors.base import Detector
from mmdet3d.models.layers import BasicBlock
from mmdet3d.registry import MODELS
from mmdet3d.structures import Batch

__all__ = ["PartitionedFeatureLoss", "masked_distance"]

# Thirds of a level's channels in this order; the last third is the camera's own.
_PARTS = ("label", "lidar")
_PARTITIONS = ("per_frame_thirds", "contiguous_thirds")


@MODELS.register
class PartitionedFeatureLoss(DistillLoss):
    """Squared distance, where objects are, of one third of the student's channels (LabelDistill, feature distillation).

    Each level has an adapter from the third's channels to the teacher's: a convolution with BatchNorm and ReLU and a
    residual block. They are the loss's own: prediction does without.

    Args:
        part: `label` compares the first third, `lidar` the second.
        partition: what the thirds of the first level, a concatenation of frames, are thirds of. `per_frame_thirds`: of
            the key frame's channels. `contiguous_thirds`: of all channels, as published; the second third is then
            made of past frames, through which no gradient flows.
        frames: how many frames the first level holds, the key frame first.
        student_channels: of each level that is compared: the input of the student's BEV backbone, then its stages.
        teacher_channels: of each level.
        mask: `soft` weighs a cell by the sum over classes of the ground truth's heatmaps, `binary` by 1 where that is
            not 0.

    Raises:
        ValueError: an unknown option, lists of different lengths, or channels that have no such thirds.
    """

    def __init__(
        self,
        part: str,
        partition: str = "per_frame_thirds",
        frames: int = 1,
        student_channels: Sequence[int] = (450, 300),
        teacher_channels: Sequence[int] = (128, 256),
        mask: str = "soft",
    ) -> None:
        super().__init__()
        for name, value, known in (
            ("part", part, _PARTS),
            ("partition", partition, _PARTITIONS),
            ("mask", mask, ("soft", "binary")),
        ):
            if value not in known:
                raise ValueError(f"PartitionedFeatureLoss: {name} must be one of {', '.join(known)}, got {value!r}")
        if len(student_channels) != len(teacher_channels):
            raise ValueError(
                "PartitionedFeatureLoss: student_channels and teacher_channels need one entry per level, got "
                f"{list(student_channels)} and {list(teacher_channels)}"
            )
        at_least(1, frames, "frames")
        for key, channels in (("student_channels", student_channels), ("teacher_channels", teacher_channels)):
            if not channels:
                raise ConfigKeyError(key, " must have an entry per level, got []")
            for count in channels:
                at_least(1, count, key)
        if student_channels[0] % frames:
            raise ValueError(
                f"PartitionedFeatureLoss: {student_channels[0]} channels of the first level are no {frames} frames "
                "of equal width; check frames and student_channels"
            )
        self.frames = frames
        self.binary = mask == "binary"
        self.student_channels = tuple(student_channels)
        shared = [student_channels[0] // (frames if partition == "per_frame_thirds" else 1), *student_channels[1:]]
        thirds = [channels // 3 for channels in shared]
        first = _PARTS.index(part)
        self.slices = [slice(first * n, (first + 1) * n) for n in thirds]
        self.adaptors = nn.ModuleList(_adapter(n, c) for n, c in zip(thirds, teacher_channels, strict=True))

    def bind(self, teacher: Detector | Outline, student: Detector) -> None:
        frames = 1 + getattr(student, "history", 0)
        if frames != self.frames:
            raise ValueError(f"PartitionedFeatureLoss: the student sees {frames} frames, but frames is {self.frames}")
        self._head = detection_head(student, "PartitionedFeatureLoss")

    @full_precision
    def forward(self, student_value: Sequence[Tensor], teacher_value: Sequence[Tensor], batch: Batch) -> Tensor:
        """Levels (B, C_i, X_i, Y_i); either side may have more of them than are compared.

        Raises:
            ValueError: levels of other channels or sizes than expected, or no ground truth for the mask.
        """
        boxes, labels = (batch.require(name, "PartitionedFeatureLoss") for name in ("boxes", "labels"))
        heat = self._head.module.object_heat(boxes, labels)[:, None]
        self._check(student_value, teacher_value)
        total = heat.new_zeros(())
        for level, third, adapter, teacher in zip(
            student_value, self.slices, self.adaptors, teacher_value, strict=False
        ):
            adapted = adapter(level[:, third])
            if adapted.shape != teacher.shape:
                raise ValueError(
                    f"PartitionedFeatureLoss compares levels of shapes {tuple(adapted.shape)} and "
                    f"{tuple(teacher.shape)}; teacher_channels must be the teacher's, and its levels as large as the "
                    "student's"
                )
            mask = F.interpolate(heat, tuple(level.shape[-2:]), mode="bilinear", align_corners=True)
            total = total + masked_distance(adapted, teacher, (mask > 0 if self.binary else mask).to(adapted)[:, 0])
        return total

    def _check(self, levels: Sequence[Tensor], teacher: Sequence[Tensor]) -> None:
        if len(teacher) < len(self.adaptors):
            raise ValueError(
                f"PartitionedFeatureLoss: teacher_channels names {len(self.adaptors)} levels, the teacher has "
                f"{len(teacher)}"
            )
        found = [level.shape[1] for level in levels[: len(self.student_channels)]]
        if found != list(self.student_channels):
            raise ValueError(
                f"PartitionedFeatureLoss was built for a student whose levels have {list(self.student_channels)} "
                f"channels, but they have {found}; set student_channels"
            )


def masked_distance(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    """Mean, weighted by `mask` (B, X, Y), of the squared distance of (B, C, X, Y) features summed over channels.

    Where the mask sums to less than 1, it is a sum.
    """
    return (mask * (student - teacher).square().sum(1)).sum() / mask.sum().clamp(min=1)


def _adapter(in_channels: int, out_channels: int) -> nn.Sequential:
    conv = nn.Conv2d(in_channels, out_channels, 3, padding=1, padding_mode="replicate")
    return nn.Sequential(conv, nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True), BasicBlock(out_channels))
