"""Feeding several GPUs: a simulated loader to be compared with the real one, and what an index of frames costs."""

from __future__ import annotations

import os
import random
import time
from pathlib import Path
from typing import Any

import torch

from mmdet3d.datasets.nuscenes import read_infos
from mmdet3d.engine.data import batches, build_loader, train_sampler
from mmdet3d.machine import die_with_parent
from mmdet3d.structures import Calibration, Sample

__all__ = ["index_cost", "loader_steps", "simulate"]

AHEAD = 2  # batches that a worker of torch's loader begins before they are asked for


def simulate(
    steps: int,
    ranks: int,
    workers: int,
    load: float,
    step: float,
    batch: int,
    cores: float = float("inf"),
    spread: float = 0.0,
) -> dict[str, float]:
    """Steps of ranks that wait for each other, each fed by workers that make batches in turn.

    Args:
        workers: of each rank; they and the ranks share `cores`.
        load: seconds that a sample takes a worker with a core of its own.
        step: seconds from a batch to the next one, if it is there.
        batch: samples of a rank's batch.
        spread: standard deviation of a batch's loading, as a share of it.

    Returns:
        `seconds` a step, and `waiting`, the share of the time that the ranks wait for data.
    """
    draw = random.Random(0)
    slower = max(1.0, ranks * (1 + workers) / cores)
    free = [[0.0] * workers for _ in range(ranks)]
    taken: list[float] = []  # when each batch was handed over
    now = 0.0
    for k in range(steps):
        asked = taken[k - AHEAD * workers] if k >= AHEAD * workers else 0.0
        ready = now
        for places in free:
            begun = max(places[k % workers], asked)
            places[k % workers] = begun + load * batch * slower * max(0.1, draw.gauss(1.0, spread))
            ready = max(ready, places[k % workers])
        taken.append(ready)
        now = ready + step
    first = min(steps // 10, 50)  # while the loaders fill
    seconds = (taken[-1] - taken[first]) / (steps - 1 - first)
    return {"seconds": seconds, "waiting": max(0.0, 1 - step / seconds)}


class _Sleeping:
    """Samples that take a while and no processor."""

    def __init__(self, size: int, seconds: float) -> None:
        self._size, self._seconds = size, seconds

    def __len__(self) -> int:
        return self._size

    def set_epoch(self, epoch: int) -> None:
        pass

    def __getitem__(self, index: int) -> Sample:
        time.sleep(self._seconds)
        eye = torch.eye(4)
        return Sample(token=str(index), calibration=Calibration(eye, eye, *[eye[None]] * 4, eye))


def loader_steps(steps: int, workers: int, load: float, step: float, batch: int) -> float:
    """Seconds a step of the real loader of one rank, whose samples and steps sleep as long as `simulate` is told."""
    dataset = _Sleeping(steps * batch, load)
    sampler = train_sampler(dataset, batch, 0, 0, 1)
    sampler.set_epoch(0, 0)
    times: list[float] = []
    for _ in batches(build_loader(dataset, sampler, workers)):
        times.append(time.perf_counter())
        time.sleep(step)
    first = min(steps // 10, 50)
    return (times[-1] - times[first]) / (len(times) - 1 - first)


def index_cost(infos: Path, copies: int = 10) -> dict[str, Any]:
    """CPU seconds and memory of the records of an info file, per frame, and what a forked worker copies of them.

    Args:
        copies: how often the file is read and kept, to measure on more frames.
    """
    read_infos(infos)  # what the first call takes for itself
    before, start = _private(), time.process_time()
    kept = [read_infos(infos)[0] for _ in range(copies)]
    frames = sum(map(len, kept))
    found = {
        "frames": frames,
        "seconds": (time.process_time() - start) / frames,
        "bytes": (_private() - before) / frames,
        "file_bytes": infos.stat().st_size / len(kept[0]),
    }
    receiver, sender = os.pipe()
    parent, child = os.getpid(), os.fork()
    if child == 0:
        die_with_parent(parent)
        own = _private()
        for record in (r for records in kept for r in records):
            _look(vars(record))
        os.write(sender, str(_private() - own).encode())
        os._exit(0)
    os.waitpid(child, 0)
    found["worker_bytes"] = int(os.read(receiver, 64)) / frames
    return found


def _look(value: Any) -> None:
    """Any look at an object counts a reference, which writes to its page."""
    items = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    for item in items:
        _look(item)


def _private() -> int:
    """Bytes of this process that no other shares."""
    rows = dict(line.split(":") for line in Path("/proc/self/smaps_rollup").read_text().splitlines()[1:])
    return sum(int(rows[name].split()[0]) * 1024 for name in ("Private_Dirty", "Private_Clean"))
