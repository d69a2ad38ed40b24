"""What a centre-based head says, told in other classes, on another raster, or of an augmented view."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mmdet3d.distill.rasters import source_cells
from mmdet3d.structures import BEVGrid

__all__ = ["CenterOutput", "in_classes", "is_center_output", "resample_output"]

# The logit of "no object here": below the least probability that losses tell apart.
_NOTHING = -10.0

Tasks = Sequence[Mapping[str, Tensor]]


@dataclass(frozen=True)
class CenterOutput:
    """How the raw output of a `CenterHead` is to be read; the head itself has these attributes as well.

    Args:
        tasks: names of the classes of each task.
        norm_bbox: sizes are logarithms.
    """

    tasks: Sequence[Sequence[str]]
    norm_bbox: bool = True

    @property
    def classes(self) -> tuple[str, ...]:
        """Names by label."""
        return tuple(name for task in self.tasks for name in task)


def is_center_output(value: object) -> bool:
    """Whether a tap's value is a list over tasks of maps with a `heatmap` (B, classes, X, Y)."""
    tasks = value if isinstance(value, (list, tuple)) else ()
    return bool(tasks) and all(isinstance(task, Mapping) and "heatmap" in task for task in tasks)


def in_classes(answers: Tasks, source: CenterOutput, target: CenterOutput) -> list[dict[str, Tensor]]:
    """The output of one head in the tasks and units of another; classes are the same where their names are.

    Where a task of `target` has classes of several tasks of `source`, a cell gets the box of the task whose class has
    the highest response there. Classes that `source` does not have get no response.

    Args:
        answers: per task of `source`, maps (B, C, X, Y), `heatmap` in logits.

    Returns:
        Per task of `target` the same.
    """
    places = {name: (t, c) for t, task in enumerate(source.tasks) for c, name in enumerate(task)}
    nothing = torch.full_like(answers[0]["heatmap"][:, :1], _NOTHING)
    told = []
    for task in target.tasks:
        found = {name: places[name] for name in task if name in places}
        heat = {name: answers[t]["heatmap"][:, c : c + 1] for name, (t, c) in found.items()}
        asked = list(dict.fromkeys(t for t, _ in found.values())) or [0]
        maps = {name: value for name, value in answers[asked[0]].items() if name != "heatmap"}
        if len(asked) > 1:
            best = torch.stack([_highest([heat[n] for n, (t, _) in found.items() if t == s]) for s in asked]).argmax(0)
            for k, other in enumerate(asked[1:], 1):
                maps = {name: torch.where(best == k, answers[other][name], value) for name, value in maps.items()}
        if source.norm_bbox != target.norm_bbox:
            maps["dim"] = maps["dim"].exp() if source.norm_bbox else maps["dim"].clamp(min=1e-3).log()
        told.append(maps | {"heatmap": torch.cat([heat.get(name, nothing) for name in task], dim=1)})
    return told


def resample_output(
    answers: Tasks, source: BEVGrid, target: BEVGrid, norm_bbox: bool, motion: Tensor | None = None
) -> list[dict[str, Tensor]]:
    """The output of a head on another raster, cell by cell, without mixing what was said of different objects.

    A cell says what the source cell with the highest response said whose centre comes to lie in it; where none does,
    what the nearest said. Boxes stay where they are, so their offsets change; they move, turn and grow with `motion`.
    No response where `source` does not reach.

    Args:
        answers: per task, maps (B, C, X, Y) over `source`, `heatmap` in logits.
        norm_bbox: sizes are logarithms.
        motion: (B, 4, 4) from the frame of `source` to that of `target`; None: the same frame.

    Returns:
        Per task, maps over `target`.
    """
    device = answers[0]["reg"].device
    back = None if motion is None else torch.linalg.inv(motion.double())
    nearest, seen = _cells(source_cells(source, target, motion, device), source)
    arrival, arrives = _cells(source_cells(target, source, back, device), target)
    found = []
    for task in answers:
        maps = {name: value.float() for name, value in task.items()}
        index = _cell_indices(source, maps["reg"])
        maps["reg"] = (index + maps["reg"]) * _per_axis(source.cell, index) + _per_axis(source.lower, index)  # metres
        chosen = _loudest(maps["heatmap"].amax(1).flatten(1), arrival, arrives, nearest)
        maps = {name: value.flatten(2) for name, value in maps.items()}
        maps = {
            name: value.gather(2, chosen[:, None].expand(-1, value.shape[1], -1)).unflatten(2, target.shape)
            for name, value in maps.items()
        }
        if motion is not None:
            with torch.autocast(device.type, enabled=False):  # metres in bfloat16 come in steps of 25 cm
                maps = _moved(maps, motion.to(maps["reg"]), norm_bbox)
        index = _cell_indices(target, maps["reg"])
        maps["reg"] = (maps["reg"] - _per_axis(target.lower, index)) / _per_axis(target.cell, index) - index
        maps["heatmap"] = torch.where(seen.view(-1, 1, *target.shape), maps["heatmap"], _NOTHING)
        found.append({name: maps[name].to(task[name].dtype) for name in task})
    return found


