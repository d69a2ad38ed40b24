"""Recipes: every shipped one resolves, worlds of both layouts, tables of both benchmarks, mistakes explained."""

from __future__ import annotations

import importlib
import json
import runpy
from pathlib import Path

import pytest

from mmdet3d.config import CONFIG_ROOT, load_config
from mmdet3d.engine.recipe import Plan, Recipe
from mmdet3d.engine.recipe_graph import build_graph
from mmdet3d.engine.recipe_results import check_steps, control_table, join_results, read_results, summary

RESULTS = CONFIG_ROOT.parent / "benchmarks" / "results"
RECIPES = sorted(p.relative_to(CONFIG_ROOT).as_posix() for p in CONFIG_ROOT.rglob("recipes/*.yaml"))


@pytest.mark.parametrize("name", RECIPES)
def test_every_run_of_a_shipped_recipe_resolves(name: str) -> None:
    recipe = Recipe.load(name)
    recipe.check({"log_config.interval": 5})
    earlier: dict[str, str] = {}
    for run_name, run in recipe.runs.items():
        config = load_config(run.config, {**run.overrides_with({"dataset_root": "somewhere/"}, earlier), "seed": 1})
        assert config.seed == 1 and config.data.val.dataset_root == "somewhere/"
        earlier[run_name] = f"{run_name}.safetensors"
    assert not recipe.table or {"teacher", "control", "distilled"} <= set(recipe.table)


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
    assert recipe.training_samples() == len((tmp_path / "world" / "ImageSets" / "train.txt").read_text().split())
    table = str(control_table(recipe, {"a": {0: {"metrics": {"Car/3d/R40/moderate": 12.34}}}}))
    assert "Car 3D" in table and " 12.3 |" in table


def test_samples_are_known_before_the_world_is_made() -> None:
    assert Recipe.load("synthetic/recipes/crkd_demo.yaml").training_samples() == 228  # 38 scenes of 6 key frames


def test_control_and_distilled_ask_for_the_same_sensors_of_data_that_may_lack_some(tmp_path: Path) -> None:
    """Else a control without teacher would see frames whose scan is missing, and its distilled twin would not."""
    path = tmp_path / "own.yaml"
    path.write_text("base: [synthetic/recipes/crkd_small.yaml]\ndata: null\npictures: null\n")
    graph = build_graph(Recipe.load(path), tmp_path / "run", [0], {})
    asked = {run: node.config.data.train.get("sensors") for (run, _), node in graph.items()}
    both = ["camera", "radar", "lidar"]
    assert asked == {"teacher": None, "student": None, "control": both, "distilled": both}


def test_an_unknown_layout_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text("title: T\nruns: {}\ndata: {layout: waymo}\n")
    with pytest.raises(ValueError, match=r"r\.yaml: config key data\.layout must be one of nuscenes, kitti, .*got"):
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


