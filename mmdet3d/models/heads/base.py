"""What a head is to a detector: one task on the bird's-eye view."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

from torch import Tensor, nn

from mmdet3d.models.heads.config import HeadTraining
from mmdet3d.models.heads.targets import CenterTargets, center_targets, heatmap_target, object_heat
from mmdet3d.structures import Batch, BEVGrid, Boxes3D, Detections3D

__all__ = ["DetectionHead", "Head"]


class Head(nn.Module, ABC):
    """A task. `forward(bev)` of a BEV (B, C, X, Y) is its raw output, which is the tap `heads.NAME`.

    Attributes:
        needs: fields of a batch that `loss` reads; a detector refuses a batch that lacks one.
        grid: the BEV raster of its input.
    """

    needs: ClassVar[tuple[str, ...]] = ()
    grid: BEVGrid

    @abstractmethod
    def loss(self, raw: Any, batch: Batch) -> dict[str, Tensor]:
        """Scalar terms; those named `stats/...` are only logged.

        Args:
            raw: what `forward` returned for these samples.
            batch: samples with labels.
        """

    @abstractmethod
    def decode(self, raw: Any, batch: Batch) -> Sequence[Any]:
        """What is predicted for each sample; whoever evaluates the task reads it. `batch` may lack ground truth."""


class DetectionHead(Head):
    """Finds boxes of `num_classes` classes, trained on a heatmap of their centres among other things.

    Attributes:
        train_cfg: the raster, and what is learnt on it.
        norm_bbox: sizes are regressed as logarithms.
    """

    needs = ("boxes", "labels")
    train_cfg: HeadTraining
    num_classes: int
    norm_bbox: bool = True

    def loss(self, raw: Any, batch: Batch) -> dict[str, Tensor]:
        """`box_losses` against the ground truth of the batch."""
        return self.box_losses(raw, *(batch.require(name, type(self).__name__) for name in self.needs))

    @abstractmethod
    def box_losses(self, raw: Any, boxes: Sequence[Boxes3D], labels: Sequence[Tensor]) -> dict[str, Tensor]:
        """Detection losses in float32; samples without boxes are fine.

        Args:
            raw: what `forward` returned.
            boxes, labels: what is to be found in each sample.
        """

    @abstractmethod
    def decode(self, raw: Any, batch: Batch | None = None) -> list[Detections3D]:
        """Detections of each sample."""

    @property
    def code_weights(self) -> Sequence[float]:
        """Factors of the ten regression errors."""
        return self.train_cfg.code_weights

    def objects(self, boxes: Sequence[Boxes3D], labels: Sequence[Tensor]) -> CenterTargets:
        """The objects of all samples on the head's raster, see `center_targets`."""
        return center_targets(list(boxes), list(labels), self.num_classes, self.grid, self.norm_bbox)

    def heat(self, objects: CenterTargets, batch_size: int) -> Tensor:
        """The target of the heatmap, (B, classes, X, Y)."""
        cfg = self.train_cfg
        return heatmap_target(objects, batch_size, self.num_classes, self.grid, cfg.gaussian_overlap, cfg.min_radius)

    def object_heat(self, boxes: Sequence[Boxes3D], labels: Sequence[Tensor]) -> Tensor:
        """How much of any object is near a cell, drawn as the target of the heatmap is: (B, X, Y)."""
        return object_heat(boxes, labels, self.grid, self.train_cfg.gaussian_overlap, self.train_cfg.min_radius)
