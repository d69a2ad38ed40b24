"""Recipes: trainings that build on each other, over seeds, ending in one table."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from mmdet3d.config import Config, find_config, load_config
from mmdet3d.datasets import build_dataset
from mmdet3d.datasets.nuscenes.create import create_nuscenes
from mmdet3d.datasets.synthetic.generate import generate
from mmdet3d.datasets.synthetic.kitti import KittiSettings, generate_kitti
from mmdet3d.datasets.synthetic.settings import Settings as WorldSettings
from mmdet3d.datasets.synthetic.tables import VERSION
from mmdet3d.engine.checkpoint import RunCheckpoints, load_checkpoint
from mmdet3d.engine.logging import log_to_folder
from mmdet3d.engine.pictures import compare, picture_extent
from mmdet3d.engine.trainer import Trainer, seed_everything
from mmdet3d.evaluation.control import COLUMNS, Column, ControlTable
from mmdet3d.interop.checkpoints import metadata_path
from mmdet3d.models import build_model
from mmdet3d.registry import nearest

__all__ = ["Recipe", "RecipeRun", "run_recipe"]

INFO_PREFIX = "synthetic"
ROLES = ("teacher", "student", "control", "distilled")


@dataclass(frozen=True)
class RecipeRun:
    """One training of a recipe.

    Args:
        config: a config file.
        overrides: of that config by dotted key; a value `{name}` stands for the checkpoint of the run `name`.
        shared: train once, with the first seed, for all seeds (teachers).
    """

    config: str
    overrides: Mapping[str, Any] = field(default_factory=dict)
    shared: bool = False


@dataclass(frozen=True)
class Recipe:
    """A recipe file.

    Args:
        title: heading of the table.
        runs: in order; a run may name the ones before it.
        table: which run plays which role of `ControlTable`; empty for no table.
        variants: further rows of the table, heading to run.
        columns: of the table, heading to metric, of which more is better; without them those of nuScenes.
        decimals: of the table's numbers.
        data: arguments of the synthetic world's generator, and `layout`, nuscenes (default) or kitti; None if the data
            set is the user's.
        pictures: `columns` (runs drawn side by side), `samples` (how many key frames), and the least `min_score` of the
            detections that are drawn.
    """

    title: str
    runs: Mapping[str, RecipeRun]
    table: Mapping[str, str] = field(default_factory=dict)
    variants: Mapping[str, str] = field(default_factory=dict)
    columns: Mapping[str, str] | None = None
    decimals: int = 4
    data: Mapping[str, Any] | None = None
    pictures: Mapping[str, Any] | None = None

    @classmethod
    def load(cls, path: str | Path) -> Recipe:
        """Raises ValueError naming the key that is unknown, missing or refers to nothing."""
        file = find_config(path)
        content = yaml.safe_load(file.read_text())
        known = cls.__dataclass_fields__
        for key in content:
            if key not in known:
                raise ValueError(f"unknown key {key!r} in {file.name}{nearest(key, known)}")
        for key in ("title", "runs"):
            if key not in content:
                raise ValueError(f"{file.name} needs the key {key!r}")
        recipe = cls(**{**content, "runs": {k: RecipeRun(**v) for k, v in content["runs"].items()}})
        for role, name in recipe.table.items():
            if role not in ROLES or name not in recipe.runs:
                raise ValueError(
                    f"{file.name}, table: {role}: {name} (roles: {', '.join(ROLES)}; runs: {', '.join(recipe.runs)})"
                )
        for heading, name in recipe.variants.items():
            if name not in recipe.runs:
                raise ValueError(f"{file.name}, variants: {heading}: {name} is no run{nearest(name, recipe.runs)}")
        layout = (recipe.data or {}).get("layout", "nuscenes")
        if layout not in _MAKERS:
            raise ValueError(f"{file.name}, data.layout: {layout!r} is none of {', '.join(_MAKERS)}")
        return recipe

    @property
    def table_columns(self) -> Sequence[Column]:
        return COLUMNS if self.columns is None else [Column(key, name) for name, key in self.columns.items()]

    def make_data(self, root: Path, seed: int, workers: int) -> None:
        """Make the synthetic world of this recipe, or what is missing of it."""
        options = dict(self.data or {})
        _MAKERS[options.pop("layout", "nuscenes")](root, options | {"seed": seed}, workers)


def _make_nuscenes(root: Path, options: Mapping[str, Any], workers: int) -> None:
    """The world and its info files."""
    generate(root, WorldSettings(**options), workers=workers)
    create_nuscenes(root, root, INFO_PREFIX, VERSION, workers=workers, database=False)


def _make_kitti(root: Path, options: Mapping[str, Any], workers: int) -> None:
    generate_kitti(root, KittiSettings(**options), workers=workers)


_MAKERS = {"nuscenes": _make_nuscenes, "kitti": _make_kitti}


def run_recipe(
    recipe: Recipe, run_dir: str | Path, seeds: Sequence[int], overrides: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Train what is not trained yet, write `results.json` into `run_dir` and pictures into `run_dir/pictures`.

    A finished run is reused and an interrupted one resumed, as long as its resolved config is the same.

    Args:
        run_dir: every run gets the folder `<name>-seed<seed>` in it.
        seeds: training seeds.
        overrides: of every config, by dotted key (`dataset_root`).

    Returns:
        What `results.json` holds: `table`, `runs` (config, seconds, metrics, checkpoint per run and seed).

    Raises:
        ValueError: a folder holds a run of another config; whatever training raises.
    """
    run_dir = Path(run_dir)
    results: dict[str, dict[int, dict[str, Any]]] = {name: {} for name in recipe.runs}
    for seed in seeds:
        checkpoints: dict[str, str] = {}
        for name, run in recipe.runs.items():
            actual = seeds[0] if run.shared else seed
            if actual not in results[name]:
                results[name][actual] = _train(name, run, run_dir, actual, checkpoints, overrides or {})
            checkpoints[name] = results[name][actual]["checkpoint"]
    summary = _summary(recipe, results, seeds)
    (run_dir / "results.json").write_text(json.dumps(summary, indent=1) + "\n")
    if recipe.pictures:
        _draw(recipe, {n: results[n][seeds[0] if recipe.runs[n].shared else seeds[-1]] for n in results}, run_dir)
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


