"""Small textures painted on the faces of the solids."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

__all__ = ["SIZE", "SKINS", "paint"]

SIZE = 32

# Row 0 is the bottom of a face, column 0 its left edge seen from outside.
_V, _U = np.meshgrid((np.arange(SIZE) + 0.5) / SIZE, (np.arange(SIZE) + 0.5) / SIZE, indexing="ij")
_GRAIN = np.random.default_rng(0).normal(0, 5, (16, SIZE, SIZE, 1))
_GLASS, _DARK = np.array([42.0, 54.0, 66.0]), np.array([24.0, 24.0, 26.0])

# Textures of a skin: front, back, sides, top.
SKINS: dict[str, tuple[str, str, str, str]] = {
    "plain": ("plain", "plain", "plain", "plain"),
    "car_body": ("front_lamps", "rear_lamps", "car_side", "plain"),
    "cabin": ("glass", "glass", "side_glass", "plain"),
    "truck_cab": ("windscreen", "plain", "door", "plain"),
    "cargo": ("plain", "doors", "panel", "plain"),
    "bus": ("windscreen", "rear_window", "bus_side", "plain"),
    "ribs": ("plain", "doors", "ribs", "plain"),
    "wheel": ("plain", "plain", "wheel", "plain"),
    "tracks": ("ribs_dark", "ribs_dark", "ribs_dark", "plain"),
    "hazard": ("plain", "hazard", "plain", "plain"),
    "frame": ("plain", "plain", "frame", "plain"),
    "bands": ("bands", "bands", "bands", "plain"),
    "blocks": ("blocks", "blocks", "plain", "plain"),
    "facade": ("facade", "facade", "facade", "plain"),
}


def paint(name: str, main: np.ndarray, second: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A texture (32, 32, 3) float32, RGB in [0, 255], with a little grain."""
    texture = np.tile(main, (SIZE, SIZE, 1))
    if name in _PAINTERS:
        for mask, colour in _PAINTERS[name](second):
            texture[mask] = colour
    return np.clip(texture + _GRAIN[rng.integers(len(_GRAIN))], 0, 255).astype(np.float32)


def _rows(low: float, high: float) -> np.ndarray:
    return (low < _V) & (high > _V)


def _columns(low: float, high: float) -> np.ndarray:
    return (low < _U) & (high > _U)


def _disc(u: float, v: float, ru: float, rv: float) -> np.ndarray:
    return ((_U - u) / ru) ** 2 + ((_V - v) / rv) ** 2 < 1


def _stripes(coordinate: np.ndarray, count: int) -> np.ndarray:
    return (coordinate * count).astype(int) % 2 == 1


Layers = list[tuple[np.ndarray, object]]

_LAMPS = _rows(0.5, 0.8) & (_columns(0.0, 0.22) | _columns(0.78, 1.0))
_PLATE = _rows(0.25, 0.45) & _columns(0.38, 0.62)
_BUMPER = _rows(0.0, 0.25)

_PAINTERS: dict[str, Callable[[np.ndarray], Layers]] = {
    "front_lamps": lambda second: [
        (_BUMPER, _DARK),
        (_LAMPS, (250, 248, 225)),
        (_rows(0.45, 0.7) & _columns(0.3, 0.7), _DARK),
    ],
    "rear_lamps": lambda second: [(_BUMPER, _DARK), (_LAMPS, (205, 15, 15)), (_PLATE, (235, 235, 220))],
    "car_side": lambda second: [
        (_rows(0.0, 0.14), _DARK),
        (_disc(0.2, 0.1, 0.11, 0.5), _DARK),
        (_disc(0.8, 0.1, 0.11, 0.5), _DARK),
        (_rows(0.62, 0.7) & (_columns(0.36, 0.4) | _columns(0.56, 0.6)), _DARK),
    ],
    "glass": lambda second: [(_rows(0.08, 0.88) & _columns(0.08, 0.92), _GLASS)],
    "side_glass": lambda second: [
        (_rows(0.08, 0.85) & (_columns(0.06, 0.46) | _columns(0.54, 0.94)), _GLASS),
    ],
    "windscreen": lambda second: [
        (_rows(0.5, 0.88) & _columns(0.06, 0.94), _GLASS),
        (_rows(0.12, 0.24) & (_columns(0.04, 0.2) | _columns(0.8, 0.96)), (250, 248, 225)),
        (_rows(0.0, 0.1), _DARK),
    ],
    "rear_window": lambda second: [
        (_rows(0.6, 0.85) & _columns(0.2, 0.8), _GLASS),
        (_rows(0.1, 0.25) & (_columns(0.02, 0.12) | _columns(0.88, 0.98)), (205, 15, 15)),
        (_rows(0.3, 0.5) & _columns(0.2, 0.8), _DARK),
    ],
    "door": lambda second: [(_rows(0.5, 0.85) & _columns(0.3, 0.85), _GLASS)],
    "doors": lambda second: [
        (_columns(0.48, 0.52), _DARK),
        (_rows(0.0, 0.1), _DARK),
        (_rows(0.02, 0.12) & (_columns(0.0, 0.15) | _columns(0.85, 1.0)), (205, 15, 15)),
    ],
    "panel": lambda second: [(_rows(0.4, 0.62) & _columns(0.2, 0.8), second * 0.6 + np.array([40.0, 20.0, 10.0]))],
    "bus_side": lambda second: [
        (_rows(0.3, 0.42), second),
        (_rows(0.48, 0.84) & ~_stripes(_U + 0.02, 8) | (_rows(0.48, 0.84) & _stripes(_U, 32)), _GLASS),
        (_rows(0.0, 0.06), _DARK),
    ],
    "ribs": lambda second: [(_stripes(_U, 16), second), (_rows(0.0, 0.06), _DARK)],
    "ribs_dark": lambda second: [(_stripes(_U, 16), (85, 80, 76))],
    "wheel": lambda second: [(_disc(0.5, 0.5, 0.28, 0.28), (150, 150, 152))],
    "hazard": lambda second: [(_stripes(_U + _V, 6), _DARK)],
    "frame": lambda second: [(_disc(0.5, 0.45, 0.3, 0.3), (60, 60, 60))],
    "bands": lambda second: [(_rows(0.35, 0.52) | _rows(0.66, 0.8), second)],
    "blocks": lambda second: [(_stripes(_U + 0.25 * _V, 6), second)],
    "facade": lambda second: [(_rows(0.3, 0.8) & (_columns(0.15, 0.45) | _columns(0.55, 0.85)), second)],
}
