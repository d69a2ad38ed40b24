"""What the ranks tell each other beside their collectives: why one fails, and where each of them hangs.

A rank that failed or hangs answers no collective. Its words go through the store in which the ranks have met, and
rank 0, whose console is the one that every launcher shows, prints them.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from types import FrameType

import torch.distributed as dist

from mmdet3d.engine.launchers import launching_processes

__all__ = ["Watch"]

logger = logging.getLogger("mmdet3d")
_EVERY = 0.5  # seconds
_PATIENCE = 8.0  # seconds that a rank which fails gives rank 0, and rank 0 all others for their stacks
_FRAMES = 12  # innermost ones of a stack
_SAID, _FAILURES, _REASON = "said", "failures", "failure of rank {}"
_ASKED, _STACK = "asked for stacks", "stack of rank {}, {}"


class Watch:
    """A thread of each rank; the first call of `progress` in each starts its clock.

    Args:
        store: that all ranks share.
        rank, size: of this process, and how many there are.
        limit: seconds without progress after which rank 0 logs a warning with the stack of every rank's main thread.
    """

    def __init__(self, store: dist.Store, rank: int, size: int, limit: float) -> None:
        self._store, self._rank, self._size, self._limit = store, rank, size, limit
        self._progress: float | None = None
        self._answered = 0
        self._main = threading.main_thread().ident
        self._said = threading.Lock()
        self._over = threading.Event()
        self._launching = launching_processes()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def progress(self) -> None:
        """The main thread is about to load or has done another batch."""
        self._progress = time.monotonic()

    def tell(self, reason: str) -> None:
        """Have rank 0 print why this rank fails, unless it has printed a reason before; wait until it has."""

        def leave_it() -> None:
            with contextlib.suppress(RuntimeError):  # rank 0 is gone, and its store
                self._store.set(_REASON.format(self._rank), f"{reason} (rank {self._rank})")
                self._store.add(_FAILURES, 1)
                while not self._store.check([_SAID]):
                    time.sleep(0.1)

        telling = threading.Thread(target=leave_it, daemon=True)  # the store does not answer if a link was cut
        telling.start()
        telling.join(_PATIENCE)

    def speak(self) -> bool:
        """Whether rank 0 may print why all end: the first caller may, and prints at once."""
        return self._said.acquire(blocking=False)

    def spoken(self) -> None:
        """What `speak` allowed is printed; the others need not wait."""
        with contextlib.suppress(RuntimeError):
            self._store.set(_SAID, "")

    def close(self) -> None:
        """No thread may be inside the store when Python ends."""
        self._over.set()
        self._thread.join(_PATIENCE / 4)

    def _look(self) -> None:
        with contextlib.suppress(RuntimeError):  # the store went with the process that holds it
            while not self._over.wait(_EVERY):
                if launching_processes() != self._launching:  # `die_with_parent` knows the parent alone, maybe a shell
                    os.kill(os.getpid(), signal.SIGKILL)
                if self._rank == 0 and self._store.add(_FAILURES, 0):
                    self._say_why()
                    return
                quiet = 0.0 if self._progress is None else time.monotonic() - self._progress
                if self._rank == 0 and quiet > self._limit:
                    self._stalled()
                elif quiet > self._limit / 2:  # the ranks began their steps at other times
                    self._answer()

    def _say_why(self) -> None:
        self._over.wait(_EVERY)  # what rank 0 knows itself is worth more
        if not self._over.is_set() and self.speak():
            for reason in self._read([_REASON.format(rank) for rank in range(self._size)]):
                if reason is not None:
                    print(f"error: {reason}", file=sys.stderr, flush=True)
            self.spoken()

    def _answer(self) -> None:
        """Leave this rank's stack, if rank 0 has asked for it again."""
        asked = self._store.add(_ASKED, 0)
        if asked > self._answered:
            self._answered = asked
            self._store.set(_STACK.format(self._rank, asked), _stack(sys._current_frames().get(self._main or 0)))

    def _stalled(self) -> None:
        """Once per stall, on rank 0."""
        self._progress = None
        number = self._store.add(_ASKED, 1)
        self._answer()
        names = [_STACK.format(rank, number) for rank in range(self._size)]
        until = time.monotonic() + _PATIENCE
        while not self._store.check(names) and time.monotonic() < until and not self._over.wait(_EVERY):
            pass
        text = "\n".join(
            f"rank {rank}, innermost call last:\n{'  does not answer' if stack is None else stack}"
            for rank, stack in enumerate(self._read(names))
        )
        logger.warning("no step has ended for %.0f s; where the ranks are:\n%s", self._limit, text)

    def _read(self, names: Sequence[str]) -> list[str | None]:
        return [self._store.get(name).decode() if self._store.check([name]) else None for name in names]


def _stack(frame: FrameType | None) -> str:
    return "".join(traceback.format_stack(frame)[-_FRAMES:]).rstrip()
