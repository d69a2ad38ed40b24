"""State dicts of the published CRKD program: a distillation holds the student beside its teacher."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import Tensor

__all__ = ["is_published", "left_out", "published_state", "student_state", "teacher_state"]

_PARTS = ("encoders", "fuser", "decoder", "heads")
_STUDENT = tuple(f"{part}_student." for part in _PARTS)
_TEACHER = tuple(f"{part}." for part in _PARTS)
_FOREIGN = "encoders.simulated."  # SimDistill's
_ADAPTERS = "fused_feat_affinity_loss."


def is_published(keys: Iterable[str]) -> bool:
    """Whether these are the keys of a published distillation."""
    return any(key.startswith(_STUDENT) for key in keys)


def student_state(state: Mapping[str, Tensor], own: Iterable[str]) -> dict[str, Tensor]:
    """The student as a detector, or below `student.` as that of a `Distiller`, whose adapters come along.

    Args:
        state: tensors by published name.
        own: keys of the model that is to be loaded.
    """
    student = {k.replace("_student.", ".", 1): v for k, v in state.items() if k.startswith(_STUDENT)}
    if not any(k.startswith("student.") for k in own):
        return student
    student = {f"student.{k}": v for k, v in student.items()}
    home = next((k.partition("adapt_modules.")[0] for k in own if ".adapt_modules." in k), None)
    if home is None:  # relation distillation is off
        return student
    return student | {home + k.removeprefix(_ADAPTERS): v for k, v in state.items() if k.startswith(_ADAPTERS)}


def teacher_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The teacher as a detector; empty if the file holds none."""
    return {k: v for k, v in state.items() if k.startswith(_TEACHER)}


def left_out(key: str) -> str:
    """What a tensor of a published distillation is that a model does not take; empty if unknown."""
    if key.startswith(_ADAPTERS):
        return "of the relation loss"
    return "of the student" if key.startswith(_STUDENT) else "of the teacher" if key.startswith(_TEACHER) else ""


def published_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A detector as a published one, of BEVFusion or CRKD, whose names are ours.

    Raises:
        ValueError: it has a part that these programs do not have.
    """
    foreign = next((k for k in state if k.startswith(_FOREIGN) or not k.startswith(_TEACHER)), None)
    if foreign is not None:
        raise ValueError(f"neither BEVFusion nor CRKD has a place for {foreign}, so this is no detector of theirs")
    return dict(state)
