"""Samples by number, as in a list."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import overload

from torch.utils.data import Dataset

from mmdet3d.structures import Sample

__all__ = ["Frames"]


class Frames(Dataset, ABC):
    """A data set that is indexed as a list is: also from the end, by slices, and one after the other."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def at(self, place: int) -> Sample:
        """Sample `place` of 0 ... len - 1."""

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> list[Sample]: ...
    def __getitem__(self, index: int | slice) -> Sample | list[Sample]:
        """
        Raises:
            IndexError: there is no such sample.
        """
        if isinstance(index, slice):
            return [self[place] for place in range(len(self))[index]]
        if not -len(self) <= index < len(self):
            raise IndexError(f"there is no frame {index}; there are {len(self)}")
        return self.at(index % len(self))

    def __iter__(self) -> Iterator[Sample]:
        return (self[place] for place in range(len(self)))
