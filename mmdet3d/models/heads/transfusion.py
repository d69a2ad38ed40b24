"""The query-based detection head of TransFusion, without its image decoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmdet3d.models.heads.base import DetectionHead
from mmdet3d.models.heads.box_coder import decode_boxes
from mmdet3d.models.heads.config import TransFusionTesting, TransFusionTraining
from mmdet3d.models.heads.matching import HungarianAssigner3D
from mmdet3d.models.heads.targets import CenterTargets
from mmdet3d.models.heads.transfusion_decoder import REGRESSION, TransFusionDecoder
from mmdet3d.models.heads.transfusion_layers import (
    PredictionBranches,
    TransformerDecoderLayer,
    local_maxima,
    xavier_init,
)
from mmdet3d.models.layers import ConvModule
from mmdet3d.models.losses import clamped_sigmoid
from mmdet3d.registry import MODELS
from mmdet3d.structures import Batch, Boxes3D, Detections3D

__all__ = ["TransFusionHead"]

_PRIOR_LOGIT = -2.19


@MODELS.register
class TransFusionHead(DetectionHead):
    """Takes the best cells of a heatmap as queries and refines them by a transformer decoder (TransFusion).

    Args:
        in_channels: channels of the BEV.
        train_cfg: the raster, and what is learnt on it.
        test_cfg: how proposals become boxes.
        num_proposals: queries.
        num_classes: classes.
        auxiliary: every decoder layer is supervised, not only the last.
        hidden_channel: channels of queries and BEV inside the head.
        num_decoder_layers, num_heads, ffn_channel, dropout: of the decoder.
        nms_kernel_size: a query must be the maximum of a window of that many cells in its class.
        point_classes: labels of objects so small that every cell may be a query (nuScenes: pedestrian, traffic cone).
        bn_momentum: of every BatchNorm of the head.
        num_heatmap_convs: convolutions of the class branch.
        common_heads: per regressed quantity (channels, number of convolutions).
        loss_cls, loss_heatmap, loss_bbox: loss configs.

    Attributes:
        grid: the BEV raster of its input.

    Raises:
        ValueError: an unknown, missing or contradictory key.
    """

    def __init__(
        self,
        in_channels: int,
        train_cfg: TransFusionTraining,
        test_cfg: TransFusionTesting,
        num_proposals: int = 200,
        num_classes: int = 10,
        auxiliary: bool = True,
        hidden_channel: int = 128,
        num_decoder_layers: int = 1,
        num_heads: int = 8,
        nms_kernel_size: int = 3,
        point_classes: tuple[int, ...] = (8, 9),
        ffn_channel: int = 256,
        dropout: float = 0.1,
        bn_momentum: float = 0.1,
        num_heatmap_convs: int = 2,
        common_heads: Mapping[str, tuple[int, int]] | None = None,
        loss_cls: Mapping[str, Any] | None = None,
        loss_heatmap: Mapping[str, Any] | None = None,
        loss_bbox: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.num_proposals, self.num_classes, self.auxiliary = num_proposals, num_classes, auxiliary
        self.nms_kernel_size, self.point_classes = nms_kernel_size, tuple(point_classes)
        self.train_cfg, self.test_cfg = train_cfg, test_cfg
        self.grid = train_cfg.grid
        self._check()
        self.assigner = HungarianAssigner3D(train_cfg.point_cloud_range, train_cfg.assigner)
        self.loss_cls = MODELS.build(loss_cls or {"type": "FocalLoss"}, "loss_cls")
        self.loss_heatmap = MODELS.build(loss_heatmap or {"type": "GaussianFocalLoss"}, "loss_heatmap")
        self.loss_bbox = MODELS.build(loss_bbox or {"type": "L1Loss", "loss_weight": 0.25}, "loss_bbox")

        heads = common_heads or {name: (size, 2) for name, size in REGRESSION.items()}
        branches = _branches(heads) | {"heatmap": (num_classes, num_heatmap_convs)}
        self.shared_conv = nn.Conv2d(in_channels, hidden_channel, 3, padding=1)
        hidden = ConvModule(hidden_channel, hidden_channel, 3)
        final = nn.Conv2d(hidden_channel, num_classes, 3, padding=1)
        assert final.bias is not None
        nn.init.constant_(final.bias, _PRIOR_LOGIT)
        self.heatmap_head = nn.Sequential(hidden, final)
        self.class_encoding = nn.Conv1d(num_classes, hidden_channel, 1)
        layers = range(num_decoder_layers)
        self.decoder = nn.ModuleList(
            TransformerDecoderLayer(hidden_channel, num_heads, ffn_channel, dropout) for _ in layers
        )
        xavier_init(self.decoder)
        self.prediction_heads = nn.ModuleList(
            PredictionBranches(hidden_channel, branches, _PRIOR_LOGIT) for _ in layers
        )
        for module in self.modules():
            if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
                module.momentum = bn_momentum
        self.bev_pos: Tensor
        self.register_buffer("bev_pos", _cell_centers(*self.grid.shape), persistent=False)

    def forward(self, bev: Tensor) -> dict[str, Tensor]:
        """BEV (B, C, X, Y) to a dict.

        Returns:
            `center` (cells), `height`, `dim`, `rot`, `vel` and the logits `heatmap`, each (B, c, P) or, with
            `auxiliary`, (B, c, layers * P) with the last layer last; `dense_heatmap` (B, K, X, Y) logits;
            `query_heatmap_score` (B, K, P); `query_labels` (B, P).

        Raises:
            ValueError: the BEV has another size than the grid.
        """
        if tuple(bev.shape[-2:]) != self.grid.shape:
            raise ValueError(f"the head's grid is {self.grid}, but its input has {bev.shape[-2]}x{bev.shape[-1]} cells")
        features = self.shared_conv(bev)
        dense = self.heatmap_head(features)
        features = features.flatten(2)
        peaks = local_maxima(dense.detach().float().sigmoid(), self.nms_kernel_size, self.point_classes).flatten(2)
        best = peaks.flatten(1).topk(self.num_proposals).indices
        labels, cell = best // peaks.shape[2], best % peaks.shape[2]

        one_hot = F.one_hot(labels, self.num_classes).transpose(1, 2).to(features)
        query = _take(features, cell) + self.class_encoding(one_hot)
        position = self.bev_pos[0, cell]
        outputs = []
        for layer, predict in zip(self.decoder, self.prediction_heads, strict=True):
            query = layer(query, features, position, self.bev_pos)
            predicted = predict(query)
            predicted["center"] = predicted["center"].float() + position.transpose(1, 2)
            position = predicted["center"].detach().transpose(1, 2)
            outputs.append(predicted)
        used = outputs if self.auxiliary else outputs[-1:]
        return {name: torch.cat([o[name] for o in used], dim=2) for name in outputs[0]} | {
            "dense_heatmap": dense,
            "query_heatmap_score": _take(peaks, cell),
            "query_labels": labels,
        }

    # -- training ---------------------------------------------------------------------------------------------------

    def box_losses(
        self, raw: dict[str, Tensor], boxes: Sequence[Boxes3D], labels: Sequence[Tensor]
    ) -> dict[str, Tensor]:
        """Losses in float32; samples without boxes are fine.

        Args:
            raw: what `forward` returned.
            boxes, labels: ground truth of each sample.

        Returns:
            `loss_heatmap`; per supervised layer `layer_{i}_loss_cls` and `layer_{i}_loss_bbox` (-1 is the last); and
            `stats/matched_ious`, the mean IoU of the last layer's matched proposals.
        """
        objects = self.objects(boxes, labels)
        heat = self.heat(objects, len(boxes))
        with torch.autocast(heat.device.type, enabled=False):
            probability = clamped_sigmoid(raw["dense_heatmap"].float())
            losses = {"loss_heatmap": self.loss_heatmap(probability, heat, avg_factor=(heat == 1).sum().clamp(min=1))}
            code = torch.cat([raw[name].float() for name in REGRESSION], dim=1).transpose(1, 2)
            logits = raw["heatmap"].float().transpose(1, 2)
            layers = zip(code.split(self.num_proposals, 1), logits.split(self.num_proposals, 1), strict=True)
            count = code.shape[1] // self.num_proposals
            for i, (layer_code, layer_logits) in enumerate(layers):
                name = f"layer_{-1 if i == count - 1 else i}"
                cls, bbox, iou = self._layer_loss(layer_code, layer_logits, objects)
                losses |= {f"{name}_loss_cls": cls, f"{name}_loss_bbox": bbox, "stats/matched_ious": iou}
        return losses

    def _layer_loss(self, code: Tensor, logits: Tensor, objects: CenterTargets) -> tuple[Tensor, Tensor, Tensor]:
        """Classification and box loss of one layer (B, P, c), and the mean IoU of its matches."""
        target = torch.full(logits.shape[:2], self.num_classes, device=logits.device)
        predicted, wanted, ious = [], [], []
        for b in range(len(code)):
            mine = objects[objects.samples == b]
            boxes = decode_boxes(mine.codes, self.grid)
            rows, columns, iou = self.assigner(decode_boxes(code[b].detach(), self.grid), logits[b], boxes, mine.labels)
            target[b, rows] = mine.labels[columns]
            predicted.append(code[b, rows])
            wanted.append(mine.codes[columns])
            ious.append(iou)
        matched = max(sum(len(i) for i in ious), 1)
        weight = code.new_tensor(self.code_weights)
        truth = torch.cat(wanted)
        cls = self.loss_cls(logits.flatten(0, 1), target.flatten(), avg_factor=matched)
        bbox = self.loss_bbox(torch.cat(predicted), truth, weight.expand_as(truth), avg_factor=matched)
        return cls, bbox, torch.cat(ious).sum() / matched

    # -- inference --------------------------------------------------------------------------------------------------

    @property
    def box_decoder(self) -> TransFusionDecoder:
        """What makes boxes of the proposals."""
        return TransFusionDecoder(self.num_proposals, self.num_classes, self.point_classes, self.test_cfg, self.grid)

    def decode(self, raw: dict[str, Tensor], batch: Batch | None = None) -> list[Detections3D]:
        """Detections of each sample from the last layer; a query keeps the class that it was created for."""
        return self.box_decoder(raw)

    def _check(self) -> None:
        wrong = [label for label in self.point_classes if not 0 <= label < self.num_classes]
        if wrong:
            raise ValueError(f"point_classes names label {wrong[0]}, but num_classes is {self.num_classes}")
        candidates = self.num_classes * self.grid.shape[0] * self.grid.shape[1]
        if self.num_proposals > candidates:
            raise ValueError(f"num_proposals is {self.num_proposals}, but the grid offers {candidates} class cells")


def _take(features: Tensor, index: Tensor) -> Tensor:
    """(B, C, L) at `index` (B, P): (B, C, P)."""
    return features.gather(2, index[:, None].expand(-1, features.shape[1], -1))


def _cell_centers(size_x: int, size_y: int) -> Tensor:
    """(1, X * Y, 2) centres of all cells, in cells."""
    x, y = torch.meshgrid(torch.arange(size_x) + 0.5, torch.arange(size_y) + 0.5, indexing="ij")
    return torch.stack([x, y], dim=-1).reshape(1, -1, 2)


def _branches(common_heads: Mapping[str, tuple[int, int]]) -> dict[str, tuple[int, int]]:
    if {name: size for name, (size, _) in common_heads.items()} != REGRESSION:
        raise ValueError(f"common_heads must give {REGRESSION} channels, got {dict(common_heads)}")
    return {name: (common_heads[name][0], common_heads[name][1]) for name in REGRESSION}
