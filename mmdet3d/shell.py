"""Words of messages: our commands as this user can type them, and numbers of things."""

from __future__ import annotations

import shlex
from pathlib import Path

from distill3d import COMMANDS

__all__ = ["command", "number_of", "quote", "script", "world_command"]

_TOOLS = Path(__file__).resolve().parents[1] / "tools"


def command(name: str) -> str:
    """`python tools/train.py` where this is a checkout, `distill3d train` where it was installed without one."""
    return f"python {script(name)}" if (_TOOLS / f"{COMMANDS[name][0]}.py").is_file() else f"distill3d {name}"


def script(name: str) -> str:
    """What `python` or `torchrun` is given: `tools/train.py`, or `-m distill3d train`."""
    file = f"{COMMANDS[name][0]}.py"
    return f"tools/{file}" if (_TOOLS / file).is_file() else f"-m distill3d {name}"


def world_command(layout: str, root: str | Path, prefix: str = "") -> str:
    """What makes the synthetic world of a layout in `root`; empty unless the folder or the `prefix` of its info files
    says that it is one.
    """
    if "synthetic" not in f"{Path(root).name} {prefix}":
        return ""
    kind = "synthetic" if layout == "nuscenes" else f"synthetic-{layout}"
    return f"{command('create-data')} {kind} --out-dir {quote(root)}"


def number_of(count: int, thing: str) -> str:
    """`1 frame`, `2 frames`: of things whose plural takes an s."""
    return f"{count} {thing}" if count == 1 else f"{count} {thing}s"


def quote(word: str | Path) -> str:
    """A file name or another word as a shell takes it, whatever is in it."""
    return shlex.quote(str(word))
