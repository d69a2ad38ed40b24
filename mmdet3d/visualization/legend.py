"""The strip that says what lines and colours mean."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from PIL import Image

from mmdet3d.structures import PointSensor
from mmdet3d.visualization.areas import Areas
from mmdet3d.visualization.heat import Heat
from mmdet3d.visualization.layers import INK, SLIDE, TRUTH, Color, Layer, Style, class_color, font
from mmdet3d.visualization.strokes import Pad

__all__ = ["draw_legend"]

_ROW, _TEXT, _SWATCH = 50, 34, 50  # pixels of a slide, so that it can be read on one of half the size
_LEAST = 0.7  # of these sizes, in small pictures

# Draws a swatch at (left, middle), all measures times the last argument.
_Draw = Callable[[Pad, float, float, float], None]


@dataclass
class _Entry:
    text: str
    draw: _Draw

    def width(self, zoom: float) -> float:
        return (_SWATCH + 10 + font(_TEXT).getlength(self.text) + 34) * zoom


def draw_legend(
    layers: Sequence[Layer],
    classes: Sequence[str],
    width: int,
    sensors: Sequence[PointSensor] = (),
    heats: Sequence[Heat | Areas] = (),
) -> Image.Image:
    """The titles of maps and layers with their colours and line styles, the sensors, and on rows of their own the
    classes of boxes and those of areas; the larger the wider the picture is, because that is shrunk to the width of a
    slide.
    """
    entries = [_heat(heat) for heat in {heat.title: heat for heat in heats if isinstance(heat, Heat)}.values()]
    areas = {name: color for heat in heats if isinstance(heat, Areas) for name, color in heat.colors.items()}
    styles = {layer.title: layer.style for layer in layers}
    entries += [_line(title, style, INK) for title, style in styles.items()]
    entries += [_points(sensor) for sensor in sensors]
    present = sorted({label for layer in layers for label in layer.labels.tolist()})
    names = [(label, classes[label].replace("_", " ") if label >= 0 else "other class") for label in present]
    lines = [_line(name, "solid", class_color(k, classes)) for k, name in names]
    zoom = max(width / SLIDE, _LEAST)
    painted = [_area(name.replace("_", " "), color) for name, color in areas.items()]
    rows = [*_wrap(entries, width, zoom), *_wrap(lines, width, zoom), *_wrap(painted, width, zoom)]
    pad = Pad.blank((width, round(_ROW * zoom * len(rows)) + 8))
    for number, row in enumerate(rows):
        x, y = 6.0, 4 + _ROW * zoom * (number + 0.5)
        for entry in row:
            entry.draw(pad, x, y, zoom)
            pad.text((x + (_SWATCH + 10) * zoom, y - 0.6 * _TEXT * zoom), entry.text, INK, round(_TEXT * zoom))
            x += entry.width(zoom)
    return pad.finish()


def _line(text: str, style: Style, color: Color) -> _Entry:
    def draw(pad: Pad, x: float, y: float, zoom: float) -> None:
        end, half = x + _SWATCH * zoom, 14 * zoom
        if style == "filled":
            pad.polygon([(x, y - half), (end, y - half), (end, y + half), (x, y + half)], TRUTH)
        elif style == "dotted":
            pad.ring(((x + end) / 2, y), 18 * zoom, color, width=2 * zoom)
            pad.line((x + 9 * zoom, y), (end - 9 * zoom, y), color, 6 * zoom, style)
        else:
            pad.line((x, y), (end, y), color, 8 * zoom, style)

    return _Entry(text, draw)


def _area(text: str, color: Color) -> _Entry:
    def draw(pad: Pad, x: float, y: float, zoom: float) -> None:
        end, half = x + _SWATCH * zoom, 14 * zoom
        pad.polygon([(x, y - half), (end, y - half), (end, y + half), (x, y + half)], color)

    return _Entry(text, draw)


def _heat(heat: Heat) -> _Entry:
    def draw(pad: Pad, x: float, y: float, zoom: float) -> None:
        pad.paste(heat.strip((round(_SWATCH * zoom), round(28 * zoom))), (x, y - 14 * zoom))

    return _Entry(heat.title, draw)


def _points(sensor: PointSensor) -> _Entry:
    def draw(pad: Pad, x: float, y: float, zoom: float) -> None:
        if sensor.mark == "dot":
            pad.dots([(x + 6 * i * zoom, y + 4 * (-1) ** i * zoom) for i in range(1, 8)], sensor.color, size=3 * zoom)
            return
        pad.ring((x + 9 * zoom, y), 6 * zoom, sensor.color, width=2 * zoom)
        if sensor.velocity is not None:
            pad.arrow((x + 9 * zoom, y), (x + _SWATCH * zoom, y), sensor.color, 2 * zoom)

    return _Entry(sensor.title if sensor.velocity is None else f"{sensor.title}, moving on for 1 s", draw)


def _wrap(entries: Sequence[_Entry], width: int, zoom: float) -> list[list[_Entry]]:
    """Entries in rows that fit."""
    rows: list[list[_Entry]] = []
    left = 0.0
    for entry in entries:
        if not rows or left + entry.width(zoom) > width:
            rows.append([])
            left = 6.0
        rows[-1].append(entry)
        left += entry.width(zoom)
    return rows
