"""Files that are either whole or absent when written, and plain errors when read."""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

__all__ = ["atomic_write", "file_digest", "read_json", "read_text"]


@contextmanager
def atomic_write(path: str | Path, mode: str = "w", durable: bool = False) -> Iterator[IO]:
    """Open `path` for writing; it appears under its name only when the block ends without an error.

    Missing parent folders are made. An interrupted block leaves an earlier file of that name as it was. Any number of
    threads, processes and machines may write the same file; its rights are those that the umask gives to new files.

    Args:
        mode: `w` or `wb`.
        durable: wait until the disk has it, so that it also survives a machine that goes down. That takes some
            milliseconds, so it is for files after which others are deleted.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # A process number would not do: machines that share a network drive have the same ones.
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
    try:
        with open(partial, mode) as file:
            yield file
            if durable:
                file.flush()
                os.fsync(file.fileno())
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


def read_json(path: str | Path, what: str, most: int | None = None) -> Any:
    """The content of a JSON file; `what` says in error messages which kind of file it should be.

    Args:
        most: bytes that such a file may have; None for any number.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is no JSON, nested too deeply to be read, or larger than such files are.
    """
    try:
        if most is not None and (size := Path(path).stat().st_size) > most:
            raise ValueError(f"{what} {path} has {size} bytes, more than {most}; it is none, or damaged")
        return json.loads(Path(path).read_bytes())
    except FileNotFoundError:
        raise FileNotFoundError(f"{what} {path} does not exist") from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{what} {path} is not valid JSON ({error}); it is damaged or cut off") from None
    except RecursionError:
        raise ValueError(f"{what} {path} is nested too deeply; it is damaged, or made to do harm") from None


def file_digest(path: str | Path) -> str:
    """SHA-256 of a file, as hexadecimal digits."""
    # hashlib.file_digest needs Python 3.11.
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
