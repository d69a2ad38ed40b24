"""Where models look: values of a tap, and gradients of distillation losses, as maps for pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from mmdet3d.datasets.scene import Scene
from mmdet3d.distill.distiller import Distiller
from mmdet3d.models.detectors.base import Detector
from mmdet3d.structures import Batch, BEVGrid
from mmdet3d.visualization import Heat

__all__ = ["TapMap", "difference", "loss_map", "tap_map"]

_TOP = 0.99  # the share of cells below what is drawn in the strongest colour
_PEAK = 4  # which is at least a fourth of the peak


@dataclass(frozen=True)
class TapMap:
    """One number per cell of the ground or per pixel of each camera, of one sample.

    Args:
        values: (X, Y) or (N, h, w), in [0, 1].
        grid: of the cells; None for cameras.
        input_size: height and width of the images that the detector reads; None without cameras.
    """

    values: Tensor
    grid: BEVGrid | None
    input_size: tuple[int, int] | None

    def heat(self, title: str, scene: Scene, batch: Batch, signed: bool = False) -> Heat:
        """As it is drawn into the pictures of `scene`, which shows the one sample of `batch`."""
        if self.grid is not None:
            return Heat(title, self.values, self.grid, scene.from_detections, signed=signed)
        calibration = replace(scene.calibration, image_aug=batch.calibration.image_aug[0].cpu())
        return Heat(title, self.values, None, None, calibration, self.input_size, signed)


@torch.no_grad()
def tap_map(detector: Detector, batch: Batch, tap: str) -> TapMap:
    """How strong a tap answers, place by place.

    Features: the length of the vector of channels, over its 99th percentile in this sample, so that models whose
    features have other magnitudes can be compared. Heat maps of a head: the highest probability of any class.

    Args:
        batch: one sample, on the detector's device.

    Raises:
        ValueError: no such tap, or its value is no map.
    """
    value = detector.extract(batch, [tap])[tap]
    heatmaps = _heatmaps(value)
    if heatmaps:
        found = torch.cat(heatmaps, dim=1).float().sigmoid().amax(dim=1)
        return _placed(found, detector, batch, tap)
    strength = _tensors(value)[0].float().norm(dim=1) if _tensors(value) else None
    return _placed(_scaled(strength), detector, batch, tap)


def loss_map(distiller: Distiller, batch: Batch, name: str) -> TapMap:
    """Where a distillation loss pulls the student: the length of its gradient in every place of the tap that it reads.

    It asks nothing of a loss but that it is one, so it works for those that compare objects or relations too. The
    values are scaled as features are in `tap_map`.

    Args:
        distiller: after `setup_training`, in eval mode.
        batch: one sample with ground truth.
        name: of the loss.

    Raises:
        ValueError: no such loss, or what it reads is no map.
    """
    pulls = _tensors(distiller.pulls(batch, name))
    size = pulls[0].shape[-2:] if pulls else None
    squares = [pull.float().square().sum(dim=1) for pull in pulls if pull.shape[-2:] == size]
    length = torch.stack(squares).sum(dim=0).sqrt() if squares else None
    return _placed(_scaled(length), distiller.student, batch, f"of the loss {name}")


def difference(teacher: TapMap, student: TapMap) -> TapMap:
    """What the student has more (positive) or less than the teacher, in [-1, 1], on the teacher's cells.

    Raises:
        ValueError: one lies on the ground and the other in the images.
    """
    if (teacher.grid is None) != (student.grid is None):
        raise ValueError("the taps cannot be compared: one is a map of the ground, the other of the images")
    values = student.values
    if values.shape != teacher.values.shape:
        maps = values.reshape(1, -1, *values.shape[-2:])
        values = F.interpolate(maps, teacher.values.shape[-2:], mode="bilinear").reshape(teacher.values.shape)
    return replace(teacher, values=values - teacher.values)


def _heatmaps(value: Any) -> list[Tensor]:
    tasks = [value] if isinstance(value, Mapping) else value if isinstance(value, Sequence) else []
    return [task["heatmap"] for task in tasks if isinstance(task, Mapping) and "heatmap" in task]


def _tensors(value: Any) -> list[Tensor]:
    """The maps of a tap, cameras in rows of their own; of several levels the finest comes first."""
    found = list(value) if isinstance(value, (list, tuple)) else [value]
    found = [tensor.flatten(0, -4) for tensor in found if isinstance(tensor, Tensor) and tensor.dim() in (4, 5)]
    return sorted(found, key=lambda tensor: -tensor.shape[-1])


def _scaled(values: Tensor | None) -> Tensor | None:
    if values is None:
        return None
    top = torch.quantile(values.flatten()[:: max(1, values.numel() // 10**6)], _TOP)
    top = torch.maximum(top, values.max() / _PEAK)  # where hardly a cell answers, what lies below stays below
    return (values / top.clamp(min=1e-12)).clamp(max=1)


def _placed(values: Tensor | None, detector: Detector, batch: Batch, tap: str) -> TapMap:
    """Rows of one sample: one map of the ground, or as many as there are cameras."""
    images = None if batch.images is None else (batch.images.shape[-2], batch.images.shape[-1])
    cameras = 0 if batch.images is None else batch.images.shape[1]
    shape = (0, 0) if values is None else (values.shape[-2], values.shape[-1])
    grid = detector.grid
    # The map of a single camera is no raster of the ground, either: it has other proportions.
    if values is not None and grid and len(values) == 1 and shape[0] * grid.shape[1] == shape[1] * grid.shape[0]:
        along_x, along_y = (c * n / k for c, n, k in zip(grid.cell, grid.shape, shape, strict=True))
        return TapMap(values[0].cpu(), BEVGrid(grid.lower, (along_x, along_y), shape), images)
    if values is not None and len(values) == cameras:
        return TapMap(values.cpu(), None, images)
    raise ValueError(
        f"tap {tap} of {type(detector).__name__} is no map that can be drawn; its taps: {', '.join(detector.taps)}"
    )
