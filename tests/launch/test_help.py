"""`--help` answers at once: no tool imports what it needs for its work before it has read its arguments."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CALLS = [
    *([tool.name] for tool in sorted((ROOT / "tools").glob("*.py"))),
    *(["create_data.py", kind] for kind in ("nuscenes", "depth", "kitti", "synthetic", "synthetic-kitti")),
    *(["evaluate.py", benchmark] for benchmark in ("nuscenes", "kitti")),
]
# Each takes a tenth of a second to several seconds to import, or brings something that does.
HEAVY = (
    "PIL",
    "cv2",
    "matplotlib",
    "mmcv",
    "mmdet",
    "mpi4py",
    "numpy",
    "nuscenes",
    "safetensors",
    "scipy",
    "sympy",
    "tensorboard",
    "torch",
    "torchpack",
)
# All in one process: whoever imports something heavy is the first after whom it is loaded.
SCRIPT = """
import contextlib, io, json, runpy, sys
calls, heavy = json.loads(sys.argv[1])
report = []
for tool, *words in calls:
    sys.argv = [tool, *words, "--help"]
    text, code, before = io.StringIO(), None, set(sys.modules)
    with contextlib.redirect_stdout(text):
        try:
            runpy.run_path(f"tools/{tool}", run_name="__main__")
        except SystemExit as end:
            code = end.code
    report.append([code, text.getvalue(), sorted(set(heavy) & (set(sys.modules) - before))])
print(json.dumps(report))
"""


@pytest.fixture(scope="module")
def answers() -> dict[str, tuple[int, str, list[str]]]:
    command = [sys.executable, "-c", SCRIPT, json.dumps([CALLS, HEAVY])]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return dict(zip(map(" ".join, CALLS), json.loads(done.stdout), strict=True))


@pytest.mark.parametrize("call", [" ".join(words) for words in CALLS])
def test_help_imports_nothing_heavy(call: str, answers) -> None:
    code, text, imported = answers[call]
    assert code == 0 and text.startswith("usage:")
    assert not imported, f"{call} --help imports {', '.join(imported)}; import it where it is used, after the arguments"