def _highest(maps: Sequence[Tensor]) -> Tensor:
    return torch.cat(list(maps), dim=1).amax(1, keepdim=True)


def _cell_indices(grid: BEVGrid, like: Tensor) -> Tensor:
    """(1, 2, X, Y): the number of each cell along both axes."""
    return torch.stack(torch.meshgrid(*(torch.arange(n) for n in grid.shape), indexing="ij"))[None].to(like)


def _per_axis(values: tuple[float, float], like: Tensor) -> Tensor:
    return like.new_tensor(values).view(1, 2, 1, 1)


def _cells(place: Tensor, grid: BEVGrid) -> tuple[Tensor, Tensor]:
    """Places (B, X, Y, 2) in cells of `grid` as numbers (B, X * Y) of the nearest cell, and whether they are on it."""
    cells = place.floor().long()
    last = cells.new_tensor(grid.shape) - 1
    inside = ((cells >= 0) & (cells <= last)).all(-1)
    x, y = cells.clamp(min=0).minimum(last).unbind(-1)
    return (x * grid.shape[1] + y).flatten(1), inside.flatten(1)


def _loudest(response: Tensor, arrival: Tensor, arrives: Tensor, nearest: Tensor) -> Tensor:
    """(B, M): which of N source cells speaks for each of M target cells.

    Args:
        response: (B, N).
        arrival: (B or 1, N) the target cell in which a source cell comes to lie, if it `arrives` at all.
        nearest: (B or 1, M) the source cell that speaks where none arrives.
    """
    arrival, arrives = arrival.expand_as(response), arrives.expand_as(response)
    nearest = nearest.expand(len(response), -1)
    response = torch.where(arrives, response, -torch.inf)
    most = response.new_full(nearest.shape, -torch.inf).scatter_reduce(1, arrival, response, "amax")
    cells = torch.arange(response.shape[1], device=response.device).expand_as(arrival)
    speaks = arrives & (response == most.gather(1, arrival))
    chosen = torch.full_like(nearest, -1).scatter_reduce(1, arrival, torch.where(speaks, cells, -1), "amax")
    return torch.where(chosen >= 0, chosen, nearest)


def _moved(maps: dict[str, Tensor], motion: Tensor, norm_bbox: bool) -> dict[str, Tensor]:
    """Boxes, centres in metres, carried by (B, 4, 4); headings are vectors in the codes of `encode_boxes`."""
    turn, shift = motion[:, :2, :2], motion[:, :3, 3, None, None]
    scale = torch.linalg.det(motion[:, :3, :3]).abs().pow(1 / 3).view(-1, 1, 1, 1)
    moved = dict(maps)
    for name in ("reg", "rot", "vel"):
        if name in maps:
            moved[name] = torch.einsum("bij,bjxy->bixy", turn, maps[name])
    moved["reg"] = moved["reg"] + shift[:, :2]
    moved["rot"] = moved["rot"] / scale
    moved["height"] = maps["height"] * scale + shift[:, 2:]
    moved["dim"] = maps["dim"] + scale.log() if norm_bbox else maps["dim"] * scale
    return moved
