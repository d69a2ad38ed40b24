"""What the ten classes look like to each sensor: sizes, shapes, colours, reflectivity, radar cross-section.

Sizes and speeds follow the statistics of the nuScenes annotations; shapes are a few convex solids per class.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

__all__ = ["KINDS", "Kind", "Part", "sample_colours", "sample_size"]

Rect = tuple[float, float, float, float]


@dataclass(frozen=True)
class Part:
    """A convex solid in fractions of the box: x and y in [-0.5, 0.5], z in [0, 1].

    Args:
        lower, upper: rectangles (x0, x1, y0, y1) at the two heights.
        z: the heights.
        skin: name of its textures, see `textures.SKINS`.
        colour: which of the actor's colours it is painted in, or an RGB of its own.
        reflectivity: share of laser light that returns, [0, 1].
    """

    lower: Rect
    upper: Rect
    z: tuple[float, float]
    skin: str = "plain"
    colour: str | tuple[int, int, int] = "main"
    reflectivity: float = 0.4


@dataclass(frozen=True)
class Kind:
    """A detection class.

    Args:
        categories: nuScenes categories with their frequency.
        size: mean length, width, height in metres.
        spread: relative standard deviation of each of the three.
        parts: its solids; `rider` is added when somebody rides it.
        palettes: (main, second) RGB pairs to choose from.
        rcs: mean radar cross-section, dBsm.
        returns: mean number of radar returns of a visible one nearby.
    """

    categories: dict[str, float]
    size: tuple[float, float, float]
    spread: tuple[float, float, float]
    parts: tuple[Part, ...]
    palettes: tuple[tuple[tuple[int, int, int], tuple[int, int, int]], ...]
    rcs: float
    returns: float
    rider: tuple[Part, ...] = field(default=())


def _box(x0: float, x1: float, y: float, z0: float, z1: float, **kwargs: object) -> Part:
    return Part((x0, x1, -y, y), (x0, x1, -y, y), (z0, z1), **kwargs)


_RUBBER, _STEEL, _SKIN = (30, 30, 32), (120, 122, 126), (205, 160, 130)


def _wheels(*positions: float, radius: float, top: float, y: float = 0.5) -> tuple[Part, ...]:
    return tuple(
        _box(x - radius, x + radius, y, 0.0, top, skin="wheel", colour=_RUBBER, reflectivity=0.1) for x in positions
    )


def _person(x: float, width: float, z0: float, top: float, depth: float = 0.18) -> tuple[Part, ...]:
    """Torso and head; `second` colours the clothes."""
    shoulder = z0 + 0.7 * (top - z0)
    return (
        Part(
            (x - depth, x + depth, -0.7 * width, 0.7 * width),
            (x - depth, x + depth, -width, width),
            (z0, shoulder),
            colour="second",
            reflectivity=0.5,
        ),
        _box(x - 0.6 * depth, x + 0.6 * depth, 0.5 * width, shoulder, top, colour=_SKIN, reflectivity=0.4),
    )


_CAR = (
    Part((-0.5, 0.5, -0.5, 0.5), (-0.49, 0.47, -0.48, 0.48), (0.1, 0.56), "car_body", "main", 0.55),
    Part((-0.44, 0.24, -0.45, 0.45), (-0.32, 0.06, -0.38, 0.38), (0.56, 1.0), "cabin", "main", 0.3),
    *_wheels(-0.3, 0.3, radius=0.07, top=0.36, y=0.49),
)
_TRUCK = (
    _box(-0.5, 0.24, 0.5, 0.3, 1.0, skin="cargo", colour="second", reflectivity=0.6),
    Part((0.27, 0.5, -0.47, 0.47), (0.27, 0.46, -0.45, 0.45), (0.14, 0.8), "truck_cab", "main", 0.5),
    _box(-0.5, 0.3, 0.3, 0.16, 0.3, colour=_STEEL, reflectivity=0.3),
    *_wheels(-0.32, -0.15, 0.36, radius=0.07, top=0.32, y=0.48),
)
_BUS = (
    Part((-0.5, 0.5, -0.5, 0.5), (-0.49, 0.48, -0.48, 0.48), (0.09, 1.0), "bus", "main", 0.5),
    *_wheels(-0.3, 0.32, radius=0.05, top=0.26, y=0.495),
)
_TRAILER = (
    _box(-0.5, 0.5, 0.5, 0.28, 1.0, skin="ribs", reflectivity=0.7),
    _box(-0.45, 0.45, 0.2, 0.2, 0.28, colour=_STEEL, reflectivity=0.3),
    *_wheels(-0.38, -0.27, radius=0.045, top=0.26, y=0.48),
    _box(0.3, 0.34, 0.35, 0.0, 0.28, colour=_STEEL, reflectivity=0.3),
)
_DIGGER = (
    _box(-0.42, 0.3, 0.5, 0.0, 0.28, skin="tracks", colour=(55, 52, 50), reflectivity=0.2),
    _box(-0.5, 0.18, 0.42, 0.3, 0.6, skin="hazard", reflectivity=0.6),
    Part((-0.1, 0.2, -0.4, 0.05), (-0.08, 0.15, -0.38, 0.03), (0.6, 0.98), "cabin", "main", 0.4),
    Part((0.12, 0.24, 0.1, 0.26), (0.34, 0.42, 0.12, 0.24), (0.4, 1.0), "plain", "main", 0.6),
    Part((0.4, 0.5, -0.02, 0.38), (0.36, 0.44, 0.1, 0.28), (0.05, 0.98), "plain", "second", 0.5),
)
_MOTORCYCLE = (
    *_wheels(-0.36, 0.36, radius=0.14, top=0.44, y=0.18),
    Part((-0.34, 0.24, -0.2, 0.2), (-0.42, 0.12, -0.16, 0.16), (0.24, 0.62), "plain", "main", 0.5),
    Part((0.2, 0.34, -0.1, 0.1), (0.1, 0.2, -0.5, 0.5), (0.4, 0.76), "plain", _STEEL, 0.6),
)
_BICYCLE = (
    *_wheels(-0.3, 0.3, radius=0.19, top=0.5, y=0.1),
    Part((-0.3, 0.3, -0.09, 0.09), (-0.2, 0.2, -0.09, 0.09), (0.3, 0.66), "frame", "main", 0.5),
    Part((0.2, 0.3, -0.06, 0.06), (0.16, 0.22, -0.46, 0.46), (0.5, 0.8), "plain", _STEEL, 0.6),
)
_PEDESTRIAN = (
    Part((-0.34, 0.34, -0.22, 0.22), (-0.2, 0.2, -0.32, 0.32), (0.0, 0.48), "plain", (45, 48, 70), 0.35),
    *_person(0.0, 0.48, 0.46, 1.0, 0.26),
)
_CONE = (
    _box(-0.5, 0.5, 0.5, 0.0, 0.07, colour=_RUBBER, reflectivity=0.3),
    Part((-0.4, 0.4, -0.4, 0.4), (-0.1, 0.1, -0.1, 0.1), (0.07, 1.0), "bands", "main", 0.85),
)
_BARRIER = (
    _box(-0.5, 0.5, 0.5, 0.0, 0.3, skin="blocks", reflectivity=0.7),
    Part((-0.42, 0.42, -0.5, 0.5), (-0.2, 0.2, -0.5, 0.5), (0.3, 1.0), "blocks", "main", 0.75),
)

_VEHICLE_SPREAD = (0.09, 0.06, 0.07)

KINDS: dict[str, Kind] = {
    "car": Kind(
        {"vehicle.car": 1.0},
        (4.62, 1.95, 1.73),
        (0.08, 0.05, 0.07),
        _CAR,
        tuple(
            (c, c)
            for c in [(170, 172, 176), (35, 36, 42), (225, 226, 228), (150, 30, 32), (35, 62, 130), (92, 100, 96)]
        ),
        rcs=10.0,
        returns=2.8,
    ),
    "truck": Kind(
        {"vehicle.truck": 1.0},
        (6.93, 2.51, 2.84),
        (0.14, 0.07, 0.1),
        _TRUCK,
        (((200, 205, 210), (225, 225, 220)), ((40, 80, 160), (215, 215, 210)), ((170, 40, 35), (205, 200, 190))),
        rcs=14.0,
        returns=4.0,
    ),
    "construction_vehicle": Kind(
        {"vehicle.construction": 1.0},
        (6.37, 2.73, 3.19),
        (0.12, 0.06, 0.09),
        _DIGGER,
        (((235, 180, 25), (120, 100, 60)), ((230, 130, 25), (110, 90, 70)), ((215, 195, 40), (95, 90, 85))),
        rcs=13.0,
        returns=3.4,
    ),
    "bus": Kind(
        {"vehicle.bus.rigid": 0.85, "vehicle.bus.bendy": 0.15},
        (10.5, 2.94, 3.47),
        (0.09, 0.04, 0.06),
        _BUS,
        (((200, 60, 50), (240, 240, 235)), ((70, 140, 90), (235, 235, 230)), ((95, 75, 150), (230, 225, 235))),
        rcs=17.0,
        returns=5.0,
    ),
    "trailer": Kind(
        {"vehicle.trailer": 1.0},
        (12.29, 2.90, 3.87),
        (0.1, 0.04, 0.05),
        _TRAILER,
        (((205, 208, 212), (150, 155, 165)), ((120, 160, 190), (90, 125, 155)), ((190, 180, 160), (140, 130, 110))),
        rcs=16.0,
        returns=5.0,
    ),
    "barrier": Kind(
        {"movable_object.barrier": 1.0},
        (0.50, 2.53, 0.98),
        (0.1, 0.1, 0.08),
        _BARRIER,
        (((225, 100, 30), (235, 235, 230)), ((200, 40, 40), (235, 235, 235))),
        rcs=0.0,
        returns=0.6,
    ),
    "motorcycle": Kind(
        {"vehicle.motorcycle": 1.0},
        (2.11, 0.77, 1.47),
        _VEHICLE_SPREAD,
        _MOTORCYCLE,
        (((40, 40, 44), (60, 62, 70)), ((165, 30, 30), (50, 50, 60)), ((40, 60, 140), (70, 60, 50))),
        rcs=3.0,
        returns=1.1,
        rider=_person(-0.1, 0.42, 0.5, 1.0, 0.11),
    ),
    "bicycle": Kind(
        {"vehicle.bicycle": 1.0},
        (1.70, 0.60, 1.28),
        _VEHICLE_SPREAD,
        _BICYCLE,
        (((60, 160, 90), (190, 200, 60)), ((40, 150, 190), (200, 120, 160)), ((190, 60, 120), (120, 190, 180))),
        rcs=-1.0,
        returns=0.7,
        rider=_person(-0.06, 0.4, 0.46, 1.0, 0.12),
    ),
    "pedestrian": Kind(
        {
            "human.pedestrian.adult": 0.86,
            "human.pedestrian.child": 0.05,
            "human.pedestrian.construction_worker": 0.06,
            "human.pedestrian.police_officer": 0.03,
        },
        (0.73, 0.67, 1.77),
        (0.15, 0.1, 0.06),
        _PEDESTRIAN,
        tuple(((60, 60, 80), c) for c in [(180, 60, 60), (60, 90, 170), (210, 210, 200), (60, 120, 70), (120, 80, 60)]),
        rcs=-4.0,
        returns=0.5,
    ),
    "traffic_cone": Kind(
        {"movable_object.trafficcone": 1.0},
        (0.41, 0.41, 1.07),
        (0.1, 0.1, 0.12),
        _CONE,
        (((240, 95, 25), (240, 240, 240)),),
        rcs=-9.0,
        returns=0.12,
    ),
}


def sample_size(kind: Kind, rng: np.random.Generator) -> np.ndarray:
    """(3,) length, width, height in metres; the three vary together by half of their spread."""
    draws = np.clip(rng.standard_normal(4), -2.2, 2.2)
    return np.round(np.array(kind.size) * (1 + np.array(kind.spread) * (0.7 * draws[0] + 0.7 * draws[1:])), 3)


def sample_colours(kind: Kind, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """`main` and `second` RGB, jittered around one of the palettes."""
    main, second = kind.palettes[rng.integers(len(kind.palettes))]
    jitter = rng.normal(0, 9, (2, 3)) + rng.normal(0, 10, (2, 1))
    return {"main": np.clip(main + jitter[0], 5, 250), "second": np.clip(second + jitter[1], 5, 250)}
