"""Lines of several styles, smooth: a pad is drawn larger than it is shown."""

from __future__ import annotations

import math
from collections.abc import Sequence

from PIL import Image, ImageDraw

from mmdet3d.visualization.layers import BACKGROUND, Color, Style, font

__all__ = ["LINE", "Pad"]

LINE = 3  # width of a line, pixels
_ZOOM = 3  # odd, so that a line of one pixel has a middle
# Pixels drawn and left out in turn.
_DASHES: dict[Style, tuple[float, float]] = {"dashed": (8.0, 6.0), "dotted": (2.5, 4.5)}

Point = Sequence[float]


class Pad:
    """An image to draw on in pixels of the finished one.

    Args:
        image: what lies below, of the size of the finished image or any other of its proportions.
        size: width and height of the finished image.
    """

    def __init__(self, image: Image.Image, size: tuple[int, int]) -> None:
        self.size = size
        self.image = image.convert("RGB").resize((size[0] * _ZOOM, size[1] * _ZOOM))
        self._draw = ImageDraw.Draw(self.image)

    @classmethod
    def blank(cls, size: tuple[int, int], color: Color = BACKGROUND) -> Pad:
        return cls(Image.new("RGB", size, color), size)

    def finish(self) -> Image.Image:
        return self.image.reduce(_ZOOM)

    def line(self, start: Point, end: Point, color: Color, width: float = LINE, style: Style = "solid") -> None:
        for a, b in _pieces(start, end, style):
            self._draw.line([*_zoomed(a), *_zoomed(b)], fill=color, width=max(1, round(width * _ZOOM)))

    def arrow(self, start: Point, end: Point, color: Color, width: float = LINE, head: float = 6.0) -> None:
        """A line with a head; what is shorter than its head, pixels, has none."""
        self.line(start, end, color, width)
        length = math.dist(start, end)
        if length < head:
            return
        x, y = ((b - a) / length * head for a, b in zip(start, end, strict=True))
        for side in (-0.5, 0.5):
            self.line(end, (end[0] - x - side * y, end[1] - y + side * x), color, width)

    def polygon(self, corners: Sequence[Point], fill: Color) -> None:
        self._draw.polygon([tuple(_zoomed(corner)) for corner in corners], fill=fill)

    def ring(self, center: Point, radius: float, color: Color, width: float = LINE) -> None:
        x, y = center
        box = _zoomed((x - radius, y - radius, x + radius, y + radius))
        self._draw.ellipse(box, outline=color, width=max(1, round(width * _ZOOM)))

    def dots(self, points: Sequence[Point], color: Color, size: float = 1.0) -> None:
        half = size / 2
        for x, y in points:
            self._draw.rectangle(_zoomed((x - half, y - half, x + half, y + half)), fill=color)

    def paste(self, picture: Image.Image, place: Point) -> None:
        large = picture.resize((picture.width * _ZOOM, picture.height * _ZOOM))
        self.image.paste(large, (round(place[0] * _ZOOM), round(place[1] * _ZOOM)))

    def text(self, place: Point, text: str, color: Color, size: int = 22, halo: Color | None = None) -> None:
        x, y = _zoomed(place)
        rim = 0 if halo is None else 2 * _ZOOM
        self._draw.text((x, y), text, fill=color, font=font(size * _ZOOM), stroke_width=rim, stroke_fill=halo)


def _zoomed(numbers: Point) -> list[float]:
    """To the middle of a finished pixel, so that upright and level lines stay sharp."""
    return [_ZOOM * float(number) + _ZOOM // 2 for number in numbers]


def _pieces(start: Point, end: Point, style: Style) -> list[tuple[Point, Point]]:
    """The parts of a line that are drawn."""
    length = math.dist(start, end)
    if style not in _DASHES or length == 0:
        return [(start, end)]
    on, off = _DASHES[style]
    (x, y), (dx, dy) = start, ((end[0] - start[0]) / length, (end[1] - start[1]) / length)
    begins = [i * (on + off) for i in range(math.ceil(length / (on + off)))]
    spans = [(a, min(a + on, length)) for a in begins]
    return [((x + a * dx, y + a * dy), (x + b * dx, y + b * dy)) for a, b in spans]
