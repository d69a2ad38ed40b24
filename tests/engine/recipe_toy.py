"""Processes that know the toys: `run ...` is one run of a recipe, `tool ...` is tools/run_recipe.py."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import engine_toy  # noqa: F401  (configs name them)

from mmdet3d.engine import recipe, recipe_run

TOOL = Path(__file__).resolve().parents[2] / "tools" / "run_recipe.py"
RUN_COMMAND = [sys.executable, __file__, "run"]

if __name__ == "__main__":
    if sys.argv.pop(1) == "run":
        recipe_run.main(sys.argv[1:])
    else:
        recipe.RUN_COMMAND = RUN_COMMAND
        runpy.run_path(str(TOOL), run_name="__main__")
