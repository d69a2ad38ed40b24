"""One run of a recipe as a process of its own; `mmdet3d.engine.executor` starts it and reads its exit code.

python -m mmdet3d.engine.recipe_run FOLDER --parent PID --workers N
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from mmdet3d.machine import die_with_parent


def main(words: list[str]) -> None:
    """Train what FOLDER/configs.yaml describes, or go on with it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--parent", type=int, required=True, help="process id; this process dies with that one")
    parser.add_argument("--workers", type=int, required=True, help="most processes that load data")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    args = parser.parse_args(words)
    die_with_parent(args.parent)
    # These imports take seconds, in which the parent may end.
    from mmdet3d.engine.command import run
    from mmdet3d.engine.jobs import train_recipe_run

    run(lambda _: train_recipe_run(args.folder, args.workers))


if __name__ == "__main__":
    main(sys.argv[1:])
