"""One distillation loss of a config: what it reads, how much it counts and when."""

from __future__ import annotations

import inspect
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from mmdet3d.blocks import check_keys, check_kind, nearest, number, read_block
from mmdet3d.distill.losses import DistillLoss
from mmdet3d.distill.losses.base import side_channels
from mmdet3d.distill.schedule import LossSchedule
from mmdet3d.registry import MODELS

__all__ = ["Term", "TermBlock", "build_term", "owner_of"]

Taps = str | Sequence[str]

_ITEM = re.compile(r"(.+)\[(\d+)\]")  # of a tap whose value is a list


@dataclass(frozen=True, kw_only=True)
class TermBlock:
    """What every distillation loss has beside the arguments of its class.

    Args:
        type: class of the loss.
        student: tap that it reads, or list of taps; `TAP[1]` is the second item of one whose value is a list.
        teacher: likewise; of several teachers `NAME.TAP`.
        weight: factor; with `model.balance` a share of detection's gradient.
        schedule: when it counts.
        projection: student's and teacher's channels of a learned 1x1 convolution; see the classes that have their own.
    """

    type: str
    student: Taps
    teacher: Taps
    weight: float = 1
    schedule: LossSchedule | None = None
    projection: Sequence[int] | None = None

    def __post_init__(self) -> None:
        number(self.weight, "weight")


@dataclass(frozen=True)
class Term:
    """Where a distillation loss reads, how much it counts and when.

    Args:
        name: in `model.losses`.
        student, teacher: its taps, or list of taps, as the config names them.
        owner: name in `model.teachers` of the teacher that it reads; empty for `model.teacher`.
        weight, schedule: see `Distiller`.
    """

    name: str
    student: Taps
    teacher: Taps
    owner: str
    weight: float
    schedule: LossSchedule

    def taps(self, side: str) -> list[str]:
        """Those of `student` or `teacher`, as the config names them, whole where an item is named."""
        return [_item(tap)[0] for tap in _listed(getattr(self, side))]

    @property
    def asked(self) -> list[str]:
        """The taps of the teacher by its own names."""
        return [tap.removeprefix(f"{self.owner}.") if self.owner else tap for tap in self.taps("teacher")]

    def pick(self, side: str, features: Mapping[str, Any]) -> Any:
        """The value that the loss gets of one side, or the list of values.

        Raises:
            ValueError: a tap names an item of a value that has none, or not so many.
        """
        taps = getattr(self, side)
        key = f"model.losses.{self.name}.{side}"
        values = [_value(tap, features, key) for tap in _listed(taps)]
        return values[0] if isinstance(taps, str) else values

    def entries(self, value: Tensor | Mapping[str, Tensor], factor: float) -> dict[str, Tensor]:
        """What the loss returned, weighted, by the names that the engine sums or logs."""
        if not isinstance(value, Mapping):
            return {f"loss/kd/{self.name}": factor * value}
        entries = {}
        for part, scalar in value.items():
            reported = part.startswith("stats/")
            kind, part = ("stats", part.removeprefix("stats/")) if reported else ("loss", part)
            entries[f"{kind}/kd/{self.name}/{part}"] = scalar if reported else factor * scalar
        return entries

    @staticmethod
    def total(value: Tensor | Mapping[str, Tensor]) -> Tensor:
        """The sum of what a loss returned, without what it only reports."""
        if not isinstance(value, Mapping):
            return value
        return torch.stack([scalar for part, scalar in value.items() if not part.startswith("stats/")]).sum()

    def misfit(self, seen: Mapping[str, Any], answers: Mapping[str, Any], error: Exception) -> str:
        """What to say when the loss failed with `error` on the features of the two sides."""
        pairs = [("student", tap, seen[tap]) for tap in self.taps("student")]
        pairs += [("teacher", tap, answers[tap]) for tap in self.taps("teacher")]
        shapes = [f"{side} {tap}: {_shapes(value)}" for side, tap, value in pairs]
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        return (
            f"model.losses.{self.name} cannot compare {', '.join(shapes)} ({reason}); name taps of the kind and in the "
            "order that its type reads, of equal shapes, or give the loss a `projection: [student's channels, "
            "teacher's]`"
        )