ENTRY = {"iterations": 4, "metrics": {"s": 0.5}}
ROLES = "table: {teacher: a, control: a, distilled: a}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("runs: {a: {config: c, override: {}}}", r"r\.yaml: unknown config key runs\.a\.override, did you mean 'over"),
        ("runs: {a: {overrides: {}}}", r"config key runs\.a\.config is missing"),
        ("runs: {a: c.yaml}", r"config key runs\.a must be a mapping, got 'c\.yaml'"),
        ("runs: {a: {config: c, overrides: {x: '{b}'}}, b: {config: c}}", r"runs\.a: x needs the checkpoint of 'b'"),
        ("runs: {a: {config: c}}\ntable: {teacher: a, distilled: a}", r"r\.yaml: config key table\.control is missing"),
        ("runs: {a: {config: c}}\ntable: {teacher: a, control: a}", r"r\.yaml: config key table\.distilled is missing"),
        ("runs: {a: {config: c}}\nvariants: {more: a}", r"r\.yaml: config key table\.teacher is missing"),
        ("runs: {a: {config: c}}\npictures: {columns: [b], samples: 1}", r"pictures\.columns: b is no run"),
        ("runs: {a: {config: c}}\npictures: {columns: [], samples: 1}", r"pictures\.columns: name at least one run"),
        ("runs: {a: {config: c}}\npictures: {columns: [a]}", r"config key pictures\.samples is missing"),
        ("runs: {a: {config: c}}\npicture: {}", r"r\.yaml: unknown config key picture, did you mean 'pictures'"),
        ("runs: {a: {config: c}}\npictures: {columns: [a], samples: -3}", r"pictures\.samples must be .* 1, got -3"),
        ("runs: {a: {config: c}}\ndecimals: -1", r"r\.yaml: config key decimals must be .* at least 0, got -1"),
        ("runs: {a: {config: c, cost: -1}}", r"config key runs\.a\.cost must not be negative, got -1"),
        ("runs: [", r"r\.yaml is not valid YAML"),
    ],
)
def test_mistakes_in_a_recipe_are_found_when_it_is_read(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(f"title: T\n{text}\n")
    with pytest.raises(ValueError, match=message):
        Recipe.load(path)


def test_the_world_takes_time_until_it_is_there(tmp_path: Path) -> None:
    recipe = Recipe.load("synthetic/recipes/crkd_demo.yaml")
    assert recipe.data_seconds(tmp_path) == recipe.data_cost > 0 and recipe.data_seconds(None) == 0
    (tmp_path / "synthetic_infos_val.pkl").touch()
    assert recipe.data_seconds(tmp_path) == 0
    assert Recipe.load("synthetic/recipes/crkd_small.yaml").data_seconds(tmp_path / "none") == 0


def test_overrides_that_a_recipe_decides_itself_are_refused() -> None:
    recipe = Recipe.load("synthetic/recipes/crkd_demo.yaml")
    for key, message in {
        "seed": "--seed has no effect in this recipe: give --seeds",
        "dataset_root": "--dataset_root has no effect in this recipe: give --data-dir",
        "resume_from": "the same command again resumes",
        "model.teacher.checkpoint": "run distilled gets the checkpoint of run teacher there",
        "model.teacher": "--model.teacher has no effect",
    }.items():
        with pytest.raises(ValueError, match=message):
            recipe.check({key: None})


COSINE = {"type": "FeatureLoss", "student": "fuser", "teacher": "fuser"}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            {"max_epochs": 8, "model.losses.cosine": COSINE, "model.losses.cosine.weight": 2.0},
            r"--model\.losses\.cosine fits control and distilled, not teacher \(unknown config key 'model\.losses'.*"
            r"give it to one run by that run's name: --distilled\.model\.losses\.cosine VALUE",
        ),
        (
            {"model.losses": {"cosine": COSINE}},
            r"--model\.losses fits distilled, not teacher .*--distilled\.model\.losses",
        ),
        ({"distilled.model.loses.cosine": COSINE}, r"--distilled\.model\.loses\.cosine does not fit: .*'losses'"),
        ({"distiled.model.losses.cosine": COSINE}, r"fits no run: .*runs, which may stand before .*: .*, distilled"),
        ({"model.encoders.camera.vtransform.typ": 1}, r"typ fits no run: unknown config key model"),
        ({"distilled.seed": 1}, r"--distilled\.seed has no effect in this recipe: give --seeds"),
        ({"control.model.student.checkpoint": "x"}, r"run control gets the checkpoint of run student there"),
    ],
)
def test_what_an_override_does_not_fit_is_said_with_the_runs_that_it_fits(overrides: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Recipe.load("synthetic/recipes/crkd_small.yaml").check(overrides)


def test_an_override_that_begins_with_a_run_is_for_that_run_alone() -> None:
    recipe = Recipe.load("synthetic/recipes/crkd_small.yaml")
    given = {
        "distilled.model.losses.cosine": COSINE,
        "distilled.model.losses.cosine.weight": 3.0,
        "control.model.losses.cosine": None,
        "distilled.max_epochs": 4,
        "max_epochs": 6,
    }
    recipe.check(given)
    names = dict.fromkeys(recipe.runs, "x.safetensors")
    resolved = {n: load_config(run.config, run.overrides_with(given, names)) for n, run in recipe.runs.items()}
    assert {n: c.max_epochs for n, c in resolved.items()} == {"teacher": 6, "student": 6, "control": 6, "distilled": 4}
    assert resolved["distilled"].model.losses.cosine == COSINE | {"weight": 3.0}
    # After the recipe's own `model.losses: {}` too: what is addressed has the last word.
    assert resolved["control"].model.losses == {"cosine": None}
    assert "losses" not in resolved["teacher"].model


@pytest.mark.parametrize("name", RECIPES)
def test_no_run_is_named_like_a_key_of_its_configs(name: str) -> None:
    recipe = Recipe.load(name)
    assert not any(other in load_config(run.config) for run in recipe.runs.values() for other in recipe.runs)


def test_the_tool_refuses_before_it_makes_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Recipe, "make_data", lambda *_: pytest.fail("data was made"))
    tool = runpy.run_path(str(CONFIG_ROOT.parent / "tools" / "run_recipe.py"))["main"]
    words = ["synthetic/recipes/crkd_demo.yaml", "--run-dir", f"{tmp_path}/run", "--data-dir", f"{tmp_path}/world"]
    with pytest.raises(ValueError, match="give --data-dir"):
        tool([*words, "--dataset_root", "elsewhere/"])
    with pytest.raises(ValueError, match="run teacher has 3 epochs and is not evaluated after the last one"):
        tool([*words, "--max_epochs", "3", "--evaluation.start", "2", "--evaluation.interval", "2"])
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "list.json").write_text("[1]")
    for further in ([], ["--dry-run"]):
        with pytest.raises(ValueError, match=r"list\.json has no seeds of the recipe"):
            tool([*words, "--also", f"{tmp_path}/list.json", *further])
    assert list(tmp_path.iterdir()) == [tmp_path / "list.json"]


