"""The scene from above."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import torch
from PIL import Image
from torch import Tensor

from mmdet3d.structures import PointSensor, by_sensor
from mmdet3d.visualization.areas import Areas
from mmdet3d.visualization.heat import Heat
from mmdet3d.visualization.layers import BACKGROUND, INK, TRUTH, Color, Layer
from mmdet3d.visualization.strokes import Pad

__all__ = ["draw_bev"]

_RING: Color = (222, 225, 230)
_LABEL: Color = (120, 125, 133)
_STEP = 10  # metres between two rings, and of the scale bar


class _Ground:
    """Metres to pixels: LiDAR x to the right, y (ahead in nuScenes) upwards."""

    def __init__(self, extent: float, size: int, heat: Heat | Areas | None = None) -> None:
        self.pad = Pad.blank((size, size)) if heat is None else Pad(heat.ground(extent, size), (size, size))
        self.extent = extent
        self.scale = size / (2 * extent)

    def pixels(self, xy: Tensor) -> list[list[float]]:
        flipped = torch.stack([xy[..., 0] + self.extent, self.extent - xy[..., 1]], dim=-1)
        return (flipped * self.scale).tolist()


def draw_bev(
    layers: Sequence[Layer],
    classes: Sequence[str],
    clouds: Mapping[str, Tensor] = MappingProxyType({}),
    extent: float = 54.0,
    size: int = 800,
    behind: float | None = None,
    heat: Heat | Areas | None = None,
) -> Image.Image:
    """Points of all sensors with their velocity, and boxes with heading and velocity over a second, from above.

    Rings every 10 m around the car, and below on the left a bar of 10 m.

    Args:
        layers: drawn in order, later ones on top.
        classes: class list of the labels.
        clouds: by the field of its sensor points as a `Sample` holds them, in the frame of the boxes.
        extent: half the side of the picture, metres.
        size: side of the picture, pixels.
        behind: cut the picture off so many metres behind the car.
        heat: a map over the ground, below everything else.
    """
    ground = _Ground(extent, size, heat)
    _rings(ground)
    for layer in layers:
        if layer.style == "filled":
            _areas(ground, layer)
    for sensor, points in by_sensor(clouds):
        _points(ground, sensor, points.cpu())
    for layer in layers:
        if layer.style != "filled":
            _boxes(ground, layer, classes)
    # The car itself, pointing ahead.
    ground.pad.polygon(ground.pixels(torch.tensor([[-0.9, -2.0], [0.9, -2.0], [0.0, 2.3]])), fill=INK)
    if isinstance(heat, Areas):
        ground.pad.text((8, 4), heat.title, INK, size=26, halo=BACKGROUND)
    _scale_bar(ground, size if behind is None else (extent + behind) * ground.scale)
    picture = ground.pad.finish()
    return picture if behind is None else picture.crop((0, 0, size, round((extent + behind) * ground.scale)))


def _rings(ground: _Ground) -> None:
    center = ground.pixels(torch.zeros(2))
    for radius in range(_STEP, int(ground.extent) + 1, _STEP):
        ground.pad.ring(center, radius * ground.scale, _RING, width=1)
        x, y = ground.pixels(radius * torch.tensor([-0.5, 0.75**0.5]))  # beside the road, where little stands
        ground.pad.text((x + 3, y + 1), f"{radius} m", _LABEL, size=22)


def _scale_bar(ground: _Ground, bottom: float) -> None:
    x, y, length = 10.0, bottom - 12, _STEP * ground.scale
    ground.pad.line((x, y), (x + length, y), INK, width=2)
    for end in (x, x + length):
        ground.pad.line((end, y - 5), (end, y + 5), INK, width=2)
    ground.pad.text((x + 4, y - 26), f"{_STEP} m", INK, size=16, halo=BACKGROUND)


def _areas(ground: _Ground, layer: Layer) -> None:
    for corners in ground.pixels(layer.boxes.to("cpu").footprint()):
        ground.pad.polygon(corners, fill=TRUTH)


def _points(ground: _Ground, sensor: PointSensor, points: Tensor) -> None:
    starts = ground.pixels(points[:, :2])
    if sensor.mark == "dot":
        ground.pad.dots(starts, sensor.color, size=0.5)
        return
    for start, end in zip(starts, ground.pixels(points[:, :2] + sensor.velocities(points)), strict=True):
        ground.pad.ring(start, 3, sensor.color, width=1)
        if sensor.velocity is not None:
            ground.pad.arrow(start, end, sensor.color, width=1)


def _boxes(ground: _Ground, layer: Layer, classes: Sequence[str]) -> None:
    boxes = layer.boxes.to("cpu")
    footprints = boxes.footprint()
    fronts = (footprints[:, 0] + footprints[:, 3]) / 2
    centers = boxes.centers[:, :2]
    rims, middles, noses, ahead = map(
        ground.pixels, (footprints, centers, fronts, centers + torch.nan_to_num(boxes.velocity))
    )
    for i, (color, text) in enumerate(zip(layer.colors(classes), layer.texts(), strict=True)):
        for corner in range(4):
            ground.pad.line(rims[i][corner], rims[i][(corner + 1) % 4], color, style=layer.style)
        ground.pad.line(middles[i], noses[i], color, style=layer.style)
        if layer.style == "dotted":
            ground.pad.ring(middles[i], _reach(middles[i], rims[i]), color, width=1.5)
        else:
            ground.pad.arrow(middles[i], ahead[i], color, width=1)
        if text:
            x, y = max(rims[i], key=lambda corner: corner[0] - corner[1])
            ground.pad.text((x + 3, y - 26), text, color, size=22, halo=BACKGROUND)


def _reach(middle: Sequence[float], rim: Sequence[Sequence[float]]) -> float:
    """Radius of a ring around a box, pixels."""
    return 6 + max(((x - middle[0]) ** 2 + (y - middle[1]) ** 2) ** 0.5 for x, y in rim)
