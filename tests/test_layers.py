"""The house rules that a machine can check: imports point one way, and importing the package loads nothing heavy."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "mmdet3d"

# What each folder may import of the project, besides itself, `registry` and `config`.
ALLOWED = {
    "structures": set(),
    "io": set(),
    "ops": {"structures", "io"},
    "models": {"structures", "io", "ops"},
    "interop": {"structures", "io", "ops", "models"},
    "distill": {"structures", "io", "ops", "models", "interop"},
    "evaluation": {"structures", "io", "ops"},
    "datasets": {"structures", "io", "evaluation"},
    "visualization": {"structures", "io"},
    "engine": {
        "structures",
        "io",
        "ops",
        "models",
        "interop",
        "distill",
        "evaluation",
        "datasets",
        "visualization",
    },
}
ALLOWED["commands"] = ALLOWED["engine"] | {"engine"}
LEAVES = {
    "registry",
    "blocks",
    "composition",
    "config",
    "shell",
    "machine",
    "plugins",
    "progress",
    "zoo",
    "__version__",
}


def imported_parts(file: Path) -> set[tuple[str, int]]:
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{a.name}" if node.module == "mmdet3d" else node.module for a in node.names]
        elif isinstance(node, ast.Import):
            names = [a.name for a in node.names]
        found |= {(n.split(".")[1], node.lineno) for n in names if n.startswith("mmdet3d.")}
    return found


@pytest.mark.parametrize("folder", sorted(ALLOWED))
def test_imports_point_one_way(folder: str) -> None:
    wrong = []
    for file in sorted((PACKAGE / folder).rglob("*.py")):
        for part, line in imported_parts(file):
            if part not in ALLOWED[folder] | LEAVES | {folder}:
                wrong.append(f"{file.relative_to(PACKAGE)}:{line} imports mmdet3d.{part}")
    assert not wrong, "\n".join(wrong)


def test_every_folder_has_its_place() -> None:
    folders = {p.name for p in PACKAGE.iterdir() if p.is_dir() and p.name != "__pycache__"}
    assert folders == set(ALLOWED)


def test_leaves_import_nothing_of_the_project() -> None:
    assert imported_parts(PACKAGE / "registry.py") <= {
        (p, n) for p in ("interop", "plugins", "blocks") for n in range(200)
    }
    assert {part for part, _ in imported_parts(PACKAGE / "config.py")} == {
        "blocks",
        "composition",
        "io",
        "plugins",
        "zoo",
    }
    assert {part for part, _ in imported_parts(PACKAGE / "zoo.py")} == {"blocks", "io"}
    assert imported_parts(PACKAGE / "composition.py") == set()
    assert imported_parts(PACKAGE / "plugins.py") == set()
    assert imported_parts(PACKAGE / "blocks.py") == set()
    assert imported_parts(PACKAGE / "io" / "files.py") == set()
    assert imported_parts(PACKAGE / "machine.py") == set()


def test_import_is_light() -> None:
    """Every process pays for its imports, and data loading has several."""
    code = (
        "import sys, mmdet3d, mmdet3d.models, mmdet3d.distill, mmdet3d.datasets, mmdet3d.engine.trainer;"
        "heavy = {'mpi4py', 'mmcv', 'mmdet', 'mmengine', 'torchvision', 'spconv', 'torchpack', 'torch._dynamo', "
        "'sympy', 'scipy', 'matplotlib', 'nuscenes', 'tensorboard', 'cv2'} & set(sys.modules);"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_the_engine_names_no_benchmark() -> None:
    """What is reported, drawn and made of a benchmark is the data set's to say."""
    names = re.compile(r"kitti|nuscenes|\bnds\b|object/", re.IGNORECASE)
    lines = [
        f"{file.name}:{number} {line.strip()}"
        for file in sorted((PACKAGE / "engine").glob("*.py"))
        for number, line in enumerate(file.read_text().splitlines(), 1)
        if names.search(line)
    ]
    assert not lines, "\n".join(lines)
