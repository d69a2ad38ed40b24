"""Which frames are seen how often: class-balanced sampling (CBGS, Zhu et al. 2019), frames without labels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any

import numpy as np
import torch

from mmdet3d.blocks import check_seed, number
from mmdet3d.datasets.base import FrameDataset
from mmdet3d.registry import DATASETS
from mmdet3d.structures import Sample

__all__ = ["CBGSDataset", "MixedDataset", "balanced_indices", "part_of"]


def part_of(names: Sequence[str], part: Sequence[float], what: str) -> list[str]:
    """The names in a share of the list, in its order; which these are is drawn at random, always the same way.

    Args:
        part: lower and upper end of the share, in [0, 1].
        what: the names are, for messages.

    Raises:
        ValueError: no such two numbers, or the share holds no name.
    """
    if isinstance(part, str) or not isinstance(part, Sequence) or len(part) != 2:
        raise ValueError(f"part must be two rising numbers in [0, 1], such as [0, 0.25], got {part!r}")
    first, last = (number(end, "part") for end in part)
    if not 0 <= first < last <= 1:
        raise ValueError(f"part: {list(part)} must be two rising numbers in [0, 1]")
    if (first, last) == (0, 1):
        return list(names)
    order = np.random.RandomState(0).permutation(len(names))
    chosen = order[round(first * len(names)) : round(last * len(names))]
    if not len(chosen):
        raise ValueError(f"part: {list(part)} of {len(names)} {what} is none; take a larger share")
    return [names[i] for i in sorted(chosen)]


def balanced_indices(
    classes_present: Sequence[AbstractSet[int]], num_classes: int, rng: np.random.RandomState
) -> list[int]:
    """Sample indices such that every class that occurs is drawn about equally often.

    Each class draws, with replacement, an equal share of as many samples as there are (sample, class) pairs. Classes
    that no sample has are left out.

    Args:
        classes_present: labels in each sample.
        num_classes: number of classes.
        rng: its state advances.
    """
    members = [[i for i, present in enumerate(classes_present) if c in present] for c in range(num_classes)]
    members = [m for m in members if m]
    pairs = sum(len(m) for m in members)
    chosen: list[int] = []
    for m in members:
        ratio = (1.0 / len(members)) / (len(m) / pairs)
        chosen += rng.choice(m, int(len(m) * ratio)).tolist()
    return chosen


@DATASETS.register
class CBGSDataset(torch.utils.data.Dataset):
    """A data set whose frames are repeated so that rare classes are seen as often as frequent ones.

    A frame drawn several times is augmented differently each time.

    Args:
        dataset: the data set or its config.
        seed: of the draw, which depends on neither process nor epoch; None for the data set's own, which with fixed
            views is the same for every training.

    Raises:
        ValueError: no frame has any of the classes.
    """

    def __init__(self, dataset: FrameDataset | Mapping[str, Any], seed: int | None = None) -> None:
        self.dataset = DATASETS.build(dataset, "dataset") if isinstance(dataset, Mapping) else dataset
        rng = np.random.RandomState(self.dataset.seed if seed is None else check_seed(seed, "seed"))
        self.indices = balanced_indices(self.dataset.classes_present, len(self.dataset.classes), rng)
        if not self.indices:
            raise ValueError(f"CBGS has nothing to draw: {self.dataset.nothing()}")

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.dataset.class_names

    @property
    def views(self) -> int | None:
        """See `FrameDataset.views`; a frame drawn twice has twice as many."""
        return self.dataset.views

    def set_epoch(self, epoch: int) -> None:
        """See `FrameDataset.set_epoch`."""
        self.dataset.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Sample:
        return self.dataset.draw(self.indices[index], index)

    def __iter__(self) -> Iterator[Sample]:
        return (self[k] for k in range(len(self)))


class MixedDataset(torch.utils.data.Dataset):
    """Frames with labels, then frames without, for batches of both.

    Args:
        labelled, unlabelled: the two data sets.
        share: of each batch that is unlabelled, above 0 and below 1.

    Raises:
        ValueError: another share.
    """

    def __init__(self, labelled: Any, unlabelled: Any, share: float) -> None:
        if not 0 < number(share, "data.unlabelled.share") < 1:
            raise ValueError(f"data.unlabelled.share must lie between 0 and 1, got {share}")
        self.labelled, self.unlabelled, self.share = labelled, unlabelled, share

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.labelled.class_names

    @property
    def views(self) -> int | None:
        """The larger number of fixed views of both."""
        return max((d.views for d in (self.labelled, self.unlabelled) if d.views is not None), default=None)

    def set_epoch(self, epoch: int) -> None:
        """See `FrameDataset.set_epoch`."""
        self.labelled.set_epoch(epoch)
        self.unlabelled.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self.labelled) + len(self.unlabelled)

    def __getitem__(self, index: int) -> Sample:
        own = index - len(self.labelled)
        return self.labelled[index] if own < 0 else self.unlabelled[own]
