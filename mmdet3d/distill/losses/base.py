"""What every distillation loss is."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mmdet3d.models.detectors.base import Detector
from mmdet3d.structures import Batch

__all__ = ["DistillLoss", "full_precision"]


class DistillLoss(nn.Module, ABC):
    """Compares what the student computed with what the teacher computed on the same batch.

    The taps and the weight are the distiller's business; a loss sees values only.
    """

    def bind(self, teacher: Detector, student: Detector) -> None:
        """Called once, before training, when both models exist. Raises ValueError if they do not suit this loss."""

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
