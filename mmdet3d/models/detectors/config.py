"""The blocks of a detector on a BEV raster."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar

from mmdet3d.blocks import ConfigKeyError, nearest, read_block
from mmdet3d.models.encoders.voxelizer import VoxelizeBlock
from mmdet3d.structures import Batch

__all__ = [
    "CameraBlock",
    "CameraEncoder",
    "DecoderBlock",
    "Encoders",
    "LidarBlock",
    "PointSensorBlock",
    "RadarBlock",
    "SimulatedBlock",
    "SimulatedEncoders",
]

Part = Mapping[str, Any]  # {type: NAME, ...}, which `MODELS` builds

_FIELDS = tuple(field.name for field in fields(Batch))


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
        reads: the field of a batch that holds the points.
    """

    voxelize: VoxelizeBlock
    backbone: Part
    voxelize_reduce: bool = True
    reads: str = ""

    def __post_init__(self) -> None:
        if self.reads not in _FIELDS:
            raise ConfigKeyError(
                "reads", f" is {self.reads!r}, which is no field of a batch{nearest(self.reads, _FIELDS)}"
            )


@dataclass(frozen=True)
class LidarBlock(PointSensorBlock):
    """Points of a LiDAR to a BEV."""

    reads: str = "points"


@dataclass(frozen=True)
class RadarBlock(PointSensorBlock):
    """Points of radars to a BEV."""

    reads: str = "radar"


@dataclass(init=False)
class Encoders:
    """Of `BEVFusion`, by sensor. The fuser gets those that there are in this order.

    Args:
        camera: images to a BEV.
        lidar: its points to a BEV.
        radar: its points to a BEV.
        others: by any further names, points to a BEV, with the keys of a `LidarBlock`; `reads` must be given.

    Attributes:
        by_sensor: those that there are, in the fuser's order.
    """

    by_sensor: dict[str, CameraBlock | PointSensorBlock]

    def __init__(
        self,
        camera: CameraBlock | None = None,
        lidar: LidarBlock | None = None,
        radar: RadarBlock | None = None,
        **others: Any,
    ) -> None:
        given: dict[str, Any] = {"camera": camera, "lidar": lidar, "radar": radar}
        for name, block in others.items():
            if isinstance(block, Mapping) and "reads" not in block:
                known = f"{', '.join(given)}; the block of any other sensor says what it `reads`"
                raise ConfigKeyError(name, f"{nearest(name, given)} (known: {known})", "unknown config key")
        given |= {name: block and read_block(PointSensorBlock, block, name) for name, block in others.items()}
        self.by_sensor = {name: block for name, block in given.items() if block is not None}


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
