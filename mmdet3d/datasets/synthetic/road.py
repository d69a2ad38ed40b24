"""The road of a scene: a straight line or an arc, its bands, and a raster of the ground."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

__all__ = ["CELL", "CURB", "EDGE", "EXTENT", "LANES", "SIDEWALK", "Road"]

EXTENT = 280.0  # metres, side of the square that a scene lives in
CELL = 0.25  # metres per pixel of the ground raster
LANES = (-1.75, -5.15, 1.75, 5.15)  # lane centres, left of the centre line positive; the first is the ego lane
EDGE = 7.0  # end of the lanes, beginning of the parking strip
CURB = 11.6  # end of the asphalt
SIDEWALK = 16.2

_ASPHALT, _PAINT, _WALK, _YARD, _GRASS = range(5)
_COLOURS = np.array([[92, 92, 96], [222, 220, 208], [158, 154, 148], [138, 124, 104], [96, 120, 70]], dtype=np.int16)
_REFLECTIVITY = np.array([0.12, 0.6, 0.25, 0.22, 0.35], dtype=np.float32)


@dataclass
class Road:
    """Frame of the road: s along it, d to its left, metres.

    Args:
        origin: global x, y of s = d = 0.
        heading: radians, at s = 0.
        curvature: 1/m, positive to the left.
        crossing: s of the middle of the side street, None without one.
        yards: (side, s0, s1) of the open lots beside the sidewalk.
    """

    origin: np.ndarray
    heading: float
    curvature: float
    crossing: float | None = None
    yards: list[tuple[int, float, float]] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Plain values of the constructor's arguments."""
        return {**asdict(self), "origin": self.origin.tolist()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Road:
        return cls(**{**values, "origin": np.array(values["origin"])})

    def to_global(self, s: np.ndarray, d: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Global positions (..., 2) and headings (...) of road coordinates."""
        angle = self.heading + self.curvature * s
        if abs(self.curvature) < 1e-6:
            along = np.stack([s * np.cos(self.heading), s * np.sin(self.heading)], -1)
        else:
            along = np.stack([np.sin(angle) - np.sin(self.heading), np.cos(self.heading) - np.cos(angle)], -1)
            along = along / self.curvature
        return self.origin + along + d[..., None] * np.stack([-np.sin(angle), np.cos(angle)], -1), angle

    def from_global(self, xy: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Road coordinates s, d (...) of global positions (..., 2)."""
        # Python floats keep float32 input in float32.
        c, sine = float(np.cos(self.heading)), float(np.sin(self.heading))
        dx, dy = xy[..., 0] - float(self.origin[0]), xy[..., 1] - float(self.origin[1])
        forward, left = c * dx + sine * dy, c * dy - sine * dx
        if abs(self.curvature) < 1e-6:
            return forward, left
        radius = 1 / float(self.curvature)
        sign = 1.0 if radius > 0 else -1.0
        distance = np.hypot(forward, radius - left)
        return np.arctan2(sign * forward, sign * (radius - left)) * radius, radius - sign * distance

    def ground(self, rng: np.random.Generator) -> Ground:
        """Raster of colours and reflectivities over the scene's square."""
        cells = int(EXTENT / CELL)
        centres = ((np.arange(cells) + 0.5) * CELL).astype(np.float32)
        s, d = self.from_global(np.stack(np.meshgrid(centres, centres, indexing="ij"), -1))
        kind = self._surface(s, d)
        patches = rng.normal(0, 5, (cells // 8, cells // 8)).repeat(8, 0).repeat(8, 1)
        grain = (patches + rng.standard_normal((cells, cells), dtype=np.float32) * 5).astype(np.int16)
        colours = np.clip(_COLOURS[kind] + grain[..., None], 0, 255).astype(np.uint8).reshape(-1, 3)
        return Ground(colours, _REFLECTIVITY[kind].ravel(), kind <= _PAINT)

    def _surface(self, s: np.ndarray, d: np.ndarray) -> np.ndarray:
        across = np.abs(d)
        kind = np.full(s.shape, _GRASS, dtype=np.int8)
        for side, start, stop in self.yards:
            kind[(d * side > SIDEWALK) & (across < 25.5) & (s > start) & (s < stop)] = _YARD
        kind[across < SIDEWALK] = _WALK
        kind[across < CURB] = _ASPHALT
        dashes = np.mod(s, 9.0) < 3.0
        kind[(np.abs(across - 3.5) < 0.12) & dashes] = _PAINT
        kind[(np.abs(across - EDGE) < 0.13) | (across < 0.13)] = _PAINT
        if self.crossing is not None:
            along = np.abs(s - self.crossing)
            kind[(along < 5) & (across < 60)] = _ASPHALT
            zebra = (along > 5.5) & (along < 8.5) & (across < EDGE) & (np.mod(d, 1.2) < 0.6)
            kind[zebra] = _PAINT
        return kind


@dataclass
class Ground:
    """What lies on the plane z = 0, in cells of `CELL` metres, x by y.

    Args:
        colours: (X * Y, 3) uint8 RGB.
        reflectivity: (X * Y,) float32.
        drivable: (X, Y) bool.
    """

    colours: np.ndarray
    reflectivity: np.ndarray
    drivable: np.ndarray

    def cells(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Flat indices of the cells below global positions, those outside moved to the border."""
        count = self.drivable.shape[0]
        i, j = (np.clip((v * np.float32(1 / CELL)).astype(np.int32), 0, count - 1) for v in (x, y))
        return i * count + j
