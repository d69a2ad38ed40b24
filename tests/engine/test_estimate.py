"""Durations of graphs of tasks, worked out by hand."""

from __future__ import annotations

import pytest
import torch

from mmdet3d.engine.estimate import longest_paths, machine_factor, makespan

# a (4 s) before c and d (2 s, 3 s); b (6 s) alone.
SECONDS = {"a": 4.0, "b": 6.0, "c": 2.0, "d": 3.0}
NEEDS = {"a": (), "b": (), "c": ("a",), "d": ("a", "done before")}


def test_longest_paths() -> None:
    assert longest_paths(SECONDS, NEEDS) == {"a": 7, "b": 6, "c": 2, "d": 3}


@pytest.mark.parametrize(
    ("places", "running", "expected"),
    [(1, [], 15), (2, [], 8), (3, [], 7), (2, ["b"], 8), (1, ["a", "b"], 11), (2, ["a", "b"], 8)],
)
def test_makespan(places: int, running: list[str], expected: float) -> None:
    assert makespan(SECONDS, NEEDS, places, running) == expected


def test_nothing_takes_no_time() -> None:
    assert makespan({}, {}, 2) == 0


def test_the_probe_leaves_no_trace() -> None:
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    assert 0.02 < machine_factor(rounds=3) < 200
    assert torch.get_rng_state().equal(state) and torch.get_num_threads() == threads
