"""From the proposals of a `TransFusionHead` to boxes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from mmdet3d.models.heads.box_coder import decode_boxes
from mmdet3d.models.heads.config import TransFusionTesting
from mmdet3d.ops.nms import circle_nms, rotated_nms
from mmdet3d.registry import STEPS
from mmdet3d.structures import Batch, BEVGrid, Detections3D

__all__ = ["REGRESSION", "TransFusionDecoder"]

REGRESSION = {"center": 2, "height": 1, "dim": 3, "rot": 2, "vel": 2}


@STEPS.register
@dataclass(frozen=True)
class TransFusionDecoder:
    """Proposals of the last layer; a query keeps the class that it was created for.

    Args:
        num_proposals, num_classes, point_classes: of the head.
        test_cfg: how proposals become boxes.
        grid: the raster of the BEV.
    """

    num_proposals: int
    num_classes: int
    point_classes: Sequence[int]
    test_cfg: TransFusionTesting
    grid: BEVGrid

    @torch.no_grad()
    def __call__(self, raw: Mapping[str, Tensor], batch: Batch | None = None) -> list[Detections3D]:
        """Detections of each sample from what the head's forward pass returned; the batch is not read."""
        code = torch.cat([raw[name][..., -self.num_proposals :].float() for name in REGRESSION], dim=1)
        own_class = F.one_hot(raw["query_labels"], self.num_classes).transpose(1, 2)
        probability = raw["heatmap"][..., -self.num_proposals :].float().sigmoid()
        scores, labels = (probability * raw["query_heatmap_score"] * own_class).max(dim=1)
        limits = code.new_tensor(self.test_cfg.post_center_limit_range)
        results = []
        for one, score, label in zip(code.transpose(1, 2), scores, labels, strict=True):
            boxes = decode_boxes(one, self.grid)
            inside = (boxes.centers >= limits[:3]).all(1) & (boxes.centers <= limits[3:]).all(1)
            found = Detections3D(boxes, score, label)[inside & (score > self.test_cfg.score_threshold)]
            results.append(self._suppress(found))
        return results

    def _suppress(self, found: Detections3D) -> Detections3D:
        """Suppression within each of `point_classes`: their queries may be neighbouring cells of one object."""
        cfg = self.test_cfg
        if cfg.nms_type is None:
            return found
        keep = torch.ones_like(found.labels, dtype=torch.bool)
        for label in self.point_classes:
            (index,) = (found.labels == label).nonzero(as_tuple=True)
            boxes, scores = found.boxes[index], found.scores[index]
            if cfg.nms_type == "circle":
                kept = circle_nms(boxes.centers[:, :2], scores, cfg.min_radius)
            else:
                kept = rotated_nms(boxes.tensor[:, [0, 1, 3, 4, 6]], scores, cfg.nms_thr)
            keep[index] = False
            keep[index[kept]] = True
        return found[keep]
