"""Ctrl-C and SIGTERM as requests that a loop answers at its next safe point."""

from __future__ import annotations

import signal
from types import FrameType
from typing import Any

__all__ = ["Interrupt", "Interrupted"]


class Interrupted(Exception):
    """Training or evaluation ended by a signal, after everything worth keeping was written.

    Args:
        message: what was saved and how to go on.
        number: the signal, 0 if another rank received it.
    """

    def __init__(self, message: str, number: int = 0) -> None:
        super().__init__(message)
        self.number = number


class Interrupt:
    """While this context is open the first SIGINT or SIGTERM only sets `number`; a second one ends at once."""

    def __init__(self) -> None:
        self.number = 0
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Interrupt:
        self._previous = {n: signal.signal(n, self._receive) for n in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.number:
            raise KeyboardInterrupt
        self.number = number
