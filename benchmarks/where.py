"""Where a recipe's gain lies: python -m benchmarks.where RUN_DIR... --out FILE

Average precision by distance and speed of what every arm of a recipe detected in its validation frames, from the
submissions that its runs kept, and the paired differences over worlds. RUN_DIR is what a recipe was given as --run-dir;
data/ must still hold the worlds.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.framework import write_json
from mmdet3d.config import load_config
from mmdet3d.datasets.nuscenes.submission import score_submission
from mmdet3d.evaluation.breakdown import BUCKETS, bucket_table, class_hits, objects_of
from mmdet3d.evaluation.control import Comparison, holm, verdict
from mmdet3d.evaluation.nuscenes import CLASSES

PROPERTIES = ("distance", "speed")


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Read, print, write; returns the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, help="folders of one recipe's runs, worlds of any number in each")
    parser.add_argument("--out", type=Path, help="JSON file of every number")
    options = parser.parse_args(arguments)
    arms = {}
    for folder in options.runs:
        for run in sorted(folder.glob("*-seed*/done.json")):
            name, _, world = run.parent.name.rpartition("-seed")
            arms.setdefault(name, {})[world] = _mean_by_bucket(run.parent)
            print(f"{run.parent}: read", flush=True)
    if not arms:
        raise ValueError(f"no finished runs in {', '.join(map(str, options.runs))}")
    order = list(json.loads((options.runs[0] / "results.json").read_text())["runs"])
    arms = {name: arms[name] for name in sorted(arms, key=order.index)}
    report = {"properties": {by: {name: _rows(worlds, by) for name, worlds in arms.items()} for by in PROPERTIES}}
    if options.out:
        write_json(options.out, report)
    print(table(report))
    return report


def table(report: Mapping[str, Any]) -> str:
    """Markdown: each arm's mean in every bucket, and what distilling gained over the student alone, after Holm."""
    rows = [
        (by, bucket, {name: {world: found[bucket] for world, found in worlds.items()} for name, worlds in arms.items()})
        for by, arms in report["properties"].items()
        for bucket in next(iter(arms["control"].values()))
    ]
    gains = [
        Comparison(tuple(of["distilled"][world] - value for world, value in of["control"].items())) for *_, of in rows
    ]
    names = list(report["properties"][PROPERTIES[0]])
    lines = [f"| | {' | '.join(names)} | gain, 95 % interval | verdict |", "|---" * (len(names) + 3) + "|"]
    for (by, bucket, of), gain, p_value in zip(rows, gains, holm([gain.p_value for gain in gains]), strict=True):
        means = [f"{sum(of[name].values()) / len(of[name]):.3f}" for name in names]
        change = f"{gain.mean:+.3f} ± {gain.half_width:.3f}"
        lines.append("| " + " | ".join([f"{by}: {bucket}", *means, change, verdict(gain, p_value)]) + " |")
    return "\n".join(lines)


def _mean_by_bucket(run: Path) -> dict[str, dict[str, float]]:
    """Of one run: by property the AP of every bucket, mean over the classes there and the distances of matching."""
    data = load_config(run / "configs.yaml").data.val
    (submission,) = run.glob("evaluation/*/results_nusc.json")
    (tables,) = Path(data.dataset_root).glob("v1.0-*/")
    with tempfile.TemporaryDirectory() as scratch:
        scored = score_submission(submission, data.dataset_root, tables.name, None, scratch)
    truth, found = (objects_of(boxes, CLASSES) for boxes in (scored.truth, scored.found))
    hits = class_hits(truth, found, len(CLASSES))
    return {by: bucket_table(truth, found, hits, CLASSES, by)["mean"] for by in PROPERTIES}


def _rows(worlds: Mapping[str, Mapping[str, Mapping[str, float]]], by: str) -> dict[str, dict[str, float]]:
    """By world the buckets in which every world has something to find."""
    there = [b for b in BUCKETS[by][0] if not any(math.isnan(found[by][b]) for found in worlds.values())]
    return {world: {bucket: found[by][bucket] for bucket in there} for world, found in worlds.items()}


if __name__ == "__main__":
    main()
