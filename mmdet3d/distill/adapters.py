"""A teacher on another raster, or with other classes, than its student: its answers in the student's terms."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

from torch import Tensor

from mmdet3d.distill.center_output import CenterOutput, in_classes, is_center_output, resample_output
from mmdet3d.distill.outline import Outline, head_of
from mmdet3d.distill.rasters import covers, resample, strided, with_stride
from mmdet3d.distill.teacher import Teacher
from mmdet3d.models.detectors.base import Detector
from mmdet3d.models.heads.centerhead import CenterHead
from mmdet3d.structures import Batch, BEVGrid

__all__ = ["AdaptedTeacher", "adapted", "carried", "unadapted"]


def adapted(teacher: Teacher, student: Detector, taps: Collection[str], key: str = "model.teacher") -> Teacher:
    """The teacher as it can be compared with the student: itself, or an `AdaptedTeacher`.

    Args:
        taps: what is asked of it.
        key: of its block in the config, for messages.

    Raises:
        ValueError: only one of the two has a raster, or the teacher's does not reach as far as the student's.
    """
    source, target = teacher.grid, student.grid
    if isinstance(teacher.model, Detector) and (source is None) != (target is None):
        sides = [grid or "none" for grid in (source, target)]
        raise ValueError(f"{key} and model.student see different BEV grids: {sides[0]} and {sides[1]}")
    same_raster = source is None or target is None or source.matches(target)
    if source is not None and target is not None and not same_raster and not covers(source, target):
        raise ValueError(
            f"{key} sees {source}, less far than model.student with {target}; nothing can be compared beyond, so take "
            "a student with a smaller point_cloud_range, or a teacher with a larger one"
        )
    ours, theirs = (_center_output(model) for model in (student, teacher.model))
    reads_head = any(tap.startswith("heads.") for tap in taps)
    same_classes = ours is None or theirs is None or not reads_head or ours == theirs
    return teacher if same_raster and same_classes else AdaptedTeacher(teacher, student, same_classes)


def unadapted(teacher: Teacher) -> Teacher:
    """The teacher behind its adapter, if it has one."""
    return teacher.teacher if isinstance(teacher, AdaptedTeacher) else teacher


class AdaptedTeacher(Teacher):
    """A teacher whose answers are brought to the student's raster, and those of its head to the student's classes.

    Maps are cropped or resampled (`resample`), head outputs are read at the nearest cell (`resample_output`) and their
    classes matched by name (`in_classes`). Values that are no maps over the teacher's raster stay as they are.

    Args:
        teacher: both have a raster.
        student: both have a centre-based head, unless `same_classes`.
        same_classes: whether tasks and units of the heads are the same, or not asked for.

    Attributes:
        unknown: classes of the student that the teacher does not have.
    """

    def __init__(self, teacher: Teacher, student: Detector, same_classes: bool) -> None:
        self.teacher, self.digest, self.about = teacher, teacher.digest, teacher.about
        self._classes = _center_output(student)
        self._source_classes = self._classes if same_classes else _center_output(teacher.model)
        self._target = student.grid
        head = {} if self._classes is None else {"object": self._classes}
        self.model = Outline(teacher.taps, student.grid, head)
        known = () if self._source_classes is None else self._source_classes.classes
        self.unknown = tuple(c for c in (self._classes.classes if self._classes else ()) if c not in known)

    def extract(self, batch: Batch, taps: Collection[str]) -> dict[str, Any]:
        answers = self.teacher.extract(batch, taps)
        return {tap: self._in_students_terms(tap, answers[tap], len(batch)) for tap in taps}

    def loaded(self) -> Detector | Outline:
        return self.teacher.loaded()

    def move(self, function: Callable[[Tensor], Tensor]) -> None:
        self.teacher.move(function)

    def __str__(self) -> str:
        said = []
        source, target = self.teacher.grid, self._target
        if source is not None and target is not None and not source.matches(target):
            said.append(f"its maps over {source} are brought to {target}")
        if self._source_classes != self._classes:
            said.append("its head's classes are matched to the student's by name")
        if self.unknown:
            said.append(f"it does not know {', '.join(self.unknown)}")
        return "; ".join(said)

    def _in_students_terms(self, tap: str, value: Any, samples: int) -> Any:
        source, target = self.teacher.grid, self._target
        if source is not None and target is not None and not source.matches(target):
            logarithms = self._source_classes is None or self._source_classes.norm_bbox
            value = carried(tap, value, source, target, logarithms, samples=samples)
        theirs, ours = self._source_classes, self._classes
        if is_center_output(value) and theirs is not None and ours is not None and theirs != ours:
            value = in_classes(value, theirs, ours)
        return value


def carried(
    tap: str,
    value: Any,
    source: BEVGrid,
    target: BEVGrid,
    norm_bbox: bool,
    motion: Tensor | None = None,
    samples: int = 1,
) -> Any:
    """A tap's value over another raster, or of a view.

    A map (B, C, X, Y) is one over `source` if its size is that of a stride; it comes to the same stride of `target`.

    Args:
        tap: its name, for messages.
        source, target: rasters of the heads.
        norm_bbox: heads say sizes as logarithms.
        motion: (B, 4, 4) from the frame of `source` to that of `target`; None: the same frame, and what is no map over
            `source` stays as it is.
        samples: B.

    Raises:
        ValueError: something that is no map over `source` would have to move.
    """
    if is_center_output(value):
        return resample_output(value, source, target, norm_bbox, motion)
    if isinstance(value, (list, tuple)):
        return [
            carried(f"{tap}/{k}", entry, source, target, norm_bbox, motion, samples) for k, entry in enumerate(value)
        ]
    if isinstance(value, Tensor) and value.ndim == 4 and len(value) == samples and value.is_floating_point():
        found = strided(source, (value.shape[2], value.shape[3]))
        if found is not None:
            raster, stride = found
            return resample(value, raster, with_stride(target, stride), motion)
    shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
    if motion is not None:
        raise ValueError(
            f"the teacher's answer {tap} ({shape}) is no map over its raster ({source}), so it cannot be turned with "
            "an augmented sample; let the teacher answer to each view (`views`), or train without augmentation"
        )
    if not isinstance(value, Tensor):
        raise ValueError(
            f"the teacher's answer {tap} ({shape}) over {source} cannot be told over {target}; distil from maps or "
            "from a CenterHead, or take a teacher with the student's raster"
        )
    return value


def _center_output(model: Detector | Outline) -> CenterOutput | None:
    head = head_of(model)
    if not isinstance(head, (CenterHead, CenterOutput)):
        return None
    return CenterOutput(_plain(head.tasks), head.norm_bbox)


def _plain(tasks: Sequence[Sequence[str]]) -> tuple[tuple[str, ...], ...]:
    return tuple(tuple(task) for task in tasks)
