"""CPU seconds of a training sample, loaded and augmented: python -m benchmarks.loading [--config FILE ...] [--out FILE]

Without the data cache and with it, epoch by epoch in turns; the first epoch, which fills the cache, is not counted.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.framework import machine, threads, write_json
from mmdet3d.config import load_config
from mmdet3d.datasets import build_split

CONFIGS = (
    "synthetic/camera+radar/demo.yaml",
    "synthetic/camera+lidar/small.yaml",
    "synthetic/camera/small.yaml",
    "kitti/synthetic/monommkd.yaml",
)


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure and print; returns the report."""
    options = _parse(arguments)
    report: dict[str, Any] = {"date": time.strftime("%Y-%m-%d"), "machine": machine(torch.device("cpu")), "rows": []}
    for config in options.config:
        root = options.kitti if "kitti" in config else options.data
        row = {"config": config, **cpu_seconds_per_sample(config, {"dataset_root": f"{root}/"}, epochs=options.epochs)}
        print({key: round(value, 4) if isinstance(value, float) else value for key, value in row.items()}, flush=True)
        report["rows"].append(row)
        if options.out:
            write_json(options.out, report)
    print(table(report))
    return report


def table(report: Mapping[str, Any]) -> str:
    """Markdown: a row per config."""
    lines = ["| config | without cache | with cache |", "|---|---|---|"]
    lines += [f"| {r['config']} | {r['none'] * 1e3:.0f} ms | {r['disk'] * 1e3:.0f} ms |" for r in report["rows"]]
    return "\n".join(lines)


def cpu_seconds_per_sample(
    config: str,
    overrides: Mapping[str, Any] | None = None,
    kinds: Sequence[str] = ("none", "disk"),
    epochs: int = 5,
    samples: int = 16,
) -> dict[str, float]:
    """User and system time of one training sample in this process, one thread: the median over epochs.

    Args:
        config: a config file.
        overrides: of it, by dotted key, `dataset_root` for instance.
        kinds: values of `data.cache` to compare.
        epochs: that count; one more comes first.
        samples: of an epoch, evenly spaced.

    Returns:
        Seconds by kind.
    """
    datasets = {
        kind: build_split(load_config(config, {**(overrides or {}), "data.cache": kind}).data, "train")
        for kind in kinds
    }
    seconds: dict[str, list[float]] = {kind: [] for kind in kinds}
    with threads(1):
        for epoch in range(epochs + 1):
            for kind, dataset in datasets.items():
                dataset.set_epoch(epoch)
                chosen = range(0, len(dataset), max(1, len(dataset) // samples))[:samples]
                start = time.process_time()
                for index in chosen:
                    dataset[index]
                seconds[kind].append((time.process_time() - start) / len(chosen))
    return {kind: median(values[1:]) for kind, values in seconds.items()}


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.loading", description=__doc__)
    parser.add_argument("--config", nargs="+", default=CONFIGS, metavar="FILE")
    parser.add_argument("--data", default="data/synthetic", help="dataset root of configs other than KITTI's")
    parser.add_argument("--kitti", default="data/synthetic-kitti", help="dataset root of KITTI's configs")
    parser.add_argument("--epochs", type=int, default=5, help="that count")
    parser.add_argument("--out", type=Path, metavar="FILE", help="JSON with every figure")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
