"""What is drawn: sets of boxes with a name and a line style, in the colours of their classes."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from PIL import ImageFont
from torch import Tensor

from mmdet3d.structures import Boxes3D, Detections3D

__all__ = [
    "BACKGROUND",
    "INK",
    "PALETTE",
    "SLIDE",
    "TRUTH",
    "Color",
    "Layer",
    "Style",
    "class_color",
    "fitting",
    "font",
]

Color = tuple[int, int, int]
Style = Literal["solid", "dashed", "dotted", "filled"]

# By class in small letters; KITTI's cyclists are bicycles. The hues are near those of Okabe and Ito ("Color Universal
# Design"), moved apart until any two classes differ for every kind of colour vision (tests/visualization).
PALETTE: dict[str, Color] = {
    "car": (37, 52, 242),
    "truck": (255, 161, 0),
    "construction_vehicle": (110, 9, 0),
    "bus": (26, 121, 90),
    "trailer": (104, 193, 219),
    "barrier": (77, 0, 150),
    "motorcycle": (193, 117, 255),
    "bicycle": (92, 24, 84),
    "pedestrian": (230, 0, 0),
    "traffic_cone": (137, 166, 95),
    "cyclist": (92, 24, 84),
}
_OTHER: Color = (110, 110, 110)
BACKGROUND: Color = (255, 255, 255)
INK: Color = (40, 40, 40)
TRUTH: Color = (205, 208, 213)
SLIDE = 1920  # width of a slide, pixels


@dataclass
class Layer:
    """Boxes that belong together in a picture.

    Args:
        title: for the legend ("ground truth", "false").
        boxes: in the frame of the points they are drawn with.
        labels: (N,) indices into the class list, -1 for other classes.
        style: of the lines; `filled` is a grey area from above and thin white lines in an image, whatever the class.
            What is `dotted` also gets a ring.
        scores: (N,) to write beside the boxes; None for no text.
        hidden: how many more there are that are not drawn, because each lies on a drawn one.
    """

    title: str
    boxes: Boxes3D
    labels: Tensor
    style: Style = "solid"
    scores: Tensor | None = None
    hidden: int = 0

    @classmethod
    def from_detections(
        cls, title: str, detections: Detections3D, style: Style = "solid", with_scores: bool = False
    ) -> Layer:
        found = detections.to("cpu")
        return cls(title, found.boxes, found.labels, style, found.scores if with_scores else None)

    def __getitem__(self, index: Tensor) -> Layer:
        """The boxes of an index or mask."""
        scores = None if self.scores is None else self.scores[index]
        return Layer(self.title, self.boxes[index], self.labels[index], self.style, scores, self.hidden)

    def select(self, labels: Collection[int]) -> Layer:
        """The boxes with one of these labels."""
        return self[torch.isin(self.labels, torch.tensor(list(labels), dtype=self.labels.dtype))]

    def colors(self, classes: Sequence[str]) -> list[Color]:
        """The colour of each box."""
        return [class_color(label, classes) for label in self.labels.tolist()]

    def texts(self) -> list[str]:
        """What is written beside each box."""
        return [""] * len(self.boxes) if self.scores is None else [f"{s:.2f}" for s in self.scores.tolist()]


def class_color(label: int, classes: Sequence[str]) -> Color:
    return PALETTE.get(classes[label].lower(), _OTHER) if label >= 0 else _OTHER


def font(size: int = 22) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    return ImageFont.load_default(size)


def fitting(text: str, width: float, size: int, least: int = 10) -> int:
    """The largest font size up to `size`, and down to `least`, in which the text is no wider than `width` pixels."""
    return next((s for s in range(size, least, -1) if font(s).getlength(text) <= width), least)
