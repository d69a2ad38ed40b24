"""What `make demo` runs: a picture from the weights in the repository, then the training and comparison behind them.

distill3d demo --run-dir runs/demo
distill3d demo --run-dir runs/demo-7 --seed 7     # another world, other starting weights

Doing it again continues or reuses what is there. --only-first ends after the picture; --film FOLDER only draws the
pictures of the README into that folder.
Overrides hold for every run of the recipe.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from mmdet3d.engine.command import add_override_options, read_overrides, seed
from mmdet3d.io.files import check_place
from mmdet3d.machine import cpus

RECIPE = "synthetic/recipes/crkd_demo.yaml"


def parse(words: list[str]) -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument(
        "--run-dir", default="runs/demo", help="where everything but the data goes (default: runs/demo)"
    )
    parser.add_argument(
        "--seed", type=seed, default=0, help="of the world and the training that follow the picture (default: 0)"
    )
    parser.add_argument("--data-dir", default="data", help="where the worlds go (default: data)")
    parser.add_argument("--recipe", default=RECIPE, help=f"what is trained (default: {RECIPE})")
    parser.add_argument("--only-first", action="store_true", help="train nothing")
    parser.add_argument(
        "--film", metavar="FOLDER", help="train nothing; a picture and a film of a longer scene instead"
    )
    add_override_options(parser)
    return parser.parse_known_args(words)


def main(words: list[str]) -> None:
    began = time.monotonic()
    args, rest = parse(words)
    from mmdet3d.engine.recipe import Plan, Recipe, run_recipe
    from mmdet3d.engine.run_dir import writable_folder
    from mmdet3d.engine.shipped import draw_film, draw_first

    if args.film is not None:
        check_place(args.data_dir, "--data-dir")
        for path in draw_film(Path(args.data_dir) / "demo-film-scene", writable_folder(args.film)):
            print(f"picture: {path} ({time.monotonic() - began:.0f} s)")
        return
    recipe, overrides = Recipe.load(args.recipe), read_overrides(rest, args.overrides_file, args.imports)
    if not args.only_first:
        recipe.check(overrides)
    data = Path(args.data_dir)
    root = data / f"{Path(args.recipe).stem}-world-{args.seed}"
    recipe.check_place(root, args.seed)
    run_dir = writable_folder(args.run_dir)
    print("making a scene, and drawing what the models in pretrained/zoo find in it", flush=True)
    picture = draw_first(data / "demo-first-scene", run_dir / "first")
    print(f"picture: {picture} ({time.monotonic() - began:.0f} s)", flush=True)
    if args.only_first:
        return
    plan = Plan.make(recipe, run_dir, [args.seed], overrides, root)
    print(f"now the same from nothing, world {args.seed}: {plan.describe()}", flush=True)
    recipe.make_data(root, args.seed, cpus())
    summary = run_recipe(recipe, run_dir, [args.seed], overrides, root)
    print(f"\n{summary.get('text', '')}\n")
    print("the distilled student also begins with parts of its teacher; docs/results.md tells the two effects apart")
    print(f"results: {run_dir / 'results.json'}\npictures: {run_dir / 'pictures'}")