def _draw(recipe: Recipe, results: Mapping[str, Mapping[str, Any]], run_dir: Path) -> None:
    """Ground truth and detections of the recipe's columns, side by side."""
    columns = {}
    column, decimals = recipe.table_columns[0], min(recipe.decimals, 3)
    for name in recipe.pictures["columns"]:
        config = Config(yaml.safe_load((Path(results[name]["checkpoint"]).parent / "configs.yaml").read_text()))
        model = build_model(config.model).eval()
        load_checkpoint(model, results[name]["checkpoint"])
        dataset = build_dataset(config.data["val"], test_mode=True)
        title = f"{name}: {column.heading} {results[name]['metrics'][column.key]:.{decimals}f}"
        columns[title] = (model, dataset)
    chosen = np.linspace(0, len(dataset) - 1, recipe.pictures["samples"]).round().astype(int)
    drawn = {"min_score": recipe.pictures["min_score"]} if "min_score" in recipe.pictures else {}
    compare(columns, [int(i) for i in chosen], run_dir / "pictures", picture_extent(config), **drawn)


def _train(
    name: str, run: RecipeRun, run_dir: Path, seed: int, checkpoints: Mapping[str, str], overrides: Mapping[str, Any]
) -> dict[str, Any]:
    folder = run_dir / f"{name}-seed{seed}"
    filled = {k: _fill(v, checkpoints) for k, v in run.overrides.items()}
    config = load_config(run.config, {**overrides, **filled, "seed": seed})
    done = _finished(folder, config)
    if done is None:
        began = time.perf_counter()
        _fit(folder, config, f"{name}, seed {seed}")
        done = _finished(folder, config)
        assert done is not None, f"{folder} has no evaluated final checkpoint"
        seconds = time.perf_counter() - began
        _write_json(folder / "done.json", {"seconds": seconds})
    path, metadata = done
    return {
        "config": run.config,
        "seconds": json.loads((folder / "done.json").read_text())["seconds"]
        if (folder / "done.json").is_file()
        else None,
        "iterations": metadata["iteration"],
        "metrics": metadata["metrics"],
        "checkpoint": str(path),
    }


def _fit(folder: Path, config: Config, title: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    log_to_folder(folder, console=False)
    (folder / "configs.yaml").write_text(config.dump())
    resumable = RunCheckpoints(folder).resumable()
    if resumable:
        config["resume_from"] = str(resumable[-1])
    seed_everything(config.seed)
    model = build_model(config.model)
    train_dataset = build_dataset(config.data.train, config.seed)
    Trainer(model, train_dataset, build_dataset(config.data.val, test_mode=True), config, folder, progress=title).fit()


def _finished(folder: Path, config: Config) -> tuple[Path, dict[str, Any]] | None:
    """Final weights and metadata of a finished run of this very config."""
    settings = folder / "configs.yaml"
    if settings.is_file() and settings.read_text() != config.dump():
        raise ValueError(f"{folder} holds a run of another config; remove that folder or choose another --run-dir")
    path = folder / f"epoch_{config.max_epochs}.safetensors"
    if not path.is_file() or not metadata_path(path).is_file():
        return None
    metadata = json.loads(metadata_path(path).read_text())
    return (path, metadata) if metadata["metrics"] else None


def _fill(value: Any, checkpoints: Mapping[str, str]) -> Any:
    if not (isinstance(value, str) and value.startswith("{") and value.endswith("}")):
        return value
    name = value[1:-1]
    if name not in checkpoints:
        raise ValueError(
            f"the recipe refers to the checkpoint of {name!r}, which is no earlier run{nearest(name, checkpoints)}"
        )
    return checkpoints[name]


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content) + "\n")
