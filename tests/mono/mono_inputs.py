"""Small models and batches for tests of detectors that look through one camera."""

from __future__ import annotations

import torch
from torch import Tensor

from mmdet3d.models import build_model
from mmdet3d.models.detectors import MonoDetector
from mmdet3d.models.heads.mono.geometry import ImageGeometry
from mmdet3d.structures import Batch, Calibration, ImageObjects, Sample, limit_period
from mmdet3d.structures.camera_boxes import CAMERA_TO_LEVEL

CLASSES = ("Pedestrian", "Car", "Cyclist")
MEAN_SIZES = {
    "Pedestrian": [1.76255119, 0.66068622, 0.84422524],
    "Car": [1.52563191462, 1.62856739989, 3.88311640418],
    "Cyclist": [1.73698127, 0.59706367, 1.76282397],
}
# P2 of a KITTI frame, with the offset of the left colour camera.
P2 = torch.tensor([[721.5377, 0, 609.5593, 44.85728], [0, 721.5377, 172.854, 0.2163791], [0, 0, 1, 0.002745884]])
IMAGE_SIZE = (1242, 375)


def small_model(**changes: object) -> MonoDetector:
    """A narrow twin; always the same weights, and sizes near the mean of the class."""
    torch.manual_seed(0)
    cfg = {
        "type": "MonoDetector",
        "backbone": {"type": "DLA", "base_channels": 2},
        "neck": {"type": "DLAUp", "in_channels": [8, 16, 32, 64]},
        "classes": CLASSES,
        "mean_sizes": MEAN_SIZES,
        "head_channels": 16,
    }
    model = build_model(cfg | changes)
    torch.nn.init.normal_(model.size_3d[-1].weight, std=0.01)
    return model


def image_aug(size: tuple[int, int], crop: float = 1.0, shift: tuple[float, float] = (0.0, 0.0)) -> Tensor:
    """Raw KITTI pixels to network pixels of an image of `size` (height, width), as in training."""
    zoom = size[1] / (IMAGE_SIZE[0] * crop)
    matrix = torch.eye(4)
    matrix[0, 0] = matrix[1, 1] = zoom
    for axis in range(2):
        center = IMAGE_SIZE[axis] * (0.5 + shift[axis])
        matrix[axis, 3] = size[1 - axis] / 2 - zoom * center
    return matrix


def calibration(aug: Tensor) -> Calibration:
    intrinsics = torch.eye(4)
    intrinsics[:3] = P2
    rect2lidar = CAMERA_TO_LEVEL.float()[None]
    return Calibration(torch.eye(4), torch.eye(4), rect2lidar, rect2lidar, intrinsics[None], aug[None], torch.eye(4))


def objects(rows: list[tuple[int, float, float, float, float]]) -> ImageObjects:
    """Objects of mean size from (label, x, y, z of the centre, yaw); 2-D boxes of a plausible size."""
    if not rows:
        return ImageObjects.empty()
    table = torch.tensor([row[1:] for row in rows])
    labels = torch.tensor([row[0] for row in rows])
    centers, yaws = table[:, :3], table[:, 3]
    sizes = torch.tensor([MEAN_SIZES[CLASSES[k]] for k in labels]) * 1.05
    middle = (centers @ P2[:2, :3].T + P2[:2, 3]) / centers[:, 2:] + 1.5
    half = 721.5377 / centers[:, 2:] * torch.stack([sizes[:, 1] * 0.7, sizes[:, 0] * 0.5], dim=1)
    boxes2d = torch.cat([middle - half, middle + half], dim=1)
    alphas = limit_period(yaws - torch.atan2(middle[:, 0] - P2[0, 2], P2[0, 0]))
    regressed = torch.ones(len(labels), dtype=torch.bool)
    return ImageObjects(labels, boxes2d, sizes, centers, yaws, alphas, regressed)


STREET = [(1, -3.0, 0.9, 14.0, 0.3), (1, 4.0, 1.0, 25.0, -1.5), (0, 0.5, 0.8, 11.0, 2.9)]


def make_batch(
    rows: list[list[tuple]] = (STREET, STREET[:1]),
    size: tuple[int, int] = (96, 320),
    crop: float = 1.0,
    shift: tuple[float, float] = (0.0, 0.0),
    seed: int = 0,
) -> Batch:
    """Images of noise; depth maps that agree with the objects."""
    generator = torch.Generator().manual_seed(seed)
    samples = []
    for number, row in enumerate(rows):
        aug = image_aug(size, crop, shift)
        found = objects(list(row))
        depth = torch.full(size, 40.0)
        corners = found.boxes2d.view(-1, 2, 2) * aug[0, 0] + aug[:2, 3]
        for (x1, y1), (x2, y2), z in zip(*corners.round().int().clamp(0).unbind(1), found.centers[:, 2], strict=True):
            depth[y1:y2, x1:x2] = z - 0.5
        meta = {"image_size": IMAGE_SIZE, "crop_scale": crop}
        images = torch.randn(1, 3, *size, generator=generator)
        samples.append(Sample(str(number), calibration(aug), images, depths=depth[None], objects=found, meta=meta))
    return Batch.collate(samples)


def perfect_regions(batch: Batch, stride: int = 4) -> tuple[dict[str, Tensor], ImageGeometry, Tensor]:
    """What regions would say of the ground truth, the geometry, and the mean sizes."""
    from mmdet3d.models.heads.mono.targets import HEADING_BINS, encode_objects

    size = tuple(n // stride for n in batch.images.shape[-2:])
    geometry = ImageGeometry.from_batch(batch, stride, size)
    means = torch.tensor([MEAN_SIZES[name] for name in CLASSES])
    t = encode_objects(batch.objects, geometry, size, means)
    heading = torch.zeros(len(t), 2 * HEADING_BINS)
    rows = torch.arange(len(t))
    heading[rows, t.heading_bin] = 5.0
    heading[rows, HEADING_BINS + t.heading_bin] = t.heading_residual
    regions = {
        "image": t.image, "labels": t.labels, "cells": t.cells, "boxes": t.boxes, "scores": torch.full((len(t),), 0.9),
        "offset_3d": t.offset_3d, "size_3d": t.size_3d, "heading": heading,
        "depth": t.depth[:, None, None].expand(-1, 7, 7), "depth_uncertainty": torch.full((len(t), 7, 7), -4.0),
    }  # fmt: skip
    return regions, geometry, means
