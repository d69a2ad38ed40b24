"""Running recipes: trainings that build on each other, over seeds, ending in one table."""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mmdet3d.config import Config, load_config, parse_yaml
from mmdet3d.datasets import build_split
from mmdet3d.engine.checkpoint import RunCheckpoints, load_checkpoint
from mmdet3d.engine.interrupt import Interrupted
from mmdet3d.engine.logging import log_to_folder
from mmdet3d.engine.pictures import compare, picture_extent
from mmdet3d.engine.recipe_file import Recipe, RecipeRun
from mmdet3d.engine.trainer import Trainer, seed_everything
from mmdet3d.evaluation.control import ControlTable
from mmdet3d.interop.checkpoints import metadata_path
from mmdet3d.models import build_model

__all__ = ["Recipe", "RecipeRun", "control_table", "run_recipe"]


def run_recipe(
    recipe: Recipe,
    run_dir: str | Path,
    seeds: Sequence[int],
    overrides: Mapping[str, Any] | None = None,
    data_root: str | Path | None = None,
) -> dict[str, Any]:
    """Train what is not trained yet, write `results.json` into `run_dir` and pictures into `run_dir/pictures`.

    A finished run is reused and an interrupted one resumed, as long as its resolved config is the same.

    Args:
        run_dir: every run gets the folder `<name>-seed<seed>` in it.
        seeds: training seeds.
        overrides: of every config, by dotted key; they have the last word.
        data_root: of the data that the recipe makes.

    Returns:
        What `results.json` holds: `table`, `runs` (per run and seed config, seconds (null if it was interrupted),
        metrics, and checkpoint, relative to `run_dir`).

    Raises:
        ValueError: see `Recipe.check`; a folder holds a run of another config; whatever training raises.
        Interrupted: by a signal; calling again continues.
    """
    run_dir, given = Path(run_dir), dict(overrides or {})
    recipe.check(given)
    if data_root is not None:
        given["dataset_root"] = f"{data_root}/"
    results: dict[str, dict[int, dict[str, Any]]] = {name: {} for name in recipe.runs}
    for seed in seeds:
        configs: dict[str, Config] = {}
        done: dict[str, dict[str, Any]] = {}
        for name, run in recipe.runs.items():
            actual = seeds[0] if run.shared else seed
            checkpoints = {earlier: str(run_dir / result["checkpoint"]) for earlier, result in done.items()}
            configs[name] = load_config(run.config, {**run.overrides_with(given, checkpoints), "seed": actual})
            if actual not in results[name]:
                folder, earlier = run_dir / f"{name}-seed{actual}", [result["checkpoint"] for result in done.values()]
                results[name][actual] = {"config": run.config, **_train(folder, configs[name], earlier)}
            done[name] = results[name][actual]
    summary = _summary(recipe, results, seeds)
    (run_dir / "results.json").write_text(json.dumps(summary, indent=1) + "\n")
    if recipe.pictures:
        _draw(recipe, configs, done, run_dir)
    return summary


def control_table(recipe: Recipe, results: Mapping[str, Mapping[int, Mapping[str, Any]]]) -> ControlTable:
    """The table of a finished recipe."""

    def metrics(name: str) -> list[Mapping[str, float]]:
        return [r["metrics"] for r in results[name].values()]

    return ControlTable(
        **{role: metrics(name) for role, name in recipe.table.items()},
        title=recipe.title,
        columns=recipe.table_columns,
        decimals=recipe.decimals,
        variants={heading: metrics(name) for heading, name in recipe.variants.items()},
    )


def _summary(recipe: Recipe, results: Mapping[str, Any], seeds: Sequence[int]) -> dict[str, Any]:
    summary: dict[str, Any] = {"title": recipe.title, "seeds": list(seeds), "runs": results}
    if recipe.table:
        table = control_table(recipe, results)
        summary["table"] = table.to_dict()
        summary["text"] = str(table)
    return summary


