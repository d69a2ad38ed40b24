"""What a picture of a sample shows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from PIL import Image
from torch import Tensor

from mmdet3d.structures import BEVMasks, Boxes3D, Calibration

__all__ = ["Scene"]


@dataclass
class Scene:
    """A sample as it is drawn: its raw images, and everything else in one frame, x right, y ahead, z up, metres.

    Args:
        calibration: of the raw images; its LiDAR frame is the scene's.
        images: one per camera.
        names: of the cameras.
        boxes: ground truth; None where there is none.
        labels: (M,) of the boxes.
        clouds: points by the field of their sensor, as in a `Sample`.
        from_detections: (4, 4), the frame of a detector's boxes and maps to the scene's; it may mirror.
        masks: ground truth of the map, in the frame of a detector's maps.
        behind: metres of the ground behind the car that are worth showing; None: as many as ahead.
    """

    calibration: Calibration
    images: list[Image.Image]
    names: list[str]
    boxes: Boxes3D | None = None
    labels: Tensor | None = None
    clouds: Mapping[str, Tensor] = field(default_factory=dict)
    from_detections: Tensor = field(default_factory=lambda: torch.eye(4))
    behind: float | None = None
    masks: BEVMasks | None = None
