"""Draw what trainings wrote into metrics.jsonl: loss terms, learning rate and metrics, a line per run.

distill3d curves runs/demo                                  # all runs of a recipe
distill3d curves runs/a runs/b --out ab.svg --keys loss 'loss/kd/*' object/map
"""

from __future__ import annotations

import argparse
from pathlib import Path

from mmdet3d.io.files import check_place


def parse(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folder of a training, or of several (a recipe's)")
    parser.add_argument("--out", help=".png, .svg, .pdf or .html (default: curves.png in the first folder)")
    parser.add_argument("--keys", nargs="+", metavar="KEY", help="what is drawn; * stands for anything")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser.parse_args(words)


def main(words: list[str]) -> None:
    args = parse(words)
    from mmdet3d.engine.curves import draw_curves, find_runs

    runs = find_runs(args.runs)
    path = Path(args.out or Path(args.runs[0]) / "curves.png")
    check_place(path.parent, "--out")
    drawn = draw_curves(runs, path, args.keys)
    print(f"{len(runs)} runs, {', '.join(drawn)}: {path}")
