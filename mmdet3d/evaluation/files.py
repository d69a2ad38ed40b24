"""Files that are either whole or absent when written, and plain errors when read."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

__all__ = ["atomic_write", "read_text"]


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


def read_text(path: str | Path, what: str) -> str:
    """The content of an ASCII file; `what` says in error messages which kind of file it should be.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a folder, or bytes that are not ASCII.
    """
    try:
        return Path(path).read_text(encoding="ascii")
    except FileNotFoundError:
        raise FileNotFoundError(f"{what} {path} is missing") from None
    except IsADirectoryError:
        raise ValueError(f"{what} {path} is a folder, not a file") from None
    except UnicodeDecodeError:
        raise ValueError(f"{what} {path} holds bytes that are not ASCII text") from None