def test_worlds_take_the_place_of_seeds_and_world() -> None:
    from mmdet3d.commands.run_recipe import _worlds, parse

    def chosen(*words: str, recipe: str = "synthetic/recipes/crkd_taught.yaml"):
        args, _ = parse([recipe, "--run-dir", "run", *words])
        return _worlds(args, Recipe.load(recipe))

    roots = {w: Path(f"data/crkd_taught-world-{w}") for w in (1000, 1001)}
    assert chosen("--worlds", "1000", "1001") == ([1000, 1001], roots, roots)
    root = Path("data/crkd_taught-world-3")
    assert chosen("--world", "3", "--seeds", "0", "1") == ([0, 1], {3: root}, root)
    assert chosen()[0] == [0]
    for option in ("--seeds", "--world"):
        with pytest.raises(ValueError, match=f"--worlds takes the place of {option}"):
            chosen("--worlds", "1000", option, "0")
    for words in (
        ["--seeds", "-1"],
        ["--seeds", "0", "0"],
        ["--worlds", "3", "3"],
        ["--world", "-2"],
        ["--worlds", f"{2**32}"],
    ):
        with pytest.raises(
            ValueError, match=rf"{words[0]} takes different numbers from 0 to 4294967295, got {' '.join(words[1:])}"
        ):
            chosen(*words)


