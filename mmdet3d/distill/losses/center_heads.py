"""What losses between two CenterHeads share."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from torch import Tensor

from mmdet3d.distill.center_output import CenterOutput
from mmdet3d.distill.losses.base import DistillLoss, Shared, raster_of
from mmdet3d.distill.outline import Outline, head_of
from mmdet3d.models.detectors.base import Detector
from mmdet3d.models.heads.centerhead import CenterHead
from mmdet3d.models.heads.targets import CenterTargets
from mmdet3d.structures import Batch

__all__ = ["CenterHeadLoss", "center_head", "center_output"]


def center_output(model: Detector | Outline, side: str, owner: str) -> CenterHead | CenterOutput:
    """How the raw output of a model's head is to be read.

    Raises:
        ValueError: it has no centre-based head; in the name of the loss `owner`.
    """
    head = head_of(model)
    if not isinstance(head, (CenterHead, CenterOutput)):
        found = f"is a {type(model).__name__}" if head is None else f"has a {type(head).__name__}"
        raise ValueError(
            f"{owner} reads the maps of a CenterHead, but the {side} {found}; switch this loss off "
            f"(null), or take a {side} with a CenterHead"
        )
    return head


def center_head(model: Detector | Outline, side: str, owner: str) -> CenterHead:
    """The head itself, for losses that run it.

    Raises:
        ValueError: see `center_output`, or there are only answers of it.
    """
    head = center_output(model, side, owner)
    if not isinstance(head, CenterHead):
        raise ValueError(
            f"{owner} runs the {side}'s CenterHead, of which there are only answers here; switch this loss off (null), "
            f"or take a {side} of this project with the other side's raster and tasks"
        )
    return head


class CenterHeadLoss(DistillLoss):
    """Compares the maps of two `CenterHead`s with the same tasks, task by task.

    Attributes:
        by_class: whether `forward` leaves out classes that are not taught, by `_gate`.
    """

    by_class: bool = False
    _taught: Sequence[bool] = ()  # per class; empty: all

    def bind(self, teacher: Detector | Outline, student: Detector) -> None:
        name = type(self).__name__
        student_head = center_head(student, "student", name)
        heads = {"teacher": center_output(teacher, "teacher", name), "student": student_head}
        tasks = {side: [list(task) for task in head.tasks] for side, head in heads.items()}
        if tasks["teacher"] != tasks["student"]:
            raise ValueError(
                f"{name} needs the same tasks on both sides: the student's are {tasks['student']}, "
                f"the teacher's {tasks['teacher']}"
            )
        logarithms = {side: head.norm_bbox for side, head in heads.items()}
        if logarithms["teacher"] != logarithms["student"]:
            raise ValueError(
                f"{name} compares sizes, but norm_bbox, whether heads say them as logarithms, is "
                f"{logarithms['teacher']} for the teacher and {logarithms['student']} for the student"
            )
        self._tasks = tasks["student"]
        self._student_head = Shared(student_head)
        self._grid = raster_of(student, name)

    def gate(self, taught: Collection[str]) -> bool:
        self._taught = [name in taught for task in self._tasks for name in task]
        return self.by_class

    def _gate(self, maps: Tensor, task: int | None = None) -> Tensor:
        """Probabilities (B, classes, X, Y), of all classes or of those of a task, 0 where a class is not taught.

        With both sides at 0 such a class costs nothing and none of its cells has a response.
        """
        taught = self._taught if task is None else self._taught[self._classes()[task]]
        return maps if all(taught) else maps * maps.new_tensor(taught)[:, None, None]

    def _objects(self, batch: Batch) -> CenterTargets:
        """The ground truth on the student's raster."""
        boxes, labels = (batch.require(name, type(self).__name__) for name in ("boxes", "labels"))
        return self._student_head.module.objects(boxes, labels)

    def _heat(self, batch: Batch) -> Tensor:
        """The heatmap target of the student's head, (B, classes, X, Y)."""
        return self._student_head.module.heat(self._objects(batch), len(batch))

    def _classes(self) -> list[slice]:
        """Labels of each task."""
        stops = [sum(map(len, self._tasks[: t + 1])) for t in range(len(self._tasks))]
        return [slice(stop - len(task), stop) for task, stop in zip(self._tasks, stops, strict=True)]
