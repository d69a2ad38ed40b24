"""The strip that says what lines and colours mean."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from PIL import Image

from mmdet3d.visualization.heat import Heat
from mmdet3d.visualization.layers import INK, POINT, RADAR, TRUTH, Color, Layer, Style, class_color, font
from mmdet3d.visualization.strokes import Pad

__all__ = ["draw_legend"]

_ROW, _TEXT, _SWATCH = 34, 22, 34  # pixels


@dataclass
class _Entry:
    """`draw(pad, left, middle)` draws the swatch."""

    text: str
    draw: Callable[[Pad, float, float], None]

    @property
    def width(self) -> int:
        return _SWATCH + 8 + round(font(_TEXT).getlength(self.text)) + 26


def draw_legend(
    layers: Sequence[Layer],
    classes: Sequence[str],
    width: int,
    points: bool = False,
    radar: bool = False,
    heats: Sequence[Heat] = (),
) -> Image.Image:
    """The titles of maps and layers with their colours and line styles, the sensors, and on a row of their own the
    classes.
    """
    entries = [_heat(heat) for heat in {heat.title: heat for heat in heats}.values()]
    styles = {layer.title: layer.style for layer in layers}
    entries += [_line(title, style, INK) for title, style in styles.items()]
    entries += [_Entry("LiDAR", _draw_points)] * points + [_Entry("radar, moving on for 1 s", _draw_radar)] * radar
    present = sorted({label for layer in layers for label in layer.labels.tolist()})
    names = [(label, classes[label].replace("_", " ") if label >= 0 else "other class") for label in present]
    rows = [*_wrap(entries, width), *_wrap([_line(name, "solid", class_color(k, classes)) for k, name in names], width)]
    pad = Pad.blank((width, _ROW * len(rows) + 8))
    for number, row in enumerate(rows):
        x, y = 6.0, 4 + _ROW * (number + 0.5)
        for entry in row:
            entry.draw(pad, x, y)
            pad.text((x + _SWATCH + 8, y - 0.6 * _TEXT), entry.text, INK, _TEXT)
            x += entry.width
    return pad.finish()


def _line(text: str, style: Style, color: Color) -> _Entry:
    def draw(pad: Pad, x: float, y: float) -> None:
        if style == "filled":
            corners = [(x, y - 9), (x + _SWATCH, y - 9), (x + _SWATCH, y + 9), (x, y + 9)]
            pad.polygon(corners, TRUTH)
        elif style == "dotted":
            pad.ring((x + _SWATCH / 2, y), 12, color, width=1.5)
            pad.line((x + 6, y), (x + _SWATCH - 6, y), color, 4, style)
        else:
            pad.line((x, y), (x + _SWATCH, y), color, 5, style)

    return _Entry(text, draw)


def _heat(heat: Heat) -> _Entry:
    def draw(pad: Pad, x: float, y: float) -> None:
        pad.paste(heat.strip((_SWATCH, 18)), (x, y - 9))

    return _Entry(heat.title, draw)


def _draw_points(pad: Pad, x: float, y: float) -> None:
    pad.dots([(x + 4 * i, y + 3 * (-1) ** i) for i in range(1, 8)], POINT, size=2)


def _draw_radar(pad: Pad, x: float, y: float) -> None:
    pad.ring((x + 6, y), 4, RADAR, width=1.5)
    pad.arrow((x + 6, y), (x + _SWATCH, y), RADAR, 1)


def _wrap(entries: Sequence[_Entry], width: int) -> list[list[_Entry]]:
    """Entries in rows that fit."""
    rows: list[list[_Entry]] = []
    left = 0
    for entry in entries:
        if not rows or left + entry.width > width:
            rows.append([])
            left = 6
        rows[-1].append(entry)
        left += entry.width
    return rows