def build_term(
    name: str, cfg: Mapping[str, Any], teachers: Collection[str]
) -> tuple[Term, DistillLoss, nn.Module | None]:
    """Term, loss, and the projection of the student's map if the loss has none of its own.

    Args:
        teachers: names of all teachers; that of `model.teacher` is empty.

    Raises:
        ValueError: an unknown, missing or contradictory key.
    """
    where = f"model.losses.{name}"
    check_kind(cfg, Mapping[str, Any], where)
    cls = MODELS.get(cfg["type"]) if "type" in cfg else TermBlock
    named = inspect.signature(cls).parameters
    own = cls is not TermBlock and "projection" in named
    common = {f.name: None for f in fields(TermBlock) if not (own and f.name == "projection")}
    if not any(p.kind is p.VAR_KEYWORD for p in named.values()):
        check_keys(cfg, {**common, **named}, where)
    block = read_block(TermBlock, {k: v for k, v in cfg.items() if k in common}, where)
    arguments = {"type": block.type} | {k: v for k, v in cfg.items() if k not in common}
    student, teacher, schedule = block.student, block.teacher, block.schedule or LossSchedule()
    owners = list(dict.fromkeys(owner_of(tap, teachers, f"{where}.teacher")[0] for tap in _listed(teacher)))
    if len(owners) > 1:
        raise ValueError(f"{where}.teacher: a loss reads one teacher, not {' and '.join(owners)}; make one for each")
    term = Term(name, student, teacher, owners[0] if owners else next(iter(teachers)), block.weight, schedule)
    loss = MODELS.build(arguments, where)
    if not isinstance(loss, DistillLoss):
        raise ValueError(f"{where}: {block.type} is no distillation loss")
    channels = block.projection
    if channels is None:
        return term, loss, None
    if not isinstance(student, str):
        raise ValueError(
            f"{where}.projection must be [student's channels, teacher's channels] of the one map that `student` names, "
            f"got {channels!r} for {student!r}"
        )
    return term, loss, nn.Conv2d(*side_channels(channels, f"{where}.projection"), 1)


def owner_of(name: str, teachers: Collection[str], key: str) -> tuple[str, str]:
    """A tap or module of a teacher as the teacher's name and its own name for it.

    Raises:
        ValueError: there are several teachers, and `name` begins with none of theirs; names the config's `key`.
    """
    if "" in teachers or not teachers:
        return "", name
    owner, _, rest = name.partition(".")
    if owner not in teachers:
        raise ValueError(
            f"{key}: {name!r} must begin with the name of a teacher{nearest(owner, teachers)} "
            f"(model.teachers: {', '.join(teachers)})"
        )
    return owner, rest


def _listed(taps: Taps) -> list[str]:
    return [taps] if isinstance(taps, str) else list(taps)


def _item(tap: str) -> tuple[str, int | None]:
    """`TAP[1]` as the tap and the place in its list; None: the whole value."""
    found = _ITEM.fullmatch(tap)
    return (tap, None) if found is None else (found[1], int(found[2]))


def _value(tap: str, features: Mapping[str, Any], key: str) -> Any:
    name, item = _item(tap)
    value = features[name]
    if item is None:
        return value
    if not isinstance(value, (list, tuple)):
        raise ValueError(f"{key}: {tap!r} names an item of a list, but {name!r} is none; name {name!r} itself")
    if item >= len(value):
        raise ValueError(f"{key}: there is no {tap!r}, {name!r} has {len(value)} items, the last [{len(value) - 1}]")
    return value[item]


def _shapes(value: Any) -> Any:
    if isinstance(value, Tensor):
        return tuple(value.shape)
    if isinstance(value, Mapping):
        return {k: _shapes(v) for k, v in value.items()}
    return [_shapes(v) for v in value] if isinstance(value, (list, tuple)) else type(value).__name__
