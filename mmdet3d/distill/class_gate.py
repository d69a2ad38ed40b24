"""Class by class: a teacher teaches what it knows better than the student."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mmdet3d.distill.teacher import recorded_metrics
from mmdet3d.io.weights import metadata_path

__all__ = ["ClassGate", "class_precision"]


@dataclass(frozen=True)
class ClassGate:
    """Which classes a teacher teaches: those in which its average precision exceeds the student's.

    Both are recorded beside the checkpoints by the training that made them. The student is one that was trained without
    this teacher, such as the control of the experiment.

    Args:
        student: its checkpoint.
        margin: by how much the teacher must be better, in average precision.
    """

    student: str
    margin: float = 0.0

    def taught(self, teacher: str | Path, classes: Sequence[str]) -> list[str]:
        """The names of the classes that `teacher`, a checkpoint, teaches.

        Raises:
            ValueError: no average precision of these classes is recorded beside one of the checkpoints.
        """
        theirs, ours = (class_precision(checkpoint, classes) for checkpoint in (teacher, self.student))
        return [name for name in classes if theirs[name] > ours[name] + self.margin]


def class_precision(checkpoint: str | Path, classes: Sequence[str]) -> dict[str, float]:
    """Average precision per class, the mean over nuScenes' distances of matching.

    Raises:
        ValueError: not recorded beside the checkpoint, or of another file.
    """
    metrics, found = recorded_metrics(checkpoint), {}
    for name in classes:
        values = [value for key, value in metrics.items() if key.startswith(f"object/{name}_ap_dist_")]
        if not values:
            raise ValueError(
                f"model.class_gate: {metadata_path(checkpoint)} records no average precision of the class {name!r} for "
                "this very checkpoint; name one that was evaluated in its training, or set model.class_gate to null"
            )
        found[name] = sum(values) / len(values)
    return found
