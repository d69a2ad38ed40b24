"""Run a recipe: trainings that build on each other, over seeds, to one table.

distill3d recipe configs/synthetic/recipes/crkd_demo.yaml --run-dir runs/demo
distill3d recipe configs/synthetic/recipes/crkd_small.yaml --run-dir runs/crkd_small --seeds 0 1 2

Runs whose inputs exist train at the same time, each on one core. What is finished is reused, what was interrupted is
resumed. The table goes to RUN_DIR/results.json and the screen.
Overrides hold for every run and have the last word; seed, data and the checkpoints that runs hand on have none.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from mmdet3d.engine.command import add_override_options, read_overrides
from mmdet3d.machine import cpus


def parse(words: list[str]) -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("recipe", help="YAML file; also looked for below configs/")
    parser.add_argument("--run-dir", required=True, help="where runs, table and pictures go")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="training seeds (default: 0)")
    parser.add_argument("--world", type=int, default=0, help="seed of the synthetic world (default: 0)")
    parser.add_argument("--data-dir", help="folder of the synthetic world (default: data/RECIPE-world-SEED)")
    parser.add_argument("--workers", type=int, default=cpus(), help="processes that make the data")
    parser.add_argument("--jobs", type=int, help="trainings at once (default: one per core; 1 with a GPU)")
    parser.add_argument(
        "--on-failure",
        choices=("continue", "stop"),
        default="continue",
        help="of one run: finish all that do not need it (default), or stop the others too",
    )
    parser.add_argument("--dry-run", action="store_true", help="say how much there is to do and how long it will take")
    add_override_options(parser)
    return parser.parse_known_args(words)


def main(words: list[str]) -> None:
    args, rest = parse(words)
    from mmdet3d.engine.recipe import Plan, Recipe, run_recipe
    from mmdet3d.engine.run_dir import writable_folder

    recipe = Recipe.load(args.recipe)
    overrides = read_overrides(rest, args.overrides_file, args.imports)
    root = None
    if recipe.data is not None:
        root = Path(args.data_dir or f"data/{Path(args.recipe).stem}-world-{args.world}")
    elif args.data_dir is not None:
        raise ValueError(f"{args.recipe} makes no data, so --data-dir has no effect; give --dataset_root")
    if args.dry_run:
        print(Plan.make(recipe, args.run_dir, args.seeds, overrides, root, args.jobs).describe())
        return
    run_dir = writable_folder(args.run_dir)
    # Before the data is made, which takes minutes.
    recipe.check(overrides)
    if root is not None:
        recipe.make_data(root, args.world, args.workers)
    summary = run_recipe(recipe, run_dir, args.seeds, overrides, root, args.jobs, args.on_failure)
    print(f"\n{summary.get('text', '')}\n\nresults: {run_dir / 'results.json'}")
    if recipe.pictures:
        print(f"pictures: {run_dir / 'pictures'}")
