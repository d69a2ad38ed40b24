"""Running recipes: trainings that build on each other, over seeds, ending in one table."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mmdet3d.engine.curves import draw_curves, find_runs
from mmdet3d.engine.estimate import machine_factor, makespan
from mmdet3d.engine.executor import Executor, OnFailure, Spent, Task
from mmdet3d.engine.pictures import compare, open_model, picture_extent
from mmdet3d.engine.recipe_file import PictureSettings, Recipe, RecipeRun
from mmdet3d.engine.recipe_graph import DataRoots, Node, build_graph
from mmdet3d.engine.recipe_graph import data_root as root_of
from mmdet3d.engine.recipe_results import (
    Results,
    check_steps,
    control_table,
    join_results,
    read_results,
    summary,
)
from mmdet3d.engine.run_dir import sole_user
from mmdet3d.engine.run_display import duration
from mmdet3d.io.files import atomic_write
from mmdet3d.machine import cpus

__all__ = [
    "Plan",
    "Recipe",
    "RecipeRun",
    "control_table",
    "default_jobs",
    "join_results",
    "read_results",
    "run_recipe",
]

RUN_COMMAND = [sys.executable, "-m", "mmdet3d.engine.recipe_run"]


def run_recipe(
    recipe: Recipe,
    run_dir: str | Path,
    seeds: Sequence[int],
    overrides: Mapping[str, Any] | None = None,
    data_root: DataRoots = None,
    jobs: int | None = None,
    on_failure: OnFailure = "continue",
    also: Sequence[str | Path] = (),
) -> dict[str, Any]:
    """Train what is not trained yet, write `results.json` and `table.tex` into `run_dir`, and curves and pictures if it
    asks for these.

    A finished run is reused and an interrupted one resumed, as long as its resolved config is the same. Each training
    is a process with one compute thread, so the results do not depend on `jobs`.

    Args:
        run_dir: every run gets the folder `<name>-seed<seed>` in it.
        seeds: training seeds.
        overrides: of every config, by dotted key; they have the last word.
        data_root: of the data that the recipe makes; a folder per seed where every seed has a world of its own,
            in which shared runs are trained anew.
        jobs: trainings at once; default: see `default_jobs`.
        on_failure: of one training: `continue` with all that do not need it, or `stop` the others too. The error is
            raised in either case, at the end.
        also: `results.json` files of this recipe with other seeds (or worlds), which join the table.

    Returns:
        What `results.json` holds: `table`, `data` and `overrides` (per run), as `read_results` compares them, and
        `runs` (per run and seed config, seconds and CPU seconds (null if it was interrupted), metrics, and checkpoint,
        relative to `run_dir`).

    Raises:
        ValueError: see `Recipe.check`; a folder holds a run of another config; a training failed; a file of `also` is
            not of this recipe with these overrides, or has one of these seeds; another process uses `run_dir`.
        Interrupted: by a signal; calling again continues.
    """
    unit = "world" if isinstance(data_root, Mapping) else "seed"
    earlier = read_results(also, recipe, unit, seeds, overrides)
    plan = Plan.make(recipe, run_dir, seeds, overrides, data_root, jobs)
    with sole_user(Path(run_dir)):
        if also:
            steps = {name: plan.graph[name, seeds[0]].steps() for name in recipe.runs}
            for file, others in zip(also, earlier, strict=True):
                check_steps(steps, others, file, unit)
        if plan.tasks:
            print(plan.describe(), file=sys.stderr, flush=True)
            plan.train(on_failure)
        results: Results = {name: {} for name in recipe.runs}
        for node in plan.graph.values():
            results[node.run][node.seed] = node.finished()
        for others in earlier:
            join_results(results, others)
        found, path = summary(recipe, results, unit, overrides), Path(run_dir) / "results.json"
        _write(path, found)  # whatever becomes of the table
        if recipe.table:
            table = control_table(recipe, results, unit)
            found |= {"table": table.to_dict(), "text": str(table)}
            _write(path, found)
            with atomic_write(path.with_name("table.tex")) as paper:
                paper.write(f"{table.to_latex()}\n")
        if recipe.pictures:
            nodes = {name: plan.graph[name, seeds[-1]] for name in recipe.runs}
            _draw(recipe, recipe.pictures, nodes, path.parent)
            draw_curves(find_runs(dict.fromkeys(n.folder for n in plan.graph.values())), path.parent / "curves.png")
    return found


def _write(path: Path, found: Mapping[str, Any]) -> None:
    with atomic_write(path) as file:
        file.write(json.dumps(found, indent=1) + "\n")


def default_jobs() -> int:
    """As many trainings as there are cores; one where they would share a GPU."""
    return 1 if torch.cuda.is_available() else cpus()


@dataclass(frozen=True)
class Plan:
    """What a recipe has to do.

    Args:
        graph: see `build_graph`.
        tasks: its unfinished nodes.
        jobs: trainings at once.
        factor: how much longer this machine takes than the reference machine; None if that tells nothing about
            `tasks`.
        data_seconds: that making the data takes on the reference machine's one core; 0 where they are there.
    """

    graph: Mapping[tuple[str, int], Node]
    tasks: Sequence[Task]
    jobs: int
    factor: float | None
    data_seconds: float = 0.0

    @classmethod
    def make(
        cls,
        recipe: Recipe,
        run_dir: str | Path,
        seeds: Sequence[int],
        overrides: Mapping[str, Any] | None = None,
        data_root: DataRoots = None,
        jobs: int | None = None,
    ) -> Plan:
        """Arguments and exceptions are those of `run_recipe`; writes nothing."""
        given = dict(overrides or {})
        recipe.check(given)
        roots = {seed: root_of(data_root, seed) for seed in seeds}
        if jobs is not None and jobs < 1:
            raise ValueError(f"--jobs must be at least 1, got {jobs}")
        graph = build_graph(recipe, Path(run_dir), seeds, given, roots)
        todo = {node.name: node for node in graph.values() if node.result() is None}
        known = bool(todo) and all(node.cost is not None for node in todo.values())
        factor = machine_factor() if known and not torch.cuda.is_available() else None
        samples = recipe.training_samples()
        tasks = [node.task(samples, factor) for node in todo.values()]
        jobs = default_jobs() if jobs is None else jobs
        return cls(graph, tasks, jobs, factor, sum(recipe.data_seconds(root) for root in set(roots.values())))

    @property
    def seconds(self) -> float | None:
        """Expected until data are made and all is trained, at this machine's rate; None if no costs are recorded."""
        if self.factor is None:
            return None
        seconds = {task.name: task.steps * (task.step_seconds or 0.0) for task in self.tasks}
        places = min(self.jobs, cpus())
        training = makespan(seconds, {task.name: task.needs for task in self.tasks}, places)
        return self.data_seconds * self.factor / cpus() + training

    def describe(self) -> str:
        """One sentence."""
        total = len({node.name for node in self.graph.values()})
        text = f"{total} runs, {total - len(self.tasks)} of them finished"
        if not self.tasks:
            return text
        places = "one run at a time" if self.jobs == 1 else f"up to {self.jobs} runs at once"
        text += f"; {sum(task.steps for task in self.tasks):,} steps of training, {places}"
        if self.seconds is None:
            return text
        return (
            f"{text}: about {duration(self.seconds)} on this machine, on which a step takes {self.factor:.2f} times as "
            "long as where the costs were recorded"
        )

    def train(self, on_failure: OnFailure) -> None:
        """Run the tasks."""
        nodes = {node.name: node for node in self.graph.values()}

        def command(task: Task, cores: int) -> list[str]:
            nodes[task.name].prepare()
            options = ["--parent", str(os.getpid()), "--workers", str(cores - 1), "--debug"]
            return [*RUN_COMMAND, str(task.folder), *options]

        def finished(task: Task, spent: Spent) -> None:
            nodes[task.name].note(spent)

        Executor(self.tasks, self.jobs, cpus(), command, finished, on_failure).run()


def _draw(recipe: Recipe, pictures: PictureSettings, nodes: Mapping[str, Node], run_dir: Path) -> None:
    """Ground truth and detections of the recipe's columns, side by side."""
    columns = {}
    column, decimals = recipe.table_columns[0], min(recipe.decimals, 3)
    for name in pictures.columns:
        node = nodes[name]
        model, dataset = open_model(node.config, node.weights)
        title = f"{name}: {column.heading} {node.finished()['metrics'][column.key]:.{decimals}f}"
        columns[title] = model, dataset
    chosen = np.linspace(0, len(dataset) - 1, pictures.samples).round().astype(int)
    folder, extent = run_dir / "pictures", picture_extent(node.config)
    compare(columns, [int(i) for i in chosen], folder, extent, pictures.min_score, pictures.scores)
