"""Ground truth of a single image, for detectors that look through one camera."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from mmdet3d.structures.boxes import limit_period

__all__ = ["ImageObjects"]

_WIDTHS = {"boxes2d": 4, "sizes": 3, "centers": 3}


@dataclass
class ImageObjects:
    """Objects of one image in the rectified camera frame (x right, y down, z forward), metres and radians.

    Args:
        labels: (M,) int64, index into the class list.
        boxes2d: (M, 4) x1, y1, x2, y2 in pixels of the raw image.
        sizes: (M, 3) height, width, length.
        centers: (M, 3) gravity centres.
        yaws: (M,) rotation about the camera's y axis: 0 faces +x, pi / 2 faces the camera.
        alphas: (M,) observation angle: the yaw as seen along the ray through the middle of the 2-D box.
        regressed: (M,) bool; an object that is not regressed only draws on the heat map of its class.

    Raises:
        ValueError: lengths or shapes that do not fit together.
    """

    labels: Tensor
    boxes2d: Tensor
    sizes: Tensor
    centers: Tensor
    yaws: Tensor
    alphas: Tensor
    regressed: Tensor

    def __post_init__(self) -> None:
        for field in fields(self):
            columns = (_WIDTHS[field.name],) if field.name in _WIDTHS else ()
            shape = (len(self.labels), *columns)
            if tuple(getattr(self, field.name).shape) != shape:
                found = tuple(getattr(self, field.name).shape)
                raise ValueError(f"{field.name} of ImageObjects must have shape {shape}, got {found}")

    @classmethod
    def empty(cls) -> ImageObjects:
        none = torch.zeros(0)
        return cls(
            labels=none.long(),
            boxes2d=none.view(0, 4),
            sizes=none.view(0, 3),
            centers=none.view(0, 3),
            yaws=none,
            alphas=none,
            regressed=none.bool(),
        )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: Tensor | slice) -> ImageObjects:
        return ImageObjects(**{f.name: getattr(self, f.name)[index] for f in fields(self)})

    def to(self, device: torch.device | str, non_blocking: bool = False) -> ImageObjects:
        return ImageObjects(
            **{f.name: getattr(self, f.name).to(device, non_blocking=non_blocking) for f in fields(self)}
        )

    def flip(self, width: float) -> ImageObjects:
        """The objects in the mirror image of an image `width` pixels wide; twice gives them back."""
        x1, y1, x2, y2 = self.boxes2d.unbind(1)
        return replace(
            self,
            boxes2d=torch.stack([width - x2, y1, width - x1, y2], dim=1),
            centers=self.centers * self.centers.new_tensor([-1.0, 1.0, 1.0]),
            yaws=limit_period(torch.pi - self.yaws),
            alphas=limit_period(torch.pi - self.alphas),
        )
