"""Run a recipe: trainings that build on each other, over seeds, to one table.

distill3d recipe configs/synthetic/recipes/crkd_demo.yaml --run-dir runs/demo
distill3d recipe configs/synthetic/recipes/crkd_small.yaml --run-dir runs/crkd_small --seeds 0 1 2
distill3d recipe configs/synthetic/recipes/crkd_demo.yaml --run-dir runs/worlds --worlds 1000 1001 1002

Runs whose inputs exist train at the same time, each on one core. What is finished is reused, what was interrupted is
resumed. The table goes to RUN_DIR/results.json and the screen.
Overrides hold for every run and have the last word; seed, data and the checkpoints that runs hand on have none.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from mmdet3d.blocks import MOST_SEED
from mmdet3d.engine.command import add_override_options, natural, read_overrides
from mmdet3d.machine import cpus

if TYPE_CHECKING:
    from mmdet3d.engine.recipe import Recipe
    from mmdet3d.engine.recipe_graph import DataRoots


def parse(words: list[str]) -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("recipe", help="YAML file; also looked for below configs/")
    parser.add_argument("--run-dir", required=True, help="where runs, table and pictures go")
    parser.add_argument("--seeds", type=int, nargs="+", help="training seeds (default: 0)")
    parser.add_argument("--world", type=int, help="seed of the synthetic world (default: 0)")
    parser.add_argument(
        "--worlds",
        type=int,
        nargs="+",
        help="instead of --seeds and --world: so many worlds, each with its own data, teacher and training seed",
    )
    parser.add_argument("--data-dir", help="folder of the synthetic world (default: data/RECIPE-world-SEED)")
    parser.add_argument("--workers", type=natural, default=cpus(), help="processes that make the data")
    parser.add_argument("--jobs", type=natural, help="trainings at once (default: one per core; 1 with a GPU)")
    parser.add_argument(
        "--on-failure",
        choices=("continue", "stop"),
        default="continue",
        help="of one run: finish all that do not need it (default), or stop the others too",
    )
    parser.add_argument(
        "--also",
        nargs="+",
        default=[],
        metavar="RESULTS",
        help="results.json files of the same recipe with other seeds or worlds, which join the table",
    )
    parser.add_argument("--dry-run", action="store_true", help="say how much there is to do and how long it will take")
    add_override_options(parser)
    return parser.parse_known_args(words)


def _worlds(args: argparse.Namespace, recipe: Recipe) -> tuple[list[int], dict[int, Path], DataRoots]:
    """Training seeds, folder per world that is made, and the data of the seeds."""
    for option, numbers in {"seeds": args.seeds, "worlds": args.worlds, "world": args.world and [args.world]}.items():
        if numbers and (min(numbers) < 0 or max(numbers) > MOST_SEED or len(set(numbers)) < len(numbers)):
            raise ValueError(
                f"--{option} takes different numbers from 0 to {MOST_SEED}, got {' '.join(map(str, numbers))}"
            )
    if args.worlds is not None:
        for option, given in {"seeds": args.seeds, "world": args.world, "data-dir": args.data_dir}.items():
            if given is not None:
                raise ValueError(f"--worlds takes the place of --{option}: give one of them")
    if recipe.data is None:
        for option, given in {"data-dir": args.data_dir, "world": args.world, "worlds": args.worlds}.items():
            if given is not None:
                raise ValueError(f"{args.recipe} makes no data, so --{option} has no effect; give --dataset_root")
        return args.seeds or [0], {}, None
    name = f"data/{Path(args.recipe).stem}-world-"
    if args.worlds is not None:
        roots = {world: Path(f"{name}{world}") for world in args.worlds}
        return args.worlds, roots, roots
    world = args.world or 0
    root = Path(args.data_dir or f"{name}{world}")
    return args.seeds or [0], {world: root}, root


def main(words: list[str]) -> None:
    args, rest = parse(words)
    from mmdet3d.engine.recipe import Plan, Recipe, read_results, run_recipe
    from mmdet3d.engine.run_dir import sole_user

    recipe = Recipe.load(args.recipe)
    overrides = read_overrides(rest, args.overrides_file, args.imports)
    seeds, worlds, roots = _worlds(args, recipe)
    unit = "world" if isinstance(roots, dict) else "seed"
    read_results(args.also, recipe, unit, seeds, overrides)  # not after the trainings
    if args.dry_run:
        print(Plan.make(recipe, args.run_dir, seeds, overrides, roots, args.jobs).describe())
        return
    # Before the data is made, which takes minutes, and before there is a folder.
    recipe.check(overrides)
    for world, root in worlds.items():
        recipe.check_place(root, world)
    run_dir = Path(args.run_dir)
    with sole_user(run_dir):
        for world, root in worlds.items():
            recipe.make_data(root, world, args.workers)
        summary = run_recipe(recipe, run_dir, seeds, overrides, roots, args.jobs, args.on_failure, args.also)
    print(f"\n{summary.get('text', '')}\n\nresults: {run_dir / 'results.json'}")
    if recipe.pictures:
        print(f"curves: {run_dir / 'curves.png'}\npictures: {run_dir / 'pictures'}")
