"""What the screen, or a file, shows of runs that go on at the same time."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from mmdet3d.progress import INTERVAL

__all__ = ["RunDisplay", "RunState", "duration"]

_CLEAR = "\x1b[2K"  # the line
_UP = "\x1b[{}A"  # so many lines


def duration(seconds: float) -> str:
    """`0:02:31`."""
    return str(timedelta(seconds=round(seconds)))


@dataclass(frozen=True)
class RunState:
    """A run under way, its last report (see `mmdet3d.progress`) and the measured seconds per step."""

    name: str
    epochs: int
    report: Mapping[str, Any] | None
    step_seconds: float | None

    def __str__(self) -> str:
        if self.report is None:
            return f"{self.name}: starting"
        done, total = self.report["done"], self.report["total"]
        if self.report["desc"] != "train":
            return f"{self.name}: {self.report['desc']} {done}/{total} {self.report['unit']}s"
        epoch = min(done * self.epochs // total + 1, self.epochs)
        text = f"{self.name}: epoch {epoch}/{self.epochs}, step {done}/{total}"
        if self.step_seconds is None:
            return text
        return f"{text}, {1 / self.step_seconds:.2f} steps/s, {duration((total - done) * self.step_seconds)} left"


class RunDisplay:
    """A context. On a terminal a line per run and one for the whole; elsewhere one line for all every 30 s at most.

    Args:
        total: number of runs; `done` counts those that have ended well.
    """

    def __init__(self, total: int) -> None:
        self.done, self._total = 0, total
        self._stream = sys.stderr
        self._live = self._stream.isatty()
        self._drawn = 0
        self._shown = time.monotonic()

    def __enter__(self) -> RunDisplay:
        return self

    def __exit__(self, *_: object) -> None:
        self._draw([])

    def event(self, text: str) -> None:
        """A line that stays."""
        if not self._live:
            print(text, file=self._stream, flush=True)
            return
        self._draw([])
        print(text, file=self._stream, flush=True)

    def show(self, states: Sequence[RunState], left: float | None) -> None:
        """What runs now, and the seconds that are left for the whole (None: not known)."""
        whole = f"{self.done} of {self._total} runs done"
        if left is not None:
            whole += f", {duration(left)} left"
        if self._live:
            self._draw([*map(str, states), whole])
        elif time.monotonic() - self._shown >= INTERVAL:
            self._shown = time.monotonic()
            print("; ".join([whole, *map(str, states)]), file=self._stream, flush=True)

    def _draw(self, lines: Sequence[str]) -> None:
        """Put lines in the place of those drawn before."""
        if not self._live:
            return
        width = shutil.get_terminal_size().columns - 1
        text = _UP.format(self._drawn) if self._drawn else ""
        text += "".join(f"{_CLEAR}{line[:width]}\n" for line in lines)
        surplus = self._drawn - len(lines)
        if surplus > 0:
            text += f"{_CLEAR}\n" * surplus + _UP.format(surplus)
        self._stream.write(text)
        self._stream.flush()
        self._drawn = len(lines)
