"""Untrusted pickle files: containers, numbers, strings and NumPy arrays are read, and nothing that could run code."""

from __future__ import annotations

import contextlib
import hashlib
import mmap
import pickle
import re
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from mmdet3d.io.files import atomic_write

__all__ = ["dump_pickle", "load_pickle"]


def _encode(text: str, encoding: str = "latin1") -> bytes:
    """How old pickle protocols spell bytes."""
    if encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError(f"codec {encoding!r}")
    return text.encode("latin1")


def _allowed() -> dict[tuple[str, str], Any]:
    array_parts = np.empty(0).__reduce__()[0]
    scalar = np.float64(0).__reduce__()[0]
    buffer = np.arange(1).__reduce_ex__(5)[0]
    allowed: dict[tuple[str, str], Any] = {
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
        ("_codecs", "encode"): _encode,
        ("collections", "OrderedDict"): dict,
    }
    for core in ("numpy.core", "numpy._core"):
        allowed[f"{core}.multiarray", "_reconstruct"] = array_parts
        allowed[f"{core}.multiarray", "scalar"] = scalar
        allowed[f"{core}.numeric", "_frombuffer"] = buffer
    for builtins in ("builtins", "__builtin__"):
        for kind in (set, frozenset, bytes, bytearray, complex, dict, list, tuple, int, float, str, bool):
            allowed[builtins, kind.__name__] = kind
    return allowed


_ALLOWED = _allowed()


class _DataUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise PermissionError(f"{module}.{name}") from None


# How files of `dump_pickle` begin: the digest of all that follows, as a text that any reader takes and drops again.
_PROTOCOL, _POP = b"\x80\x04", b"0"
_HEAD = re.compile(_PROTOCOL + rb"\x8c\x47sha256:([0-9a-f]{64})" + _POP)
# Two bytes may ask for an empty list and a place in the reader's memo and in another list, 80 bytes; 5 bytes for a
# place in the memo that lies gigabytes away.
_MOST_PER_BYTE, _SPARE = 64, 4 << 20


def load_pickle(path: str | Path) -> Any:
    """The content of a pickle file that holds plain data.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file refers to anything but containers, scalars and numpy arrays, or it is damaged.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist")
    if not path.stat().st_size:
        raise ValueError(f"{path} is empty; create or fetch it again")
    # Mapped, because a reader of a damaged length asks a file for so much, and gets what there is.
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        head = _HEAD.match(content)
        if head and hashlib.sha256(memoryview(content)[head.end() :]).hexdigest().encode() != head[1]:
            raise ValueError(f"{path} is damaged: it is not what was written (another SHA-256); create it anew")
        try:
            with contextlib.nullcontext() if head else _at_most(_MOST_PER_BYTE * len(content) + _SPARE):
                return _DataUnpickler(content, encoding="latin1").load()
        except PermissionError as error:
            raise ValueError(
                f"{path} refers to {error}, which plain data does not need; the file was not read, as it could run code"
            ) from None
        except Exception as error:
            raise ValueError(f"{path} is no readable pickle file ({type(error).__name__}: {error})") from error


@contextlib.contextmanager
def _at_most(room: int) -> Iterator[None]:
    """Memory beyond `room` bytes more than this process has now is refused (where the system counts it, as Linux does).

    What Python's unpickler allocates for a damaged number cannot be seen before, unless every file is read twice.
    """
    statm = Path("/proc/self/statm")
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    if not statm.is_file():
        yield
        return
    limit = int(statm.read_text().split()[0]) * resource.getpagesize() + room
    if soft != resource.RLIM_INFINITY:
        limit = min(limit, soft)
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def dump_pickle(content: Any, path: str | Path) -> None:
    """Write plain data so that `load_pickle` reads it, and any reader of pickles; the file is whole or absent."""
    body = pickle.dumps(content, protocol=4)
    text = f"sha256:{hashlib.sha256(body).hexdigest()}".encode()
    with atomic_write(path, "wb") as file:
        file.write(_PROTOCOL + b"\x8c" + bytes([len(text)]) + text + _POP)
        file.write(body)
