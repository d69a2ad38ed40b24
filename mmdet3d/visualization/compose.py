"""Whole pictures out of views."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from PIL import Image, ImageDraw
from torch import Tensor

from mmdet3d.structures import Calibration
from mmdet3d.visualization.bev import draw_bev
from mmdet3d.visualization.cameras import draw_cameras
from mmdet3d.visualization.layers import BACKGROUND, INK, Layer, draw_legend, font

__all__ = ["draw_frame", "side_by_side"]

_TITLE = 28
_GAP = 8
_TILE, _ALONE = 640, 1280  # width of a camera image among others, and of a single one


def draw_frame(
    layers: Sequence[Layer],
    classes: Sequence[str],
    calibration: Calibration,
    images: Sequence[Image.Image] = (),
    names: Sequence[str] | None = None,
    points: Tensor | None = None,
    radar: Tensor | None = None,
    extent: float = 54.0,
    behind: float | None = None,
    tall: bool = False,
) -> Image.Image:
    """Camera mosaic and bird's-eye view next to each other (`tall`: one above the other), the legend below.

    Other arguments as in `draw_cameras` and `draw_bev`; without images the bird's-eye view alone.
    """
    if images:
        alone = len(images) == 1 and not tall
        mosaic = draw_cameras(images, calibration, layers, classes, names, width=_ALONE if alone else _TILE)
        shown = 1.0 if behind is None else (extent + behind) / (2 * extent)
        size = mosaic.width if tall else round(max(mosaic.height, 400) / shown)
        views = [mosaic, draw_bev(layers, classes, points, radar, extent, size, behind)]
    else:
        views = [draw_bev(layers, classes, points, radar, extent, behind=behind)]
    picture = _stack(views) if tall else _row(views)
    return _stack([picture, draw_legend(layers, classes, picture.width, radar=radar is not None)])


def side_by_side(pictures: Mapping[str, Image.Image]) -> Image.Image:
    """Pictures next to each other at the height of the lowest, each under its title ("teacher", "student").

    Raises:
        ValueError: no picture.
    """
    if not pictures:
        raise ValueError("side_by_side needs at least one picture")
    height = min(p.height for p in pictures.values())
    return _row(
        [_titled(title, p.resize((round(p.width * height / p.height), height))) for title, p in pictures.items()]
    )


def _titled(title: str, picture: Image.Image) -> Image.Image:
    out = Image.new("RGB", (picture.width, picture.height + _TITLE), BACKGROUND)
    out.paste(picture, (0, _TITLE))
    ImageDraw.Draw(out).text((6, 4), title, fill=INK, font=font(16))
    return out


def _row(pictures: Sequence[Image.Image]) -> Image.Image:
    width = sum(p.width for p in pictures) + _GAP * (len(pictures) - 1)
    out = Image.new("RGB", (width, max(p.height for p in pictures)), BACKGROUND)
    x = 0
    for picture in pictures:
        out.paste(picture, (x, 0))
        x += picture.width + _GAP
    return out


def _stack(pictures: Sequence[Image.Image]) -> Image.Image:
    out = Image.new("RGB", (max(p.width for p in pictures), sum(p.height for p in pictures)), BACKGROUND)
    y = 0
    for picture in pictures:
        out.paste(picture, (0, y))
        y += picture.height
    return out
