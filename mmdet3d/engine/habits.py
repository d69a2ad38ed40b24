"""Options of mmdetection's tools: those that mean the same here are understood, the others answered with ours."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from mmdet3d.engine.launchers import TORCHRUN, launcher
from mmdet3d.shell import command, script

__all__ = ["translate"]

_SAME = {"--work-dir": "--run-dir", "--resume-from": "--resume_from", "--load-from": "--load_from"}
_OVERRIDES = ("--cfg-options", "--options")
# An empty folder would be the current one; it mostly comes from a variable of the shell that is not set.
_PLACES = ("--run-dir", "--out-dir", "--out", "--data-dir", "--resume", "--checkpoint", "--overrides-file")
_RANK = ("--local_rank", "--local-rank")  # what torch.distributed.launch adds; the environment says it too

_OURS = {
    "--auto-resume": f"go on with a run by {command('train')} --resume DIR",
    "--no-validate": "train without evaluation by --data.val null",
    "--gpus": f"choose GPUs by CUDA_VISIBLE_DEVICES and use N by torchrun --nproc-per-node N {script('train')} ...",
    "--gpu-ids": "choose GPUs by CUDA_VISIBLE_DEVICES",
    "--gpu-id": "choose a GPU by CUDA_VISIBLE_DEVICES",
    "--amp": "mixed precision is --precision fp16 or bf16; auto, the default, is fp16 on a GPU",
    "--auto-scale-lr": "learning rates are never scaled; give --optimizer.lr",
    "--autoscale-lr": "learning rates are never scaled; give --optimizer.lr",
    "--diff-seed": "processes always draw different random numbers; give --seed alone",
    "--fuse-conv-bn": "layers are not fused; leave it out",
    "--gpu-collect": "detections are collected on the CPU; leave it out",
    "--tmpdir": "detections are collected without files; leave it out",
    "--show": f"pictures are drawn by {command('visualize')} CONFIG --checkpoint FILE",
    "--show-dir": f"pictures are drawn by {command('visualize')} CONFIG --checkpoint FILE --out-dir DIR",
}


def translate(words: Sequence[str], env: Mapping[str, str] = os.environ) -> list[str]:
    """The words of a command line with our options in place of mmdetection's.

    Raises:
        ValueError: an option that we have another way for; the message tells it. Or an empty name of a place.
    """
    ours: list[str] = []
    queue = list(words)
    while queue:
        word = queue.pop(0)
        option, equals, value = word.partition("=")
        if _SAME.get(option, option) in _PLACES and value == "" and (equals or queue[:1] == [""]):
            raise ValueError(f"{option} is empty; name a folder or file, or leave the option out")
        if option in _OURS:
            raise ValueError(f"{option} is an option of mmdetection; here {_OURS[option]}")
        if option in _SAME:
            ours.append(f"{_SAME[option]}{equals}{value}")
        elif option in _OVERRIDES:
            given = [value] if equals else []
            while queue and not queue[0].startswith("--"):
                given.append(queue.pop(0))
            ours += [_override(pair) for pair in given]
        elif option == "--launcher" or option in _RANK:
            if not equals and queue:
                value = queue.pop(0)
            if option == "--launcher":
                _check_launcher(value, env)
        else:
            ours.append(word)
    return ours


def _override(pair: str) -> str:
    """`a.b=1,2` and `a.b=None` as mmcv reads them."""
    key, equals, value = pair.partition("=")
    if "," in value and value[:1] not in "[({'\"":
        value = f"[{value}]"
    return f"--{key}{equals}{'null' if value == 'None' else value}"


def _check_launcher(wanted: str, env: Mapping[str, str]) -> None:
    names = launcher(env)
    found = "none" if names is None else "pytorch" if names is TORCHRUN else "mpi"
    if wanted != found:
        by = {"none": "no launcher", "pytorch": "torchrun", "mpi": "MPI"}[found]
        raise ValueError(
            f"--launcher {wanted}, but this process was started by {by}; a launcher is recognised without the option: "
            f"torchrun --nproc-per-node N {script('train')} ..., or torchpack dist-run -np N {command('train')} ..."
        )
