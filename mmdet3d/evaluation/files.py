"""Result files that are either whole or absent."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

__all__ = ["atomic_write"]


@contextmanager
def atomic_write(path: str | Path, mode: str = "w") -> Iterator[IO]:
    """Open `path` for writing; it appears under its name only when the block ends without an error.

    Missing parent folders are made. An interrupted block leaves an earlier file of that name as it was.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with open(partial, mode) as file:
            yield file
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
