"""Sensor rigs: poses and intrinsics of the real nuScenes car, rounded; and cars with another number of cameras."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mmdet3d.datasets.synthetic.geometry import matrix, quaternion

__all__ = ["NUSCENES", "RIGS", "Mount", "Rig", "flat"]


@dataclass(frozen=True)
class Mount:
    """A sensor on the car.

    Args:
        channel: nuScenes channel.
        translation: metres, ego frame.
        rotation: quaternion w, x, y, z, sensor to ego.
        delay: seconds from the key frame's LiDAR time to this sensor's exposure.
        pinhole: focal length, cx, cy of an image of `pixels`; cameras only.
        pixels: width and height of the real image.
    """

    channel: str
    translation: tuple[float, float, float]
    rotation: tuple[float, float, float, float]
    delay: float = 0.0
    pinhole: tuple[float, float, float] | None = None
    pixels: tuple[int, int] = (1600, 900)

    @property
    def sensor2ego(self) -> np.ndarray:
        return matrix(np.array(self.rotation), np.array(self.translation))

    @property
    def modality(self) -> str:
        return {"CAM": "camera", "LID": "lidar", "RAD": "radar"}[self.channel[:3]]

    def intrinsics(self, width: int, height: int) -> np.ndarray:
        """(3, 3) K of an image of that size."""
        assert self.pinhole is not None, f"{self.channel} is no camera"
        focal, cx, cy = self.pinhole
        sx, sy = width / self.pixels[0], height / self.pixels[1]
        return np.array([[focal * sx, 0, cx * sx], [0, focal * sy, cy * sy], [0, 0, 1]])


@dataclass(frozen=True)
class Rig:
    """All sensors of a car; frames hang on the first LiDAR."""

    cameras: tuple[Mount, ...]
    lidars: tuple[Mount, ...]
    radars: tuple[Mount, ...]


def flat(yaw_degrees: float) -> tuple[float, float, float, float]:
    """Quaternion of a turn about the vertical axis."""
    w, x, y, z = (float(v) for v in quaternion(np.radians(yaw_degrees)))
    return w, x, y, z


_LIDAR = Mount("LIDAR_TOP", (0.944, 0.0, 1.840), flat(-90))

# Cameras fire when the LiDAR beam, which turns clockwise, passes the middle of their view.
_CAMERAS = (
    Mount("CAM_FRONT", (1.701, 0.016, 1.511), (0.49980, -0.50303, 0.49978, -0.49737), -0.035, (1266.4, 816.3, 491.5)),
    Mount(
        "CAM_FRONT_RIGHT", (1.551, -0.493, 1.496), (0.20603, -0.20269, 0.68245, -0.67136), -0.027, (1260.8, 808, 495.3)
    ),
    Mount(
        "CAM_FRONT_LEFT", (1.524, 0.495, 1.509), (0.67573, -0.67363, 0.21214, -0.21123), -0.043, (1272.6, 826.6, 479.8)
    ),
    Mount("CAM_BACK", (0.028, 0.003, 1.579), (0.50379, -0.49740, -0.49419, 0.50455), -0.010, (809.2, 829.2, 481.8)),
    Mount("CAM_BACK_LEFT", (1.036, 0.485, 1.591), (0.69242, -0.70316, -0.11648, 0.11203), 0.0, (1256.7, 792.1, 492.8)),
    Mount(
        "CAM_BACK_RIGHT", (1.015, -0.481, 1.562), (0.12281, -0.13240, -0.70043, 0.69050), -0.019, (1259.5, 807.3, 501.2)
    ),
)

_RADARS = (
    Mount("RADAR_FRONT", (3.412, 0.0, 0.50), flat(0.2), 0.016),
    Mount("RADAR_FRONT_LEFT", (2.422, 0.8, 0.78), flat(88.4), 0.009),
    Mount("RADAR_FRONT_RIGHT", (2.422, -0.8, 0.77), flat(-91.0), -0.011),
    Mount("RADAR_BACK_LEFT", (-0.562, 0.628, 0.53), flat(174.4), 0.021),
    Mount("RADAR_BACK_RIGHT", (-0.562, -0.618, 0.53), flat(-176.1), -0.017),
)


def _camera(channel: str, yaw_degrees: float, focal: float) -> Mount:
    """A camera on the roof's edge, 1.5 m up, that looks level in a direction (0 ahead, 90 left)."""
    yaw = np.radians(yaw_degrees)
    c, s = float(np.cos(yaw / 2)), float(np.sin(yaw / 2))
    # The yaw after the rotation of a camera that looks ahead, (0.5, -0.5, 0.5, -0.5).
    rotation = (0.5 * (c + s), -0.5 * (c + s), 0.5 * (c - s), 0.5 * (s - c))
    translation = (round(0.9 + 0.8 * float(np.cos(yaw)), 3), round(0.5 * float(np.sin(yaw)), 3), 1.5)
    delay = round(-0.05 * ((yaw_degrees - 110) % 360) / 360, 3)  # as those above: the beam begins behind the left
    return Mount(channel, translation, rotation, delay, (focal, 800.0, 450.0))


# Cameras by their number: one ahead, four with a view of 90 degrees, nuScenes' six, eight whose views overlap.
RIGS: dict[int, tuple[Mount, ...]] = {
    1: _CAMERAS[:1],
    4: tuple(
        _camera(name, yaw, 800.0)
        for name, yaw in (("CAM_FRONT", 0.0), ("CAM_LEFT", 90.0), ("CAM_BACK", 180.0), ("CAM_RIGHT", -90.0))
    ),
    6: _CAMERAS,
    8: tuple(_camera(f"CAM_{i}", 45.0 * i, 1250.0) for i in range(8)),
}

NUSCENES = Rig(_CAMERAS, (_LIDAR,), _RADARS)
