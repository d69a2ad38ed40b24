"""What training the small models costs, against an earlier revision: python -m benchmarks.everyday [--out FILE]

CPU time of a sample by part of the work, in one thread; seconds of a step of both revisions' own training, with the
threads and loader workers that each takes, on the machine as it is and beside a process that keeps a core busy. The
revision is checked out in a temporary folder; measurements of both take turns.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from benchmarks.framework import machine, write_json
from mmdet3d.config import load_config
from mmdet3d.distill.teacher import build_detector
from mmdet3d.machine import single_threaded

ROOT = Path(__file__).resolve().parents[1]
CHILD = ROOT / "benchmarks" / "everyday_child.py"
RECIPE = "configs/synthetic/recipes/crkd_demo.yaml"
BEFORE = "fb5f0c4"  # without data cache, stored answers, channels-last maps and a rule for cores
TEACHER, STUDENT = "synthetic/camera+lidar/demo.yaml", "synthetic/camera+radar/demo.yaml"
PARTS = ("loading", "forward", "teacher", "backward", "optimiser")
Row = dict[str, Any]


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure and print; returns the report."""
    options = _parse(arguments)
    report: dict[str, Any] = {
        "date": time.strftime("%Y-%m-%d"),
        "machine": machine(torch.device("cpu")),
        "before": options.before,
        "rounds": options.rounds,
        "steps": options.steps,
    }
    with tempfile.TemporaryDirectory() as scratch, _checked_out(options.before, Path(scratch) / "tree") as tree:
        trees = {"before": tree, "now": ROOT}
        cases = _cases(options, Path(scratch))
        report["parts"] = {}
        for name, case in cases.items():
            report["parts"][name] = _parts(trees, options, *case)
            print(name, report["parts"][name], flush=True)
        if not options.no_wall:
            report["wall"] = _wall(trees, options)
            print(report["wall"], flush=True)
        if options.recipe:
            report["recipe"] = {name: _recipe(path, Path(scratch) / name) for name, path in trees.items()}
    print(table(report))
    if options.out:
        write_json(options.out, report)
    return report


def _cases(options: argparse.Namespace, scratch: Path) -> dict[str, tuple[str, Row, Row]]:
    """Config, overrides in both revisions, and overrides that only the present one has."""
    # Random weights respond everywhere: no trained teacher leaves the losses more to compare.
    weights = scratch / "teacher.safetensors"
    save_file(build_detector(load_config(TEACHER).model).state_dict(), weights)
    world, kitti = ({"dataset_root": f"{Path(root).resolve()}/"} for root in (options.data, options.kitti))
    taught = {"model.teacher.checkpoint": str(weights), "model.teacher.min_score": None}
    distiller = ("synthetic/crkd/demo.yaml", world | taught)
    stored = {"model.teacher.answers": str(scratch / "answers"), "views": 1}
    cases = {
        "camera-radar student": (STUDENT, world, {}),
        "LiDAR-camera teacher": (TEACHER, world, {}),
        "CRKD, live teacher": (*distiller, {}),
        "CRKD, stored answers": (*distiller, stored),
        "KITTI student": ("kitti/synthetic/rgb_baseline.yaml", kitti, {}),
    }
    return {name: case for name, case in cases.items() if not options.only or name in options.only}


def _parts(trees: Mapping[str, Path], options: argparse.Namespace, config: str, both: Row, new: Row) -> Row:
    """Medians over the rounds, by revision."""
    found: dict[str, list[Row]] = {name: [] for name in trees}
    for _ in range(options.rounds):
        for name, tree in trees.items():
            overrides = both | (new if name == "now" else {})
            found[name].append(_child(tree, "parts", config, overrides, options.steps, single_threaded()))
    return {name: _medians(rows) for name, rows in found.items()}


def _medians(rows: Sequence[Row]) -> Row:
    parts = {part: statistics.median(r["cpu_ms"].get(part, 0.0) for r in rows) for part in PARTS}
    total = statistics.median(sum(r["cpu_ms"].values()) for r in rows)
    return {"cpu_ms": parts | {"total": total}, "peak_bytes": max(r["peak_bytes"] for r in rows)}


