"""How a data set scores what the heads of a model say, task by task."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol

from mmdet3d.structures import Batch, Detections3D

__all__ = ["Detection", "Task", "tasks_of"]


class Task(Protocol):
    """One task of a data set.

    Attributes:
        word: by which `tools/test.py --eval` asks for it.
    """

    word: ClassVar[str]

    def keep(self, answers: Sequence[Any], batch: Batch) -> list[Any]:
        """What scoring needs of each sample, small and on the CPU: ranks exchange it, and all of it is held at once.

        Args:
            answers: of the head of that name, one per sample of the batch.
        """

    def score(self, kept: Sequence[Any], out_dir: Path) -> dict[str, float]:
        """Metrics of what was kept, in data-set order; files go to `out_dir`."""


class Detection:
    """Boxes, all of which are kept.

    Args:
        evaluate: of the data set.
    """

    word: ClassVar[str] = "bbox"

    def __init__(self, evaluate: Callable[[Sequence[Detections3D], Any], Mapping[str, float]]) -> None:
        self._evaluate = evaluate

    def keep(self, answers: Sequence[Detections3D], batch: Batch) -> list[Detections3D]:
        return [found.to("cpu") for found in answers]

    def score(self, kept: Sequence[Detections3D], out_dir: Path) -> dict[str, float]:
        return dict(self._evaluate(kept, out_dir))


def tasks_of(dataset: Any) -> dict[str, Task]:
    """What a data set scores, by the names of the heads; detection alone if it does not say (`tasks`)."""
    return dict(getattr(dataset, "tasks", None) or {"object": Detection(dataset.evaluate)})
