"""What every distillation loss is."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from mmdet3d.blocks import ConfigKeyError
from mmdet3d.distill.outline import Outline, head_of
from mmdet3d.distill.rasters import strided
from mmdet3d.models.detectors.base import Detector
from mmdet3d.models.heads.base import DetectionHead
from mmdet3d.structures import Batch, BEVGrid

__all__ = [
    "DistillLoss",
    "Shared",
    "detection_head",
    "full_precision",
    "level_grid",
    "raster_of",
    "require_same_shape",
    "side_channels",
    "sum_of",
]


Module = TypeVar("Module", bound=nn.Module)


class DistillLoss(nn.Module, ABC):
    """Compares what the student computed with what the teacher computed on the same batch.

    The taps and the weight are the distiller's business; a loss sees values only.

    Attributes:
        needs_labels: whether the loss reads ground truth; if so it sees the labelled samples of a batch alone.
        uses_teacher: whether the loss runs layers of the teacher, whose weights are then loaded before it is bound.
        bin_by_bin: whether depth distributions that it reads must have the same bins on both sides.
    """

    needs_labels: bool = True
    uses_teacher: bool = False
    bin_by_bin: bool = True

    def __init__(self) -> None:
        super().__init__()
        self._always: dict[str, Tensor] = {}

    def observe(self, fault: str, present: Tensor) -> None:
        """Note whether `fault`, a sentence, holds in this step; one that holds in every step of an epoch is said."""
        before = self._always.get(fault)
        self._always[fault] = present if before is None else before & present

    def faults(self) -> list[str]:
        """What held in every step since the last call."""
        found = [fault for fault, always in self._always.items() if always]
        self._always.clear()
        return found

    def bind(self, teacher: Detector | Outline, student: Detector) -> None:
        """Called once, before training, when both models exist. Raises ValueError if they do not suit this loss."""

    def gate(self, taught: Collection[str]) -> bool:
        """Let only the classes of these names count, after `bind`; returns whether the loss tells classes apart."""
        return False

    def start_epoch(self, epoch: int) -> None:
        """See `Trainable.start_epoch`."""

    @abstractmethod
    def forward(self, student_value: Any, teacher_value: Any, batch: Batch) -> Tensor | dict[str, Tensor]:
        """A scalar, or several by name; those named `stats/...` are only logged.

        Args:
            student_value: value of the student's tap, or a list of values where the config lists several taps.
            teacher_value: the teacher's, without gradient.
            batch: where ground truth and calibration are.
        """


class Shared(Generic[Module]):
    """A module that a loss uses and does not own: neither trained, saved nor copied with it."""

    def __init__(self, module: Module) -> None:
        self.module = module

    def __deepcopy__(self, memo: dict[int, Any]) -> Shared[Module]:
        return self


def detection_head(student: Detector, owner: str) -> Shared[DetectionHead]:
    """The student's head that detects, to be asked for its targets.

    Raises:
        ValueError: it has none; in the name of the loss `owner`.
    """
    head = head_of(student)
    if not isinstance(head, DetectionHead):
        found = f"has none ({type(student).__name__})" if head is None else f"has a {type(head).__name__}"
        raise ValueError(
            f"{owner} draws objects as the student's detection head `heads.object` draws its targets, but the student "
            f"{found}; switch this loss off (null)"
        )
    return Shared(head)


def raster_of(student: Detector, owner: str) -> BEVGrid:
    """The student's raster; raises ValueError, in the name of the loss `owner`, if it sees through one camera alone."""
    if student.grid is None:
        raise ValueError(
            f"{owner} compares bird's-eye views, and the student ({type(student).__name__}) has none; switch this "
            "loss off (null)"
        )
    return student.grid


def level_grid(grid: BEVGrid, maps: Tensor, owner: str) -> BEVGrid:
    """The raster of maps (B, C, X, Y) that cover what `grid` covers with cells some times as large or as small.

    Raises:
        ValueError: no such cells give that size; in the name of the loss `owner`.
    """
    size = (maps.shape[2], maps.shape[3])
    found = strided(grid, size)
    if found is None:
        raise ValueError(f"{owner}: a map of {size[0]}x{size[1]} cells is no level of the student's raster, {grid}")
    return found[0]


def require_same_shape(loss: DistillLoss, student: Tensor, teacher: Tensor) -> None:
    """Raises ValueError if the maps of the two sides, after the loss's projection, have different shapes."""
    if student.shape != teacher.shape:
        raise ValueError(
            f"{type(loss).__name__} compares maps of shapes {tuple(student.shape)} and {tuple(teacher.shape)}; "
            "give `projection: [student's channels, teacher's channels]` if only the channels differ"
        )


def side_channels(value: Sequence[int], key: str = "projection") -> tuple[int, int]:
    """Channels of a layer that brings the student's map to the teacher's; raises ConfigKeyError if they are none."""
    wrong = any(isinstance(n, bool) or not isinstance(n, int) or n < 1 for n in value)
    if wrong or len(value) != 2:
        raise ConfigKeyError(key, f" must be [student's channels, teacher's channels], got {list(value)}")
    return value[0], value[1]


def sum_of(terms: Sequence[Tensor]) -> Tensor:
    """The sum of at least one term, from the first to the last."""
    return functools.reduce(torch.add, terms)


def full_precision(function: Callable[..., Any]) -> Callable[..., Any]:
    """Run a loss outside autocast with half-precision arguments cast to float32: inner products overflow in half."""

    @functools.wraps(function)
    def wrapper(self: nn.Module, student_value: Any, teacher_value: Any, batch: Batch) -> Any:
        device = batch.device.type
        with torch.autocast(device, enabled=False):
            return function(self, _widen(student_value), _widen(teacher_value), batch)

    return wrapper


def _widen(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.float() if value.dtype in (torch.float16, torch.bfloat16) else value
    if isinstance(value, Mapping):
        return {k: _widen(v) for k, v in value.items()}
    return [_widen(v) for v in value] if isinstance(value, (list, tuple)) else value
