"""From what regions say to boxes."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from mmdet3d.models.heads.mono.geometry import ImageGeometry
from mmdet3d.models.heads.mono.targets import HEADING_BINS, decode_heading
from mmdet3d.structures import Detections3D, limit_period
from mmdet3d.structures.camera_boxes import boxes_from_kitti

__all__ = ["decode_regions", "merge_depth"]

_LARGEST = 60.0  # of a log variance, whose double exponential would not stay finite


def decode_regions(
    regions: Mapping[str, Tensor], geometry: ImageGeometry, mean_sizes: Tensor, threshold: float, batch_size: int
) -> list[Detections3D]:
    """Detections in the level camera frame, by sample; within one in the order of the regions.

    A region counts if its peak reaches `threshold`; its score is the peak times the confidence in its depth, so scores
    can be lower than `threshold`. Regions of a negative size are dropped.

    Args:
        regions: see `regions.predict_regions`; also `image`, `labels` (N,), `cells` (N, 2), `boxes` (N, 4) in cells
            and `scores` (N,), the heights of the peaks.
        mean_sizes: (K, 3) height, width, length by class, metres.
    """
    image, labels = regions["image"], regions["labels"]
    depth, confidence = merge_depth(regions["depth"], regions["depth_uncertainty"])
    boxes = regions["boxes"]
    corners = [geometry.to_pixels(boxes[:, k : k + 2], image) for k in (0, 2)]
    center = geometry.lift(geometry.to_pixels(regions["cells"] + regions["offset_3d"], image), depth, image)
    sizes = regions["size_3d"] + mean_sizes[labels]
    bottom = torch.cat([center[:, :1], center[:, 1:2] + sizes[:, :1] / 2, center[:, 2:]], dim=1)
    sector = regions["heading"][:, :HEADING_BINS].argmax(1)
    residual = regions["heading"][:, HEADING_BINS:].gather(1, sector[:, None])[:, 0]
    alphas = decode_heading(sector, residual)
    yaws = limit_period(alphas + geometry.bearing((corners[0] + corners[1])[:, 0] / 2, image))
    found = Detections3D(
        boxes=boxes_from_kitti(torch.cat([sizes, bottom, yaws[:, None]], dim=1)),
        scores=regions["scores"] * confidence,
        labels=labels,
        boxes2d=torch.cat(corners, dim=1),
        alphas=alphas,
    )
    kept = (regions["scores"] >= threshold) & (sizes >= 0).all(1)
    return [found[kept & (image == i)] for i in range(batch_size)]


def merge_depth(depth: Tensor, log_variance: Tensor) -> tuple[Tensor, Tensor]:
    """Depths (N, 7, 7) weighted by exp(-standard deviation), and the mean of these weights, so weighted: (N,), (N,)."""
    log_weight = -torch.exp(log_variance.clamp(max=_LARGEST) / 2).flatten(1)
    share = log_weight.softmax(1)
    return (share * depth.flatten(1)).sum(1), (share * log_weight.exp()).sum(1)
