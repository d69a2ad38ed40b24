"""The files of View-of-Delft: where they lie, calibrations, poses, split lists.

Four folders in KITTI's layout differ in `velodyne` and `calib` alone: `lidar`, and the radar's with points of one scan,
three or five. Images, labels and poses are taken from `lidar`; in the others they are links, which not every file
system keeps.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mmdet3d.blocks import nearest
from mmdet3d.datasets.checking import is_singular
from mmdet3d.datasets.kitti.files import image_file, read_calibration, read_ids
from mmdet3d.io.files import read_text

__all__ = ["RADARS", "SPLITS", "FrameFiles", "VodCalibration", "frame_files", "read_matrices", "read_pose", "split_ids"]

SPLITS = ("train", "val", "test")
RADARS = ("radar", "radar_3_scans", "radar_5_scans")
_POSE = "mapToCamera"  # which, despite its name, maps camera coordinates to the map's
_DIGITS = 5  # of a frame's name


@dataclass(frozen=True)
class FrameFiles:
    """Paths of a frame, relative to the root."""

    image: str
    label: str
    pose: str
    lidar: str
    lidar_calibration: str
    radar: str
    radar_calibration: str


@dataclass(frozen=True)
class VodCalibration:
    """Matrices of one frame, float64.

    Args:
        intrinsics: (3, 3), pixels of the image.
        lidar2camera, radar2camera: (4, 4); LiDAR and radar x forward, y left, z up, camera x right, y down, z forward.
    """

    intrinsics: np.ndarray
    lidar2camera: np.ndarray
    radar2camera: np.ndarray


def frame_files(root: Path, frame: str, radar: str) -> FrameFiles:
    """Where the files of a frame lie, there or not.

    Raises:
        ValueError: no such radar folder.
    """
    if radar not in RADARS:
        raise ValueError(f"--radar {radar!r} is unknown{nearest(radar, RADARS)} (folders: {', '.join(RADARS)})")
    common = "lidar/training"
    return FrameFiles(
        image=image_file(root / common / "image_2", frame).relative_to(root).as_posix(),
        label=f"{common}/label_2/{frame}.txt",
        pose=f"{common}/pose/{frame}.json",
        lidar=f"{common}/velodyne/{frame}.bin",
        lidar_calibration=f"{common}/calib/{frame}.txt",
        radar=f"{radar}/training/velodyne/{frame}.bin",
        radar_calibration=f"{radar}/training/calib/{frame}.txt",
    )


def read_matrices(root: Path, files: FrameFiles) -> VodCalibration:
    """The calibration of a frame.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a malformed file, one without Tr_velo_to_cam, or a matrix that cannot be inverted.
    """
    lidar, radar = (read_calibration(root / name) for name in (files.lidar_calibration, files.radar_calibration))
    for name, found in ((files.lidar_calibration, lidar), (files.radar_calibration, radar)):
        if not found.has_lidar:
            raise ValueError(f"calibration file {root / name} has no R0_rect and Tr_velo_to_cam; fetch it again")
        for key, matrix in {"P2": found.p2[:, :3], "R0_rect or Tr_velo_to_cam": found.lidar2rect}.items():
            if is_singular(matrix):
                raise ValueError(f"calibration file {root / name}: {key} cannot be inverted; fetch it again")
    return VodCalibration(lidar.p2[:, :3], lidar.lidar2rect, radar.lidar2rect)


def read_pose(path: Path) -> np.ndarray:
    """(4, 4): camera to map coordinates.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it does not hold the matrix.
    """
    for line in read_text(path, "pose").splitlines():
        try:
            values = json.loads(line).get(_POSE)
            matrix = None if values is None else np.array(values, dtype=np.float64).reshape(4, 4)
        except (ValueError, AttributeError, TypeError):
            raise ValueError(f"pose file {path} must hold JSON objects of 16 numbers, one per line") from None
        if matrix is not None and not is_singular(matrix):
            return matrix
    raise ValueError(f"pose file {path} has no finite {_POSE} that can be inverted; fetch it again")


def split_ids(root: Path, split: str) -> list[str]:
    """Frames of a split, five digits each, in the order of time.

    Raises:
        FileNotFoundError: the root is not View-of-Delft's, or has no such list.
        ValueError: a malformed list.
    """
    if not (root / "lidar").is_dir():
        raise FileNotFoundError(f"{root} has no folder lidar; name the one with lidar, radar, ... of View-of-Delft")
    return sorted(read_ids(root / "lidar" / "ImageSets" / f"{split}.txt", _DIGITS))
