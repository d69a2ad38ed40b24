"""A page of HTML in one file: tables, bars and pictures, without scripts and without anything from elsewhere."""

from __future__ import annotations

import base64
import html
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from mmdet3d.io.files import atomic_write

__all__ = ["Page", "bars", "heat_table", "signed_bars", "table"]

_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; color: #282828; max-width: 1280px; margin: 24px auto; padding: 0 16px; }
h1 { font-size: 26px; } h2 { font-size: 19px; margin-top: 36px; border-bottom: 1px solid #ddd; }
table { border-collapse: collapse; margin: 12px 0; font-variant-numeric: tabular-nums; }
td, th { padding: 3px 9px; text-align: right; border-bottom: 1px solid #eee; font-weight: normal; }
th { color: #666; } td:first-child, th:first-child { text-align: left; }
figure { margin: 18px 0; } img { max-width: 100%; } figcaption { color: #666; }
"""
_COLORS = ("#2534f2", "#ffa100")
_WON, _LOST = "#1a795a", "#e60000"
_ROW, _LABEL, _BAR = 18, 190, 620  # pixels


class Page:
    """HTML that grows from top to bottom.

    Args:
        title: of the page.
    """

    def __init__(self, title: str) -> None:
        self._title = title
        self._parts: list[str] = [f"<h1>{html.escape(title)}</h1>"]

    def heading(self, text: str) -> None:
        self._parts.append(f"<h2>{html.escape(text)}</h2>")

    def text(self, text: str) -> None:
        self._parts.append(f"<p>{html.escape(text)}</p>")

    def add(self, markup: str) -> None:
        """Markup of the functions of this module."""
        self._parts.append(markup)

    def picture(self, picture: Image.Image, caption: str) -> None:
        buffer = io.BytesIO()
        picture.convert("RGB").save(buffer, "WEBP", quality=80)
        data = base64.b64encode(buffer.getvalue()).decode()
        text = html.escape(caption)
        self._parts.append(
            f'<figure><img alt="{text}" width="{picture.width}" height="{picture.height}" '
            f'src="data:image/webp;base64,{data}"><figcaption>{text}</figcaption></figure>'
        )

    def write(self, path: Path) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        head = f'<meta charset="utf-8"><title>{html.escape(self._title)}</title><style>{_STYLE}</style>'
        with atomic_write(path) as file:
            body = "\n".join(self._parts)
            file.write(f'<!DOCTYPE html>\n<html lang="en"><head>{head}</head>\n<body>\n{body}\n</body></html>\n')
        return path


def table(head: Sequence[str], rows: Sequence[Sequence[str | float]]) -> str:
    """Numbers to three decimals; what is not defined is a dash."""
    cells = "".join(f"<th>{html.escape(name)}</th>" for name in head)
    lines = ["<tr>" + "".join(f"<td>{_cell(value)}</td>" for value in row) + "</tr>" for row in rows]
    return f"<table><tr>{cells}</tr>\n" + "\n".join(lines) + "</table>"


def heat_table(rows: Sequence[str], columns: Sequence[str], counts: np.ndarray) -> str:
    """Counts, the darker the larger their share of the row."""
    head = "".join(f"<th>{html.escape(name.replace('_', ' '))}</th>" for name in ("", *columns))
    lines = []
    for name, row in zip(rows, counts, strict=True):
        cells = [f"<td>{html.escape(name.replace('_', ' '))}</td>"]
        for value in row.tolist():
            share = value / max(1, row.sum())
            cells.append(f'<td style="background: rgba(37, 52, 242, {0.5 * share:.2f})">{value or "&middot;"}</td>')
        lines.append("<tr>" + "".join(cells) + "</tr>")
    return f"<table><tr>{head}</tr>\n" + "\n".join(lines) + "</table>"


def bars(series: Mapping[str, Mapping[str, float]]) -> str:
    """By title values in [0, 1] by name, as bars in groups of one per title."""
    names = list(next(iter(series.values())))
    height = len(names) * (_ROW * len(series) + 8) + 26
    parts, y = [], 4
    for name in names:
        parts.append(_text(0, y + _ROW * len(series) / 2 + 5, name.replace("_", " ")))
        for color, values in zip(_COLORS, series.values(), strict=False):
            value = values[name]
            width = 0 if math.isnan(value) else _BAR * value
            parts.append(f'<rect x="{_LABEL}" y="{y}" width="{width:.1f}" height="{_ROW - 3}" fill="{color}"/>')
            parts.append(
                _text(_LABEL + width + 6, y + _ROW - 5, "nothing to find" if math.isnan(value) else f"{value:.3f}")
            )
            y += _ROW
        y += 8
    return _svg(height, parts + _key(dict(zip(series, _COLORS, strict=False)), y + 14))


def signed_bars(pairs: Mapping[str, tuple[int, int]]) -> str:
    """By name how many were won, to the right, and lost, to the left."""
    most = max([1, *(max(pair) for pair in pairs.values())])
    middle, scale = _LABEL + _BAR / 2, (_BAR / 2 - 40) / most
    parts, y = [], 4
    for name, (won, lost) in pairs.items():
        parts.append(_text(0, y + 13, name.replace("_", " ")))
        parts.append(f'<rect x="{middle}" y="{y}" width="{won * scale:.1f}" height="{_ROW - 3}" fill="{_WON}"/>')
        left = middle - lost * scale
        parts.append(f'<rect x="{left:.1f}" y="{y}" width="{lost * scale:.1f}" height="{_ROW - 3}" fill="{_LOST}"/>')
        parts.append(_text(middle + won * scale + 5, y + 13, f"+{won}"))
        parts.append(_text(left - 5, y + 13, f"-{lost}", "end"))
        y += _ROW + 2
    return _svg(y + 24, parts + _key({"won": _WON, "lost": _LOST}, y + 14))


def _key(colors: Mapping[str, str], y: float) -> list[str]:
    parts, x = [], _LABEL
    for name, color in colors.items():
        parts += [f'<rect x="{x}" y="{y - 10}" width="12" height="12" fill="{color}"/>', _text(x + 18, y, name)]
        x += 40 + 8 * len(name)
    return parts


def _svg(height: float, parts: Sequence[str]) -> str:
    size = f'width="{_LABEL + _BAR + 120}" height="{height:.0f}"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-size="13">' + "".join(parts) + "</svg>"


def _text(x: float, y: float, text: str, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="#282828">{html.escape(text)}</text>'


def _cell(value: str | float) -> str:
    if isinstance(value, str):
        return html.escape(value.replace("_", " "))
    return "&ndash;" if math.isnan(value) else f"{value:.3f}"
