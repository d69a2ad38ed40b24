"""State dicts of the published MonoSKD program: student, teacher and adapters of a distillation in one file."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping

from torch import Tensor

__all__ = ["detector_state", "is_published", "left_out", "published_state", "student_state", "teacher_state"]

logger = logging.getLogger(__name__)

_STUDENT = "centernet_rgb."
_TEACHER = "centernet_depth."
_NECK = "feat_up."
_HELPER = "of a distillation loss"
_ADAPTER = re.compile(r"(losses\.\w+\.)adapters\.(\d+)\.(.+)")
_FUSION = re.compile(r"(losses\.\w+\.)fusions\.(\d+\..+)")
_DEEP_FIRST = (32, 16, 8, 4)  # strides, in the order of our adapters


def is_published(keys: Iterable[str]) -> bool:
    """Whether these are the keys of a published distillation."""
    return any(key.startswith(_STUDENT) for key in keys)


def student_state(state: Mapping[str, Tensor], own: Iterable[str]) -> dict[str, Tensor]:
    """The student as a `MonoDetector`, or below `student.` as that of a `Distiller`, whose adapters come along.

    Args:
        state: tensors by published name.
        own: keys of the model that is to be loaded.
    """
    own = list(own)
    student = {k.removeprefix(_STUDENT): v for k, v in state.items() if k.startswith(_STUDENT)}
    logger.info("%d tensors of teacher and helpers left out", len(state) - len(student))
    if not any(k.startswith("student.") for k in own):
        return student
    converted = {f"student.{k}": v for k, v in student.items()}
    for key in own:
        source = _source(key)
        if source is not None and source in state:
            converted[key] = state[source]
    return converted


def teacher_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The teacher as a `MonoDetector`; empty if the file holds none."""
    return {k.removeprefix(_TEACHER): v for k, v in state.items() if k.startswith(_TEACHER)}


def left_out(key: str) -> str:
    """What a tensor of a published distillation is that a model does not take; empty if unknown."""
    kinds = {_STUDENT: "of the student", _TEACHER: "of the teacher", "adapt_layer": _HELPER, "rgb_fs.": _HELPER}
    return next((kind for prefix, kind in kinds.items() if key.startswith(prefix)), "")


def published_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A `MonoDetector` as the student of a published distillation; raises ValueError if it is another detector."""
    return {f"{_STUDENT}{k}": v for k, v in detector_state(state).items()}


def detector_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A `MonoDetector`, whose names are those of DID-M3D; raises ValueError if it is another detector."""
    if not any(k.startswith(_NECK) for k in state):
        raise ValueError(
            f"DID-M3D and MonoSKD have one network, with a neck of the name {_NECK.rstrip('.')}; weights without it, "
            f"such as {next(iter(state), 'none')}, are of another detector"
        )
    return dict(state)


def _source(key: str) -> str | None:
    """The published name of a tensor of one of our losses."""
    if match := _ADAPTER.fullmatch(key):
        return f"adapt_layer{_DEEP_FIRST[int(match[2])]}.{match[3]}" if int(match[2]) < len(_DEEP_FIRST) else None
    match = _FUSION.fullmatch(key)
    return f"rgb_fs.{match[2]}" if match else None
