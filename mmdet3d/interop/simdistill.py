"""State dicts of the published SimDistill program: teacher, student and never-used modules in one file."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping

from torch import Tensor

__all__ = ["is_published", "left_out", "published_state", "student_state", "teacher_state"]

logger = logging.getLogger(__name__)

_MARKS = ("trans_student.", "deformAttn.")

# Tensors that no computation of the published configs reads.
_DEAD = {
    "query tables": r"(?:^|\.)deformAttn\.query_embeds\.",
    "the second view transform": r"^encoders_student\.camera\.vtransform2\.",
    "deformable convolutions that are switched off": r"^deform\.|\.vtransform\.(?:deformconv|conv|deconv)\.",
}

_TEACHER = ("encoders.", "fuser.", "decoder.", "heads.")

_RENAMED = (
    (r"^(encoders|fuser|decoder|heads)_student\.", r"\1."),
    (r"^deformAttn\.", "encoders.simulated.compensation."),
    (r"\.vtransform\.deformAttn\.", ".vtransform.compensation."),
    # The published names of the two tables are swapped: `row_embed` has an entry per column of the map.
    (r"\.pe\.0\.col_embed\.", ".row_embed."),
    (r"\.pe\.0\.row_embed\.", ".column_embed."),
    (r"\.el\.0\.self_attn\.", ".attention."),
)

# Ours to theirs, in this order.
_BACK = (
    (r"^encoders\.simulated\.compensation\.", "deformAttn."),
    (r"^(encoders|fuser|decoder|heads)\.", r"\1_student."),
    (r"\.vtransform\.compensation\.", ".vtransform.deformAttn."),
    (r"(deformAttn\.)row_embed\.", r"\1pe.0.col_embed."),
    (r"(deformAttn\.)column_embed\.", r"\1pe.0.row_embed."),
    (r"(deformAttn\.)attention\.", r"\1el.0.self_attn."),
)


def is_published(keys: Iterable[str]) -> bool:
    """Whether these are the keys of a published SimDistill model."""
    return any(key.startswith(_MARKS) for key in keys)


def student_state(state: Mapping[str, Tensor], own: Iterable[str]) -> dict[str, Tensor]:
    """The student of a published model as a `SimulatedFusion`, or below `student.` as that of a `Distiller`.

    The published student lifts once and uses the result in both branches; where `own` has a second view transform it
    gets the same weights. The teacher is left out, and so is what nothing reads; the log says what.

    Args:
        state: tensors by published name.
        own: keys of the model that is to be loaded.
    """
    own = set(own)
    dead = {reason: [k for k in state if re.search(pattern, k)] for reason, pattern in _DEAD.items()}
    unread = {k for keys in dead.values() for k in keys}
    student = {
        _renamed(k): v
        for k, v in state.items()
        if k not in unread and (k.startswith("deformAttn.") or "_student." in k.partition(".")[0] + ".")
    }
    projection = {k.removeprefix("trans_student."): student.pop(k) for k in list(student) if k.startswith("trans_")}
    prefix = "student." if any(k.startswith("student.") for k in own) else ""
    if any(k.startswith(f"{prefix}encoders.simulated.vtransform.") for k in own):
        lift = "encoders.camera.vtransform."
        student |= {k.replace("camera", "simulated", 1): v for k, v in student.items() if k.startswith(lift)}
    for reason, keys in dead.items():
        if keys:
            logger.info("%d tensors left out: %s (%s, ...)", len(keys), reason, keys[0])
    student = {f"{prefix}{k}": v for k, v in student.items()}
    projections = (k for k in sorted(own) if k.startswith("losses.") and ".projection." in k)
    home = next((k.partition("projection.")[0] for k in projections), None)
    return student if home is None else student | {f"{home}projection.{k}": v for k, v in projection.items()}


def teacher_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The teacher as a detector, its view transform with compensation; empty if the file holds none."""
    unread = re.compile("|".join(_DEAD.values()))
    return {_renamed(k): v for k, v in state.items() if k.startswith(_TEACHER) and not unread.search(k)}


def left_out(key: str) -> str:
    """What a tensor of a published model is that a model of ours does not take; empty if unknown."""
    for reason, pattern in _DEAD.items():
        if re.search(pattern, key):
            return f"{reason}, which nothing reads"
    if key.startswith("trans_student."):
        return "of the loss between BEV features"
    if key.startswith("deformAttn.") or "_student." in key.partition(".")[0] + ".":
        return "of the student"
    return "of the teacher" if key.startswith(_TEACHER) else ""


def published_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A `SimulatedFusion` that lifts once (`share_view_transform`) as the student of a published model.

    Raises:
        ValueError: it lifts twice, without LiDAR depth or for one branch alone, as no published student does.
    """
    if any(k.startswith("encoders.simulated.vtransform.") for k in state):
        raise ValueError("the published SimDistill lifts once; a student with a view transform of its own does not fit")
    if not any(k.startswith("encoders.camera.vtransform.dtransform.") for k in state):
        raise ValueError("the published SimDistill lifts by DepthLSSTransform; a student with another does not fit")
    if not any(k.startswith("encoders.simulated.") for k in state):
        raise ValueError(
            "the published SimDistill simulates LiDAR features; a detector without `encoders.simulated` does not fit"
        )
    published = {}
    for key, value in state.items():
        for pattern, name in _BACK:
            key = re.sub(pattern, name, key)
        published[key] = value
    return published


def _renamed(key: str) -> str:
    for pattern, name in _RENAMED:
        key = re.sub(pattern, name, key)
    return key
