"""Words of messages: our commands as this user can type them, and numbers of things."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

from distill3d import COMMANDS

__all__ = ["command", "number_of", "quote", "script", "world_command"]

_TOOLS = Path(__file__).resolve().parents[1] / "tools"


def command(name: str) -> str:
    """`distill3d train` to who typed `distill3d` or has no checkout, else `python tools/train.py`."""
    return f"python tools/{COMMANDS[name][0]}.py" if _has_tool(name) else f"distill3d {name}"


def script(name: str) -> str:
    """What `python` or `torchrun` is given: `tools/train.py`, or `-m distill3d train`; as for `command`."""
    return f"tools/{COMMANDS[name][0]}.py" if _has_tool(name) else f"-m distill3d {name}"


def _has_tool(name: str) -> bool:
    typed = Path(next(iter(sys.orig_argv[1:]), "")).name == "distill3d"
    return not typed and (_TOOLS / f"{COMMANDS[name][0]}.py").is_file()


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
