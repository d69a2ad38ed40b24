"""Whether the files of a scene fit what the tables say about them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mmdet3d.datasets.nuscenes.source import Source
from mmdet3d.datasets.records import CameraRecord, FrameRecord
from mmdet3d.datasets.transforms.images import image_size

__all__ = ["check_files"]


def check_files(frames: Sequence[FrameRecord], root: Path, source: Source) -> None:
    """Look at the first file of every sensor in a scene: image sizes, layout of LiDAR and radar files.

    Raises:
        ValueError: a file of another size or layout, or a damaged one.
    """
    cameras = {c: camera for frame in reversed(frames) for c, camera in frame.cameras.items()}
    for camera in cameras.values():
        _check_image(root / camera.path, camera)
    scan = next((root / f.lidar.path for f in frames if (root / f.lidar.path).is_file()), None)
    if scan is not None:
        source.check_scan(scan)
    radars = {c: sweeps[0] for frame in reversed(frames) for c, sweeps in frame.radars.items() if sweeps}
    for sweep in radars.values():
        source.read_radar(root / sweep.path)


def _check_image(path: Path, camera: CameraRecord) -> None:
    camera.check_size(image_size(path))
