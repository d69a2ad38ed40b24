"""Which annotated objects count, and why the others do not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from mmdet3d.shell import number_of

__all__ = ["Tally", "counted"]

_NAMED = 8  # kinds that a sentence names


@dataclass
class Tally:
    """Annotated objects of some frames.

    Args:
        frames: how many frames are annotated.
        counting: objects by class.
        left_out: the others, by class and reason in words (`car without LiDAR points`).
    """

    frames: int = 0
    counting: Counter[str] = field(default_factory=Counter)
    left_out: Counter[str] = field(default_factory=Counter)

    def add(self, names: Iterable[str], classes: Collection[str], left_out: Mapping[str, int]) -> None:
        """One more frame: the names of its objects, of which those of `classes` count, and what was left out before."""
        self.frames += 1
        for name in names:
            if name in classes:
                self.counting[name] += 1
            else:
                self.left_out[f"{name} of no class here"] += 1
        self.left_out.update(left_out)

    @property
    def annotated(self) -> int:
        """Objects, whether they count or not."""
        return self.counting.total() + self.left_out.total()

    def __str__(self) -> str:
        if not self.annotated:
            return f"{number_of(self.frames, 'annotated frame')} without an object"
        where = f"annotated objects in {number_of(self.frames, 'frame')}"
        if not self.left_out:
            return f"all {self.annotated} {where}"
        return f"{self.counting.total()} of {self.annotated} {where}; left out: {counted(self.left_out)}"


def counted(numbers: Counter[str]) -> str:
    """`12 car, 3 bus`, the most frequent first; of many kinds the rest in one."""
    named = [f"{n} {kind}" for kind, n in numbers.most_common(_NAMED)]
    rest = numbers.total() - sum(n for _, n in numbers.most_common(_NAMED))
    return ", ".join([*named, f"{rest} others"] if rest else named)
