"""Objects of KITTI frames, labelled or found: what its metrics compare.

Source: the development kit of the KITTI object benchmark.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np

__all__ = ["DONT_CARE", "NO_ORIENTATION", "TYPES", "Objects"]

DONT_CARE = "DontCare"
TYPES = ("Car", "Van", "Truck", "Pedestrian", "Person_sitting", "Cyclist", "Tram", "Misc", DONT_CARE)
NO_ORIENTATION = -10.0  # alpha of an object whose orientation is not given
_COLUMNS = {"truncated": 1, "occluded": 1, "alpha": 1, "boxes2d": 4, "sizes": 3, "locations": 3, "rotation_y": 1}


@dataclass
class Objects:
    """The objects of one frame, or of several after `cat`. Angles in radians, metres, pixels; float64.

    Args:
        names: (N,) str, of `TYPES`.
        truncated: (N,) share outside the image, 0 to 1; -1 if not given.
        occluded: (N,) 0 visible, 1 partly, 2 largely occluded, 3 unknown; -1 if not given.
        alpha: (N,) observation angle in [-pi, pi]; -10 if not given.
        boxes2d: (N, 4) x1, y1, x2, y2.
        sizes: (N, 3) height, width, length.
        locations: (N, 3) centre of the bottom face in rectified camera coordinates (x right, y down, z forward).
        rotation_y: (N,) about the camera's y axis: 0 faces +x, pi / 2 faces the camera.
        scores: (N,) higher is surer; -1 in labels.

    Raises:
        ValueError: lengths or shapes that do not fit together.
    """

    names: np.ndarray
    truncated: np.ndarray
    occluded: np.ndarray
    alpha: np.ndarray
    boxes2d: np.ndarray
    sizes: np.ndarray
    locations: np.ndarray
    rotation_y: np.ndarray
    scores: np.ndarray

    def __post_init__(self) -> None:
        self.names = np.asarray(self.names, dtype=np.str_)
        for field in fields(self)[1:]:
            setattr(self, field.name, np.asarray(getattr(self, field.name), dtype=np.float64))
            width = _COLUMNS.get(field.name, 1)
            shape = (len(self.names),) if width == 1 else (len(self.names), width)
            if getattr(self, field.name).shape != shape:
                raise ValueError(f"{field.name} must have shape {shape}, got {getattr(self, field.name).shape}")

    @classmethod
    def empty(cls) -> Objects:
        return cls.from_table([], np.zeros((0, sum(_COLUMNS.values()) + 1)))

    @classmethod
    def from_table(cls, names: Sequence[str], table: np.ndarray) -> Objects:
        """Class names and (N, 15) numbers in the order of a result line."""
        columns = np.split(table, np.cumsum(list(_COLUMNS.values())), axis=1)
        return cls(np.asarray(names, dtype=np.str_), *(c[:, 0] if c.shape[1] == 1 else c for c in columns))

    @classmethod
    def cat(cls, frames: Sequence[Objects]) -> Objects:
        if not frames:
            return cls.empty()
        return cls(**{f.name: np.concatenate([getattr(o, f.name) for o in frames]) for f in fields(cls)})

    def table(self) -> np.ndarray:
        """(N, 15) numbers in the order of a result line."""
        return np.column_stack([getattr(self, field.name) for field in fields(self)[1:]])

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: np.ndarray | slice) -> Objects:
        return Objects(**{f.name: getattr(self, f.name)[index] for f in fields(self)})
