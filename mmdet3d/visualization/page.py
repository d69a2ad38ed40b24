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

# What is wider than a phone scrolls by itself, under the names of its rows; the page does not.
_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; color: #282828; background: #fff; max-width: 1280px; margin: 24px auto;
  padding: 0 16px; overflow-wrap: break-word; print-color-adjust: exact; }
h1 { font-size: 26px; } h2 { font-size: 19px; margin-top: 36px; border-bottom: 1px solid #ddd; }
.table { overflow-x: auto; margin: 12px 0; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
td, th { padding: 3px 9px; text-align: right; border-bottom: 1px solid #eee; font-weight: normal; }
th { color: #666; } td:first-child, th:first-child { text-align: left; position: sticky; left: 0; background: #fff; }
.bars { display: grid; grid-template-columns: min(190px, 36%) 1fr; gap: 8px 12px; align-items: center;
  max-width: 930px; margin: 12px 0; font-size: 13px; line-height: 18px; }
.bar { display: flex; align-items: center; gap: 6px; padding-right: 48px; white-space: nowrap; }
.bar i { flex: none; height: 15px; }
.signed { display: grid; grid-template-columns: 1fr 1fr; }
.signed .lost { flex-direction: row-reverse; gap: 5px; padding: 0 0 0 40px; }
.key i { display: inline-block; width: 12px; height: 12px; margin: 0 6px 0 0; } .key span { margin-right: 20px; }
figure { margin: 18px 0; } img, svg { max-width: 100%; height: auto; } figcaption { color: #666; }
@media (max-width: 600px) { th { min-width: 4.5em; } }
"""
_COLORS = ("#2534f2", "#ffa100")
_WON, _LOST = "#1a795a", "#e60000"


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
        window = '<meta name="viewport" content="width=device-width, initial-scale=1">'
        title = f"<title>{html.escape(self._title)}</title>"
        head = f'<meta charset="utf-8">{window}{title}<style>{_STYLE}</style>'
        with atomic_write(path) as file:
            body = "\n".join(self._parts)
            file.write(f'<!DOCTYPE html>\n<html lang="en"><head>{head}</head>\n<body>\n{body}\n</body></html>\n')
        return path


def table(head: Sequence[str], rows: Sequence[Sequence[str | float]]) -> str:
    """Numbers to three decimals; what is not defined is a dash."""
    return _table(head, [[f"<td>{_cell(value)}</td>" for value in row] for row in rows])


def heat_table(rows: Sequence[str], columns: Sequence[str], counts: np.ndarray) -> str:
    """Counts, the darker the larger their share of the row."""
    lines = []
    for name, row in zip(rows, counts, strict=True):
        cells = [f"<td>{_cell(name)}</td>"]
        for value in row.tolist():
            share = value / max(1, row.sum())
            cells.append(f'<td style="background: rgba(37, 52, 242, {0.5 * share:.2f})">{value or "&middot;"}</td>')
        lines.append(cells)
    return _table(["", *(name.replace("_", " ") for name in columns)], lines)


def bars(series: Mapping[str, Mapping[str, float]]) -> str:
    """By title values in [0, 1] by name, as bars in groups of one per title."""
    rows = []
    for name in next(iter(series.values())):
        group = "".join(
            _bar(values[name], "nothing to find" if math.isnan(values[name]) else f"{values[name]:.3f}", color)
            for color, values in zip(_COLORS, series.values(), strict=False)
        )
        rows.append(f"<span>{_cell(name)}</span><div>{group}</div>")
    return _bars(rows, dict(zip(series, _COLORS, strict=False)))


def signed_bars(pairs: Mapping[str, tuple[int, int]]) -> str:
    """By name how many were won, to the right, and lost, to the left."""
    most = max([1, *(max(pair) for pair in pairs.values())])
    rows = []
    for name, (won, lost) in pairs.items():
        halves = _bar(lost / most, f"-{lost}", _LOST, "bar lost") + _bar(won / most, f"+{won}", _WON)
        rows.append(f'<span>{_cell(name)}</span><div class="signed">{halves}</div>')
    return _bars(rows, {"lost": _LOST, "won": _WON})


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells that are markup already."""
    cells = "".join(f"<th>{html.escape(name)}</th>" for name in head)
    lines = ["<tr>" + "".join(row) + "</tr>" for row in rows]
    return f'<div class="table"><table><tr>{cells}</tr>\n' + "\n".join(lines) + "</table></div>"


def _bar(share: float, text: str, color: str, kind: str = "bar") -> str:
    """A bar over this share of its room, none where it is not defined, with a text at its end."""
    width = 0 if math.isnan(share) else 100 * share
    return f'<div class="{kind}"><i style="width: {width:.1f}%; background: {color}"></i><span>{text}</span></div>'


def _bars(rows: Sequence[str], colors: Mapping[str, str]) -> str:
    """Rows of a name and its bars, and below them what the colours mean."""
    key = "".join(f'<span><i style="background: {c}"></i>{html.escape(name)}</span>' for name, c in colors.items())
    return '<div class="bars">' + "\n".join(rows) + f'<span></span><div class="key">{key}</div></div>'


def _cell(value: str | float) -> str:
    if isinstance(value, str):
        return html.escape(value.replace("_", " "))
    return "&ndash;" if math.isnan(value) else f"{value:.3f}"