def _draw(
    recipe: Recipe, configs: Mapping[str, Config], results: Mapping[str, Mapping[str, Any]], run_dir: Path
) -> None:
    """Ground truth and detections of the recipe's columns, side by side."""
    columns = {}
    column, decimals = recipe.table_columns[0], min(recipe.decimals, 3)
    for name in recipe.pictures["columns"]:
        model = build_model(configs[name].model).eval()
        load_checkpoint(model, run_dir / results[name]["checkpoint"])
        dataset = build_split(configs[name].data, "val", test_mode=True)
        title = f"{name}: {column.heading} {results[name]['metrics'][column.key]:.{decimals}f}"
        columns[title] = (model, dataset)
    chosen = np.linspace(0, len(dataset) - 1, recipe.pictures["samples"]).round().astype(int)
    drawn = {"min_score": recipe.pictures["min_score"]} if "min_score" in recipe.pictures else {}
    compare(columns, [int(i) for i in chosen], run_dir / "pictures", picture_extent(configs[name]), **drawn)


def _train(folder: Path, config: Config, earlier: Collection[str]) -> dict[str, Any]:
    """Result of the run in `folder`, trained now if it is not there; `earlier` are the checkpoints before it."""
    note = folder / "done.json"
    done = _finished(folder, config, earlier)
    if done is None:
        seconds = _fit(folder, config)
        done = _finished(folder, config, earlier)
        assert done is not None, f"{folder} has no evaluated final checkpoint"
        note.write_text(json.dumps({"seconds": seconds}) + "\n")
    path, metadata = done
    return {
        "seconds": json.loads(note.read_text())["seconds"] if note.is_file() else None,
        "iterations": metadata["iteration"],
        "metrics": metadata["metrics"],
        "checkpoint": f"{folder.name}/{path.name}",
    }


def _fit(folder: Path, config: Config) -> float | None:
    """Train, or go on with an interrupted training; returns seconds, None for the latter."""
    began = time.perf_counter()
    folder.mkdir(parents=True, exist_ok=True)
    log_to_folder(folder, console=False)
    (folder / "configs.yaml").write_text(config.dump())
    resumable = RunCheckpoints(folder).resumable()
    settings = {**config, "resume_from": str(resumable[-1])} if resumable else config
    seed_everything(config.seed)
    model = build_model(config.model)
    train = build_split(config.data, "train", config.seed)
    val = build_split(config.data, "val", test_mode=True)
    try:
        Trainer(model, train, val, settings, folder, progress=folder.name).fit()
    except Interrupted as stop:
        # The trainer names an option of tools/train.py, which recipes do not have.
        raise Interrupted(f"{folder} is not finished; the same command continues it", stop.number) from stop
    return None if resumable else time.perf_counter() - began


def _finished(folder: Path, config: Config, earlier: Collection[str]) -> tuple[Path, dict[str, Any]] | None:
    """Final weights and metadata of a finished run of this very config."""
    settings = folder / "configs.yaml"
    if settings.is_file():
        found, wanted = (_portable(parse_yaml(text), earlier) for text in (settings.read_text(), config.dump()))
        if found != wanted:
            raise ValueError(f"{folder} holds a run of another config; remove that folder or choose another --run-dir")
    path = folder / f"epoch_{config.max_epochs}.safetensors"
    if not path.is_file() or not metadata_path(path).is_file():
        return None
    metadata = json.loads(metadata_path(path).read_text())
    return (path, metadata) if metadata["metrics"] else None


def _portable(value: Any, checkpoints: Collection[str]) -> Any:
    """A config in which checkpoints of the recipe are relative to its run folder, however that one was written."""
    if isinstance(value, Mapping):
        return {key: _portable(item, checkpoints) for key, item in value.items()}
    if isinstance(value, list):
        return [_portable(item, checkpoints) for item in value]
    if isinstance(value, str):
        return next((c for c in checkpoints if value.endswith(f"/{c}")), value)
    return value
