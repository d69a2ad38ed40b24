"""Which prediction learns which object, for heads that predict a set."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mmdet3d.models.heads.config import AssignerSettings
from mmdet3d.ops.rotated_iou import rotated_iou_3d
from mmdet3d.structures import Boxes3D

__all__ = ["HungarianAssigner3D"]


class HungarianAssigner3D:
    """One-to-one assignment of least total cost (DETR, TransFusion).

    The cost of a pair is a focal classification cost, plus the L1 distance of the centres as a fraction of the range,
    minus the IoU in space, each with its weight.

    Args:
        point_cloud_range: metres, for the fraction.
        settings: weights of the costs; None for the published ones.
    """

    def __init__(self, point_cloud_range: Sequence[float], settings: AssignerSettings | None = None) -> None:
        self.extent = [high - low for low, high in zip(point_cloud_range[:2], point_cloud_range[3:5], strict=True)]
        settings = settings or AssignerSettings()
        self.cls_cost = settings.cls_cost
        self.reg_weight, self.iou_weight = settings.reg_cost.weight, settings.iou_cost.weight

    @torch.no_grad()
    def __call__(
        self, predicted: Boxes3D, logits: Tensor, boxes: Boxes3D, labels: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Match P predictions with M objects.

        Args:
            logits: (P, classes).
            labels: (M,) int64.

        Returns:
            The matched predictions and their objects, both (min(P, M),) int64, and their IoU.
        """
        from scipy.optimize import linear_sum_assignment  # half a second that most models need not pay

        iou = rotated_iou_3d(predicted.tensor[:, :7], boxes.tensor[:, :7])
        extent = boxes.tensor.new_tensor(self.extent)
        distance = torch.cdist(predicted.centers[:, :2] / extent, boxes.centers[:, :2] / extent, p=1)
        cost = self._class_cost(logits)[:, labels] + self.reg_weight * distance - self.iou_weight * iou
        # A diverged prediction must not stop the run: it is matched last.
        cost = cost.nan_to_num(nan=1e6, posinf=1e6, neginf=-1e6)
        rows, columns = (torch.as_tensor(i, device=cost.device) for i in linear_sum_assignment(cost.cpu().numpy()))
        return rows, columns, iou[rows, columns]

    def _class_cost(self, logits: Tensor) -> Tensor:
        """(P, classes): the focal loss of calling a prediction that class, minus that of calling it background."""
        p = logits.sigmoid()
        eps, alpha, gamma = 1e-12, self.cls_cost.alpha, self.cls_cost.gamma
        positive = -(p + eps).log() * alpha * (1 - p) ** gamma
        negative = -(1 - p + eps).log() * (1 - alpha) * p**gamma
        return self.cls_cost.weight * (positive - negative)
