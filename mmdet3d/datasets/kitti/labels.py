"""The files of KITTI's objects: labels, results, and the archive that the test server takes.

A line holds: class, truncated, occluded, alpha, 2-D box (x1, y1, x2, y2), size (h, w, l), location (x, y, z),
rotation_y and, in results, a score. Source: the development kit of the KITTI object benchmark.
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np

from mmdet3d.blocks import nearest
from mmdet3d.evaluation.kitti_objects import TYPES, Objects
from mmdet3d.io.files import atomic_write, read_text

__all__ = [
    "frame_files",
    "parse_class_map",
    "parse_objects",
    "read_labels",
    "read_results",
    "write_labels",
    "write_results",
    "zip_results",
]

NO_SCORE = -1.0
_NUMBERS = 14  # of a label line, after the class


# -- reading --------------------------------------------------------------------------------------------------------


def read_labels(path: str | Path, class_map: Mapping[str, str] | None = None, types: Sequence[str] = TYPES) -> Objects:
    """A label file: 15 columns, or 16 with a score.

    Args:
        class_map: what classes that KITTI does not have count as.
        types: the classes there are.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a line with another number of columns, an unknown class, or a number that is none or not finite; or
            a class that is mapped to one that KITTI does not have.
    """
    return parse_objects(read_text(path, "label file"), str(path), class_map=class_map, types=types)


def read_results(path: str | Path, types: Sequence[str] = TYPES) -> Objects:
    """A result file: 16 columns; an empty file holds no object. Raises as `read_labels` does."""
    return parse_objects(read_text(path, "result file"), str(path), scored=True, types=types)


def parse_class_map(words: Sequence[str]) -> dict[str, str]:
    """`["Tricycle=Cyclist"]` as a class map, see `read_labels`; raises ValueError for a word of another form."""
    pairs = [word.partition("=") for word in words]
    for own, sign, name in pairs:
        if not (own and sign and name):
            raise ValueError(f"--class-map takes words such as Tricycle=Cyclist, got {own + sign + name!r}")
    return {own: name for own, _, name in pairs}


def parse_objects(
    text: str,
    source: str,
    scored: bool = False,
    class_map: Mapping[str, str] | None = None,
    types: Sequence[str] = TYPES,
) -> Objects:
    """The objects that the lines of `text` describe; blank lines are skipped.

    Args:
        source: what error messages call the text, such as its file name.
        scored: a line without a score is an error instead of having the score -1.
        class_map, types: see `read_labels`.
    """
    canonical = {name.lower(): name for name in types}  # the official evaluators ignore case
    for own, name in (class_map or {}).items():
        if name not in TYPES:
            raise ValueError(
                f"class_map maps {own!r} to {name!r}{nearest(str(name), TYPES)} (known: {', '.join(TYPES)})"
            )
    names, table = [], []
    for number, line in enumerate(text.splitlines(), start=1):
        words = line.split()
        if not words:
            continue
        try:
            names.append((class_map or {}).get(words[0]) or _name(words[0], canonical))
            table.append(_numbers(words[1:], scored))
        except ValueError as error:
            raise ValueError(f"{source}, line {number}: {error}") from None
    return Objects.from_table(names, np.array(table, dtype=np.float64).reshape(-1, _NUMBERS + 1))


def _name(word: str, canonical: Mapping[str, str]) -> str:
    name = canonical.get(word.lower())
    if name is None:
        types = list(canonical.values())
        raise ValueError(
            f"unknown class {word!r}{nearest(word, types)} (classes: {', '.join(types)}); a class of your own counts "
            f"as one of these by class_map: {{{word}: ...}}"
        )
    return name


def _numbers(words: Sequence[str], scored: bool) -> list[float]:
    if len(words) not in ((_NUMBERS + 1,) if scored else (_NUMBERS, _NUMBERS + 1)):
        expected = "16 columns (a result ends with a score)" if scored else "15 or 16 columns"
        raise ValueError(f"expected {expected}, found {len(words) + 1}")
    try:
        values = [float(word) for word in words]
    except ValueError as error:
        raise ValueError(f"not a number: {str(error).rpartition(': ')[2]}") from None
    if not all(map(math.isfinite, values)):
        column = int(np.flatnonzero(~np.isfinite(values))[0])
        raise ValueError(f"column {column + 2} is {words[column]}, not a finite number")
    return values if len(values) > _NUMBERS else [*values, NO_SCORE]


# -- writing --------------------------------------------------------------------------------------------------------


def write_labels(path: str | Path, objects: Objects) -> None:
    """Write a label file (15 columns, two decimals); it is whole or absent.

    Raises:
        ValueError: an unknown class, or a number that is not finite.
    """
    table = _checked(objects, path)
    _write(path, objects.names, [f"{row[0]:.2f} {row[1]:.0f} {_two_decimals(row[2:-1])}" for row in table])


def write_results(path: str | Path, objects: Objects, score_decimals: int = 2) -> None:
    """Write a result file (16 columns, two decimals; truncation and occlusion 0, as published); it is whole or absent.

    Every image needs a file, also one without detections.

    Args:
        score_decimals: more than two keep scores apart that two decimals make equal.

    Raises:
        ValueError: an unknown class, or a number that is not finite.
    """
    table = _checked(objects, path)
    _write(path, objects.names, [f"0.0 0 {_two_decimals(row[2:-1])} {row[-1]:.{score_decimals}f}" for row in table])


def zip_results(folder: str | Path, ids: Collection[str], path: str | Path) -> None:
    """Pack the result files of the frames `ids` for upload, without a folder in the archive.

    The same files give the same bytes.

    Raises:
        FileNotFoundError: a frame has no result file.
        ValueError: a result file is malformed.
    """
    files = frame_files(folder, ids)
    for file in files:
        read_results(file)
    with atomic_write(path, "wb") as out, zipfile.ZipFile(out, "w") as archive:
        for file in sorted(files):
            entry = zipfile.ZipInfo(file.name)  # dated 1980, whenever it is packed
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, file.read_bytes(), zipfile.ZIP_DEFLATED)


def frame_files(folder: str | Path, ids: Collection[str]) -> list[Path]:
    """`{folder}/{id}.txt` of every id.

    Raises:
        FileNotFoundError: the folder or one of the files is missing.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}")
    present = {p.name for p in folder.glob("*.txt")}
    missing = [f"{i}.txt" for i in ids if f"{i}.txt" not in present]
    if missing:
        named = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        hint = f"; they may be in {folder / 'data'}" if not present and (folder / "data").is_dir() else ""
        raise FileNotFoundError(f"{len(missing)} of {len(ids)} files are missing in {folder}: {named}{hint}")
    return [folder / f"{i}.txt" for i in ids]


def _checked(objects: Objects, path: str | Path) -> np.ndarray:
    unknown = sorted(set(objects.names.tolist()) - set(TYPES))
    if unknown:
        raise ValueError(f"{path}: unknown class {unknown[0]!r}{nearest(unknown[0], TYPES)}")
    table = objects.table()
    if not np.isfinite(table).all():
        row = int(np.flatnonzero(~np.isfinite(table).all(1))[0])
        raise ValueError(f"{path}: object {row} ({objects.names[row]}) has a number that is not finite")
    return table


def _two_decimals(values: np.ndarray) -> str:
    return " ".join(f"{value:.2f}" for value in values)


def _write(path: str | Path, names: np.ndarray, rests: Sequence[str]) -> None:
    with atomic_write(path) as file:
        file.writelines(f"{name} {rest}\n" for name, rest in zip(names, rests, strict=True))
