"""The blocks of a detector on a BEV raster."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from mmdet3d.blocks import ConfigKeyError, nearest, read_block
from mmdet3d.models.encoders.voxelizer import VoxelizeBlock
from mmdet3d.structures import LIDAR, RADAR, point_sensors

__all__ = [
    "CameraBlock",
    "CameraEncoder",
    "DecoderBlock",
    "Encoders",
    "PointSensorBlock",
    "SimulatedBlock",
    "SimulatedEncoders",
]

Part = Mapping[str, Any]  # {type: NAME, ...}, which `MODELS` builds


@dataclass(frozen=True)
class CameraBlock:
    """Images to a BEV.

    Args:
        backbone: part.
        neck: part.
        vtransform: part, the view transform.
    """

    reads: ClassVar[str] = "images"

    backbone: Part
    neck: Part
    vtransform: Part


@dataclass(frozen=True)
class PointSensorBlock:
    """Points to a BEV.

    Args:
        voxelize: points to voxels.
        backbone: part, voxels to a BEV.
        voxelize_reduce: a voxel is the mean of its points; false hands all of them on.
        reads: the field of a batch that holds the points; by default that of the sensor of the block's name.
    """

    voxelize: VoxelizeBlock
    backbone: Part
    voxelize_reduce: bool = True
    reads: str | None = None

    def __post_init__(self) -> None:
        known = tuple(sensor.field for sensor in point_sensors())
        if self.reads is not None and self.reads not in known:
            raise ConfigKeyError(
                "reads",
                f" is {self.reads!r}, in which no sensor has its points{nearest(self.reads, known)} (known: "
                f"{', '.join(known)})",
            )


@dataclass(init=False)
class Encoders:
    """Of `BEVFusion`, by sensor. The fuser gets camera, lidar and radar first, then the others in the config's order.

    Args:
        camera: images to a BEV.
        sensors: by the name of each, `lidar`, `radar` or what a plugin adds, its points to a BEV, a
            `PointSensorBlock`; by any other name one that says what it `reads`.

    Attributes:
        by_sensor: those that there are, in the fuser's order.
    """

    by_sensor: dict[str, CameraBlock | PointSensorBlock]

    def __init__(self, camera: CameraBlock | None = None, **sensors: PointSensorBlock | None) -> None:
        self.by_sensor = {} if camera is None else {"camera": camera}
        for name, block in ({LIDAR.name: None, RADAR.name: None} | sensors).items():
            if block is not None:
                self.by_sensor[name] = _point_sensor(name, block)


def _point_sensor(name: str, given: Any) -> PointSensorBlock:
    fields = {sensor.name: sensor.field for sensor in point_sensors()}
    if name not in fields and isinstance(given, Mapping) and given.get("reads") is None:
        hint = nearest(name, ["camera", *fields])
        known = f"camera, {', '.join(fields)}; the block of any other sensor says what it `reads`"
        raise ConfigKeyError(name, f"{hint} (known: {known})", "unknown config key")
    block = read_block(PointSensorBlock, given, name)
    return replace(block, reads=block.reads or fields[name])


@dataclass(frozen=True)
class CameraEncoder:
    """Of `TemporalCamera`.

    Args:
        camera: images to a BEV.
    """

    camera: CameraBlock

    @property
    def by_sensor(self) -> dict[str, CameraBlock]:
        return {"camera": self.camera}


@dataclass(frozen=True)
class SimulatedBlock:
    """The simulated LiDAR branch of `SimulatedFusion`.

    Args:
        vtransform: what its view transform changes in the camera's, for instance `compensation` of the image features.
        compensation: arguments of the BEV's `GeometryCompensation`; null for none.
        share_view_transform: it has no view transform of its own: the camera's lifts once, for both.
    """

    reads: ClassVar[None] = None

    vtransform: Part | None = None
    compensation: Part | None = None
    share_view_transform: bool = False


@dataclass(frozen=True)
class SimulatedEncoders:
    """Of `SimulatedFusion`.

    Args:
        simulated: what the LiDAR branch is simulated by.
        camera: images to a BEV.
    """

    simulated: SimulatedBlock
    camera: CameraBlock

    @property
    def by_sensor(self) -> dict[str, CameraBlock | SimulatedBlock]:
        return {"simulated": self.simulated, "camera": self.camera}


@dataclass(frozen=True)
class DecoderBlock:
    """Between the fused BEV and the head.

    Args:
        backbone: part.
        neck: part.
    """

    backbone: Part
    neck: Part
