"""Whole pictures out of views."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

from PIL import Image
from torch import Tensor

from mmdet3d.structures import Calibration, PointSensor, by_sensor
from mmdet3d.visualization.areas import Areas
from mmdet3d.visualization.bev import draw_bev
from mmdet3d.visualization.cameras import box_segments, draw_camera, draw_cameras
from mmdet3d.visualization.heat import Heat
from mmdet3d.visualization.layers import BACKGROUND, INK, SLIDE, Color, Layer, fitting
from mmdet3d.visualization.legend import draw_legend
from mmdet3d.visualization.strokes import Pad

__all__ = ["Panel", "draw_frame", "draw_panels"]

_TITLE, _SUBTITLE = 44, 34  # height of a line above a panel
_GAP = 12
_TILE, _ALONE = 640, 1280  # width of a camera image among others, and of a single one
_NOTHING: Color = (238, 240, 243)


@dataclass
class Panel:
    """What one model sees and finds of a frame.

    Args:
        title, subtitle: above it; a subtitle may have several lines.
        layers: boxes.
        calibration: of the images.
        images: one per camera; none if the model has no cameras.
        names: of the cameras.
        clouds: points of the sensors that the model has, see `draw_bev`.
        heat: a map below the boxes, over the ground or over the images.
    """

    title: str
    subtitle: str
    layers: Sequence[Layer]
    calibration: Calibration
    images: Sequence[Image.Image] = ()
    names: Sequence[str] = field(default_factory=list)
    clouds: Mapping[str, Tensor] = field(default_factory=dict)
    heat: Heat | Areas | None = None


def draw_frame(
    layers: Sequence[Layer],
    classes: Sequence[str],
    calibration: Calibration,
    images: Sequence[Image.Image] = (),
    names: Sequence[str] | None = None,
    clouds: Mapping[str, Tensor] = MappingProxyType({}),
    extent: float = 54.0,
    behind: float | None = None,
    areas: Sequence[Areas] = (),
) -> Image.Image:
    """Camera mosaic and bird's-eye view next to each other, the legend below; a bird's-eye view for each of `areas`.

    Arguments as in `draw_cameras` and `draw_bev`; without images the bird's-eye view alone.
    """
    grounds = areas or (None,)
    if images:
        mosaic = draw_cameras(images, calibration, layers, classes, names, width=_ALONE if len(images) == 1 else _TILE)
        shown = 1.0 if behind is None else (extent + behind) / (2 * extent)
        size = round(max(mosaic.height, 400) / shown)
        views = [mosaic, *(draw_bev(layers, classes, clouds, extent, size, behind, g) for g in grounds)]
    else:
        views = [draw_bev(layers, classes, clouds, extent, behind=behind, heat=g) for g in grounds]
    picture = _row(views)
    legend = draw_legend(layers, classes, picture.width, _measuring([clouds]), areas)
    return _stack([picture, legend])


def draw_panels(
    panels: Sequence[Panel],
    classes: Sequence[str],
    extent: float,
    behind: float | None = None,
    width: int = SLIDE,
    camera: str | None = None,
) -> Image.Image:
    """Models side by side on one frame, each under its title: one camera, below it the bird's-eye view; one legend.

    The camera is the same for all.

    Args:
        classes: class list of the labels.
        extent, behind: see `draw_bev`.
        width: of the whole, pixels.
        camera: its name; None for the one that shows most boxes of the first panel that has images.

    Raises:
        ValueError: no panel, or no camera of that name.
    """
    if not panels:
        raise ValueError("draw_panels needs at least one panel")
    column = (width - _GAP * (len(panels) - 1)) // len(panels)
    seeing = next((panel for panel in panels if panel.images), None)
    shown = 0 if seeing is None else _camera(seeing, camera)
    lines = max(len(panel.subtitle.splitlines()) for panel in panels)
    columns = []
    for panel in panels:
        views = [_head(panel, column, lines)]
        if panel.images:
            image, name = panel.images[shown], panel.names[shown]
            if isinstance(panel.heat, Heat) and panel.heat.grid is None:
                image = panel.heat.over(image, shown)
            views.append(draw_camera(image, panel.calibration, shown, panel.layers, classes, name, column))
        elif seeing is not None:
            image = seeing.images[shown]
            views.append(_no_camera(column, round(image.height * column / image.width)))
        heat = None if isinstance(panel.heat, Heat) and panel.heat.grid is None else panel.heat
        views.append(draw_bev(panel.layers, classes, panel.clouds, extent, column, behind, heat))
        columns.append(_stack(views))
    layers = [layer for panel in panels for layer in panel.layers]
    sensors = _measuring(panel.clouds for panel in panels)
    picture = Image.new("RGB", (width, max(c.height for c in columns)), BACKGROUND)
    picture.paste(_row(columns), (0, 0))
    heats = [panel.heat for panel in panels if panel.heat is not None]
    return _stack([picture, draw_legend(layers, classes, width, sensors, heats)])


def _measuring(pictures: Iterable[Mapping[str, Tensor]]) -> list[PointSensor]:
    """The sensors that the legend has to name: those of which there is a point."""
    seen = {field: cloud for clouds in pictures for field, cloud in clouds.items() if len(cloud)}
    return [sensor for sensor, _ in by_sensor(seen)]


def _camera(panel: Panel, name: str | None) -> int:
    """The camera of that name, or the one that shows most boxes."""
    if name is not None:
        if name not in panel.names:
            raise ValueError(f"--camera {name}: no such camera (cameras: {', '.join(panel.names)})")
        return list(panel.names).index(name)

    def count(camera: int) -> int:
        size = panel.images[camera].size
        seen = (box_segments(layer.boxes.to("cpu"), panel.calibration, camera, size)[1] for layer in panel.layers)
        return sum(len(owner.unique()) for owner in seen)

    return max(range(len(panel.images)), key=count)


def _head(panel: Panel, width: int, lines: int) -> Image.Image:
    """Title and subtitle, with room for so many lines of that."""
    pad = Pad.blank((width, _TITLE + _SUBTITLE * lines))
    pad.text((4, 4), panel.title, INK, size=fitting(panel.title, width - 8, 34))
    for number, line in enumerate(panel.subtitle.splitlines()):
        pad.text((4, _TITLE + _SUBTITLE * number), line, INK, size=fitting(line, width - 8, 28))
    return pad.finish()


def _no_camera(width: int, height: int) -> Image.Image:
    pad = Pad.blank((width, height), _NOTHING)
    pad.text((8, 4), "no camera", INK)
    return pad.finish()


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
