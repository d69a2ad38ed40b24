"""What training the small models costs, against an earlier revision: python -m benchmarks.everyday [--out FILE]

CPU time of a sample by part of the work, in one thread; seconds of a step of both revisions' own training, with the
threads and loader workers that each takes, on the machine as it is and beside a process that keeps a core busy. The
revision is checked out in a temporary folder and makes the worlds with its own tools, for it cannot read info files of
today. Measurements of both take turns, so ratios hold on a busy machine too; the report says how busy it was, and is
written anew after each case.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.framework import machine, write_json
from mmdet3d.engine.command import natural
from mmdet3d.machine import bound, single_threaded

ROOT = Path(__file__).resolve().parents[1]
CHILD = ROOT / "benchmarks" / "everyday_child.py"
RECIPE = "configs/synthetic/recipes/crkd_demo.yaml"
BEFORE = "fb5f0c4"  # without data cache, stored answers, channels-last maps and a rule for cores
TEACHER, STUDENT = "synthetic/camera+lidar/demo.yaml", "synthetic/camera+radar/demo.yaml"
TRAINED = ROOT / "pretrained" / "zoo" / "crkd-demo-teacher.safetensors"
PRESENT_TEACHER, PRESENT_STUDENT = (f"synthetic/camera+{sensor}/present.yaml" for sensor in ("lidar", "radar"))
DISTILLER, CONTROL = "synthetic/crkd/small.yaml", "CRKD, control"
PARTS = ("loading", "forward", "teacher", "backward", "optimiser")
Row = dict[str, Any]
_SCRATCH = "distill3d-everyday-"


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure and print; returns the report."""
    options = _parse(arguments)
    report: dict[str, Any] = {
        "date": time.strftime("%Y-%m-%d"),
        "machine": machine(torch.device("cpu")),
        "before": options.before,
        "steps": options.steps,
    }

    def keep(**found: Any) -> None:
        """What was found so far, so that a run can be stopped."""
        report.update(found, load_after=round(os.getloadavg()[0], 1))
        if options.out:
            write_json(options.out, report)

    with (
        tempfile.TemporaryDirectory(prefix=_SCRATCH) as scratch,
        _checked_out(options.before, Path(scratch) / "tree") as tree,
    ):
        trees = {"before": tree, "now": ROOT}
        world, kitti = _worlds(tree, options.worlds or Path(scratch), options.steps)
        _add_present_models(tree)
        for parts in _parts(trees, options, _cases(world, kitti, Path(scratch) / "answers")):
            keep(parts=parts)
        if not options.no_wall:
            keep(wall=_wall(trees, options, world))
        if options.recipe:
            keep(recipe={name: _recipe(path, Path(scratch) / name) for name, path in trees.items()})
    print(table(report))
    return report


def _worlds(tree: Path, folder: Path, steps: int) -> tuple[Row, Row]:
    """Worlds with enough samples for an epoch of `steps`, as overrides; those that `folder` has are kept."""
    world, kitti = folder / "world", folder / "kitti"
    times = math.ceil(steps / 12)
    commands = [
        ["synthetic", "--out-dir", world, "--scenes", 5 * times],
        ["nuscenes", "--root-path", world, "--version", "v1.0-synthetic", "--extra-tag", "synthetic", "--workers", 1],
        ["synthetic-kitti", "--out-dir", kitti, "--frames", 40 * times, "--test-frames", 0],
    ]
    if (world / "synthetic_infos_train.pkl").is_file() and (kitti / "ImageSets").is_dir():
        commands = []
    for command in commands:
        words = [sys.executable, "tools/create_data.py", *map(str, command)]
        _run(words, tree, {}, stdout=subprocess.DEVNULL)
    return tuple({"dataset_root": f"{root.resolve()}/"} for root in (world, kitti))


def _add_present_models(tree: Path) -> None:
    """Give `tree` configs of today's teacher and student, under other names, so that both distil models of one size."""
    for config, name in ((TEACHER, PRESENT_TEACHER), (STUDENT, PRESENT_STUDENT)):
        shutil.copy(ROOT / "configs" / config, tree / "configs" / name)


