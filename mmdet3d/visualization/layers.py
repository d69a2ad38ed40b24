"""What is drawn: sets of boxes with a name and a colour, and the legend that explains them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from mmdet3d.structures import Boxes3D, Detections3D

__all__ = ["BACKGROUND", "INK", "PALETTE", "RADAR", "Color", "Layer", "draw_legend", "font"]

Color = tuple[int, int, int]

# The colours of the nuScenes devkit, by class in small letters; KITTI's cyclists are bicycles.
PALETTE: dict[str, Color] = {
    "car": (255, 158, 0),
    "truck": (255, 99, 71),
    "construction_vehicle": (233, 150, 70),
    "bus": (255, 69, 0),
    "trailer": (255, 140, 0),
    "barrier": (112, 128, 144),
    "motorcycle": (255, 61, 99),
    "bicycle": (220, 20, 60),
    "pedestrian": (0, 0, 230),
    "traffic_cone": (47, 79, 79),
    "cyclist": (220, 20, 60),
}
_OTHER: Color = (148, 103, 189)
BACKGROUND: Color = (255, 255, 255)
INK: Color = (40, 40, 40)
RADAR: Color = (200, 0, 160)
_ROW = 20


@dataclass
class Layer:
    """Boxes that belong together in a picture.

    Args:
        title: for the legend ("ground truth", "student").
        boxes: in the frame of the points they are drawn with.
        labels: (N,) indices into the class list, -1 for other classes.
        color: one colour for all; None colours by class.
    """

    title: str
    boxes: Boxes3D
    labels: Tensor
    color: Color | None = None

    @classmethod
    def from_detections(
        cls, title: str, detections: Detections3D, min_score: float = 0.0, color: Color | None = None
    ) -> Layer:
        """The detections with a score of at least `min_score`."""
        kept = detections[detections.scores >= min_score].to("cpu")
        return cls(title, kept.boxes, kept.labels, color)

    def select(self, labels: Sequence[int]) -> Layer:
        """The boxes with one of these labels."""
        keep = torch.isin(self.labels, torch.tensor(list(labels), dtype=self.labels.dtype))
        return Layer(self.title, self.boxes[keep], self.labels[keep], self.color)

    def colors(self, classes: Sequence[str]) -> list[Color]:
        """The colour of each box."""
        return [self.color or _class_color(label, classes) for label in self.labels.tolist()]


def _class_color(label: int, classes: Sequence[str]) -> Color:
    return PALETTE.get(classes[label].lower(), _OTHER) if label >= 0 else _OTHER


def font(size: int = 13) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    return ImageFont.load_default(size)


def draw_legend(layers: Sequence[Layer], classes: Sequence[str], width: int, radar: bool = False) -> Image.Image:
    """A strip that names the layers with their number of boxes, the classes that occur in class colours, and radar."""
    entries = [*_entries(layers, classes), *([(RADAR, "radar, moving on for 1 s")] if radar else [])]
    places, rows = _arrange(entries, width)
    strip = Image.new("RGB", (width, rows * _ROW + 8), BACKGROUND)
    draw = ImageDraw.Draw(strip)
    for x, row, color, text in places:
        y = 4 + row * _ROW
        if color is not None:
            draw.rectangle((x, y + 3, x + 14, y + 14), fill=color)
        draw.text((x + (20 if color is not None else 0), y), text, fill=INK, font=font())
    return strip


def _entries(layers: Sequence[Layer], classes: Sequence[str]) -> Iterator[tuple[Color | None, str]]:
    for layer in layers:
        yield layer.color, f"{layer.title}: {len(layer.boxes)} boxes"
    present = {label for layer in layers if layer.color is None for label in layer.labels.tolist()}
    for label in sorted(present):
        yield _class_color(label, classes), classes[label] if label >= 0 else "other class"


def _arrange(
    entries: Sequence[tuple[Color | None, str]], width: int
) -> tuple[list[tuple[int, int, Color | None, str]], int]:
    """x and row of every entry, and the number of rows."""
    places, x, row = [], 6, 0
    for color, text in entries:
        extent = int(font().getlength(text)) + 40
        if x > 6 and x + extent > width:
            x, row = 6, row + 1
        places.append((x, row, color, text))
        x += extent
    return places, row + 1
