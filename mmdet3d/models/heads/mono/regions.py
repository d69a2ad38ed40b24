"""Regions around objects, and what is predicted from each."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmdet3d.models.heads.mono.geometry import ImageGeometry
from mmdet3d.models.heads.mono.layers import REGION
from mmdet3d.models.heads.mono.targets import ROI_SIZE
from mmdet3d.models.losses import clamped_sigmoid
from mmdet3d.ops.roi_align import roi_align

__all__ = ["EXTRA_CHANNELS", "at_cells", "find_peaks", "predict_boxes", "predict_regions", "region_features"]

EXTRA_CHANNELS = 2  # coordinates beside features and class in a region


def at_cells(maps: Tensor, image: Tensor, cells: Tensor) -> Tensor:
    """Values (N, C) of maps (B, C, H, W) at cells (N, 2) x, y of samples (N,)."""
    return maps[image, :, cells[:, 1], cells[:, 0]]


def find_peaks(logits: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The highest local maxima of each sample's heat maps.

    Args:
        logits: (B, K, H, W).
        count: per sample; all cells if there are fewer.

    Returns:
        Sample (N,), class (N,) and cell x, y (N, 2), int64, and probability (N,), in falling order within a sample.
    """
    heat = clamped_sigmoid(logits.float())
    heat = heat * (heat == F.max_pool2d(heat, 3, 1, 1))
    batch, _, height, width = heat.shape
    flat = heat.flatten(1)
    scores, index = flat.topk(min(count, flat.shape[1]))
    image = torch.arange(batch, device=heat.device)[:, None].expand_as(index)
    place = index % (height * width)
    cells = torch.stack([place % width, place // width], dim=-1)
    return image.flatten(), (index // (height * width)).flatten(), cells.flatten(0, 1), scores.flatten()


def predict_boxes(dense: Mapping[str, Tensor], image: Tensor, cells: Tensor) -> Tensor:
    """2-D boxes (N, 4) x1, y1, x2, y2 in cells that the maps predict at cells (N, 2)."""
    center = cells + at_cells(dense["offset_2d"], image, cells).float()
    half = at_cells(dense["size_2d"], image, cells).float() / 2
    return torch.cat([center - half, center + half], dim=1)


def region_features(
    features: Tensor, boxes: Tensor, image: Tensor, labels: Tensor, classes: int, geometry: ImageGeometry
) -> Tensor:
    """Features in the boxes, the viewing directions of their bins, and the class.

    Args:
        features: (B, C, H, W).
        boxes: (N, 4) cells; the viewing directions have gradients.

    Returns:
        (N, C + 2 + classes, 7, 7).
    """
    sampled = roi_align(features, torch.cat([image[:, None].to(boxes), boxes.detach()], dim=1), ROI_SIZE)
    ones = torch.ones_like(boxes[:, 0])
    first, last = (geometry.lift(geometry.to_pixels(boxes[:, k : k + 2], image), ones, image) for k in (0, 2))
    share = torch.linspace(0, 1, ROI_SIZE, dtype=boxes.dtype, device=boxes.device)
    x, y = ((first[:, k, None] + (last - first)[:, k, None] * share) for k in (0, 1))
    x, y = x[:, None, :].expand(-1, ROI_SIZE, -1), y[:, :, None].expand(-1, -1, ROI_SIZE)
    one_hot = F.one_hot(labels, classes).to(sampled)[:, :, None, None].expand(-1, -1, ROI_SIZE, ROI_SIZE)
    return torch.cat([sampled, torch.stack([x, y], dim=1), one_hot], dim=1)


def predict_regions(layers: Mapping[str, nn.Module], regions: Tensor, zoom: Tensor) -> dict[str, Tensor]:
    """What the region layers say, in float32.

    Args:
        layers: by name, see `layers.region_layers`.
        regions: (N, C, 7, 7); N = 0 asks nothing of the layers.
        zoom: (N,) network pixels per raw pixel, by which visual depth is scaled.

    Returns:
        `offset_3d` (N, 2) cells, `size_3d` (N, 3) metres beyond the class's mean, `heading` (N, 24) logits of sectors
        and residuals; (N, 7, 7) metres `visual`, `attribute` and their sum `depth`, and logarithms of their variances
        `visual_uncertainty`, `attribute_uncertainty`, `depth_uncertainty`.
    """
    raw = {name: layers[name](regions).float() if len(regions) else _nothing(layers[name], regions) for name in REGION}
    visual = torch.exp(-raw["vis_depth"][:, 0]) * zoom[:, None, None]
    attribute = raw["att_depth"][:, 0]
    unsure = torch.cat([raw["vis_depth_uncer"], raw["att_depth_uncer"]], dim=1)
    return {
        **{name: raw[name].flatten(1) for name in ("offset_3d", "size_3d", "heading")},
        "visual": visual,
        "attribute": attribute,
        "depth": visual + attribute,
        "visual_uncertainty": unsure[:, 0],
        "attribute_uncertainty": unsure[:, 1],
        "depth_uncertainty": unsure.logsumexp(1),
    }


def _nothing(layer: nn.Sequential, regions: Tensor) -> Tensor:
    """No region's output; the layer still takes part, or distributed training would wait for its gradient."""
    size = ROI_SIZE if layer[-1].out_channels == 1 else 1
    empty = regions.new_zeros(0, layer[-1].out_channels, size, size, dtype=torch.float32)
    return empty + 0.0 * sum(p.sum() for p in layer.parameters()).float()
