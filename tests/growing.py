"""What a process holds while it trains: memory, open files, shared memory."""

from __future__ import annotations

import gc
import os
import resource
from pathlib import Path

import numpy as np

MOST_GROWTH = 1024  # bytes a step, of which a leak of one small tensor takes several hundred
_EVERY = 8  # steps


class Growth:
    """`measure` after every step, `check` at the end."""

    def __init__(self) -> None:
        self._held: list[tuple[int, int, int]] = []  # bytes, open files, own files in shared memory

    def measure(self, step: int) -> None:
        if step % _EVERY == 0:
            gc.collect()
            memory = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
            shared = Path("/dev/shm").glob(f"torch_{os.getpid()}_*")
            self._held.append((memory, len(list(Path("/proc/self/fd").iterdir())), len(list(shared))))

    def check(self) -> None:
        """Memory of the second half of the steps, when allocators and caches are full, is flat; nothing else grew."""
        half = len(self._held) // 2
        first, second = np.array(self._held[:half]), np.array(self._held[half:])
        slope = np.polyfit(_EVERY * np.arange(len(second)), second[:, 0], 1)[0]
        print(f"{slope:.0f} bytes per step over {_EVERY * len(second)} steps, {second[-1, 1]} open files")
        assert slope < MOST_GROWTH
        assert second[:, 1].max() <= first[:, 1].max()
        assert second[-1, 2] <= first[0, 2]
