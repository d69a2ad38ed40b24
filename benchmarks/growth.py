"""How time and memory grow: python -m benchmarks.growth [--picture FILE] [--out FILE]

Points: hard voxelisation into the 1440x1440x41 grid. Cells: `bev_pool` of six cameras (118 depths, 32x88 pixels, 80
channels), forward. Batch: a training step of the student of `synthetic/crkd/small.yaml`. Ranks: the same step in
several processes, one sample and one CPU thread (or one GPU) each, gradients averaged; memory is that of one process.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from benchmarks.framework import Budget, machine, peak_memory, summary, threads, time_calls, twin, write_json
from benchmarks.samples import random_sample
from benchmarks.train_step import measure_step
from mmdet3d.config import load_config
from mmdet3d.distill.teacher import build_detector
from mmdet3d.machine import cpus, die_with_parent
from mmdet3d.ops.bev_pool import bev_pool
from mmdet3d.ops.voxelize import voxelize
from mmdet3d.structures import Batch

CONFIG = "synthetic/crkd/small.yaml"
BUDGET = Budget(seconds=1.0, runs=20, least=3)
Row = dict[str, Any]


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure, print, and draw; returns the report."""
    options = _parse(arguments)
    device = torch.device(options.device)
    report: dict[str, Any] = {"date": time.strftime("%Y-%m-%d"), "device": options.device, "curves": {}}
    with threads(options.threads):
        report["machine"] = machine(device)
        for name, curve in {"points": _points, "BEV cells": _cells, "batch": _batch, "ranks": _ranks}.items():
            torch.manual_seed(0)
            report["curves"][name] = []
            for row in curve(device, options.scale):
                print(name, row, flush=True)
                report["curves"][name].append(row)
    if options.out:
        write_json(options.out, report)
    if options.picture:
        draw(report, options.picture)
    return report


def _points(device: torch.device, scale: float) -> Iterator[Row]:
    for count in (10_000, 30_000, 100_000, 300_000):
        points = torch.rand(int(count * scale), 5, device=device)
        points = points * torch.tensor([108, 108, 8, 1, 1], device=device) - torch.tensor(
            [54, 54, 5, 0, 0], device=device
        )

        def call(points: Tensor = points) -> Any:
            return voxelize(points, [0.075, 0.075, 0.2], [-54, -54, -5, 54, 54, 3], 10, 120_000)

        yield from _both(len(points), call, device)


def _cells(device: torch.device, scale: float) -> Iterator[Row]:
    height, width = int(32 * scale) or 1, int(88 * scale) or 1
    geometry = _frustum(height, width).to(device)
    depth = torch.rand(6, 118, height, width, device=device).softmax(1)
    context = torch.randn(6, 80, height, width, device=device)
    for side in (90, 180, 360, 720):

        def call(side: int = side) -> Tensor:
            return bev_pool(depth, context, geometry, [-54, -54, -10], [108 / side, 108 / side, 20], [side, side, 1])

        yield from _both(side * side, call, device)


def _batch(device: torch.device, scale: float) -> Iterator[Row]:
    for count in (1, 2, 4, 8):
        yield {"at": count, "implementation": "ours", **_student_step(device, scale, count)}


def _ranks(device: torch.device, scale: float) -> Iterator[Row]:
    most = torch.cuda.device_count() if device.type == "cuda" else cpus()
    for count in (n for n in (1, 2, 4) if n <= most):
        with tempfile.TemporaryDirectory() as folder:
            torch.multiprocessing.spawn(_one_rank, (os.getpid(), count, folder, device.type, scale), nprocs=count)
            found = [json.loads(p.read_text()) for p in Path(folder).glob("rank*.json")]
        slowest = max(found, key=lambda r: r["median_ms"])
        yield {"at": count, "implementation": "ours", **slowest}


def _one_rank(rank: int, parent: int, count: int, folder: str, kind: str, scale: float) -> None:
    """A process of `_ranks`; it leaves its figures in `folder`."""
    die_with_parent(parent)
    device = torch.device(kind, rank) if kind == "cuda" else torch.device(kind)
    if kind == "cuda":
        torch.cuda.set_device(device)
    torch.set_num_threads(1)
    backend = "nccl" if kind == "cuda" else "gloo"
    dist.init_process_group(backend, init_method=f"file://{folder}/meeting", rank=rank, world_size=count)
    row = _student_step(device, scale, 1, lambda m: DistributedDataParallel(m, find_unused_parameters=True))
    (Path(folder) / f"rank{rank}.json").write_text(json.dumps(row))
    dist.destroy_process_group()


