"""Progress on a terminal, in a file and for another process."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import pytest

from mmdet3d import progress
from mmdet3d.engine.run_display import RunDisplay, RunState


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    assert list(progress.progress_bar([1, 2, 3], desc="load")) == [1, 2, 3]
    assert "\rload: 100%" in terminal.getvalue()


def test_a_file_gets_a_line_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 1000, 7))
    monkeypatch.setattr(sys, "stderr", file := io.StringIO())
    monkeypatch.setattr(progress.time, "monotonic", lambda: float(next(clock)))
    with progress.progress_bar(total=12, initial=2, desc="train", unit="step") as bar:
        for _ in range(10):
            bar.update()
    lines = file.getvalue().splitlines()
    assert lines == ["train 7/12, 0.12 steps/s, 0:00:42 left", "train 12/12, 0.12 steps/s, 0:00:00 left"]
    assert "\r" not in file.getvalue()


def test_what_ends_soon_gets_no_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", file := io.StringIO())
    assert list(progress.progress_bar(range(3))) == [0, 1, 2]
    assert list(progress.progress_bar(range(3), disable=True)) == [0, 1, 2]
    assert file.getvalue() == ""


def test_another_process_reads_a_report(tmp_path: Path) -> None:
    path = tmp_path / "progress.json"
    assert progress.read_report(path) is None
    progress.report_to(path)
    try:
        with progress.progress_bar(total=5, initial=1, desc="train", unit="step") as bar:
            assert json.loads(path.read_text())["done"] == 1
            bar.update(4)
    finally:
        progress.report_to(None)
    report = progress.read_report(path)
    assert report["seconds"] >= 0
    assert {**report, "seconds": 0} == {
        "desc": "train", "done": 5, "total": 5, "initial": 1, "unit": "step", "seconds": 0
    }  # fmt: skip


def test_runs_at_the_same_time_have_a_line_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    report = {"desc": "train", "done": 30, "total": 90, "initial": 0, "unit": "step", "seconds": 15.0}
    states = [RunState("a", 3, report, 0.5), RunState("b", 3, None, None)]
    with RunDisplay(total=4) as display:
        display.show(states, 75.4)
        shown = terminal.getvalue().replace("\x1b[2K", "")
        assert (
            shown
            == "a: epoch 2/3, step 30/90, 2.00 steps/s, 0:00:30 left\nb: starting\n0 of 4 runs done, 0:01:15 left\n"
        )
        display.show([RunState("b", 3, {**report, "desc": "evaluate", "unit": "sample"}, 0.5)], None)
        assert "\x1b[3A\x1b[2Kb: evaluate 30/90 samples\n" in terminal.getvalue()
        display.event("a: finished")
    assert terminal.getvalue().endswith("a: finished\n")
