"""Point files of named fields, .pcd: as text, in binary, or compressed.

Source: the format's description in the Point Cloud Library, version 0.7.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from mmdet3d.datasets.transforms.loading import read_bytes

__all__ = ["Header", "header_of", "read_pcd"]

Header = Mapping[bytes, list[bytes]]
_Reader = Callable[[bytes, np.dtype, int, Path, str], dict[str, np.ndarray]]

_LONGEST_LINE = 1 << 12
_KINDS = {b"F": "f", b"I": "i", b"U": "u"}


def read_pcd(path: Path, fields: Sequence[str], what: str, hint: str = "write it anew") -> Mapping[str, np.ndarray]:
    """The columns of a .pcd file by name, each as the file holds it.

    Args:
        fields: that are wanted; a file may have others, in any order.
        what: kind of file that messages speak of.
        hint: what to do about a file that lacks one.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no .pcd, one without these fields, or truncated.
    """
    header, body = header_of(read_bytes(path, what), path, what)
    record = _record(header, fields, path, what, hint)
    count = _number(header, b"POINTS" if b"POINTS" in header else b"WIDTH", path, what)
    readers: dict[bytes, _Reader] = {
        b"binary": _read_binary,
        b"ascii": _read_text,
        b"binary_compressed": _read_compressed,
    }
    layout = b" ".join(header[b"DATA"])
    if layout not in readers:
        raise ValueError(f"{what} file {path} holds DATA {layout.decode('ascii', 'replace')}, of which there is none")
    return readers[layout](body, record, count, path, what)


def header_of(content: bytes, path: Path, what: str) -> tuple[Header, bytes]:
    """The words of each header line by the first, and what follows the header.

    Raises:
        ValueError: no .pcd.
    """
    header: dict[bytes, list[bytes]] = {}
    place = 0
    while b"DATA" not in header:
        end = content.find(b"\n", place, place + _LONGEST_LINE)
        if end < 0:
            raise ValueError(f"{what} file {path} is no .pcd, or is cut off in its header; fetch or write it again")
        words = content[place:end].split()
        if words and not words[0].startswith(b"#"):
            header[words[0]] = words[1:]
        place = end + 1
    return header, content[place:]


def _record(header: Header, fields: Sequence[str], path: Path, what: str, hint: str) -> np.dtype:
    """One point as the file holds it."""
    names = [word.decode("ascii", "replace") for word in header.get(b"FIELDS", ())]
    if absent := [name for name in fields if name not in names]:
        raise ValueError(
            f"{what} file {path} has no {', '.join(absent)} (its fields: {', '.join(names) or 'none'}); {hint}"
        )
    kinds = [_KINDS.get(word, "") for word in header.get(b"TYPE", ())]
    sizes, repeats = header.get(b"SIZE", ()), header.get(b"COUNT", [b"1"] * len(names))
    wanted = [name in fields for name in names]
    fits = len(names) == len(kinds) == len(sizes) == len(repeats) and sum(wanted) == len(fields)
    if not fits or any(n != b"1" for n, known in zip(repeats, wanted, strict=True) if known):
        raise ValueError(f"{what} file {path}: FIELDS, SIZE, TYPE and COUNT of its header do not fit; write it anew")
    # Others may share a name, as the padding "_" does.
    names = [name if known else f"{name} {k}" for k, (name, known) in enumerate(zip(names, wanted, strict=True))]
    try:
        columns = zip(names, kinds, sizes, repeats, strict=True)
        return np.dtype([(name, f"<{k}{int(s)}", (int(n),) if n != b"1" else ()) for name, k, s, n in columns])
    except (TypeError, ValueError):
        raise ValueError(
            f"{what} file {path}: its header names a TYPE or SIZE that there is not; write it anew"
        ) from None


def _number(header: Header, key: bytes, path: Path, what: str) -> int:
    words = header.get(key, [])
    if len(words) != 1 or not words[0].isdigit():
        raise ValueError(
            f"{what} file {path}: its header does not say how many {key.decode()} there are; write it anew"
        )
    return int(words[0])


def _read_binary(body: bytes, record: np.dtype, count: int, path: Path, what: str) -> dict[str, np.ndarray]:
    if len(body) < count * record.itemsize:
        raise ValueError(
            f"{what} file {path} announces {count} points but holds {len(body) // record.itemsize}; it is truncated, "
            f"fetch it again"
        )
    table = np.frombuffer(body, dtype=record, count=count)
    return {name: table[name] for name in record.names or ()}


def _read_text(body: bytes, record: np.dtype, count: int, path: Path, what: str) -> dict[str, np.ndarray]:
    rows = [line.split() for line in body.splitlines() if line.strip()]
    names = record.names or ()
    widths = [int(np.prod(record[name].shape)) for name in names]
    width = sum(widths)
    if len(rows) < count or any(len(row) != width for row in rows[:count]):
        raise ValueError(
            f"{what} file {path} announces {count} points of {width} numbers but holds {len(rows)} lines that are not "
            "all so; it is cut off or damaged"
        )
    columns = zip(names, np.cumsum([0, *widths])[:-1].tolist(), strict=True)
    try:
        return {name: np.array([row[k] for row in rows[:count]], _of_text(record[name].base)) for name, k in columns}
    except (ValueError, OverflowError):
        raise ValueError(f"{what} file {path} holds a word that is no number") from None


def _of_text(kind: np.dtype) -> np.dtype:
    """Long integers stay such, as a date in nanoseconds does not fit a float; others may be written with a point."""
    return kind if kind.kind in "iu" and kind.itemsize == 8 else np.dtype(np.float64)


def _read_compressed(body: bytes, record: np.dtype, count: int, path: Path, what: str) -> dict[str, np.ndarray]:
    """Sizes before and after compression, then all values of the first field, of the second, ..."""
    packed, size = (int(n) for n in np.frombuffer(body, "<u4", 2)) if len(body) >= 8 else (0, -1)
    raw = _expand(body[8 : 8 + packed], size) if len(body) >= 8 + packed else None
    if raw is None or size != count * record.itemsize:
        raise ValueError(
            f"{what} file {path} announces {count} points, but its compressed part is cut off or damaged; write it anew"
        )
    columns, place = {}, 0
    for name in record.names or ():
        columns[name] = np.frombuffer(raw, record[name].base, count * int(np.prod(record[name].shape)), place)
        place += columns[name].nbytes
    return columns


def _expand(packed: bytes, size: int) -> bytes | None:
    """What LZF packed to `size` bytes; None if it is no such thing.

    A byte below 32 begins that many bytes and one more of literals. Others are copies from what is out already: three
    bits of length (7: a further byte adds to it) plus two, thirteen bits of distance less one.
    """
    out = bytearray()
    place = 0
    try:
        while place < len(packed):
            control = packed[place]
            place += 1
            if control < 32:
                out += packed[place : place + control + 1]
                place += control + 1
                continue
            length = control >> 5
            if length == 7:
                length += packed[place]
                place += 1
            start = len(out) - ((control & 31) << 8) - packed[place] - 1
            place += 1
            if start < 0:
                return None
            # A copy may run into what it writes, which then repeats.
            chunk = out[start : start + length + 2]
            out += (chunk * (-(-(length + 2) // len(chunk))))[: length + 2]
    except IndexError:
        return None
    return bytes(out) if len(out) == size else None