def _cases(world: Row, kitti: Row, answers: Path) -> dict[str, dict[str, tuple[str, Row]]]:
    """By case and revision a config and its overrides. CRKD has all its terms and the trained teacher."""
    none = {"model.teacher": None, "model.losses": {}}
    taught = {"model.teacher.checkpoint": str(TRAINED), "model.teacher.min_score": None}
    stored = {"model.teacher.answers": str(answers), "views": 1}
    before = world | {"teacher_config": PRESENT_TEACHER, "student_config": PRESENT_STUDENT}
    now = world | {"teacher_config": TEACHER, "student_config": STUDENT}
    return {
        "camera-radar student": dict.fromkeys(("before", "now"), (STUDENT, world)),
        "LiDAR-camera teacher": dict.fromkeys(("before", "now"), (TEACHER, world)),
        CONTROL: {"before": (DISTILLER, before | none), "now": (DISTILLER, now | none)},
        "CRKD, live teacher": {"before": (DISTILLER, before | taught), "now": (DISTILLER, now | taught)},
        "CRKD, stored answers": {"now": (DISTILLER, now | taught | stored)},
        "KITTI student": dict.fromkeys(("before", "now"), ("kitti/synthetic/rgb_baseline.yaml", kitti)),
    }


def _parts(
    trees: Mapping[str, Path], options: argparse.Namespace, cases: Mapping[str, Mapping[str, tuple[str, Row]]]
) -> Iterator[Row]:
    """Medians by case and revision so far, after each case; a round measures all of them once."""
    found: dict[str, dict[str, list[Row]]] = {}
    for _ in range(options.rounds):
        for name, by_tree in cases.items():
            if options.only and name not in options.only:
                continue
            for tree, (config, overrides) in by_tree.items():
                row = _child(trees[tree], "parts", config, overrides, options.steps, single_threaded())
                print(name, tree, {k: round(v) for k, v in row["cpu_ms"].items()}, flush=True)
                found.setdefault(name, {}).setdefault(tree, []).append(row)
            yield {n: {t: _medians(rows) for t, rows in by.items()} for n, by in found.items()}


def _medians(rows: Sequence[Row]) -> Row:
    parts = {part: statistics.median(r["cpu_ms"].get(part, 0.0) for r in rows) for part in PARTS}
    total = statistics.median(sum(r["cpu_ms"].values()) for r in rows)
    rounds = [_step(r["cpu_ms"]) for r in rows]
    return {
        "cpu_ms": parts | {"total": total},
        "step_ms": rounds,
        "peak_bytes": max(r["peak_bytes"] for r in rows),
    }


def _step(cpu_ms: Mapping[str, float]) -> float:
    """All but loading, of one sample."""
    return sum(value for part, value in cpu_ms.items() if part not in ("loading", "total"))


def _ratio(rows: Sequence[float], others: Sequence[float]) -> str:
    """Of what was measured in the same rounds: the median, least and largest."""
    ratios = sorted(a / b for a, b in zip(rows, others, strict=False))  # the last round may have been cut off
    return f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"


def _wall(trees: Mapping[str, Path], options: argparse.Namespace, world: Row) -> Row:
    """Medians of the seconds of a step over the rounds, and of the processor's in a training, by load and revision."""
    found: dict[str, dict[str, list[Row]]] = {load: {name: [] for name in trees} for load in ("idle", "busy")}
    for _ in range(options.rounds):
        for load, by_tree in found.items():
            for name, rows in by_tree.items():
                with _busy_core() if load == "busy" else contextlib.nullcontext():
                    rows.append(_child(trees[name], "wall", STUDENT, world, options.steps, {}))
    return {
        load: {
            name: {key: statistics.median(r[key] for r in rows) for key in ("wall_s", "cpu_s")}
            for name, rows in by_tree.items()
        }
        for load, by_tree in found.items()
    }


@contextlib.contextmanager
def _busy_core() -> Iterator[None]:
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"], preexec_fn=bound())
    try:
        yield
    finally:
        process.kill()
        process.wait()


@contextlib.contextmanager
def _checked_out(revision: str, folder: Path) -> Iterator[Path]:
    """A worktree that goes when this ends, by SIGTERM too; what a killed run left in git's list goes first."""
    git = ["git", "-C", str(ROOT), "worktree"]
    _forget_lost_trees(git)
    before = signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        subprocess.run([*git, "add", "--quiet", "--detach", str(folder), revision], check=True)
        yield folder
    finally:
        # Twice forced, because git locks a tree until all of it is checked out.
        subprocess.run([*git, "remove", "--force", "--force", str(folder)], stderr=subprocess.DEVNULL)
        shutil.rmtree(folder, ignore_errors=True)
        _forget_lost_trees(git)
        signal.signal(signal.SIGTERM, before)


