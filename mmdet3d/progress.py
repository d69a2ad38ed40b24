"""Progress of long loops: a bar on a terminal, elsewhere at most one line every 30 s, or a small file that others read.

A terminal redraws its bar many times a second; in a file or a pipe that is one endless line of carriage returns.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

from tqdm import tqdm

from mmdet3d.io.files import atomic_write

__all__ = ["INTERVAL", "progress_bar", "read_report", "report_to"]

INTERVAL = 30.0  # seconds between two lines
_REPORT_INTERVAL = 0.5

Item = TypeVar("Item")
_report_file: Path | None = None


def report_to(path: str | Path | None) -> None:
    """From now on the bars of this process write their state into this file instead; None undoes it."""
    global _report_file
    _report_file = None if path is None else Path(path)


def read_report(path: str | Path) -> dict[str, Any] | None:
    """State of the bar that another process showed last, None if there is none yet.

    Returns:
        `desc`, `done` and `total` in `unit`s, `initial` (what was done when the bar began), `seconds` since then.
    """
    try:
        return json.loads(Path(path).read_text())
    except FileNotFoundError:
        return None


def progress_bar(
    iterable: Iterable[Item] | None = None,
    *,
    total: int | None = None,
    initial: int = 0,
    desc: str = "",
    unit: str = "it",
    disable: bool = False,
) -> tqdm | _States:
    """A context with `update(n)`, or an iterable, that shows how far a loop is and when it ends.

    Args:
        iterable: is iterated over; without it call `update`.
        total: number of steps, if `iterable` has no length.
        initial: steps done before.
        disable: show nothing.
    """
    if total is None and iterable is not None:
        total = len(iterable) if isinstance(iterable, Sized) else None
    if disable or (_report_file is None and sys.stderr.isatty()):
        return tqdm(iterable, total=total, initial=initial, desc=desc, unit=unit, disable=disable)
    if _report_file is None:
        return _States(iterable, total, initial, desc, unit, _print, INTERVAL)
    states = _States(iterable, total, initial, desc, unit, _write(_report_file), _REPORT_INTERVAL)
    states.show()
    return states


class _States:
    """tqdm's interface, with a state handed to `show` every `interval` seconds instead of a bar."""

    def __init__(
        self,
        iterable: Iterable[Item] | None,
        total: int | None,
        initial: int,
        desc: str,
        unit: str,
        show: Callable[[dict[str, Any]], None],
        interval: float,
    ) -> None:
        self._iterable, self._show, self._interval = iterable, show, interval
        self._state: dict[str, Any] = {"desc": desc, "done": initial, "total": total, "initial": initial, "unit": unit}
        self._began = self._shown = time.monotonic()

    def __enter__(self) -> _States:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def __iter__(self) -> Iterator[Any]:
        assert self._iterable is not None
        for item in self._iterable:
            yield item
            self.update()

    def update(self, n: int = 1) -> None:
        self._state["done"] += n
        if time.monotonic() - self._shown >= self._interval or self._state["done"] == self._state["total"]:
            self.show()

    def show(self) -> None:
        self._shown = time.monotonic()
        self._show({**self._state, "seconds": self._shown - self._began})


def _print(state: dict[str, Any]) -> None:
    if state["seconds"] < INTERVAL:  # over before it was worth a line
        return
    done, total, rate = state["done"], state["total"], (state["done"] - state["initial"]) / state["seconds"]
    text = f"{state['desc']} {done}/{total}, {rate:.2f} {state['unit']}s/s"
    if rate and total:
        text += f", {timedelta(seconds=round((total - done) / rate))} left"
    print(text.strip(), file=sys.stderr, flush=True)


def _write(path: Path) -> Callable[[dict[str, Any]], None]:
    def write(state: dict[str, Any]) -> None:
        with atomic_write(path) as file:  # a reader never sees half a state
            json.dump(state, file)

    return write
