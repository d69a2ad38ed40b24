"""The blocks of a detector on a BEV raster."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mmdet3d.blocks import ConfigKeyError
from mmdet3d.models.encoders.voxelizer import VoxelizeBlock

__all__ = [
    "CameraBlock",
    "CameraEncoder",
    "DecoderBlock",
    "Encoders",
    "HeadsBlock",
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
    """

    voxelize: VoxelizeBlock
    backbone: Part
    voxelize_reduce: bool = True


@dataclass(frozen=True)
class Encoders:
    """Of `BEVFusion`, by sensor.

    Args:
        camera: images to a BEV.
        lidar: its points to a BEV.
        radar: its points to a BEV.
    """

    camera: CameraBlock | None = None
    lidar: PointSensorBlock | None = None
    radar: PointSensorBlock | None = None


@dataclass(frozen=True)
class CameraEncoder:
    """Of `TemporalCamera`.

    Args:
        camera: images to a BEV.
    """

    camera: CameraBlock


@dataclass(frozen=True)
class SimulatedBlock:
    """The simulated LiDAR branch of `SimulatedFusion`.

    Args:
        vtransform: what its view transform changes in the camera's, for instance `compensation` of the image features.
        compensation: arguments of the BEV's `GeometryCompensation`; null for none.
        share_view_transform: it has no view transform of its own: the camera's lifts once, for both.
    """

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


@dataclass(frozen=True)
class DecoderBlock:
    """Between the fused BEV and the head.

    Args:
        backbone: part.
        neck: part.
    """

    backbone: Part
    neck: Part


@dataclass(frozen=True)
class HeadsBlock:
    """What is predicted.

    Args:
        object: part, the detection head.
        map: must be null.
    """

    object: Part
    map: Any = None

    def __post_init__(self) -> None:
        if self.map is not None:
            raise ConfigKeyError(
                "map", " must be null: map segmentation is not part of this project, only detection is"
            )
