"""Scenes: who is where, how they move, and the solids they are made of."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mmdet3d.datasets.synthetic import textures
from mmdet3d.datasets.synthetic.catalog import KINDS, Part, sample_colours, sample_size
from mmdet3d.datasets.synthetic.geometry import hexahedron, matrix, quaternion
from mmdet3d.datasets.synthetic.road import CURB, EXTENT, LANES, SIDEWALK, Road

__all__ = ["Actor", "Motion", "Population", "World", "build_world"]

_SHRINK = 0.97  # annotated boxes are drawn with a little room around the object


@dataclass(frozen=True)
class Motion:
    """Distance along a path under constant acceleration, never backwards.

    Args:
        speed: m/s at time 0.
        acceleration: m/s^2.
    """

    speed: float = 0.0
    acceleration: float = 0.0

    @property
    def span(self) -> tuple[float, float]:
        """Times at which it begins and ceases to move, seconds."""
        if self.acceleration == 0:
            return -np.inf, np.inf
        still = -self.speed / self.acceleration
        return (-np.inf, still) if self.acceleration < 0 else (still, np.inf)

    def distance(self, t: float) -> float:
        t = float(np.clip(t, *self.span))
        return self.speed * t + 0.5 * self.acceleration * t * t

    def velocity(self, t: float) -> float:
        return self.speed + self.acceleration * float(np.clip(t, *self.span))


@dataclass
class Actor:
    """Something that stands or moves in a scene.

    Args:
        name: detection class; empty for buildings, which are not annotated.
        category: nuScenes category.
        size: (3,) length, width, height, metres.
        colours: `main` and `second` RGB.
        s, d: road coordinates of the centre at time 0.
        turn: heading relative to the road, radians.
        motion: along its lane; `direction` +1 with growing s, -1 against.
        waits: stands in traffic rather than parked.
        ridden: a two-wheeler with a rider.
        sits: a sitting pedestrian.
    """

    name: str
    category: str
    size: np.ndarray
    colours: dict[str, np.ndarray]
    s: float
    d: float
    turn: float = 0.0
    motion: Motion = Motion()
    direction: int = 1
    waits: bool = False
    ridden: bool = False
    sits: bool = False

    def attribute(self, t: float) -> str:
        """nuScenes attribute name at that time, empty for classes without."""
        moving = self.motion.velocity(t) > 0.2
        if self.name in ("barrier", "traffic_cone"):
            return ""
        if self.name in ("bicycle", "motorcycle"):
            return "cycle.with_rider" if self.ridden else "cycle.without_rider"
        if self.name == "pedestrian":
            still = "pedestrian.sitting_lying_down" if self.sits else "pedestrian.standing"
            return "pedestrian.moving" if moving else still
        return "vehicle.moving" if moving else ("vehicle.stopped" if self.waits else "vehicle.parked")

    def parts(self) -> list[Part]:
        if not self.name:
            whole = (-0.5, 0.5, -0.5, 0.5)
            return [Part(whole, whole, (0.0, 1.0), "facade", "main", 0.35)]
        kind = KINDS[self.name]
        if not self.ridden:
            return list(kind.parts)
        # The box of a ridden two-wheeler reaches up to the rider's head, so the machine fills its lower part only.
        squeezed = [
            Part(p.lower, p.upper, (p.z[0] * 0.72, p.z[1] * 0.72), p.skin, p.colour, p.reflectivity) for p in kind.parts
        ]
        return squeezed + list(kind.rider)


class World:
    """One scene, ready to be seen by the sensors.

    Args:
        road: where it is.
        actors: everything that stands on it.
        ego: the ego car's motion along the first lane.
        sway: amplitude in radians of the ego car's pitch and roll.
        rng: source of textures and of the sway's phases.

    Attributes:
        corners: (P, 8, 3) float64, solids in their actor's frame (origin on the ground below its centre).
        owner: (P,) int, actor of each solid.
        reflectivity: (P,) float32.
        skins: P lists of 5 textures (32, 32, 3), faces in the order of `geometry.FACES` without the bottom.
        repeats: (P, 5, 2) how often a texture repeats along u, v.
    """

    def __init__(self, road: Road, actors: list[Actor], ego: Motion, sway: float, rng: np.random.Generator) -> None:
        self.road, self.actors, self.ego, self.sway = road, actors, ego, sway
        self.phases = rng.uniform(0, 2 * np.pi, (2, 2))
        self.ground = road.ground(rng)
        self.sizes = np.array([a.size for a in actors])
        self.labelled = np.array([bool(a.name) for a in actors])
        parts = [(i, part) for i, actor in enumerate(actors) for part in actor.parts()]
        self.owner = np.array([i for i, _ in parts])
        self.reflectivity = np.array([p.reflectivity for _, p in parts], dtype=np.float32)
        self.corners = np.stack([_solid(actors[i], p) for i, p in parts])
        self.skins = [_skin(actors[i], p, rng) for i, p in parts]
        self.repeats = np.stack([_repeats(actors[i]) for i, _ in parts])
        self._s = np.array([a.s for a in actors])
        self._d = np.array([a.d for a in actors])
        self._turn = np.array([a.turn for a in actors])
        self._direction = np.array([a.direction for a in actors])
        self._speed = np.array([a.motion.speed for a in actors])
        self._acceleration = np.array([a.motion.acceleration for a in actors])
        self._span = np.array([a.motion.span for a in actors]).T

    def poses(self, t: float) -> np.ndarray:
        """(A, 4): global x, y, heading and speed of every actor at that time."""
        moving = np.clip(t, *self._span)
        s = self._s + self._direction * (self._speed + 0.5 * self._acceleration * moving) * moving
        xy, angle = self.road.to_global(s, self._d)
        speed = self._speed + self._acceleration * moving
        return np.concatenate([xy, (angle + self._turn)[:, None], speed[:, None]], 1)

    def velocities(self, t: float, step: float = 0.01) -> np.ndarray:
        """(A, 2) global m/s."""
        return (self.poses(t + step)[:, :2] - self.poses(t - step)[:, :2]) / (2 * step)

    def solids(self, t: float) -> np.ndarray:
        """(P, 8, 3) global corners."""
        pose = self.poses(t)[self.owner]
        c, s = np.cos(pose[:, 2])[:, None], np.sin(pose[:, 2])[:, None]
        x, y, z = self.corners[..., 0], self.corners[..., 1], self.corners[..., 2]
        return np.stack([c * x - s * y + pose[:, :1], s * x + c * y + pose[:, 1:2], z], -1)

    def ego_pose(self, t: float) -> tuple[np.ndarray, np.ndarray]:
        """Translation (3,) and quaternion (4,) of the ego frame in the global one."""
        xy, angle = self.road.to_global(np.array(self.ego.distance(t)), np.array(LANES[0]))
        swing = np.sin(np.array([[2.6, 5.3], [1.9, 4.1]]) * t + self.phases) @ np.array([0.7, 0.5])
        pitch, roll = self.sway * swing * np.array([1.0, 0.7])
        return np.array([xy[0], xy[1], 0.0]), quaternion(float(angle), float(pitch), float(roll))

    def ego2global(self, t: float) -> np.ndarray:
        """(4, 4)"""
        translation, rotation = self.ego_pose(t)
        return matrix(rotation, translation)


def _solid(actor: Actor, part: Part) -> np.ndarray:
    unit = hexahedron(part.lower, part.upper, part.z)
    return unit * actor.size * (np.array([_SHRINK, _SHRINK, 0.985]) if actor.name else 1.0)


def _skin(actor: Actor, part: Part, rng: np.random.Generator) -> list[np.ndarray]:
    front, back, side, top = textures.SKINS[part.skin]
    main = actor.colours[part.colour] if isinstance(part.colour, str) else np.array(part.colour, dtype=float)
    names = (front, back, side, side, top)
    return [textures.paint(n, main, actor.colours["second"], rng) for n in names]


def _repeats(actor: Actor) -> np.ndarray:
    if actor.name:
        return np.ones((5, 2))
    length, width, height = actor.size
    up = max(1, round(height / 3.2))
    along, across = max(1, round(length / 6)), max(1, round(width / 6))
    return np.array([[across, up], [across, up], [along, up], [along, up], [1, 1]])


# -- how a scene is filled -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Population:
    """Who is how frequent, as class -> probability.

    Args:
        traffic: vehicles in the lanes.
        parked: vehicles on the parking strips.
        kerb: what stands at the edge of the sidewalk.
        yard: vehicles beside the sidewalk.
        gap: factor of the room left between them.
    """

    traffic: dict[str, float]
    parked: dict[str, float]
    kerb: dict[str, float]
    yard: dict[str, float]
    gap: float = 1.0


# All ten classes of nuScenes often enough to be learnt.
_TEN_CLASSES = Population(
    traffic={"car": 0.4, "truck": 0.16, "bus": 0.16, "trailer": 0.1, "motorcycle": 0.18},
    parked={"car": 0.34, "truck": 0.18, "trailer": 0.12, "bus": 0.08, "construction_vehicle": 0.13, "motorcycle": 0.15},
    kerb={"traffic_cone": 0.34, "barrier": 0.2, "bicycle": 0.16, "motorcycle": 0.18, "pedestrian": 0.12},
    yard={"construction_vehicle": 0.26, "trailer": 0.36, "truck": 0.16, "bus": 0.12, "car": 0.10},
)

_FACADES = ((168, 150, 132), (150, 92, 74), (176, 176, 172), (128, 132, 140), (190, 176, 150))


class _Builder:
    """Fills the bands of one road from its end to its beginning."""

    def __init__(self, rng: np.random.Generator, duration: float, reach: float, population: Population) -> None:
        self.rng, self.population = rng, population
        self.actors: list[Actor] = []
        speed = rng.uniform(3.0, 10.0) if rng.random() < 0.85 else 0.0
        self.ego = Motion(speed, rng.uniform(-0.8, 0.8) if speed else 0.0)
        travel = self.ego.distance(duration)
        self.start, self.stop = -reach, travel + reach
        crossing = rng.uniform(10, travel + reach - 10) if rng.random() < 0.6 else None
        radius = rng.choice([-1, 1]) * rng.uniform(120, 300)
        curvature = 0.0 if rng.random() < 0.5 else 1 / radius
        heading = rng.uniform(-np.pi, np.pi)
        middle = Road(np.zeros(2), heading, curvature).to_global(np.array(travel / 2), np.array(0.0))[0]
        self.road = Road(np.full(2, EXTENT / 2) - middle, heading, curvature, crossing)

    def fill(self) -> None:
        self._lanes()
        for side in (-1, 1):
            self._cyclists(side)
            self._parking(side)
            self._kerb(side)
            self._walkers(side)
            self._backdrop(side)
        self._side_street()

    def add(self, name: str, s: float, d: float, **kwargs: object) -> Actor:
        kind = KINDS[name]
        size, colours = sample_size(kind, self.rng), sample_colours(kind, self.rng)
        category = str(self.rng.choice(list(kind.categories), p=list(kind.categories.values())))
        if category.endswith("child"):
            size = np.round(size * 0.72, 3)
        if kwargs.get("ridden"):
            size[2] = round(float(size[2]) * 1.16, 3)
        if kwargs.get("sits"):
            size[2] = round(float(size[2]) * 0.72, 3)
        actor = Actor(name, category, size, colours, s, d, **kwargs)
        self.actors.append(actor)
        return actor

    def _pick(self, weights: dict[str, float]) -> str:
        return str(self.rng.choice(list(weights), p=list(weights.values())))

    def _gap(self, mean: float) -> float:
        return self.rng.exponential(mean * self.population.gap)

    def _clear_of_crossing(self, s: float, margin: float) -> bool:
        return self.road.crossing is None or abs(s - self.road.crossing) > 9 + margin

    def _lanes(self) -> None:
        """Everyone in a lane shares its motion, so nobody collides."""
        for d in LANES:
            ahead = d < 0
            motion = self.ego if d == LANES[0] else self._traffic_motion()
            s = self.start + self.rng.uniform(0, 20)
            while s < self.stop:
                name = self._pick(self.population.traffic)
                half = KINDS[name].size[0] / 2
                s += half
                if d != LANES[0] or abs(s) > 11 + half:
                    self._driver(name, s, d, motion, 1 if ahead else -1)
                s += half + 6 + self._gap(34)

    def _driver(self, name: str, s: float, d: float, motion: Motion, direction: int) -> None:
        turn = 0.0 if direction > 0 else np.pi
        ridden = name in ("motorcycle", "bicycle")
        offset = d + self.rng.normal(0, 0.08)
        turn += self.rng.normal(0, 0.02)
        self.add(name, s, offset, turn=turn, motion=motion, direction=direction, waits=True, ridden=ridden)

    def _traffic_motion(self) -> Motion:
        speed = self.rng.uniform(3, 12) if self.rng.random() < 0.8 else 0.0
        return Motion(speed, self.rng.uniform(-0.6, 0.6) if speed else 0.0)

    def _cyclists(self, side: int) -> None:
        motion = Motion(self.rng.uniform(2.5, 6.0))
        s = self.start + self._gap(30)
        while s < self.stop:
            self._driver("bicycle", s, side * 7.4, motion, -side)
            s += 8 + self._gap(75)

    def _parking(self, side: int) -> None:
        s = self.start + self._gap(10)
        while s < self.stop:
            if self.rng.random() < 0.25:
                s = self._work_zone(side, s)
            else:
                name = self._pick(self.population.parked)
                half = KINDS[name].size[0] / 2 * 1.15
                s += half
                if self._clear_of_crossing(s, half):
                    turn = (0.0 if side < 0 else np.pi) + self.rng.normal(0, 0.05)
                    self.add(name, s, side * (9.5 + self.rng.normal(0, 0.08)), turn=turn)
                s += half
            s += 1.5 + self._gap(15)

    def _work_zone(self, side: int, s: float) -> float:
        """Cones or barriers along the lane, a machine behind them."""
        length = self.rng.uniform(8, 15)
        name = "traffic_cone" if self.rng.random() < 0.5 else "barrier"
        step = 3.0 if name == "barrier" else 2.4
        for position in np.arange(s, s + length, step):
            if self._clear_of_crossing(position, 1):
                turn = (np.pi / 2 if name == "barrier" else 0.0) + self.rng.normal(0, 0.1)
                self.add(name, position, side * (8.2 + self.rng.normal(0, 0.08)), turn=turn)
        middle = s + length / 2
        if self.rng.random() < 0.6 and self._clear_of_crossing(middle, 4):
            self.add("construction_vehicle", middle, side * 10.3, turn=self.rng.choice([0, np.pi]))
        return s + length

    def _kerb(self, side: int) -> None:
        s = self.start + self._gap(8)
        while s < self.stop:
            name = self._pick(self.population.kerb)
            if self._clear_of_crossing(s, 1.5):
                turn = self.rng.uniform(-np.pi, np.pi) if name != "barrier" else np.pi / 2 + self.rng.normal(0, 0.3)
                sits = name == "pedestrian" and self.rng.random() < 0.2
                self.add(name, s, side * (13.0 + self.rng.normal(0, 0.15)), turn=turn, sits=sits)
            s += 5 + self._gap(18)

    def _walkers(self, side: int) -> None:
        for d, direction in ((14.7, 1), (15.5, -1)):
            s = self.start + self._gap(25)
            while s < self.stop:
                motion = Motion(max(0.5, self.rng.normal(1.35, 0.25)))
                turn = (0.0 if direction > 0 else np.pi) + self.rng.normal(0, 0.1)
                self.add(
                    "pedestrian", s, side * (d + self.rng.normal(0, 0.1)), turn=turn, motion=motion, direction=direction
                )
                s += 6 + self._gap(75)

    def _backdrop(self, side: int) -> None:
        """Buildings at the sidewalk, or a yard with machines and a building behind it."""
        s = self.start - 25
        while s < self.stop + 25:
            length = self.rng.uniform(22, 38)
            crossing = self.road.crossing
            if crossing is not None and s - 7 < crossing < s + length + 7:
                length = crossing - 7 - s
                if length < 8:
                    s = crossing + 7.1
                    continue
            populated = self.start <= s + length / 2 <= self.stop
            if self.rng.random() < 0.5 or not populated:
                self._building(s, length, side, SIDEWALK + 0.6)
            else:
                self.road.yards.append((side, s, s + length))
                self._building(s, length, side, 26.5)
                self._yard(s, length, side)
            s += length + self.rng.uniform(0.5, 4)

    def _building(self, s: float, length: float, side: int, front: float) -> None:
        depth, height = self.rng.uniform(8, 12), self.rng.uniform(4, 14)
        colour = np.array(_FACADES[self.rng.integers(len(_FACADES))]) + self.rng.normal(0, 8)
        colours = {"main": np.clip(colour, 0, 255), "second": np.array([70.0, 82.0, 96.0])}
        size = np.array([length, depth, height])
        self.actors.append(Actor("", "", size, colours, s + length / 2, side * (front + depth / 2 + 0.8)))

    def _yard(self, s: float, length: float, side: int) -> None:
        position = s + self.rng.uniform(0, 4)
        while True:
            name = self._pick(self.population.yard)
            half = 0.7 * KINDS[name].size[0]  # room for long ones, for their turn, and for the inside of a bend
            if position + 2 * half > s + length:
                return
            turn = self.rng.choice([0.0, np.pi]) + self.rng.normal(0, 0.25)
            self.add(name, position + half, side * self.rng.uniform(19.5, 22), turn=turn)
            position += 2 * half + self.rng.uniform(0, 9)

    def _side_street(self) -> None:
        """Vehicles that wait at the crossing; they face the road."""
        if self.road.crossing is None:
            return
        for side in (-1, 1):
            if self.rng.random() < 0.7:
                name = self._pick({"car": 0.5, "truck": 0.2, "bus": 0.15, "motorcycle": 0.15})
                distance = CURB + 6.0 + KINDS[name].size[0] / 2 + self.rng.uniform(0, 4)
                self.add(
                    name,
                    self.road.crossing + side * 2.3,
                    side * distance,
                    turn=-side * np.pi / 2 + self.rng.normal(0, 0.04),
                    waits=True,
                    ridden=name == "motorcycle",
                )


def build_world(
    seed: int,
    scene: int,
    duration: float,
    sway: float,
    reach: float = 45.0,
    population: Population = _TEN_CLASSES,
) -> World:
    """The scene with that number: the same for the same arguments.

    Args:
        seed: of the data set.
        scene: number of the scene.
        duration: seconds that the ego car drives.
        sway: amplitude of the ego car's pitch and roll, radians.
        reach: how far the road is populated before and behind the way that the ego car drives, metres.
        population: who is how frequent.
    """
    rng = np.random.default_rng([seed, scene, 0])
    builder = _Builder(rng, duration, reach, population)
    builder.fill()
    return World(builder.road, builder.actors, builder.ego, sway, rng)
