"""`python toy_tool.py TOOL ARGUMENTS...`: a tool of this project that also knows the engine tests' toy model."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]

if __name__ == "__main__":
    sys.path.insert(0, str(TESTS / "engine"))
    import engine_toy  # noqa: F401, registers

    sys.argv = sys.argv[1:]
    runpy.run_path(str(TESTS.parent / "tools" / sys.argv[0]), run_name="__main__")
