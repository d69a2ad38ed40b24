"""Sensors that measure points: what loading, augmentation, models and pictures must know of one, said in one place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Literal, TypeVar

from torch import Tensor

__all__ = ["LIDAR", "RADAR", "PointSensor", "add_sensor", "by_sensor", "point_sensors", "sensor_of"]

Points = TypeVar("Points")


@dataclass(frozen=True)
class PointSensor:
    """A sensor that measures points; `add_sensor` makes it known.

    Its points are (P, C) float32, x, y, z first, in the augmented LiDAR frame. A sensor whose values move in a way of
    their own overrides `moved`.

    Args:
        name: of its encoder in `model.encoders`, and among the inputs of a model.
        loaders: transforms that load it.
        field: by which samples and batches hold its points, and encoders read them; empty for the name.
        title: in pictures; empty for the name.
        values: per point, as its loaders give them by default; None where that is not fixed.
        velocity: column of the velocity along x, which that along y follows, m/s; None where there is none.
        measures_height: z means something; ranges are otherwise those of x and y.
        color: in pictures.
        mark: in pictures: `dot` where points are many, `ring` where they are few.
    """

    name: str
    loaders: tuple[str, ...] = ()
    field: str = ""
    title: str = ""
    values: int | None = None
    velocity: int | None = None
    measures_height: bool = True
    color: tuple[int, int, int] = (0, 110, 120)
    mark: Literal["dot", "ring"] = "ring"

    def __post_init__(self) -> None:
        object.__setattr__(self, "field", self.field or self.name)
        object.__setattr__(self, "title", self.title or self.name)

    def moved(self, points: Tensor, matrix: Tensor) -> Tensor:
        """The points after the LiDAR frame was moved by `matrix` (4, 4): positions, and velocities turned with it.

        Args:
            matrix: a similarity: rotation, mirror, uniform scale, translation.
        """
        out = points.clone()
        out[:, :3] = (points[:, :3] @ matrix[:3, :3].T).add_(matrix[:3, 3])
        if self.velocity is not None:
            out[:, self._planar] = out[:, self._planar] @ matrix[:2, :2].T
        return out

    def velocities(self, points: Tensor) -> Tensor:
        """(P, 2) m/s; zero where the sensor measures none."""
        return points.new_zeros(len(points), 2) if self.velocity is None else points[:, self._planar]

    @property
    def _planar(self) -> slice:
        assert self.velocity is not None
        return slice(self.velocity, self.velocity + 2)


LIDAR = PointSensor(
    "lidar",
    loaders=("LoadPointsFromFile", "LoadPointsOfScanners"),
    field="points",
    title="LiDAR",
    values=5,
    color=(150, 155, 163),
    mark="dot",
)
RADAR = PointSensor(
    "radar",
    loaders=("LoadRadarPointsMultiSweeps", "LoadRadarPoints4D"),
    values=45,
    velocity=4,  # compensated
    measures_height=False,
    color=(70, 85, 95),
)

_known: dict[str, PointSensor] = {sensor.name: sensor for sensor in (LIDAR, RADAR)}


def add_sensor(sensor: PointSensor) -> PointSensor:
    """Make a sensor known, from any module that a config imports.

    Raises:
        ValueError: its name or field is taken.
    """
    from mmdet3d.structures.sample import Batch, Sample  # which hold the points of those that are known

    known = _known.get(sensor.name)
    if known is not None and _is_again(sensor, known):
        _known[sensor.name] = sensor
        return sensor
    taken = {*_known, "camera"}
    if not sensor.name.isidentifier() or sensor.name in taken:
        raise ValueError(
            f"a sensor cannot be named {sensor.name!r}; take a word of letters, digits and _ other than "
            f"{', '.join(sorted(taken))}"
        )
    held = {field.name for kind in (Batch, Sample) for field in fields(kind)} | {each.field for each in _known.values()}
    if sensor.field in held:
        raise ValueError(
            f"the points of the sensor {sensor.name} cannot be held as {sensor.field!r}, which a batch holds already; "
            "give it another field"
        )
    _known[sensor.name] = sensor
    return sensor


def _is_again(sensor: PointSensor, known: PointSensor) -> bool:
    """Whether it is the one that is known, maybe of a module that was imported anew."""
    kinds = [(type(each).__module__, type(each).__qualname__) for each in (sensor, known)]
    return kinds[0] == kinds[1] and vars(sensor) == vars(known)


def point_sensors() -> tuple[PointSensor, ...]:
    """Those that are known: LiDAR, radar, then others as they were added."""
    return tuple(_known.values())


def sensor_of(field: str) -> PointSensor:
    """The sensor whose points samples hold by that field.

    Raises:
        ValueError: there is none.
    """
    for sensor in _known.values():
        if sensor.field == field:
            return sensor
    raise ValueError(
        f"no sensor has its points in the field {field!r} (known: {', '.join(s.field for s in _known.values())}); "
        "describe it by mmdet3d.structures.add_sensor"
    )


def by_sensor(clouds: Mapping[str, Points]) -> list[tuple[PointSensor, Points]]:
    """Points by field, with the sensor that measured them, in the order of `point_sensors`.

    Raises:
        ValueError: nobody described the sensor of a field.
    """
    order = list(_known.values())
    return sorted(((sensor_of(field), value) for field, value in clouds.items()), key=lambda pair: order.index(pair[0]))
