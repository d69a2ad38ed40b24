"""What was read out of files, kept for the next epoch and for other processes (`data.cache` of a config).

A loader hands its deterministic part to `read(reader, files, *arguments)`; what it draws at random it does afterwards.
The key of an entry is made of the reader's source, its arguments, and path, size and times of every file, so neither a
changed file nor another pipeline ever meets an entry that is not its own. An entry is one file, renamed into place
when it is whole: any number of processes fill and read a folder together without locks, and share its pages in memory.
"""

from __future__ import annotations

import atexit
import dataclasses
import fcntl
import functools
import hashlib
import logging
import mmap
import os
import shutil
import stat
import sys
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any, Protocol, TypeVar, cast

import numpy as np
import PIL
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from mmdet3d.io.files import atomic_write

__all__ = ["KINDS", "Content", "Read", "ReadCache", "check_cache", "open_cache", "read_anew"]

KINDS = ("none", "ram", "disk")
VARIABLE = "DISTILL3D_CACHE"
SHARED_MEMORY = Path("/dev/shm")
RESERVE = 1_000_000_000  # bytes of the file system that the cache leaves free
_SCAN_EVERY = 64  # entries that a process writes before it looks again at what others wrote
_FORMAT = b"3"  # of an entry
_NOTICES = ("full", "unwritable", "damaged")

# What an entry holds: what readers return, arrays or images.
Content = Sequence[np.ndarray | Image.Image]
Item = TypeVar("Item", np.ndarray, Image.Image)


class Read(Protocol):
    """`reader(files, *arguments)`, from the files or from what is kept of them."""

    def __call__(self, reader: Callable[..., list[Item]], files: Sequence[Path], *arguments: Any) -> list[Item]: ...


def read_anew(reader: Callable[..., list[Item]], files: Sequence[Path], *arguments: Any) -> list[Item]:
    """Reads without a cache."""
    return reader(files, *arguments)


def check_cache(kind: Any, limit: Any) -> None:
    """Raises ValueError unless they are legal values of `data.cache` and `data.cache_limit`."""
    if kind not in KINDS:
        raise ValueError(f"config key data.cache must be {', '.join(KINDS[:-1])} or {KINDS[-1]}, got {kind!r}")
    if isinstance(limit, bool) or not isinstance(limit, (int, float)) or not limit > 0:
        raise ValueError(f"config key data.cache_limit must be a positive number of GB, got {limit!r}")


def open_cache(kind: str, root: Path, limit: float) -> Read:
    """What reads the files of a data set: `read(reader, files, *arguments)`.

    Args:
        kind: `none`; `disk`, in the folder that `DISTILL3D_CACHE` names, or `.cache` in the data set's; or `ram`, in
            shared memory until the last process that uses it ends.
        root: of the data set.
        limit: size of the folder in GB (10^9 bytes).

    Raises:
        ValueError: another kind, or a limit that is no positive number.
    """
    check_cache(kind, limit)
    if kind == "none":
        return read_anew
    if kind == "disk":
        return ReadCache(Path(os.environ.get(VARIABLE) or root / ".cache"), limit)
    try:
        return ReadCache(_ram_folder(), limit)
    except OSError as error:
        logging.getLogger("mmdet3d").warning("nothing is cached: %s; set data.cache: disk, or none", error)
        return read_anew


class ReadCache:
    """Reads through a folder of entries; what cannot be kept is read anew, with one warning for each reason.

    Args:
        folder: is made when the first entry is written; may be removed at any time.
        limit: GB; the folder exceeds it by at most 64 entries of each process that writes.
    """

    def __init__(self, folder: Path, limit: float) -> None:
        self.folder = folder
        self.limit = limit
        self._open = True  # to further entries
        self._written = self._size = 0
        self._checked: set[str] = set()
        self._said = mmap.mmap(-1, len(_NOTICES))  # shared with processes that are forked later

    def __call__(self, reader: Callable[..., list[Item]], files: Sequence[Path], *arguments: Any) -> list[Item]:
        """`reader(files, *arguments)`, or what it returned for the same files and arguments before.

        Args:
            reader: a function of a module, whose result follows from files and arguments; arrays may be written to.
            arguments: numbers, texts, arrays, data classes of such, and sequences of all of them.
        """
        try:
            path = self.folder / _key(reader, files, arguments)
        except OSError:  # a missing file, for which readers have better words
            return reader(files, *arguments)
        kept = self._load(path)
        if kept is not None:
            return cast(list[Item], kept)  # the entry of this reader, so of its kind
        content = reader(files, *arguments)
        if self._open:
            self._store(path, content)
        return content

    def _load(self, path: Path) -> Content | None:
        try:
            with safe_open(path, "pt") as file:
                kinds, checksum = (file.metadata()[name] for name in ("kinds", "crc32"))
                arrays = [file.get_tensor(str(k)).numpy() for k in range(len(kinds))]
        except FileNotFoundError:
            return None
        except (SafetensorError, OSError, KeyError, TypeError) as error:
            self._damaged(path, error)
            return None
        # Once in each process: it takes as long as everything else here.
        if path.name not in self._checked:
            if _checksum(kinds, arrays) != checksum:
                self._damaged(path, "its checksum is another one")
                return None
            self._checked.add(path.name)
        return [_UNPACK[kind](array) for kind, array in zip(kinds, arrays, strict=True)]

    def _damaged(self, path: Path, reason: object) -> None:
        self._say("damaged", f"cache file {path} is damaged ({reason}); what it should hold is read and stored anew")

    def _store(self, path: Path, content: Content) -> None:
        packed = [_pack(value) for value in content]
        kinds, arrays = "".join(kind for kind, _ in packed), [array for _, array in packed]
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if not self._has_room(sum(a.nbytes for a in arrays)):
                return
            named = {str(k): array for k, array in enumerate(arrays)}
            with atomic_write(path, "wb") as file:
                file.write(save(named, {"kinds": kinds, "crc32": _checksum(kinds, arrays)}))
        except OSError as error:
            self._open = False
            self._say(
                "unwritable",
                f"nothing more is cached: {error}; name a folder that can be written to in the environment variable "
                f"{VARIABLE}, or set data.cache: none",
            )

    def _has_room(self, size: int) -> bool:
        if self._written % _SCAN_EVERY == 0:
            self._size = _folder_size(self.folder)
        self._written += 1
        self._size += size
        free = shutil.disk_usage(self.folder).free
        if self._size <= self.limit * 1e9 and free - size >= RESERVE:
            return True
        self._open = False
        why = f"{free / 1e9:.1f} GB are free there" if self._size <= self.limit * 1e9 else "the limit is reached"
        self._say(
            "full",
            f"nothing more is cached in {self.folder}: {why} (data.cache_limit: {self.limit:g} GB); what is cached is "
            "used, the rest is read anew; removing the folder makes room",
        )
        return False

    def _say(self, notice: str, message: str) -> None:
        place = _NOTICES.index(notice)
        if not self._said[place]:
            self._said[place] = 1
            logging.getLogger("mmdet3d").warning(message)


