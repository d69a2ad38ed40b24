"""What losses may know of a teacher of which there are only answers."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mmdet3d.distill.center_output import CenterOutput
from mmdet3d.models.detectors.base import Detector
from mmdet3d.models.heads.centerhead import CenterHead
from mmdet3d.structures import BEVGrid

__all__ = ["Outline", "head_of", "plain_outline"]

_GRID = {"lower": float, "cell": float, "shape": int}


@dataclass(frozen=True)
class Outline:
    """What is known of a teacher that is no detector of this project, for losses to look at when they are bound.

    Args:
        taps: what it answers.
        grid: the raster of its head and, with their strides, of its bird's-eye-view maps; None if it has none.
        heads: `object`: how its tap `heads.object` is to be read, if it is the raw output of a centre-based head.
    """

    taps: tuple[str, ...]
    grid: BEVGrid | None = None
    heads: Mapping[str, CenterOutput] = field(default_factory=dict)

    @classmethod
    def read(
        cls,
        taps: Collection[str],
        grid: Mapping[str, Any] | None,
        tasks: Sequence[Sequence[str]] | None,
        norm_bbox: bool | None,
        where: str,
    ) -> Outline:
        """From plain values: `grid` with the keys `lower`, `cell` and `shape` of a `BEVGrid`, two numbers each.

        Raises:
            ValueError: another grid; names `where` it stands.
        """
        raster = None
        if grid is not None:
            try:
                pairs: dict[str, Any] = {name: tuple(kind(n) for n in grid[name]) for name, kind in _GRID.items()}
                assert set(grid) == set(_GRID) and all(len(pair) == 2 for pair in pairs.values())
            except (AssertionError, KeyError, TypeError, ValueError):
                raise ValueError(
                    f"grid of {where} must be {{lower: [-54.0, -54.0], cell: [0.6, 0.6], shape: [180, 180]}} (metres, "
                    f"and cells along x and y), got {grid}"
                ) from None
            raster = BEVGrid(pairs["lower"], pairs["cell"], pairs["shape"])
        head = None if tasks is None else CenterOutput([list(task) for task in tasks], norm_bbox is not False)
        return cls(tuple(taps), raster, {} if head is None else {"object": head})


def head_of(model: Detector | Outline, name: str = "object") -> Any:
    """The model's head of that name, or how its answers are to be read; None if it has none."""
    return dict(getattr(model, "heads", {})).get(name)


def plain_outline(model: Detector | Outline) -> dict[str, Any]:
    """What `Outline.read` reads, of any teacher's model."""
    grid, head = model.grid, head_of(model)
    found: dict[str, Any] = {"grid": None if grid is None else {name: list(getattr(grid, name)) for name in _GRID}}
    if isinstance(head, (CenterHead, CenterOutput)):
        found |= {"tasks": [list(task) for task in head.tasks], "norm_bbox": head.norm_bbox}
    return found
