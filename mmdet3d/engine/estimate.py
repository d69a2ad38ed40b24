"""How long trainings will take: costs measured on a reference machine, scaled by the rate of this one."""

from __future__ import annotations

import statistics
import time
from collections.abc import Collection, Mapping, Sequence

import torch
from torch import nn

__all__ = ["REFERENCE_SECONDS", "longest_paths", "machine_factor", "makespan"]

# Of `_probe` on one core of the machine that the `cost` entries of the recipes were measured on.
REFERENCE_SECONDS = 0.081


def machine_factor(rounds: int = 9) -> float:
    """How much longer this machine takes than the reference machine, one thread each: the median of `rounds` probes."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        _probe()
        times = []
        for _ in range(rounds):
            began = time.perf_counter()
            _probe()
            times.append(time.perf_counter() - began)
    finally:
        torch.set_num_threads(threads)
    return statistics.median(times) / REFERENCE_SECONDS


def _probe() -> None:
    """What a training step does most: convolutions, normalisation and activation, forward and backward."""
    with torch.random.fork_rng(devices=[]):
        layers = [nn.Conv2d(64, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64), nn.ReLU()]
        nn.Sequential(*layers)(torch.randn(8, 64, 56, 56, requires_grad=True)).square().mean().backward()


def longest_paths(seconds: Mapping[str, float], needs: Mapping[str, Collection[str]]) -> dict[str, float]:
    """Per task the time from its start to the end of the last one that depends on it.

    Args:
        seconds: per task, each after the tasks that it needs.
        needs: per task the tasks that must end before it starts.
    """
    paths: dict[str, float] = {}
    for name in reversed(list(seconds)):
        paths[name] = seconds[name] + max((paths[later] for later in paths if name in needs[later]), default=0.0)
    return paths


def makespan(
    seconds: Mapping[str, float], needs: Mapping[str, Collection[str]], places: int, running: Collection[str] = ()
) -> float:
    """Time until all tasks are done, if a free place always takes the ready task with the longest path.

    Args:
        seconds: what is left of each unfinished task, each after those that it needs.
        needs: per task the tasks that must end before it starts; those that `seconds` lacks have ended.
        places: how many run at once.
        running: tasks that have a place already.
    """
    paths = longest_paths(seconds, needs)
    waiting: Sequence[str] = sorted((n for n in seconds if n not in running), key=lambda n: -paths[n])
    ends = {name: seconds[name] for name in running}
    now = 0.0
    while waiting or ends:
        blocking = {*waiting, *ends}
        ready = [name for name in waiting if blocking.isdisjoint(needs[name])]
        for name in ready[: max(places - len(ends), 0)]:
            ends[name] = now + seconds[name]
        waiting = [name for name in waiting if name not in ends]
        first = min(ends, key=ends.__getitem__)
        now = ends.pop(first)
    return now
