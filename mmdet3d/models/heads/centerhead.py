"""The centre-based detection head of CenterPoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mmdet3d.models.heads.base import DetectionHead
from mmdet3d.models.heads.branches import SeparateHead, run_together
from mmdet3d.models.heads.center_decoder import REGRESSION, CenterDecoder
from mmdet3d.models.heads.config import CenterHeadTesting, HeadTraining, SeparateHeadSettings
from mmdet3d.models.heads.targets import CenterTargets
from mmdet3d.models.layers import ConvModule
from mmdet3d.models.losses import clamped_sigmoid
from mmdet3d.registry import MODELS
from mmdet3d.structures import Batch, Boxes3D, Detections3D

__all__ = ["REGRESSION", "CenterHead"]


@MODELS.register
class CenterHead(DetectionHead):
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
        self.num_classes = len(self.classes)
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

    def box_losses(
        self, raw: list[dict[str, Tensor]], boxes: Sequence[Boxes3D], labels: Sequence[Tensor]
    ) -> dict[str, Tensor]:
        """Detection losses in float32; samples without boxes are fine.

        Args:
            raw: what `forward` returned.
            boxes, labels: ground truth of each sample.

        Returns:
            `heatmap/task{t}` and `bbox/task{t}` for every task.
        """
        objects = self.objects(boxes, labels)
        heat = self.heat(objects, len(boxes))
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

    def _box_loss(self, predicted: Mapping[str, Tensor], objects: CenterTargets) -> Tensor:
        code = self.codes_at(predicted, objects).float()
        target = objects.codes.clone()
        target[:, :2] -= objects.cells
        weight = target.new_tensor(self.code_weights).expand_as(target)
        return self.loss_bbox(code, target, weight, avg_factor=len(objects) + 1e-4)

    @staticmethod
    def codes_at(predicted: Mapping[str, Tensor], objects: CenterTargets) -> Tensor:
        """The ten regressed numbers (N, 10) of one task at the cells of `objects`, in the order of `REGRESSION`."""
        x, y = objects.cells.unbind(1)
        return torch.cat([predicted[name][objects.samples, :, x, y] for name in REGRESSION], dim=1)

    # -- inference --------------------------------------------------------------------------------------------------

    @property
    def box_decoder(self) -> CenterDecoder:
        """What makes boxes of the maps."""
        return CenterDecoder(self.tasks, self.test_cfg, self.grid, self.norm_bbox)

    def decode(self, raw: list[dict[str, Tensor]], batch: Batch | None = None) -> list[Detections3D]:
        """Detections of each sample: candidates above the threshold and inside the range, suppressed per task."""
        return self.box_decoder(raw)


def _branches(common_heads: Mapping[str, tuple[int, int]]) -> dict[str, tuple[int, int]]:
    if {name: size for name, (size, _) in common_heads.items()} != REGRESSION:
        raise ValueError(f"common_heads must give {REGRESSION} channels, got {dict(common_heads)}")
    return {name: (common_heads[name][0], common_heads[name][1]) for name in REGRESSION}
