"""Put the models of the finished recipe into the repository: float16 weights, each with a card.

python tools/ship_weights.py synthetic/recipes/crkd_demo.yaml --run-dir runs/demo --world 0 --seed 0
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmdet3d.config import load_config
from mmdet3d.engine.command import run

if TYPE_CHECKING:
    from torch import Tensor


def parse(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("recipe", help="YAML file; also looked for below configs/")
    parser.add_argument("--run-dir", type=Path, required=True, help="of the recipe")
    parser.add_argument("--world", type=int, default=0, help="seed of the synthetic world (default: 0)")
    parser.add_argument("--seed", type=int, default=0, help="of the training (default: 0)")
    parser.add_argument("--data-dir", type=Path, help="folder of the synthetic world (default: data/RECIPE-world-SEED)")
    parser.add_argument("--tolerance", type=float, default=0.002, help="most that rounding may change mAP")
    return parser.parse_args(words)


def main(words: list[str]) -> None:
    args = parse(words)
    from mmdet3d.engine.shipped import NAMES

    runs = json.loads((args.run_dir / "results.json").read_text())["runs"]
    data = args.data_dir or Path(f"data/{Path(args.recipe).stem}-world-{args.world}")
    options = f"--run-dir runs/demo --world {args.world} --seeds {args.seed}"
    origin = {
        "recipe": args.recipe,
        "world": args.world,
        "seed": args.seed,
        "command": f"python tools/run_recipe.py {args.recipe} {options}",
        "revision": subprocess.check_output(["git", "rev-parse", "HEAD"], text=True).strip(),
    }
    with tempfile.TemporaryDirectory() as scratch:
        for name in NAMES:
            card = ship(name, runs[name][str(args.seed)], args.run_dir, data, Path(scratch), args.tolerance, origin)
            print(f"{name}: mAP {card['metrics']['object/map']:.4f}, scores in the first frame {card['first_scores']}")


def ship(
    name: str,
    result: dict[str, Any],
    run_dir: Path,
    data: Path,
    scratch: Path,
    tolerance: float,
    origin: dict[str, Any],
) -> dict[str, Any]:
    """Write one model and its card, which it returns.

    Raises:
        ValueError: in float16 the model scores differently.
    """
    import torch

    from mmdet3d import __version__
    from mmdet3d.datasets.synthetic.worlds import make_scene
    from mmdet3d.engine.evaluate import evaluate
    from mmdet3d.engine.pictures import open_model
    from mmdet3d.engine.shipped import SHIPPED, first_scores, load_shipped
    from mmdet3d.evaluation.nuscenes import COLUMNS
    from mmdet3d.io.weights import read_weights, save_weights

    config, target = result["config"], SHIPPED / f"{name}.safetensors"
    state = {key: halved(v) for key, v in read_weights(run_dir / result["checkpoint"])[0].items()}
    SHIPPED.mkdir(parents=True, exist_ok=True)
    save_weights(state, target, {"config": config})
    model, dataset = open_model(load_config(config, {"dataset_root": f"{data}/"}), target)
    metrics = evaluate(model, dataset, scratch / name, torch.device("cpu"), batch_size=2)
    change = metrics["object/map"] - result["metrics"]["object/map"]
    if abs(change) > tolerance:
        raise ValueError(f"{name}: float16 changes mAP by {change:+.4f}; raise --tolerance or ship float32")
    make_scene(scratch / "scene")
    card = {
        "config": config,
        "run": name,
        **origin,
        "iterations": result["iterations"],
        "precision": "float16",
        "versions": {"mmdet3d": __version__},
        "metrics": {column.key: round(metrics[column.key], 4) for column in COLUMNS},
        "first_scores": [round(s, 4) for s in first_scores(*load_shipped(name, scratch / "scene"))],
    }
    save_weights(state, target, card)
    return card


def halved(tensor: Tensor) -> Tensor:
    """In float16, unless that cannot hold it: the variance in some normalisation layers is beyond 65504."""
    half = tensor.half() if tensor.is_floating_point() else tensor
    return half if half.isfinite().all() else tensor


if __name__ == "__main__":
    run(main)
