"""What becomes of every tensor of a weight file: kept, renamed, rearranged or left out, each with the reason.

The account is found, not told: every tensor's number goes through the conversion in its place.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from mmdet3d.interop import crkd, labeldistill, monoskd, simdistill
from mmdet3d.interop.checkpoints import EXCEPTIONS, TRAINING_ONLY, fitting_state
from mmdet3d.shell import number_of

__all__ = ["Entry", "convert", "traced"]

State = dict[str, Tensor]


@dataclass(frozen=True)
class Entry:
    """What became of one tensor.

    Args:
        source: its name in the file.
        targets: its names in the model; none if it was left out.
        kind: loaded, renamed, permuted or dropped.
        reason: why it was permuted or dropped.
    """

    source: str
    targets: tuple[str, ...]
    kind: str
    reason: str = ""

    def __str__(self) -> str:
        names = "" if self.targets in ((), (self.source,)) else f" -> {', '.join(self.targets)}"
        return f"{self.kind:<9}{self.source}{names}{f'  ({self.reason})' if self.reason else ''}"


def convert(
    state: Mapping[str, Tensor],
    own: Mapping[str, Tensor],
    part: str | None = None,
    source: str = "state",
    owner: str = "the model",
) -> tuple[State, list[Entry]]:
    """The tensors that a model takes from a published or own state, and an entry per tensor of that.

    Args:
        state: tensors by the names of the file.
        own: state of the model; meta tensors are enough.
        part, source, owner: see `fitting_state`.

    Raises:
        ValueError: the state does not fit, or nothing says why a tensor of it is left out.
    """

    def conversion(tensors: Mapping[str, Tensor]) -> State:
        return fitting_state(tensors, own, source=source, part=part, owner=owner)

    return traced(state, conversion, lambda key: _why_left_out(key, state), labeldistill.rearranged, source)


def traced(
    state: Mapping[str, Tensor],
    conversion: Callable[[Mapping[str, Tensor]], State],
    left_out: Callable[[str], str],
    rearranged: Callable[[str], str],
    source: str,
) -> tuple[State, list[Entry]]:
    """A converted state, and what `conversion` did to each tensor of `state`.

    Args:
        left_out: says of a tensor by its name in the file what it is, if the model takes it not; empty if unknown.
        rearranged: says of a tensor by its name in the model how its values were moved.

    Raises:
        ValueError: `left_out` does not know a tensor that was left out.
    """
    converted = conversion(state)
    # Numbers from 1, for a conversion may negate; expanded, they need no memory until something permutes them.
    numbers = {k: torch.tensor(i, dtype=torch.int32).expand(v.shape) for i, (k, v) in enumerate(state.items(), 1)}
    places: dict[int, list[str]] = {}
    for target, number in conversion(numbers).items():
        places.setdefault(abs(int(number.reshape(-1)[0])), []).append(target)
    entries, unknown = [], []
    for i, (key, value) in enumerate(state.items(), 1):
        targets = tuple(places.get(i, ()))
        if not targets:
            unknown += [] if (reason := left_out(key)) else [key]
            entries.append(Entry(key, (), "dropped", reason))
        elif _as_it_was(value, converted[targets[0]]):
            entries.append(Entry(key, targets, "loaded" if targets == (key,) else "renamed"))
        else:
            entries.append(Entry(key, targets, "permuted", rearranged(targets[0])))
    if unknown:
        raise ValueError(
            f"{source} holds {number_of(len(unknown), 'tensor')} that nothing accounts for ({', '.join(unknown[:4])}); "
            "if they are of no use, save the file without them"
        )
    return converted, entries


def _as_it_was(value: Tensor, converted: Tensor) -> bool:
    if value.is_meta:
        return value.shape == converted.shape
    return torch.equal(value, converted)


def _why_left_out(key: str, state: Mapping[str, Tensor]) -> str:
    name = key.rpartition(".")[2]
    if name in EXCEPTIONS:
        return EXCEPTIONS[name]
    for part, reason in TRAINING_ONLY.items():
        if key.startswith(part):
            return f"it {reason}, and this model has no such part"
    for system in (simdistill, monoskd, crkd, labeldistill):
        if system.is_published(state):
            return system.left_out(key)
    return "of a distillation loss" if key.startswith("losses.") else ""
