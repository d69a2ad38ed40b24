"""Random streams of samples, and names for samples that come back.

What was computed from a sample can be kept only if the sample is seen again. With fixed views it is: each frame has K
augmentations instead of a new one per epoch, the same ones whatever the seed of the training.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from mmdet3d.blocks import check_seed
from mmdet3d.datasets.records import Transform

__all__ = ["SampleStream", "Views", "generator_for"]

_VIEW_SEED = 0x76696577  # trainings of any seed see the same views


def generator_for(*key: int) -> np.random.RandomState:
    """An independent random stream for each tuple of non-negative integers."""
    return np.random.RandomState(np.random.MT19937(np.random.SeedSequence(key)))


class Views:
    """Which augmentations a data set's samples have.

    Args:
        count: fixed views of each sample, epoch e showing view e % count; None augments anew in every epoch.
        seed: of the streams without fixed views.
        content: everything else that a sample depends on, as plain values; its digest is part of the samples' names.
        transforms: of the pipeline.

    Raises:
        ValueError: no positive count, or a transform that works differently in later epochs, which views do not have.
    """

    def __init__(
        self, count: int | None, seed: int, content: Mapping[str, Any], transforms: Iterable[Transform] = ()
    ) -> None:
        if count is not None and (isinstance(count, bool) or not isinstance(count, int) or count < 1):
            raise ValueError(f"views must be a positive number of fixed views per sample, or null, got {count!r}")
        for transform in transforms if count else ():
            if setting := transform.epoch_setting:
                raise ValueError(
                    f"views: {count} fixes how samples are augmented, but {type(transform).__name__} changes with the "
                    f"epoch; set {setting}, or views to null"
                )
        self.count = count
        self.seed = _VIEW_SEED if count else check_seed(seed, "seed")
        text = json.dumps(content, sort_keys=True, default=_plain)
        self._digest = hashlib.sha256(text.encode()).hexdigest()[:16]

    def stream(self, epoch: int, place: int) -> SampleStream:
        """The random numbers of the sample at `place` in the epoch."""
        view = epoch % self.count if self.count else epoch
        name = f"{place}.{view}" if self.count else None
        return SampleStream(generator_for(self.seed, view, place), self._digest, name)


class SampleStream:
    """The random numbers of one sample.

    Args:
        rng: the stream.
        digest: of what the data set's samples depend on besides.
        view: names the stream among those of the data set; None if it does not come back.
    """

    def __init__(self, rng: np.random.RandomState, digest: str, view: str | None) -> None:
        self.rng = rng
        self._digest, self._view = digest, view
        self.begin()

    def begin(self) -> None:
        """A frame is going to be loaded; what was drawn before chose it, and did not augment it."""
        self._before = self._state()

    def name(self, token: str) -> str | None:
        """`digest/token.place.view` of the sample just loaded, `digest/token` if nothing was drawn for it.

        Two samples of one name are equal. None: augmented in a way that does not come back.
        """
        if self._state() == self._before:
            return f"{self._digest}/{token}"
        return None if self._view is None else f"{self._digest}/{token}.{self._view}"

    def _state(self) -> tuple:
        _, keys, *rest = self.rng.get_state(legacy=True)
        return (np.asarray(keys).tobytes(), *rest)


def _plain(value: Any) -> Any:
    return dict(value) if isinstance(value, Mapping) else str(value)