def _wall(trees: Mapping[str, Path], options: argparse.Namespace) -> Row:
    """Medians of the seconds of a step over the rounds, and of the processor's in a training, by load and revision."""
    overrides = {"dataset_root": f"{Path(options.data).resolve()}/"}
    found: dict[str, dict[str, list[Row]]] = {load: {name: [] for name in trees} for load in ("idle", "busy")}
    for _ in range(options.rounds):
        for load, by_tree in found.items():
            for name, rows in by_tree.items():
                with _busy_core() if load == "busy" else contextlib.nullcontext():
                    rows.append(_child(trees[name], "wall", STUDENT, overrides, options.steps, {}))
    return {
        load: {
            name: {key: statistics.median(r[key] for r in rows) for key in ("wall_s", "cpu_s")}
            for name, rows in by_tree.items()
        }
        for load, by_tree in found.items()
    }


@contextlib.contextmanager
def _busy_core() -> Iterator[None]:
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        process.kill()
        process.wait()


@contextlib.contextmanager
def _checked_out(revision: str, folder: Path) -> Iterator[Path]:
    git = ["git", "-C", str(ROOT), "worktree"]
    subprocess.run([*git, "add", "--quiet", "--detach", str(folder), revision], check=True)
    try:
        yield folder
    finally:
        subprocess.run([*git, "remove", "--force", str(folder)], check=True)


def _environment(tree: Path, extra: Mapping[str, str]) -> dict[str, str]:
    """Ours without what this process decided about threads."""
    decided = (*single_threaded(), "OMP_WAIT_POLICY")
    kept = {k: v for k, v in os.environ.items() if k not in decided}
    return kept | {"PYTHONPATH": str(tree), "PYTHONSAFEPATH": "1"} | dict(extra)


def _child(tree: Path, mode: str, config: str, overrides: Row, steps: int, extra: Mapping[str, str]) -> Row:
    command = [sys.executable, str(CHILD), mode, config, json.dumps(overrides), str(steps)]
    done = subprocess.run(
        command, cwd=tree, env=_environment(tree, extra), stdout=subprocess.PIPE, text=True, check=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def _recipe(tree: Path, folder: Path) -> Row:
    """The whole demo, its world included."""
    command = [sys.executable, "tools/run_recipe.py", RECIPE, "--run-dir", str(folder)]
    before, start = os.times(), time.perf_counter()
    subprocess.run(command, cwd=tree, env=_environment(tree, {}), stdout=subprocess.DEVNULL, check=True)
    after = os.times()
    used = (after.children_user + after.children_system) - (before.children_user + before.children_system)
    return {"wall_s": time.perf_counter() - start, "cpu_s": used}


def table(report: Mapping[str, Any]) -> str:
    """Markdown: a row per model and revision, then seconds of a step, then the recipe."""
    lines = [
        f"Before: {report['before']}. Medians of {report['rounds']} rounds of {report['steps']} steps.",
        "",
        f"| CPU ms a sample | | {' | '.join(PARTS)} | all | peak MB |",
        "|---" * (len(PARTS) + 4) + "|",
    ]
    for case, by_tree in report["parts"].items():
        for name, row in by_tree.items():
            cells = [f"{row['cpu_ms'][part]:.0f}" for part in (*PARTS, "total")]
            lines.append(f"| {case} | {name} | {' | '.join(cells)} | {row['peak_bytes'] / 1e6:.0f} |")
    if "wall" in report:
        lines += ["", "| camera-radar student, seconds a step | before | now |", "|---|---|---|"]
        for load, by_tree in report["wall"].items():
            lines.append(f"| {load} | {by_tree['before']['wall_s']:.2f} | {by_tree['now']['wall_s']:.2f} |")
    if "recipe" in report:
        shown = [f"{n} {r['wall_s']:.0f} s, {r['cpu_s']:.0f} CPU s" for n, r in report["recipe"].items()]
        lines += ["", f"The whole demo recipe: {'; '.join(shown)}."]
    return "\n".join(lines)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.everyday", description=__doc__)
    parser.add_argument("--before", default=BEFORE, metavar="REVISION")
    parser.add_argument("--data", default="data/synthetic", help="dataset root of configs other than KITTI's")
    parser.add_argument("--kitti", default="data/synthetic-kitti", help="dataset root of KITTI's config")
    parser.add_argument("--rounds", type=int, default=5, help="of each measurement")
    parser.add_argument("--steps", type=int, default=8, help="of each round, after as many that do not count")
    parser.add_argument("--only", nargs="+", metavar="CASE", help="some of the models")
    parser.add_argument("--no-wall", action="store_true", help="leave the seconds of a step out")
    parser.add_argument("--recipe", action="store_true", help="the whole demo in both revisions too, half an hour")
    parser.add_argument("--out", type=Path, metavar="FILE", help="JSON with every figure")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
