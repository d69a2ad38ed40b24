"""The trained models that come with the program: which there are, and what is known of one.

distill3d zoo                        # a line for each: name, system, role, score in its world, size, config
distill3d zoo crkd-demo-distilled    # its card, and the commands that test it
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from mmdet3d.config import read_with_base
from mmdet3d.io.yaml_text import yaml_text
from mmdet3d.shell import command
from mmdet3d.zoo import read_card, zoo_file, zoo_files

# By layout the folder of the small world of a card (`datasets.synthetic.worlds`) and what `create-data` makes it with.
_SMALL_WORLDS = {
    "nuscenes": (
        "data/zoo",
        "synthetic --out-dir data/zoo --scenes 2 --keyframes 3 --seed 999 --lidar-sweeps 1 --radar-sweeps 3 --reach 28 "
        "--val-fraction 0.5",
        "nuscenes --root-path data/zoo --version v1.0-synthetic --extra-tag synthetic",
    ),
    "kitti": (
        "data/zoo-kitti",
        "synthetic-kitti --out-dir data/zoo-kitti --frames 24 --test-frames 0 --seed 999 --val-fraction 0.5",
    ),
}


def parse(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("name", nargs="?", metavar="NAME", help="of one model, with or without zoo: before it")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser.parse_args(words)


def main(words: list[str]) -> None:
    args = parse(words)
    print(listing() if args.name is None else description(Path(args.name).name.removesuffix(".safetensors")))


def listing() -> str:
    """A line per model, under a heading."""
    rows = [("name", "system", "role", "score in its world", "size", "config")]
    for name in zoo_files():
        card = read_card(name)
        recipe = read_with_base(card["recipe"])
        system = recipe["title"].partition(",")[0]
        role = next((role for role, run in (recipe.get("table") or {}).items() if run == card["run"]), card["run"])
        metric, score = next(iter(card["metrics"].items()))
        size = f"{zoo_file(name).stat().st_size / 1e6:.2f} MB"
        rows.append((name, system, role, f"{metric} {score:.4g}", size, card["config"]))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)
    more = f"{command('zoo')} NAME says more; zoo:NAME stands for the weights on any command line"
    return "\n".join([*lines, "", more])


def description(name: str) -> str:
    """The card of a model, and the commands that give what it says under `small_world`.

    Raises:
        ValueError: there is no such model; names those that are spelt alike.
    """
    card = read_card(name)
    layout: str = (read_with_base(card["recipe"]).get("data") or {}).get("layout", "nuscenes")
    return f"{yaml_text(card)}\n# gives the metrics of small_world\n" + "\n".join(commands(name, card, layout))


def commands(name: str, card: dict[str, Any], layout: str) -> list[str]:
    """Make the small world of a layout, and score the model in it."""
    root, *made = _SMALL_WORLDS[layout]
    test = f"{card['config']} zoo:{name} --eval bbox --run-dir runs/{name} --dataset_root {root}/"
    return [*(f"{command('create-data')} {words}" for words in made), f"{command('test')} {test}"]
