"""The centre-based detection head of CenterPoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mmdet3d.models.heads.box_coder import decode_boxes
from mmdet3d.models.heads.branches import SeparateHead, run_together
from mmdet3d.models.heads.config import CenterHeadTesting, HeadTraining, SeparateHeadSettings
from mmdet3d.models.heads.targets import Objects, gather_objects, heatmap_target
from mmdet3d.models.layers import ConvModule
from mmdet3d.models.losses import clamped_sigmoid
from mmdet3d.ops.nms import circle_nms, rotated_nms
from mmdet3d.registry import MODELS
from mmdet3d.structures import Boxes3D, Detections3D

__all__ = ["REGRESSION", "CenterHead"]

REGRESSION = {"reg": 2, "height": 1, "dim": 3, "rot": 2, "vel": 2}


@MODELS.register
class CenterHead(nn.Module):
    """Predicts a heatmap of object centres per group of classes, and a box at every cell (CenterPoint).

    Args:
        in_channels: channels of the BEV.
        tasks: groups of class names; a class's label is its place in the concatenated groups.
        train_cfg: the raster, and what is learnt on it.
        test_cfg: how maps become boxes.
        common_heads: per regressed quantity (channels, number of convolutions).
        share_conv_channel: channels of the shared convolution.
        num_heatmap_convs: convolutions of the heatmap branch.
        separate_head: the branches.
        loss_cls, loss_bbox: loss configs.
        norm_bbox: sizes are regressed as logarithms.

    Attributes:
        grid: the BEV raster of its input.
        classes: names by label.

    Raises:
        ValueError: an unknown, missing or contradictory key.
    """

    def __init__(
        self,
        in_channels: int,
        tasks: Sequence[Sequence[str]],
        train_cfg: HeadTraining,
        test_cfg: CenterHeadTesting,
        common_heads: Mapping[str, tuple[int, int]] | None = None,
        share_conv_channel: int = 64,
        num_heatmap_convs: int = 2,
        separate_head: SeparateHeadSettings | None = None,
        loss_cls: Mapping[str, Any] | None = None,
        loss_bbox: Mapping[str, Any] | None = None,
        norm_bbox: bool = True,
    ) -> None:
        super().__init__()
        self.tasks = [tuple(task) for task in tasks]
        self.classes = tuple(name for task in tasks for name in task)
        self.norm_bbox = norm_bbox
        self.train_cfg = train_cfg
        self.test_cfg = test_cfg.per_task(self.tasks)
        self.grid = train_cfg.grid
        self.loss_cls = MODELS.build(loss_cls or {"type": "GaussianFocalLoss"}, "loss_cls")
        self.loss_bbox = MODELS.build(loss_bbox or {"type": "L1Loss", "loss_weight": 0.25}, "loss_bbox")

        branches = _branches(common_heads or {name: (size, 2) for name, size in REGRESSION.items()})
        separate = separate_head or SeparateHeadSettings()
        self.shared_conv = ConvModule(in_channels, share_conv_channel, 3)
        self.task_heads = nn.ModuleList(
            SeparateHead(
                share_conv_channel,
                branches | {"heatmap": (len(task), num_heatmap_convs)},
                separate.final_kernel,
                separate.init_bias,
            )
            for task in self.tasks
        )

    def forward(self, bev: Tensor) -> list[dict[str, Tensor]]:
        """BEV (B, C, X, Y) to one dict per task: `reg`, `height`, `dim`, `rot`, `vel` and the logits `heatmap`.

        Raises:
            ValueError: the BEV has another size than the grid.
        """
        if tuple(bev.shape[-2:]) != self.grid.shape:
            raise ValueError(f"the head's grid is {self.grid}, but its input has {bev.shape[-2]}x{bev.shape[-1]} cells")
        return run_together(self.task_heads, self.shared_conv(bev))

    # -- training ---------------------------------------------------------------------------------------------------

    def loss(self, raw: list[dict[str, Tensor]], boxes: list[Boxes3D], labels: list[Tensor]) -> dict[str, Tensor]:
        """Detection losses in float32; samples without boxes are fine.

        Args:
            raw: what `forward` returned.
            boxes, labels: ground truth of each sample.

        Returns:
            `heatmap/task{t}` and `bbox/task{t}` for every task.
        """
        objects = gather_objects(boxes, labels, len(self.classes), self.grid, self.norm_bbox)
        heat = heatmap_target(
            objects, len(boxes), len(self.classes), self.grid,
            self.train_cfg.gaussian_overlap, self.train_cfg.min_radius,
        )  # fmt: skip
        losses = {}
        first = 0
        with torch.autocast(heat.device.type, enabled=False):
            for t, (task, predicted) in enumerate(zip(self.tasks, raw, strict=True)):
                classes = slice(first, first + len(task))
                losses[f"heatmap/task{t}"] = self._heatmap_loss(predicted["heatmap"], heat[:, classes])
                losses[f"bbox/task{t}"] = self._box_loss(predicted, objects.of(classes))
                first = classes.stop
        return losses

    def _heatmap_loss(self, logits: Tensor, target: Tensor) -> Tensor:
        peaks = (target == 1).sum().clamp(min=1)
        return self.loss_cls(clamped_sigmoid(logits.float()), target, avg_factor=peaks)

    def _box_loss(self, predicted: Mapping[str, Tensor], objects: Objects) -> Tensor:
        code = self.codes_at(predicted, objects).float()
        target = objects.codes.clone()
        target[:, :2] -= objects.cells
        weight = target.new_tensor(self.train_cfg.code_weights).expand_as(target)
        return self.loss_bbox(code, target, weight, avg_factor=len(objects) + 1e-4)

    @staticmethod
    def codes_at(predicted: Mapping[str, Tensor], objects: Objects) -> Tensor:
        """The ten regressed numbers (N, 10) of one task at the cells of `objects`, in the order of `REGRESSION`."""
        x, y = objects.cells.unbind(1)
        return torch.cat([predicted[name][objects.samples, :, x, y] for name in REGRESSION], dim=1)

    # -- inference --------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def decode(self, raw: list[dict[str, Tensor]]) -> list[Detections3D]:
        """Detections of each sample: candidates above the threshold and inside the range, suppressed per task."""
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
        limits = {"pre_max_size": cfg.pre_max_size, "post_max_size": cfg.post_max_size}
        if cfg.nms_type[task] == "circle":
            keep = circle_nms(found.boxes.centers[:, :2], found.scores, cfg.min_radius[task], **limits)
        else:
            footprint = found.boxes.tensor[:, [0, 1, 3, 4, 6]].clone()
            footprint[:, 2:4] *= footprint.new_tensor(cfg.nms_scale[task])[found.labels, None]
            keep = rotated_nms(footprint, found.scores, cfg.nms_thr, **limits)
        kept = found[keep]
        return Detections3D(kept.boxes, kept.scores, kept.labels + first_label)


def _merge(parts: Sequence[Detections3D]) -> Detections3D:
    return Detections3D(
        Boxes3D.cat([p.boxes for p in parts]),
        torch.cat([p.scores for p in parts]),
        torch.cat([p.labels for p in parts]),
    )


def _branches(common_heads: Mapping[str, tuple[int, int]]) -> dict[str, tuple[int, int]]:
    if {name: size for name, (size, _) in common_heads.items()} != REGRESSION:
        raise ValueError(f"common_heads must give {REGRESSION} channels, got {dict(common_heads)}")
    return {name: tuple(common_heads[name]) for name in REGRESSION}
