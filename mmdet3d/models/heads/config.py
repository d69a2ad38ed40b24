"""Checks of the `train_cfg`, `test_cfg` blocks that heads take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mmdet3d.registry import nearest
from mmdet3d.structures import BEVGrid

__all__ = ["grid_from", "read_block"]

# Keys of published configs that change nothing here, and why.
_WITHOUT_EFFECT = {
    "dense_reg": "it was never read",
    "max_objs": "any number of objects is trained on",
    "max_pool_nms": "it was never read",
    "pos_weight": "it was never read",
    "grid_size": "the grid follows from point_cloud_range, voxel_size and out_size_factor of train_cfg",
    "pc_range": "the grid follows from point_cloud_range of train_cfg",
    "dataset": "name the classes in point_classes",
}


def read_block(block: Mapping[str, Any], name: str, defaults: Mapping[str, Any]) -> dict[str, Any]:
    """`defaults` overridden by `block`; a default of `...` marks a key that must be given.

    Raises:
        ValueError: an unknown key, a published key that has no effect, or a missing one; or a text, or a list with one
            in it, where numbers belong.
    """
    for key, value in block.items():
        if key in defaults:
            _check_numbers(value, defaults[key], f"{name}.{key}")
            continue
        if key in _WITHOUT_EFFECT or key in ("voxel_size", "out_size_factor"):
            reason = _WITHOUT_EFFECT.get(key, "train_cfg's value is used")
            raise ValueError(f"{name}.{key} has no effect ({reason}); remove it")
        raise ValueError(f"unknown key {name}.{key}{nearest(key, defaults)} (known: {', '.join(defaults)})")
    values = dict(defaults) | dict(block)
    missing = [key for key, value in values.items() if value is ...]
    if missing:
        raise ValueError(f"{name} needs {', '.join(missing)}")
    return values


def _check_numbers(value: Any, default: Any, key: str) -> None:
    """What has a text or null for its default may be a text."""
    if default is None or isinstance(default, str):
        return
    entries = list(value) if isinstance(value, (list, tuple)) else [value]
    if any(isinstance(entry, str) for entry in entries):
        kind = "a list of numbers" if isinstance(value, (list, tuple)) or isinstance(default, list) else "a number"
        raise ValueError(f"config key {key} must be {kind}, got {value!r}")


def grid_from(point_cloud_range: Sequence[float], voxel_size: Sequence[float], out_size_factor: int) -> BEVGrid:
    """The raster whose cells are `out_size_factor` voxels wide.

    Raises:
        ValueError: the range is no whole number of cells.
    """
    cell = [size * out_size_factor for size in voxel_size[:2]]
    grid = BEVGrid.from_range(list(point_cloud_range), cell)
    for axis, (low, high) in enumerate(zip(point_cloud_range[:2], point_cloud_range[3:5], strict=True)):
        if abs(grid.shape[axis] * cell[axis] - (high - low)) > 1e-3 * cell[axis]:
            raise ValueError(
                f"point_cloud_range spans {high - low:g} m along {'xy'[axis]}, which is no whole number of cells of "
                f"{cell[axis]:g} m (voxel_size {voxel_size[axis]:g} times out_size_factor {out_size_factor})"
            )
    return grid
