"""What the machine has, and what is missing."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import shutil
import subprocess
import sys
from collections.abc import Mapping

import torch

from benchmarks.framework import machine
from benchmarks.gpu.runner import Piece, Row, Setup

__all__ = ["ENVIRONMENT"]

# Module -> wheel and the pieces that import it; all else needs torch and numpy alone.
WHEELS = {
    "numpy": ("numpy==1.26.4", "all"),
    "yaml": ("pyyaml==6.0.4", "steps, recipe"),
    "safetensors": ("safetensors==0.8.0", "steps, recipe"),
    "tqdm": ("tqdm==4.70.1", "steps, recipe"),
    "PIL": ("pillow==13.0.0", "steps, recipe"),
    "scipy": ("scipy==1.17.1", "steps, recipe"),
    "tensorboard": ("tensorboard==2.21.0", "recipe"),
    "matplotlib": ("matplotlib==3.11.2", "recipe"),
}
LEAST_TORCH = (2, 10)


def _environment(setup: Setup, item: str, seconds: float) -> Row:
    device = torch.device(setup.device)
    missing = [wheel for module, (wheel, _) in WHEELS.items() if importlib.util.find_spec(module) is None]
    row: Row = {
        "machine": machine(device),
        "driver": _driver(),
        "sanitizer": shutil.which("compute-sanitizer"),
        "missing": missing,
        "wheels": {wheel: pieces for wheel, pieces in WHEELS.values()},
        "commands": carry_wheels(missing),
        "float32 products": {
            "matmul": torch.backends.cuda.matmul.allow_tf32,
            "cudnn": torch.backends.cudnn.allow_tf32,
        },
    }
    problems = []
    if tuple(int(n) for n in torch.__version__.split(".")[:2]) < LEAST_TORCH:
        problems.append(f"torch {torch.__version__} is older than {'.'.join(map(str, LEAST_TORCH))}")
    if device.type == "cuda":
        facts = torch.cuda.get_device_properties(device)
        row["card"] = {
            "name": facts.name,
            "capability": f"{facts.major}.{facts.minor}",
            "multiprocessors": facts.multi_processor_count,
            "bytes": facts.total_memory,
            "cards": torch.cuda.device_count(),
        }
        torch.ones(8, device=device).sum().item()  # the driver and the build of torch fit
    if missing:
        row["note"] = f"missing: {', '.join(missing)}"
    return row | ({"status": "failed", "cause": "; ".join(problems)} if problems else {})


def carry_wheels(missing: list[str]) -> list[str]:
    """Commands that fetch wheels for this Python on a machine with a network, and install them on this one."""
    if not missing:
        return []
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    platforms = " ".join(f"--platform manylinux{p}_x86_64" for p in ("_2_28", "_2_27", "_2_17", "2014", "1"))
    return [
        f"python3 -m pip download --no-deps --only-binary=:all: --python-version {version} --implementation cp "
        f"{platforms} -d wheels {' '.join(missing)}",
        "python3 -m pip install --no-index --no-deps --target site wheels/*.whl && export PYTHONPATH=$PWD/site",
    ]


def _driver() -> str | None:
    if shutil.which("nvidia-smi") is None:
        return None
    query = ["nvidia-smi", "--query-gpu=driver_version,name,memory.total", "--format=csv,noheader"]
    return subprocess.run(query, capture_output=True, text=True, timeout=60).stdout.strip() or None


def _table(rows: Mapping[str, Row]) -> list[str]:
    lines = []
    for row in rows.values():
        facts = {**row.get("machine", {}), **row.get("card", {}), "driver": row.get("driver"), **_status(row)}
        lines += ["| what | found |", "|---|---|", *(f"| {k} | {v} |" for k, v in facts.items())]
        lines += ["", *(f"    {command}" for command in row.get("commands", []))]
    return lines


def _status(row: Row) -> dict[str, str]:
    return {
        "missing wheels": ", ".join(row.get("missing", [])) or "none",
        "sanitizer": row.get("sanitizer") or "none",
    } | ({"failed": row["cause"]} if row["status"] != "ok" else {})


ENVIRONMENT = Piece(
    "driver, card, torch, nvcc, missing wheels and how to bring them", lambda _: ["machine"], _environment, 60, _table
)