def _forget_lost_trees(git: Sequence[str]) -> None:
    """Those of this program alone: git itself forgets no tree that it still takes to be under way."""
    listed = subprocess.run([*git, "list", "--porcelain"], capture_output=True, text=True, check=True).stdout
    for line in listed.splitlines():
        tree = Path(line.removeprefix("worktree "))
        if line.startswith("worktree ") and tree.parent.name.startswith(_SCRATCH) and not tree.exists():
            subprocess.run([*git, "remove", "--force", "--force", str(tree)], check=True)


def _environment(tree: Path, extra: Mapping[str, str]) -> dict[str, str]:
    """Ours without what this process decided about threads."""
    decided = (*single_threaded(), "OMP_WAIT_POLICY")
    kept = {k: v for k, v in os.environ.items() if k not in decided}
    return kept | {"PYTHONPATH": str(tree), "PYTHONSAFEPATH": "1"} | dict(extra)


def _run(command: Sequence[str], tree: Path, extra: Mapping[str, str], stdout: int) -> subprocess.CompletedProcess[str]:
    """A program of `tree`, which ends when this one does."""
    return subprocess.run(
        command, cwd=tree, env=_environment(tree, extra), stdout=stdout, text=True, check=True, preexec_fn=bound()
    )


def _child(tree: Path, mode: str, config: str, overrides: Row, steps: int, extra: Mapping[str, str]) -> Row:
    command = [sys.executable, str(CHILD), mode, config, json.dumps(overrides), str(steps)]
    return json.loads(_run(command, tree, extra, stdout=subprocess.PIPE).stdout.splitlines()[-1])


def _recipe(tree: Path, folder: Path) -> Row:
    """The whole demo, its world included."""
    command = [sys.executable, "tools/run_recipe.py", RECIPE, "--run-dir", str(folder)]
    before, start = os.times(), time.perf_counter()
    _run(command, tree, {}, stdout=subprocess.DEVNULL)
    after = os.times()
    used = (after.children_user + after.children_system) - (before.children_user + before.children_system)
    return {"wall_s": time.perf_counter() - start, "cpu_s": used}


def _load(report: Mapping[str, Any]) -> str:
    after = f", {report['load_after']} after" if "load_after" in report else ""
    return f"load average {report['machine']['load']} before{after}"


def table(report: Mapping[str, Any]) -> str:
    """Markdown: a row per model and revision, then seconds of a step, then the recipe."""
    load = _load(report)
    rows = [row for by_tree in report["parts"].values() for row in by_tree.values()]
    # Reports of before have medians of the parts alone, and no times of single steps.
    rounds = min(len(row["step_ms"]) if "step_ms" in row else report["rounds"] for row in rows)
    lines = [
        f"Before: {report['before']}. Medians of {rounds} rounds of {report['steps']} steps; {load}.",
        "",
        f"| CPU ms a sample | | {' | '.join(PARTS)} | all | peak MB | step, now to before |",
        "|---" * (len(PARTS) + 5) + "|",
    ]
    for case, by_tree in report["parts"].items():
        steps = {name: row["step_ms"] for name, row in by_tree.items() if "step_ms" in row}
        for name, row in by_tree.items():
            cells = [f"{row['cpu_ms'][part]:.0f}" for part in (*PARTS, "total")]
            ratio = _ratio(steps["now"], steps["before"]) if name == "now" and len(steps) > 1 else ""
            lines.append(f"| {case} | {name} | {' | '.join(cells)} | {row['peak_bytes'] / 1e6:.0f} | {ratio} |")
    control = report["parts"].get(CONTROL)
    if control:
        lines += ["", "| step of the distillation, now, to its control's | |", "|---|---|"]
        for case in (name for name in report["parts"] if name.startswith("CRKD,") and name != CONTROL):
            steps = report["parts"][case]["now"]["step_ms"]
            lines.append(f"| {case} | {_ratio(steps, control['now']['step_ms'])} |")
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
    parser.add_argument(
        "--worlds", type=Path, metavar="FOLDER", help="keep the worlds there, for another run; made by that revision"
    )
    parser.add_argument("--rounds", type=natural, default=5, help="of each measurement")
    parser.add_argument("--steps", type=natural, default=8, help="of each round, after as many that do not count")
    cases = tuple(_cases({}, {}, Path()))
    parser.add_argument("--only", nargs="+", choices=cases, metavar="CASE", help=f"some of: {'; '.join(cases)}")
    parser.add_argument("--no-wall", action="store_true", help="leave the seconds of a step out")
    parser.add_argument("--recipe", action="store_true", help="the whole demo in both revisions too, half an hour")
    parser.add_argument("--out", type=Path, metavar="FILE", help="JSON with every figure")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