def test_seeds_of_another_day_join_the_table(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(f"title: T\nruns: {{a: {{config: c}}}}\n{ROLES}\ncolumns: {{Score: s}}\n")
    recipe = Recipe.load(path)
    monday = tmp_path / "results.json"
    entry = {"iterations": 4, "metrics": {"s": 0.5}}
    monday.write_text(json.dumps({"title": "T", "seeds": [0, 2], "runs": {"a": {"2": entry, "0": entry}}}))

    (earlier,) = read_results([monday], recipe, "seed", [1])
    results = {"a": {1: {"iterations": 4, "metrics": {"s": 0.75}}}}
    check_steps({"a": 4}, earlier, monday, "seed")
    join_results(results, earlier)
    assert list(results["a"]) == [0, 1, 2] and len(control_table(recipe, results).control) == 3

    with pytest.raises(ValueError, match=r"results\.json has the seeds 2 already; leave them out"):
        read_results([monday], recipe, "seed", [1, 2])
    with pytest.raises(ValueError, match=r"has no worlds of the recipe 'T' with the runs a"):
        read_results([monday], recipe, "world", [1])
    with pytest.raises(
        ValueError, match=r"results\.json: a was trained for 4 steps with seed 2, here for 6; give the same"
    ):
        check_steps({"a": 6}, earlier, monday, "seed")
    copied = tmp_path / "copy.json"
    copied.write_text(monday.read_text())
    with pytest.raises(ValueError, match=r"copy\.json has the seeds 0, 2 already, as .*results\.json has; give one of"):
        read_results([monday, copied], recipe, "seed", [1])


@pytest.mark.parametrize(
    ("runs", "message"),
    [
        ([], r"o\.json has no seeds of the recipe 'T'"),
        ({"a": None, "b": {}}, r"o\.json has no seeds of the recipe 'T'"),
        (
            {"a": {"0": ENTRY}, "b": {"7": None, "8": ENTRY}},
            "has no metrics of b with seed 7; run the recipe there again",
        ),
        ({"a": {"0": ENTRY}, "b": {"x": ENTRY}}, "has no metrics of b with seed x"),
        ({"a": {"0": {"metrics": {"s": 1}}}, "b": {"0": ENTRY}}, "has no iterations of a with seed 0"),
        ({"a": {"0": ENTRY}, "b": {"0": ENTRY | {"metrics": {"s": None}}}}, "has no metric s of b with seed 0"),
        ({"a": {"0": ENTRY}, "b": {"0": ENTRY | {"metrics": {"nds": 1}}}}, "has no metric s of b with seed 0"),
        ({"a": {"0": ENTRY, "8": ENTRY}, "b": {"0": ENTRY}}, r"has no b with seed 8, so nothing pairs"),
        ({"a": {}, "b": {"0": ENTRY}}, r"has no a with seed 0, so nothing pairs"),
    ],
)
def test_results_that_cannot_join_the_table_are_refused_by_file_and_seed(
    tmp_path: Path, runs: object, message: str
) -> None:
    path, other = tmp_path / "r.yaml", tmp_path / "o.json"
    path.write_text(
        "title: T\nruns: {a: {config: c, shared: true}, b: {config: c}}\n"
        "table: {teacher: a, control: b, distilled: b}\ncolumns: {Score: s}\n"
    )
    recipe = Recipe.load(path)
    other.write_text(json.dumps({"title": "T", "seeds": [0], "runs": runs}))
    with pytest.raises(ValueError, match=message):
        read_results([other], recipe, "seed", [1])
    good = {"a": {"0": ENTRY}, "b": {"0": ENTRY, "5": ENTRY}}  # as earlier versions wrote `seeds`
    other.write_text(json.dumps({"title": "T", "seeds": [0], "runs": good}))
    with pytest.raises(ValueError, match="has the seeds 5 already"):
        read_results([other], recipe, "seed", [5])
    (found,) = read_results([other], recipe, "seed", [1])
    assert summary(recipe, found, "seed")["seeds"] == [0, 5]
    with pytest.raises(ValueError, match="has no b with world"):
        other.write_text(
            json.dumps({"title": "T", "worlds": [0, 5], "runs": {**good, "b": {"0": ENTRY}, "a": good["b"]}})
        )
        read_results([other], recipe, "world", [1])


def test_results_of_other_configs_overrides_or_data_join_no_table(tmp_path: Path) -> None:
    text = (
        "title: T\ndata: {scenes: 48}\nruns:\n  a: {config: c.yaml, shared: true}\n"
        "  b: {config: c.yaml, overrides: {max_epochs: 2, load_from: '{a}'}}\n"
        "table: {teacher: a, control: b, distilled: b}\ncolumns: {Score: s}\n"
    )
    path, other = tmp_path / "r.yaml", tmp_path / "o.json"
    path.write_text(text)
    recipe = Recipe.load(path)
    given = {"optimizer.lr": 0.5, "data.workers_per_gpu": 3}
    entry = {**ENTRY, "config": "c.yaml"}
    found = summary(recipe, {"a": {0: entry}, "b": {0: entry}}, "seed", given)
    other.write_text(json.dumps(found))
    assert len(read_results([other], recipe, "seed", [1], {"optimizer.lr": 0.5, "data.workers_per_gpu": 0})) == 1

    def refused(recipe: Recipe, overrides: dict, message: str) -> None:
        with pytest.raises(ValueError, match=rf"o\.json: {message}; give the same there and here, or leave"):
            read_results([other], recipe, "seed", [1], overrides)

    refused(recipe, {}, r"a had other overrides, optimizer\.lr: 0\.5, here not given")
    refused(recipe, {**given, "b.ema": None}, "b had other overrides, ema: not given, here None")
    for old, new, message in (
        ("scenes: 48", "scenes: 12", "all runs saw a world of other data, scenes: 48, here 12"),
        ("max_epochs: 2", "max_epochs: 3", "b had other overrides, max_epochs: 2, here 3"),
        ("b: {config: c", "b: {config: d", r"b with seed 0 was trained from c\.yaml, here from d\.yaml"),
    ):
        path.write_text(text.replace(old, new))
        refused(Recipe.load(path), given, message)


@pytest.mark.parametrize("name", [name for name in RECIPES if (RESULTS / f"{Path(name).stem}.json").is_file()])
def test_a_stored_table_joins_that_of_its_recipe(name: str) -> None:
    stored, recipe = RESULTS / f"{Path(name).stem}.json", Recipe.load(name)
    unit = "world" if "worlds" in json.loads(stored.read_text()) else "seed"
    (found,) = read_results([stored], recipe, unit, [])
    assert list(found) == list(recipe.runs)


def test_a_table_pairs_by_seed(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(
        "title: T\nruns: {a: {config: c}, b: {config: c}}\ntable: {teacher: a, control: a, distilled: b}\n"
        "columns: {Score: s}\n"
    )
    with pytest.raises(ValueError, match="a has the seeds 0, 8 and b 0, 7, so they are no pairs"):
        control_table(Recipe.load(path), {"a": {0: ENTRY, 8: ENTRY}, "b": {0: ENTRY, 7: ENTRY}})


def test_steps_of_a_run_that_sees_a_part_of_its_world(tmp_path: Path) -> None:
    """The world has 228 training samples; none is made here."""
    (tmp_path / "r.yaml").write_text(
        "title: T\ndata: {scenes: 48, keyframes: 6}\nruns:\n  a: {config: synthetic/camera+radar/demo.yaml}\n"
        "  b: {config: synthetic/camera+radar/demo.yaml, overrides: {max_epochs: 12, data.train.part: [0.25, 0.5]}}\n"
    )
    plan = Plan.make(Recipe.load(tmp_path / "r.yaml"), tmp_path / "runs", [0], data_root=tmp_path / "world")
    assert [(task.name, task.steps) for task in plan.tasks] == [("a-seed0", 3 * 114), ("b-seed0", 12 * 29)]


@pytest.mark.parametrize("command", ["run_recipe", "demo"])
def test_data_that_cannot_be_made_are_said_before_there_is_a_folder(command: str, tmp_path: Path) -> None:
    tool = importlib.import_module(f"mmdet3d.commands.{command}")
    (tmp_path / "file").touch()
    recipe = [] if command == "demo" else ["synthetic/recipes/crkd_demo.yaml"]
    with pytest.raises(ValueError, match=r"cannot write into .*file.* is a file.; pass another folder with --data-dir"):
        tool.main([*recipe, "--run-dir", str(tmp_path / "run"), "--data-dir", str(tmp_path / "file" / "data")])
    assert not (tmp_path / "run").exists()
