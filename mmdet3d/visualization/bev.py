"""The scene from above."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from mmdet3d.visualization.layers import BACKGROUND, INK, RADAR, Color, Layer, font

__all__ = ["draw_bev"]

_POINT: Color = (165, 170, 178)
_RING: Color = (215, 220, 226)


class _Canvas:
    """Metres to pixels: LiDAR x to the right, y (ahead in nuScenes) upwards."""

    def __init__(self, extent: float, size: int) -> None:
        self.image = Image.new("RGB", (size, size), BACKGROUND)
        self.draw = ImageDraw.Draw(self.image)
        self.extent = extent
        self.scale = size / (2 * extent)

    def pixels(self, xy: Tensor) -> np.ndarray:
        flipped = torch.stack([xy[..., 0] + self.extent, self.extent - xy[..., 1]], dim=-1)
        return (flipped * self.scale).numpy()

    def line(self, ends: Tensor, color: Color, width: int = 1) -> None:
        self.draw.line([tuple(p) for p in self.pixels(ends).tolist()], fill=color, width=width)


def draw_bev(
    layers: Sequence[Layer],
    classes: Sequence[str],
    points: Tensor | None = None,
    radar: Tensor | None = None,
    extent: float = 54.0,
    size: int = 800,
    behind: float | None = None,
) -> Image.Image:
    """Points, radar detections with their velocity, and boxes with heading and velocity over a second, from above.

    Args:
        layers: drawn in order, later ones on top.
        classes: class list of the labels.
        points: (P, >=2) metres, in the frame of the boxes.
        radar: (R, >=6): x, y, ., ., vx, vy; metres and m/s, in the frame of the boxes.
        extent: half the side of the picture, metres.
        size: side of the picture, pixels.
        behind: cut the picture off so many metres behind the car.
    """
    canvas = _Canvas(extent, size)
    _rings(canvas)
    if points is not None:
        _points(canvas, points)
    if radar is not None:
        _radar(canvas, radar)
    for layer in layers:
        _boxes(canvas, layer, classes)
    # The car itself, pointing ahead.
    canvas.draw.polygon(
        [tuple(p) for p in canvas.pixels(torch.tensor([[-0.9, -2.0], [0.9, -2.0], [0.0, 2.3]])).tolist()], fill=INK
    )
    if behind is None:
        return canvas.image
    return canvas.image.crop((0, 0, size, round((extent + behind) * canvas.scale)))


def _rings(canvas: _Canvas) -> None:
    for radius in range(10, int(canvas.extent) + 1, 10):
        left, top, right, bottom = canvas.pixels(torch.tensor([[-1.0, 1], [1, -1]]) * radius).reshape(-1)
        canvas.draw.ellipse((left, top, right, bottom), outline=_RING)
        canvas.draw.text((right - 24, (top + bottom) / 2), f"{radius} m", fill=_POINT, font=font(11))


def _points(canvas: _Canvas, points: Tensor) -> None:
    columns, rows = canvas.pixels(points[:, :2].cpu()).astype(int).T
    size = canvas.image.width
    seen = (columns >= 0) & (columns < size) & (rows >= 0) & (rows < size)
    pixels = np.array(canvas.image)
    pixels[rows[seen], columns[seen]] = _POINT
    canvas.image.paste(Image.fromarray(pixels))


def _radar(canvas: _Canvas, radar: Tensor) -> None:
    radar = radar.cpu()
    for (x, y), ends in zip(
        canvas.pixels(radar[:, :2]), torch.stack([radar[:, :2], radar[:, :2] + radar[:, 4:6]], dim=1), strict=True
    ):
        canvas.draw.ellipse((x - 3, y - 3, x + 3, y + 3), outline=RADAR, width=2)
        canvas.line(ends, RADAR)


def _boxes(canvas: _Canvas, layer: Layer, classes: Sequence[str]) -> None:
    boxes = layer.boxes.to("cpu")
    footprints = boxes.footprint()
    fronts = (footprints[:, 0] + footprints[:, 3]) / 2
    centers = boxes.centers[:, :2]
    ahead = centers + torch.nan_to_num(boxes.velocity)
    for i, color in enumerate(layer.colors(classes)):
        canvas.line(footprints[i, [0, 1, 2, 3, 0]], color, width=2)
        canvas.line(torch.stack([centers[i], fronts[i]]), color, width=2)
        canvas.line(torch.stack([centers[i], ahead[i]]), color)
