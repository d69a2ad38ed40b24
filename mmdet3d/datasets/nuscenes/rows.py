"""Tables in nuScenes' layout, looked at as they are read: what is in their rows, and where tokens lead."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmdet3d.io.files import read_json

__all__ = ["NUMBER", "TIME", "Kind", "check_links", "read_rows"]

Rows = list[dict[str, Any]]

_REMEDY = "correct it, or fetch the table again"


@dataclass(frozen=True)
class Kind:
    """Values that a column may have.

    Args:
        words: what they are.
        fits: of a value.
    """

    words: str
    fits: Callable[[Any], bool]


def _is_number(value: Any) -> bool:
    # JSON has integers of any length, which no array takes.
    return type(value) is float or (type(value) is int and -(1 << 63) <= value < 1 << 63)


def _is_finite(value: Any) -> bool:
    return _is_number(value) and math.isfinite(value)


def _are_numbers(value: Any, count: int) -> bool:
    if type(value) is not list or len(value) != count:
        return False
    # The usual case first: there are millions of rows.
    return set(map(type, value)) == {float} or all(map(_is_number, value))


def _is_rotation(value: Any) -> bool:
    # NaN fits: which frames it spoils is found when they are read.
    if not _are_numbers(value, 4):
        return False
    length = math.hypot(*value)
    return not (length < 1e-6 or length > 1e6)


_TEXT = Kind("a text", lambda value: type(value) is str)
_TOKEN = Kind("a token, a text that is not empty", lambda value: type(value) is str and value != "")
_TOKENS = Kind("a list of tokens", lambda value: type(value) is list and all(type(v) is str for v in value))
_FLAG = Kind("true or false", lambda value: isinstance(value, int))
NUMBER = Kind("a number", _is_number)
_COUNT = Kind("a number", _is_finite)
TIME = Kind("a time in microseconds", _is_finite)
_THREE = Kind("three numbers", lambda value: _are_numbers(value, 3))
_ROTATION = Kind("a quaternion (w, x, y, z) of length 1", _is_rotation)
_INTRINSICS = Kind(
    "3 x 3 numbers, or an empty list for what is no camera",
    lambda value: type(value) is list and (not value or (len(value) == 3 and all(_are_numbers(v, 3) for v in value))),
)

_OF_CAMERAS = "camera_intrinsic"  # which own tables need not have for other sensors
# Columns that are read, by table; there may be others.
_COLUMNS: dict[str, dict[str, Kind]] = {
    "attribute": {"token": _TOKEN, "name": _TEXT},
    "calibrated_sensor": {
        "token": _TOKEN,
        "sensor_token": _TOKEN,
        "translation": _THREE,
        "rotation": _ROTATION,
        _OF_CAMERAS: _INTRINSICS,
    },
    "category": {"token": _TOKEN, "name": _TEXT},
    "ego_pose": {"token": _TOKEN, "translation": _THREE, "rotation": _ROTATION},
    "instance": {"token": _TOKEN, "category_token": _TOKEN},
    "log": {"token": _TOKEN, "location": _TEXT},
    "map": {"token": _TOKEN, "filename": _TEXT, "log_tokens": _TOKENS},
    "sample": {"token": _TOKEN, "timestamp": TIME, "scene_token": _TOKEN, "prev": _TEXT, "next": _TEXT},
    "sample_annotation": {
        "token": _TOKEN,
        "sample_token": _TOKEN,
        "instance_token": _TOKEN,
        "attribute_tokens": _TOKENS,
        "translation": _THREE,
        "size": _THREE,
        "rotation": _ROTATION,
        "num_lidar_pts": _COUNT,
        "num_radar_pts": _COUNT,
        "prev": _TEXT,
        "next": _TEXT,
    },
    "sample_data": {
        "token": _TOKEN,
        "sample_token": _TOKEN,
        "ego_pose_token": _TOKEN,
        "calibrated_sensor_token": _TOKEN,
        "filename": _TEXT,
        "timestamp": TIME,
        "is_key_frame": _FLAG,
        "prev": _TEXT,
    },
    "scene": {"token": _TOKEN, "name": _TEXT, "first_sample_token": _TOKEN},
    "sensor": {"token": _TOKEN, "channel": _TEXT, "modality": _TEXT},
    "visibility": {"token": _TOKEN},
}
_NEEDED = ("calibrated_sensor", "ego_pose", "map", "sample", "sample_data", "scene", "sensor")

# (table, column with tokens, table that they are of)
_LINKS = (
    ("calibrated_sensor", "sensor_token", "sensor"),
    ("instance", "category_token", "category"),
    ("sample", "prev", "sample"),
    ("sample", "next", "sample"),
    ("sample_annotation", "sample_token", "sample"),
    ("sample_annotation", "instance_token", "instance"),
    ("sample_annotation", "prev", "sample_annotation"),
    ("sample_annotation", "next", "sample_annotation"),
    ("sample_data", "ego_pose_token", "ego_pose"),
    ("sample_data", "calibrated_sensor_token", "calibrated_sensor"),
    ("sample_data", "prev", "sample_data"),
    ("scene", "first_sample_token", "sample"),
)
_CHAINS = ("prev", "next")  # which end in an empty token, and lead along a scene


def read_rows(folder: Path, table: str, more: Mapping[str, Kind] | None = None) -> Rows:
    """The rows of `{folder}/{table}.json`.

    Args:
        more: columns that a data set has besides nuScenes'.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is no list of rows with the columns of nuScenes' schema, is empty where it must not be, or has a
            token twice.
    """
    file = folder / f"{table}.json"
    rows = read_json(file, "table")
    if not isinstance(rows, list) or not all(type(row) is dict for row in rows):
        raise ValueError(f"table {file} must be a JSON list of objects, one per row; fetch it again")
    if not rows and table in _NEEDED:
        raise ValueError(f"table {file} is empty; fetch it again")
    columns = {**_COLUMNS.get(table, {}), **(more or {})}
    for column, kind in columns.items():
        for k, row in enumerate(rows):
            if column not in row and column != _OF_CAMERAS:
                raise ValueError(f"table {file}, {_name(row, k)}: `{column}` is missing; it must be {kind.words}")
            if column in row and not kind.fits(row[column]):
                has = f"is {_short(row[column])} instead of {kind.words}"
                raise ValueError(f"table {file}, {_name(row, k)}: `{column}` {has}; {_REMEDY}")
    if "token" in columns:
        seen: set[str] = set()
        for row in rows:
            if row["token"] in seen:
                raise ValueError(f"table {file} has several rows of token {row['token']}; keep one")
            seen.add(row["token"])
    return rows


def check_links(tables: Mapping[str, Rows], folder: Path) -> None:
    """See whether the tokens in the rows of `read_rows` lead to rows, without going round in circles.

    Args:
        tables: all of a version, by name.

    Raises:
        ValueError: one does not, or a camera has no intrinsic matrix.
    """
    known = {table: {row["token"] for row in rows if "token" in row} for table, rows in tables.items()}
    for table, column, target in _LINKS:
        for k, row in enumerate(tables[table]):
            token = row[column]
            if token not in known[target] and not (column in _CHAINS and token == ""):
                _raise_dangling(folder, table, _name(row, k), column, token, target)
        if column in _CHAINS:
            _check_chain(tables[table], column, folder / f"{table}.json")
    for k, row in enumerate(tables["sample_annotation"]):
        for token in row["attribute_tokens"]:
            if token not in known["attribute"]:
                _raise_dangling(folder, "sample_annotation", _name(row, k), "attribute_tokens", token, "attribute")
    for k, row in enumerate(tables["sample_data"]):
        if row["is_key_frame"] and row["sample_token"] not in known["sample"]:
            _raise_dangling(folder, "sample_data", _name(row, k), "sample_token", row["sample_token"], "sample")
    cameras = {row["token"] for row in tables["sensor"] if row["modality"] == "camera"}
    for k, row in enumerate(tables["calibrated_sensor"]):
        if row["sensor_token"] in cameras and not row.get(_OF_CAMERAS):
            raise ValueError(
                f"table {folder / 'calibrated_sensor.json'}, {_name(row, k)}: `{_OF_CAMERAS}` of a camera is empty; "
                f"{_REMEDY}"
            )
    if "log" in tables:
        _check_logs(tables, known["log"], folder)


def _check_logs(tables: Mapping[str, Rows], logs: set[str], folder: Path) -> None:
    for k, row in enumerate(tables["scene"]):
        if row.get("log_token") not in logs:
            _raise_dangling(folder, "scene", _name(row, k), "log_token", row.get("log_token"), "log")
    mapped = {token for row in tables["map"] for token in row["log_tokens"]}
    for token in sorted(logs - mapped):
        raise ValueError(f"table {folder / 'map.json'}: no map has log {token} among its `log_tokens`; {_REMEDY}")


def _check_chain(rows: Sequence[Mapping[str, Any]], column: str, file: Path) -> None:
    following = {row["token"]: row[column] for row in rows}
    ended: set[str] = set()
    for token in following:
        walked: set[str] = set()
        while token and token not in ended:
            if token in walked:
                raise ValueError(f"table {file}: from row {token}, `{column}` leads back to that row; {_REMEDY}")
            walked.add(token)
            token = following[token]
        ended |= walked


def _raise_dangling(folder: Path, table: str, row: str, column: str, token: Any, target: str) -> None:
    raise ValueError(
        f"table {folder / table}.json, {row}: `{column}` is {_short(token)}, which no row of {target}.json has as its "
        f"token; {_REMEDY}"
    )


def _name(row: Mapping[str, Any], number: int) -> str:
    token = row.get("token")
    return f"row {token}" if isinstance(token, str) and token else f"row number {number}"


def _short(value: Any) -> str:
    words = repr(value)
    return words if len(words) <= 60 else f"{words[:60]}..."
