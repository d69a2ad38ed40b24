"""Put models of a finished recipe into the zoo: float16 weights, each with a card.

python tools/ship_weights.py synthetic/recipes/crkd_taught.yaml --run-dir runs/demo --name crkd-demo
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmdet3d.config import load_config
from mmdet3d.engine.command import run

if TYPE_CHECKING:
    from torch import Tensor

    from mmdet3d.engine.recipe_file import Recipe


def parse(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("recipe", help="YAML file; also looked for below configs/")
    parser.add_argument("--run-dir", type=Path, required=True, help="of the recipe")
    parser.add_argument("--name", required=True, help="what the names in the zoo begin with: NAME-RUN")
    parser.add_argument("--runs", nargs="+", help="which of its runs (default: those of its table)")
    parser.add_argument("--world", type=int, default=0, help="seed of the synthetic world (default: 0)")
    parser.add_argument("--seed", type=int, help="of the training (default: that of the world)")
    parser.add_argument("--data-dir", type=Path, help="folder of the synthetic world (default: data/RECIPE-world-SEED)")
    parser.add_argument("--revision", help="of the program that trained them (default: this one)")
    parser.add_argument(
        "--leave-out", nargs="+", default=[], metavar="PART", help="of the models, on which no prediction depends"
    )
    parser.add_argument("--tolerance", type=float, default=0.002, help="most that rounding may change mAP")
    return parser.parse_args(words)


def main(words: list[str]) -> None:
    args = parse(words)
    from mmdet3d.engine.recipe_file import Recipe

    recipe = Recipe.load(args.recipe)
    runs = json.loads((args.run_dir / "results.json").read_text())["runs"]
    data = args.data_dir or Path(f"data/{Path(args.recipe).stem}-world-{args.world}")
    seed = args.world if args.seed is None else args.seed
    numbers = f"--worlds {args.world}" if seed == args.world else f"--world {args.world} --seeds {seed}"
    options = f"--run-dir runs/{Path(args.recipe).stem} {numbers}"
    origin = {
        "recipe": args.recipe,
        "world": args.world,
        "seed": seed,
        "command": f"python tools/run_recipe.py {args.recipe} {options}",
        "revision": args.revision or subprocess.check_output(["git", "rev-parse", "HEAD"], text=True).strip(),
    }
    for name in args.runs or dict.fromkeys(recipe.table.values()):
        result = runs[name][str(seed)]
        weights = args.run_dir / result["checkpoint"]
        card = ship(f"{args.name}-{name}", name, result, weights, data, args.tolerance, args.leave_out, recipe, origin)
        print(f"{args.name}-{name}: {card['metrics']}, in the small world {card['small_world']['metrics']}")


def ship(
    name: str,
    role: str,
    result: dict[str, Any],
    weights: Path,
    data: Path,
    tolerance: float,
    leave_out: Sequence[str],
    recipe: Recipe,
    origin: dict[str, Any],
) -> dict[str, Any]:
    """Write the model `name` and its card, which it returns.

    Raises:
        ValueError: in float16, and without what is left out, the model scores differently.
    """
    import torch

    from mmdet3d import __version__
    from mmdet3d.engine.evaluate import evaluate
    from mmdet3d.engine.pictures import open_model
    from mmdet3d.engine.shipped import first_scores, load_shipped, make_small_world, small_metrics
    from mmdet3d.io.weights import read_weights, save_weights
    from mmdet3d.zoo import ZOO

    config, target = result["config"], ZOO / f"{name}.safetensors"
    state = {key: halved(v) for key, v in read_weights(weights)[0].items()}
    named = [part for each in leave_out for part in (each, f"student.{each}")]
    left_out = [part for part in named if any(key.startswith(f"{part}.") for key in state)]
    state = {k: v for k, v in state.items() if not k.startswith(tuple(f"{part}." for part in left_out))}
    ZOO.mkdir(parents=True, exist_ok=True)
    save_weights(state, target, {"config": config, "left_out": left_out})
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        cfg = load_config(config, {"dataset_root": f"{data}/"})
        model, dataset = open_model(cfg, target)
        metrics = evaluate(model, dataset, scratch / name, torch.device("cpu"), batch_size=2)
        columns = recipe.table_columns
        change = metrics[columns[0].key] - result["metrics"][columns[0].key]
        if abs(change) > tolerance:
            raise ValueError(
                f"{name}: shipping changes {columns[0].heading} by {change:+.4f}; raise --tolerance or leave out less"
            )
        card = {
            "config": config,
            "run": role,
            **origin,
            "iterations": result["iterations"],
            **({"left_out": left_out} if left_out else {}),
            "precision": "float16",
            "versions": {"mmdet3d": __version__},
            "metrics": {column.key: round(metrics[column.key], 4) for column in columns},
        }
        save_weights(state, target, card)
        make_small_world(name, scratch / "small")
        found = small_metrics(name, scratch / "small", scratch / "scored")
        card["small_world"] = {
            "first_scores": [round(s, 4) for s in first_scores(*load_shipped(name, scratch / "small"))],
            "metrics": {key: round(value, 5) for key, value in found.items()},
        }
    save_weights(state, target, card)
    return card


def halved(tensor: Tensor) -> Tensor:
    """In float16, unless that cannot hold it: the variance in some normalisation layers is beyond 65504."""
    half = tensor.half() if tensor.is_floating_point() else tensor
    return half if half.isfinite().all() else tensor


if __name__ == "__main__":
    run(main)
