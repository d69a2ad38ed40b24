"""From the maps of a `CenterHead` to boxes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mmdet3d.models.heads.box_coder import decode_boxes
from mmdet3d.models.heads.config import CenterHeadTesting
from mmdet3d.ops.nms import circle_nms, rotated_nms
from mmdet3d.registry import STEPS
from mmdet3d.structures import Batch, BEVGrid, Boxes3D, Detections3D

__all__ = ["REGRESSION", "CenterDecoder"]

REGRESSION = {"reg": 2, "height": 1, "dim": 3, "rot": 2, "vel": 2}


@STEPS.register
@dataclass(frozen=True)
class CenterDecoder:
    """Candidates above the threshold and inside the range, suppressed per task.

    Args:
        tasks: groups of class names; a class's label is its place in the concatenated groups.
        test_cfg: with an entry per task.
        grid: the raster of the maps.
        norm_bbox: sizes are logarithms.
    """

    tasks: Sequence[Sequence[str]]
    test_cfg: CenterHeadTesting
    grid: BEVGrid
    norm_bbox: bool = True

    @torch.no_grad()
    def __call__(self, raw: Sequence[Mapping[str, Tensor]], batch: Batch | None = None) -> list[Detections3D]:
        """Detections of each sample from what the head's forward pass returned; the batch is not read."""
        per_task = []
        first = 0
        for t, (task, predicted) in enumerate(zip(self.tasks, raw, strict=True)):
            candidates = self._candidates({name: value.float() for name, value in predicted.items()})
            per_task.append([self._suppress(t, one, first) for one in candidates])
            first += len(task)
        return [_merge(parts) for parts in zip(*per_task, strict=True)]

    def _candidates(self, predicted: Mapping[str, Tensor]) -> list[Detections3D]:
        """The best cells of one task as boxes; labels count inside the task."""
        scores = predicted["heatmap"].sigmoid().flatten(1)
        size_x, size_y = self.grid.shape
        scores, index = scores.topk(min(self.test_cfg.max_per_img, scores.shape[1]))
        labels, cell = index // (size_x * size_y), index % (size_x * size_y)
        x, y = cell // size_y, cell % size_y
        sample = torch.arange(len(x), device=x.device)[:, None]
        codes = torch.cat([predicted[name][sample, :, x, y] for name in REGRESSION], dim=2)
        codes[..., :2] += torch.stack([x, y], dim=-1)
        limits = codes.new_tensor(self.test_cfg.post_center_limit_range)
        found = []
        for code, score, label in zip(codes, scores, labels, strict=True):
            boxes = decode_boxes(code, self.grid, self.norm_bbox)
            inside = (boxes.centers >= limits[:3]).all(1) & (boxes.centers <= limits[3:]).all(1)
            keep = inside & (score > self.test_cfg.score_threshold)
            found.append(Detections3D(boxes, score, label)[keep])
        return found

    def _suppress(self, task: int, found: Detections3D, first_label: int) -> Detections3D:
        cfg = self.test_cfg
        pre, post = cfg.pre_max_size, cfg.post_max_size
        if cfg.nms_type[task] == "circle":
            assert cfg.min_radius is not None  # as for the scales below, `per_task` has seen to it
            centers = found.boxes.centers[:, :2]
            keep = circle_nms(centers, found.scores, cfg.min_radius[task], pre_max_size=pre, post_max_size=post)
        else:
            assert not isinstance(cfg.nms_scale, (int, float))
            footprint = found.boxes.tensor[:, [0, 1, 3, 4, 6]].clone()
            footprint[:, 2:4] *= footprint.new_tensor(cfg.nms_scale[task])[found.labels, None]
            keep = rotated_nms(footprint, found.scores, cfg.nms_thr, pre_max_size=pre, post_max_size=post)
        kept = found[keep]
        return Detections3D(kept.boxes, kept.scores, kept.labels + first_label)


def _merge(parts: Sequence[Detections3D]) -> Detections3D:
    return Detections3D(
        Boxes3D.cat([p.boxes for p in parts]),
        torch.cat([p.scores for p in parts]),
        torch.cat([p.labels for p in parts]),
    )
