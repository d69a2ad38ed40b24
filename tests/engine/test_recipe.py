"""Recipes: every shipped one resolves, worlds of both layouts, tables of both benchmarks, mistakes explained."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmdet3d.config import CONFIG_ROOT, load_config
from mmdet3d.engine.recipe import Recipe, _fill, control_table

RECIPES = sorted(p.relative_to(CONFIG_ROOT).as_posix() for p in CONFIG_ROOT.rglob("recipes/*.yaml"))


@pytest.mark.parametrize("name", RECIPES)
def test_every_run_of_a_shipped_recipe_resolves(name: str) -> None:
    recipe = Recipe.load(name)
    earlier: dict[str, str] = {}
    for run_name, run in recipe.runs.items():
        filled = {key: _fill(value, earlier) for key, value in run.overrides.items()}
        config = load_config(run.config, {"dataset_root": "somewhere/", **filled, "seed": 1})
        assert config.seed == 1 and config.data.val.dataset_root == "somewhere/"
        earlier[run_name] = f"{run_name}.safetensors"
    assert {"teacher", "control", "distilled"} <= set(recipe.table)


def test_kitti_world_and_table(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(
        "title: T\nruns: {a: {config: kitti/synthetic/rgb_baseline.yaml}}\n"
        "table: {teacher: a, control: a, distilled: a}\n"
        "columns: {Car 3D: Car/3d/R40/moderate}\ndecimals: 1\n"
        "data: {layout: kitti, frames: 4, test_frames: 0, val_fraction: 0.5, image_size: [160, 48]}\n"
    )
    recipe = Recipe.load(path)
    recipe.make_data(tmp_path / "world", 0, 1)
    assert (tmp_path / "world" / "training" / "depth_dense" / "000003.png").is_file()
    table = str(control_table(recipe, {"a": {0: {"metrics": {"Car/3d/R40/moderate": 12.34}}}}))
    assert "Car 3D" in table and " 12.3 |" in table


def test_an_unknown_layout_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text("title: T\nruns: {}\ndata: {layout: waymo}\n")
    with pytest.raises(ValueError, match=r"r\.yaml, data\.layout: 'waymo' is none of nuscenes, kitti"):
        Recipe.load(path)


def test_variants_are_rows_of_the_table_and_must_be_runs(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(
        "title: T\nruns: {a: {config: c}, b: {config: c}}\ntable: {teacher: a, control: a, distilled: a}\n"
        "columns: {Score: s}\nvariants: {another: b}\n"
    )
    results = {name: {0: {"metrics": {"s": value}}} for name, value in (("a", 0.5), ("b", 0.25))}
    table = control_table(Recipe.load(path), results)
    assert table.comparison("s", "another").mean == -0.25
    path.write_text("title: T\nruns: {a: {config: c}}\nvariants: {another: aa}\n")
    with pytest.raises(ValueError, match=r"r\.yaml, variants: another: aa is no run, did you mean 'a'"):
        Recipe.load(path)
