"""From what regions say to boxes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mmdet3d.models.heads.mono.geometry import ImageGeometry
from mmdet3d.models.heads.mono.targets import HEADING_BINS, decode_heading
from mmdet3d.models.steps import ImageCrops
from mmdet3d.registry import STEPS
from mmdet3d.structures import Batch, Detections3D, limit_period
from mmdet3d.structures.camera_boxes import boxes_from_kitti

__all__ = ["MonoDecoder", "decode_regions", "merge_depth"]

_LARGEST = 60.0  # of a log variance, whose double exponential would not stay finite


@STEPS.register
@dataclass(frozen=True)
class MonoDecoder:
    """From what is predicted in the regions around the peaks of the heat map to boxes.

    Args:
        mean_sizes: (K, 3) height, width, length by class, metres.
        score_threshold: least height of a peak.
        exact_affine: see `ImageGeometry.from_batch`.
        stride: network pixels per cell of the maps.
        map_size: height and width of the maps, cells.
    """

    mean_sizes: Sequence[Sequence[float]]
    score_threshold: float
    exact_affine: bool
    stride: int
    map_size: Sequence[int]

    @torch.no_grad()
    def __call__(self, regions: Mapping[str, Tensor], batch: Batch) -> list[Detections3D]:
        """Detections of each sample in the level camera frame, with 2-D boxes and observation angles."""
        crop = None if self.exact_affine else ImageCrops()(batch)
        geometry = ImageGeometry.from_batch(batch, self.stride, (self.map_size[0], self.map_size[1]), crop)
        sizes = regions["size_3d"].new_tensor(self.mean_sizes)
        return decode_regions(regions, geometry, sizes, self.score_threshold, len(batch))

    def comparable(self, regions: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Regions above the threshold, by class and place: peaks of one height come in any order."""
        kept = regions["scores"] >= self.score_threshold
        found = {name: value[kept] for name, value in regions.items()}
        rows, columns = self.map_size
        x, y = found["cells"].unbind(1)
        order = ((found["labels"] * rows + y) * columns + x).argsort()
        return {name: value[order] for name, value in found.items()}


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
