"""The command `distill3d NAME ...`; `tools/*.py` of a checkout start the same commands.

It is a module of its own, outside of the package `mmdet3d`, because OpenMMLab has a package of that name: where that is
found instead, or both were installed into one folder, nothing of ours could say so from inside.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import sys
from pathlib import Path
from typing import NoReturn

__all__ = ["COMMANDS", "main", "start"]

# Name to module of `mmdet3d.commands` and what it does.
COMMANDS = {
    "train": ("train", "train what a config describes, or go on with a run"),
    "reproduce": ("reproduce", "train again, elsewhere, what a run's folder describes"),
    "test": ("test", "evaluate a checkpoint, or write its benchmark submission"),
    "train-val": ("train_val", "train or evaluate, as the KITTI systems are published"),
    "create-data": ("create_data", "prepare a data set, or make a synthetic one"),
    "evaluate": ("evaluate", "score result files with a benchmark's official metrics"),
    "visualize": ("visualize", "draw ground truth and detections"),
    "export": ("export", "write a trained detector as ONNX, a torch.export program or machine code"),
    "detect": ("detect", "boxes and pictures from a trained or an exported detector"),
    "view": ("view", "record cameras, points and boxes of several models, to look at interactively"),
    "curves": ("curves", "draw the losses and metrics of trainings"),
    "recipe": ("run_recipe", "trainings that build on each other, to one table"),
    "audit": ("audit_distillation", "what every distillation term pulls the student towards"),
    "teacher-answers": ("teacher_answers", "store what a teacher answers"),
    "zoo": ("zoo", "the trained models that come along: their scores, and how to test them"),
    "convert": ("convert_checkpoint", "weights between containers and published layouts"),
    "doctor": ("doctor", "what is installed, what is missing, and what mends it"),
    "demo": ("demo", "a picture, a training and its table, from nothing"),
}


def main() -> NoReturn:
    """The console command."""
    name, *words = sys.argv[1:] or ["--help"]
    if name in ("-h", "--help"):
        lines = [f"  {command:<16}{about}" for command, (_, about) in COMMANDS.items()]
        print("\n".join(["usage: distill3d COMMAND ...  (distill3d COMMAND --help says more)", "", *lines]))
        sys.exit(0)
    if name not in COMMANDS:
        match = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f", did you mean {match[0]!r}?" if match else ""
        sys.exit(_refused(f"unknown command {name!r}{hint} (known: {', '.join(COMMANDS)})"))
    sys.argv = [f"distill3d {name}", *words]
    start(name)


def start(name: str) -> NoReturn:
    """Run a command with the words of `sys.argv`."""
    if conflict := _conflict():
        sys.exit(_refused(conflict))
    command = importlib.import_module(f"mmdet3d.commands.{COMMANDS[name][0]}").main
    if name == "doctor":  # which reports what the others need to start
        sys.exit(command(sys.argv[1:]))
    from mmdet3d.engine.command import run

    run(command)


def _conflict() -> str:
    """A sentence if `mmdet3d` is not, or not only, ours."""
    spec = importlib.util.find_spec("mmdet3d")
    folders = [Path(p) for p in spec.submodule_search_locations or []] if spec else []
    ours = any((folder / "plugins.py").is_file() for folder in folders)
    theirs = any((folder / "apis").is_dir() for folder in folders)
    if ours and not theirs:
        return ""
    if not folders:
        return "the package mmdet3d of Distill3D is not installed; pip install it anew"
    what = "holds both, mixed" if ours else "is OpenMMLab's"
    return (
        f"Distill3D and OpenMMLab's MMDetection3D both install a package mmdet3d, and {folders[0]} {what}; keep them "
        "in separate environments: here, pip uninstall mmdet3d distill3d, then install distill3d again"
    )


def _refused(message: str) -> int:
    print(f"error: {message}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    main()