def _pack(value: np.ndarray | Image.Image) -> tuple[str, np.ndarray]:
    """Its kind, and a contiguous array."""
    if isinstance(value, Image.Image) and Image.fromarray(array := np.asarray(value)).mode == value.mode:
        return "i", array
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "biuf":
        kind = getattr(value, "mode", getattr(value, "dtype", type(value).__name__))
        raise ValueError(
            f"a reader returned {kind}, and only arrays of numbers and RGB images are cached; let it return those, or "
            "set data.cache: none"
        )
    if not value.dtype.isnative:  # files have one byte order
        kind, array = _pack(value.astype(value.dtype.newbyteorder("=")))
        return kind.upper(), array
    # Column-major arrays stay so: the order of sums in a matrix product may follow from it.
    if value.flags.f_contiguous and not value.flags.c_contiguous:
        return "t", value.T
    return "a", np.asarray(value, order="C")


_UNPACK: dict[str, Callable[[np.ndarray], np.ndarray | Image.Image]] = {
    "i": Image.fromarray,
    "t": np.transpose,
    "a": lambda array: array,
    "T": lambda array: _swapped(array.T),
    "A": lambda array: _swapped(array),
}


def _swapped(array: np.ndarray) -> np.ndarray:
    return array.astype(array.dtype.newbyteorder())


def _checksum(kinds: str, arrays: Sequence[np.ndarray]) -> str:
    head = f"{kinds}{[(array.dtype.str, array.shape) for array in arrays]}".encode()
    return str(functools.reduce(lambda crc, array: zlib.crc32(array.data, crc), arrays, zlib.crc32(head)))


# -- keys -------------------------------------------------------------------------------------------------------------


def _key(reader: Callable[..., object], files: Sequence[Path], arguments: Sequence[Any]) -> str:
    digest = hashlib.blake2b(_FORMAT + _source(reader.__module__), digest_size=20)
    digest.update(reader.__qualname__.encode())
    for file in files:
        found = os.stat(file)
        digest.update(f"{os.path.abspath(file)}\n{found.st_size} {found.st_mtime_ns} {found.st_ctime_ns}\n".encode())
    _feed(digest, arguments)
    return f"{digest.hexdigest()}.safetensors"


@functools.cache
def _source(module: str) -> bytes:
    """Digest of a module's source and of the versions that decide what a decoded file looks like."""
    file = sys.modules[module].__file__
    assert file is not None, f"{module} has no source"
    source = Path(file).read_bytes()
    return hashlib.sha256(f"{np.__version__} {PIL.__version__} ".encode() + source).digest()


def _feed(digest: Any, value: Any) -> None:
    if isinstance(value, np.ndarray):
        digest.update(f"{value.dtype.str}{value.shape}".encode())
        digest.update(value.tobytes())
    elif isinstance(value, (list, tuple)):
        digest.update(f"{len(value)}[".encode())
        for item in value:
            _feed(digest, item)
    elif dataclasses.is_dataclass(value):
        _feed(digest, (type(value).__name__, *(getattr(value, f.name) for f in dataclasses.fields(value))))
    elif value is None or isinstance(value, (bool, int, float, str)):
        digest.update(f"{value!r};".encode())
    else:
        raise TypeError(f"a reader's arguments are part of its key; {type(value).__name__} cannot be")


# -- folders ----------------------------------------------------------------------------------------------------------


def _folder_size(folder: Path) -> int:
    total = 0
    with os.scandir(folder) as entries:
        for entry in entries:
            try:
                total += entry.stat().st_size
            except FileNotFoundError:  # renamed or removed by another process
                continue
    return total


@functools.cache
def _ram_folder() -> Path:
    """A folder in shared memory that all trainings of this user share; the last one to end removes it."""
    folder = SHARED_MEMORY / f"distill3d-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():  # anybody may make files in shared memory
        raise PermissionError(f"{folder} is somebody else's")
    lock = (folder / "lock").open("w")
    fcntl.flock(lock, fcntl.LOCK_SH)
    atexit.register(_leave, folder, lock)
    return folder


def _leave(folder: Path, lock: IO[str]) -> None:
    # A process that enters meanwhile writes its entries into a new folder of that name.
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return
    shutil.rmtree(folder, ignore_errors=True)
