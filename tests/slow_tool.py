"""`python slow_tool.py ARGUMENTS...`: `create_data` whose workers wait for a minute, each after making a file."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mmdet3d.commands import create_data
from mmdet3d.datasets import checking, processes
from mmdet3d.datasets.kitti import create
from mmdet3d.datasets.nuscenes import depth_files, resumable
from mmdet3d.datasets.synthetic import kitti
from mmdet3d.engine.command import run

in_processes = processes.in_processes


def wait(item: Any) -> None:
    Path(f"worker-{os.getpid()}").touch()
    time.sleep(60)


def waiting(
    work: Callable[[Any], Any], items: Sequence[Any], workers: int, start_method: str = "spawn"
) -> Iterator[Any]:
    return in_processes(wait, items, workers, start_method)


if __name__ == "__main__":
    for module in (checking, create, resumable, sys.modules["mmdet3d.datasets.synthetic.generate"], kitti):
        assert module.in_processes is in_processes
        module.in_processes = waiting
    depth_files._FRAMES_PER_PIECE = 1
    run(create_data.main)
