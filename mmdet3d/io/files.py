"""Files that are either whole or absent when written, and plain errors when read."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

__all__ = [
    "atomic_write",
    "check_place",
    "file_digest",
    "in_words",
    "read_json",
    "read_text",
    "record_checksum",
    "utf8_text",
]

_REMEDIES = {
    errno.EEXIST: "a file lies where a folder is needed; choose another place, or move it away",
    errno.ENOTDIR: "a file lies where a folder is needed; choose another place, or move it away",
    errno.EISDIR: "it is a folder, and a file is needed; name the file in it",
    errno.EACCES: "no permission; choose another place, or change its rights",
    errno.EPERM: "no permission; choose another place, or change its rights",
    errno.EROFS: "it can only be read; choose another place",
    errno.ENOSPC: "no space is left; make room, or choose another place",
    errno.ENOENT: "it does not exist",
}


@contextmanager
def atomic_write(path: str | Path, mode: str = "w", durable: bool = False) -> Iterator[IO[Any]]:
    """Open `path` for writing; it appears under its name only when the block ends without an error.

    Missing parent folders are made. An interrupted block leaves an earlier file of that name as it was. Any number of
    threads, processes and machines may write the same file; its rights are those that the umask gives to new files.
    A device or a pipe is written to.

    Args:
        mode: `w` or `wb`.
        durable: wait until the disk has it, so that it also survives a machine that goes down. That takes some
            milliseconds, so it is for files after which others are deleted.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and not path.is_file() and not path.is_dir():
        with open(path, mode) as file:  # a device or a pipe has no earlier content, and must stay what it is
            yield file
        return
    # A process number would not do: machines that share a network drive have the same ones.
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
    try:
        with open(partial, mode) as file:
            yield file
            if durable:
                file.flush()
                os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        if error.filename is None:  # a full disk is noticed where bytes are written, and there no name is known
            error.filename = str(path)
        raise
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


def record_checksum(record: Mapping[str, Any]) -> str:
    """SHA-256 of what a JSON record says, however it is laid out."""
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def read_json(path: str | Path, what: str, most: int | None = None) -> Any:
    """The content of a JSON file; `what` says in error messages which kind of file it should be.

    Args:
        most: bytes that such a file may have; None for any number.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is no JSON in UTF-8, nested too deeply to be read, or larger than such files are.
    """
    try:
        if most is not None and (size := Path(path).stat().st_size) > most:
            raise ValueError(f"{what} {path} has {size} bytes, more than {most}; it is none, or damaged")
        return json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise FileNotFoundError(f"{what} {path} does not exist") from None
    except UnicodeDecodeError as error:
        at = f"{error.reason} at byte {error.start}"
        raise ValueError(f"{what} {path} is no text in UTF-8 ({at}); it is damaged, or to be saved as UTF-8") from None
    except json.JSONDecodeError as error:
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


def utf8_text(path: str | Path) -> str:
    """The content of a text file, with or without the mark that Windows programs put before it.

    Raises:
        ValueError: it is no UTF-8.
        OSError: it cannot be read.
    """
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is no text in UTF-8 ({error.reason} at byte {error.start}); save it as UTF-8"
        ) from None


def check_place(folder: str | Path, option: str) -> None:
    """Raise ValueError if `folder`, which `option` of a command names, is sure not to be writable; nothing is made."""
    folder = Path(folder)
    there = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        reason = "no permission" if there.is_dir() else f"{there} is a file"
        raise ValueError(f"cannot write into {folder} ({reason}); pass another folder with {option}")


def in_words(error: Exception) -> str:
    """The message of a user's mistake; the system's own about a file is told with what to do."""
    if isinstance(error, OSError) and error.errno and error.filename is not None:
        return f"{error.filename}: {_REMEDIES.get(error.errno, (error.strerror or '').lower())}"
    return str(error)