def _student_step(
    device: torch.device, scale: float, count: int, shared: Callable[[nn.Module], nn.Module] = lambda module: module
) -> Row:
    """A step over `count` samples; `shared` as in `measure_step`."""
    cfg = load_config(CONFIG)
    batch = Batch.collate([random_sample(cfg["image_size"], points=int(30_000 * scale))] * count).to(device)
    torch.manual_seed(0)
    model = build_detector(cfg.model["student"]["model"])
    result = measure_step(model, batch, cfg, device, BUDGET.least, shared)
    return {**result["step"], "peak_bytes": result["peak_bytes"]}


def _both(at: int, call: Callable[[], Any], device: torch.device) -> Iterator[Row]:
    calls = {"ours": call, "twin": twin(call)}
    peaks = {}
    for name, function in calls.items():
        function()
        peaks[name] = peak_memory(function, device)
    for name, seconds in time_calls(calls, device, BUDGET).items():
        yield {"at": at, "implementation": name, **summary(seconds), "peak_bytes": peaks[name]}


def _frustum(height: int, width: int) -> Tensor:
    """(1, 6, 118, height, width, 3): points of six cameras that look outward every 60 degrees, 1 to 60 m deep."""
    depth = torch.arange(118.0).view(1, 118, 1, 1) * 0.5 + 1
    turn = torch.arange(6.0).view(6, 1, 1, 1) * math.pi / 3
    column = torch.linspace(-0.6, 0.6, width).view(1, 1, 1, width)
    row = torch.linspace(-0.3, 0.3, height).view(1, 1, height, 1)
    x = depth * (turn.cos() - column * turn.sin()) + 0 * row
    y = depth * (turn.sin() + column * turn.cos()) + 0 * row
    return torch.stack([x, y, (-depth * row).expand_as(x)], dim=-1)[None]


def draw(report: dict[str, Any], path: Path) -> None:
    """Time above, memory below, a column per curve."""
    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import LogFormatter, NullFormatter, ScalarFormatter

    figure, axes = pyplot.subplots(2, len(report["curves"]), figsize=(10, 5), sharex="col", layout="constrained")
    for (name, rows), (upper, lower) in zip(report["curves"].items(), axes.T, strict=True):
        for implementation, style in (("ours", "o-"), ("twin", "s--")):
            mine = [r for r in rows if r["implementation"] == implementation]
            at = [r["at"] for r in mine]
            if mine:
                upper.loglog(at, [r["median_ms"] for r in mine], style, label=implementation)
            if mine and all(r["peak_bytes"] for r in mine):
                lower.loglog(at, [r["peak_bytes"] / 1e6 for r in mine], style, label=implementation)
        lower.set_xlabel(
            {"points": "points (voxelize)", "BEV cells": "BEV cells (bev_pool)"}.get(name, f"{name} (step)")
        )
        few = sorted({r["at"] for r in rows})
        lower.set_xticks(few, [f"{n:,}" for n in few], rotation=0 if few[-1] < 100 else 30)
        lower.xaxis.set_minor_formatter(NullFormatter())
        for axis in (upper, lower):
            axis.grid(alpha=0.3, which="both")
            axis.yaxis.set_major_formatter(ScalarFormatter())
            axis.yaxis.set_minor_formatter(LogFormatter(labelOnlyBase=False, minor_thresholds=(1, 0.4)))
    axes[0, 0].set_ylabel("ms")
    axes[1, 0].set_ylabel("peak extra MB")
    axes[0, 0].legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=80)
    pyplot.close(figure)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.growth", description=__doc__)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--picture", type=Path, metavar="FILE", help="PNG to draw, for instance docs/growth.png")
    parser.add_argument("--out", type=Path, metavar="FILE", help="JSON with every figure")
    parser.add_argument("--threads", type=int, help="CPU threads (default: all that this process may use)")
    parser.add_argument("--scale", type=float, default=1.0, help="shrinks points and images, for a quick look")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
