"""Whether a sensor file is of the layout that it is read as: another one often fits by its size alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from mmdet3d.evaluation.kitti_objects import DONT_CARE, Objects

__all__ = ["are_implausible", "check_objects", "check_scan"]

_ENOUGH = 1000  # points that tell
_FARTHEST = 1e4  # metres
_LARGEST = 1e3  # metres of an object
_FLAT = 0.6  # a scene is flatter than this share of its width: real scans have 0.05 to 0.2, mixed columns 0.9 and more
_WIDTHS = range(3, 9)  # values per point that occur


def check_scan(path: Path, width: int) -> None:
    """Read a LiDAR file as float32 rows of `width` values that begin with x, y, z, and see whether they look like it.

    Raises:
        ValueError: they do not, or the size of the file is no multiple of such rows.
    """
    values = np.frombuffer(path.read_bytes()[: path.stat().st_size // 4 * 4], dtype="<f4")
    if path.stat().st_size % (4 * width) == 0 and (len(values) < _ENOUGH * width or _is_scene(values, width)):
        return
    fitting = [w for w in _WIDTHS if w != width and len(values) >= _ENOUGH * w and _is_scene(values, w)]
    hint = f"it reads like {fitting[0]} values per point" if fitting else "its values are none, or it is damaged"
    raise ValueError(
        f"point file {path} holds no float32 rows of {width} values that begin with x, y, z: {hint}; write it anew in "
        "that layout"
    )


def are_implausible(places: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """(N,) bool: which objects at `places` (N, 3) from the sensor, of `sizes` (N, 3), there cannot be; metres."""
    near = (np.abs(places) <= _FARTHEST).all(axis=1)
    return ~(near & (sizes > 0).all(axis=1) & (sizes <= _LARGEST).all(axis=1))


def check_objects(objects: Objects, path: Path) -> None:
    """See whether there can be objects such as a label file of KITTI's layout describes; ValueError if not."""
    objects = objects[objects.names != DONT_CARE]
    for k in np.flatnonzero(are_implausible(objects.locations, objects.sizes)):
        raise ValueError(
            f"label file {path}: object {k} ({objects.names[k]}) of size {objects.sizes[k].tolist()} at "
            f"{objects.locations[k].tolist()} cannot be; correct it"
        )


def _is_scene(values: np.ndarray, width: int) -> bool:
    """Whether rows of `width` begin with coordinates: of a bounded place that is wider than high."""
    places = values[: len(values) // width * width].reshape(-1, width)[:, :3]
    places = places[np.isfinite(places).all(axis=1)]
    if len(places) < 0.9 * (len(values) // width) or np.abs(places).max() > _FARTHEST:
        return False
    spread = places.astype(np.float64).std(axis=0)
    return bool(spread[2] < _FLAT * spread[:2].max())
