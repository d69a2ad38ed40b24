"""Curves of trainings: what runs wrote into `metrics.jsonl`, side by side."""

from __future__ import annotations

import io
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from mmdet3d.datasets import benchmark_of
from mmdet3d.registry import DATASETS
from mmdet3d.visualization.page import Page, table

__all__ = ["draw_curves", "find_runs", "read_curves"]

FILE = "metrics.jsonl"
_KEYS = ("loss", "loss/*", "lr", "grad_norm")
_COLUMNS, _WIDTH, _HEIGHT = 3, 4.2, 2.8  # inches of a plot
_TASK = re.compile(r"/task\d+$")

Curve = list[tuple[int, float]]


def find_runs(folders: Iterable[str | Path]) -> dict[str, Path]:
    """By a short name the `metrics.jsonl` of each run folder, or of each run in a folder of runs (a recipe's).

    Raises:
        FileNotFoundError: a folder where there is none.
    """
    files: list[Path] = []
    for folder in map(Path, folders):
        found = [folder / FILE] if (folder / FILE).is_file() else sorted(folder.glob(f"*/{FILE}"))
        if not found:
            raise FileNotFoundError(f"{folder} holds no {FILE}, nor does a folder in it; name the folder of a training")
        files += found
    names = [file.parent.name for file in files]
    return {n if names.count(n) == 1 else str(f.parent): f for n, f in zip(names, files, strict=True)}


def read_curves(file: Path) -> dict[str, Curve]:
    """By key the values over iterations; the terms of the tasks of a head are added up.

    Lines that an interrupted run wrote beyond the checkpoint from which it went on are left out.

    Raises:
        ValueError: a line that is not JSON.
    """
    kept: list[dict[str, Any]] = []
    for number, line in enumerate(file.read_text().splitlines(), 1):
        try:
            entry = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{file}, line {number}: not valid JSON ({error}); remove the line") from None
        while kept and (kept[-1]["iteration"], kept[-1]["mode"]) >= (entry["iteration"], entry["mode"]):
            kept.pop()
        kept.append(entry)
    curves: dict[str, dict[int, float]] = {}
    for entry in kept:
        for key, value in entry.items():
            if key in ("mode", "epoch", "iter", "iteration") or not isinstance(value, (int, float)):
                continue
            curve = curves.setdefault(_TASK.sub("", key), {})
            curve[entry["iteration"]] = curve.get(entry["iteration"], 0.0) + value
    return {key: sorted(curve.items()) for key, curve in curves.items()}


def _compared() -> list[str]:
    """Metrics of every data set that are drawn where they are there: those of its tables of which more is better."""
    columns = [column for name in DATASETS.names() for column in benchmark_of({"type": name}).columns]
    return [column.key for column in columns if column.higher]


def draw_curves(runs: Mapping[str, Path], path: Path, keys: Sequence[str] | None = None) -> list[str]:
    """A plot per key with a line per run, as PNG, SVG or PDF by the name of `path`; as HTML with all last values below.

    Args:
        runs: see `find_runs`.
        keys: names or patterns (`loss/kd/*`); None for losses, learning rate, and metrics by which data sets compare.

    Returns:
        The keys that are drawn.

    Raises:
        ValueError: no run has such a key, or an unknown ending of `path`.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    if path.suffix not in (".png", ".svg", ".pdf", ".html"):
        raise ValueError(f"{path} must end in .png, .svg, .pdf or .html")
    keys = keys or [*_KEYS, *_compared()]
    curves = {name: read_curves(file) for name, file in runs.items()}
    present = list(dict.fromkeys(key for found in curves.values() for key in found))
    drawn = list(dict.fromkeys(key for wanted in keys for key in present if fnmatch(key, wanted)))
    if not present:
        raise ValueError(
            f"{', '.join(map(str, runs.values()))}: no value is in it yet; train at least log_config.interval steps"
        )
    if not drawn:
        raise ValueError(f"no run has a value named {' or '.join(keys)} (there are: {', '.join(present)})")
    rows = -(-len(drawn) // _COLUMNS)
    columns = min(_COLUMNS, len(drawn))
    figure, axes = pyplot.subplots(
        rows, columns, figsize=(_WIDTH * columns, _HEIGHT * rows), layout="constrained", squeeze=False
    )
    colors = {name: f"C{i % 10}" for i, name in enumerate(curves)}
    for axis, key in zip(axes.flat, drawn, strict=False):
        for name, found in curves.items():
            if key in found:
                # Few points are measurements of their own, such as one evaluation per epoch.
                marker = "o" if len(found[key]) <= 20 else None
                axis.plot(*zip(*found[key], strict=True), color=colors[name], marker=marker, markersize=3, label=name)
        axis.set_title(key, fontsize=9)
        axis.tick_params(labelsize=7)
        axis.grid(alpha=0.3)
    for axis in axes.flat[len(drawn) :]:
        axis.set_axis_off()
    for axis in axes[-1]:
        axis.set_xlabel("iteration", fontsize=8)
    lines = {line.get_label(): line for axis in axes.flat for line in axis.get_lines()}
    figure.legend(lines.values(), lines.keys(), loc="outside lower center", ncols=min(4, len(lines)), fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".html":
        drawing = io.StringIO()
        figure.savefig(drawing, format="svg")
        _page(drawing.getvalue(), curves, drawn).write(path)
    else:
        figure.savefig(path, dpi=110)
    pyplot.close(figure)
    return drawn


def _page(drawing: str, curves: Mapping[str, Mapping[str, Curve]], keys: Sequence[str]) -> Page:
    page = Page("Curves of " + ", ".join(curves))
    page.add(f"<figure>{drawing[drawing.index('<svg') :]}</figure>")
    page.heading("Last values")
    rows: list[list[str | float]] = [
        [key, *(found[key][-1][1] if key in found else math.nan for found in curves.values())] for key in keys
    ]
    page.add(table(["", *curves], rows))
    return page
