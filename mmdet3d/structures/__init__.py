"""The vocabulary of the project: tensors with units and frames. No I/O here."""

from mmdet3d.structures.boxes import Boxes3D, limit_period, rotate_z
from mmdet3d.structures.calibration import Calibration, inverse_3x3, project
from mmdet3d.structures.grid import BEVGrid
from mmdet3d.structures.image_objects import ImageObjects
from mmdet3d.structures.masks import BEVMasks
from mmdet3d.structures.sample import Batch, Detections3D, Sample
from mmdet3d.structures.sensors import LIDAR, RADAR, PointSensor, add_sensor, by_sensor, point_sensors, sensor_of

__all__ = [
    "LIDAR",
    "RADAR",
    "BEVGrid",
    "BEVMasks",
    "Batch",
    "Boxes3D",
    "Calibration",
    "Detections3D",
    "ImageObjects",
    "PointSensor",
    "Sample",
    "add_sensor",
    "by_sensor",
    "inverse_3x3",
    "limit_period",
    "point_sensors",
    "project",
    "rotate_z",
    "sensor_of",
]
