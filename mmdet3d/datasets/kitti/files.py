"""KITTI calibration, split lists, LiDAR scans and dense depth maps. Label and result files are in `objects`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from mmdet3d.blocks import nearest
from mmdet3d.io.files import atomic_write, read_text

__all__ = [
    "SPLITS",
    "KittiCalibration",
    "image_file",
    "read_calibration",
    "read_depth",
    "read_depths",
    "read_ids",
    "read_scan",
    "split_ids",
    "write_calibration",
    "write_depth",
    "write_points",
]

SPLITS = ("train", "val", "trainval", "test")
DEPTH_SCALE = 256  # steps per metre in a depth PNG
_LISTS = Path(__file__).parent / "splits"
_FRAMES = {"trainval": 7481, "test": 7518}  # of the training and the testing folder
_SHAPES = {
    "P0": (3, 4),
    "P1": (3, 4),
    "P2": (3, 4),
    "P3": (3, 4),
    "R0_rect": (3, 3),
    "Tr_velo_to_cam": (3, 4),
    "Tr_imu_to_velo": (3, 4),
}
_LIDAR = ("R0_rect", "Tr_velo_to_cam")
_NAME = re.compile(r"[^./\\][^/\\]*")
_SUFFIXES = (".png", ".jpg", ".jpeg", ".txt", ".bin")


# -- calibration ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class KittiCalibration:
    """Matrices of one frame, float64.

    Args:
        p2: (3, 4) projection of rectified coordinates to pixels of the left colour camera.
        rectification: (4, 4), R0_rect: unrectified to rectified camera coordinates.
        velo2camera: (4, 4), LiDAR (x forward, y left, z up) to unrectified camera coordinates. None, like
            `rectification`, where the file names a camera alone: labels and images need no more.
        p0, p1, p3: (3, 4) projections of the other cameras, None if the file names none.
        imu2velo: (4, 4), None if the file names none.
    """

    p2: np.ndarray
    rectification: np.ndarray | None
    velo2camera: np.ndarray | None
    p0: np.ndarray | None = None
    p1: np.ndarray | None = None
    p3: np.ndarray | None = None
    imu2velo: np.ndarray | None = None

    @property
    def lidar2rect(self) -> np.ndarray:
        """(4, 4): LiDAR to rectified camera coordinates, in which labels are.

        Raises:
            ValueError: the file names a camera alone.
        """
        if self.rectification is None or self.velo2camera is None:
            raise ValueError(
                "a calibration of P2 alone does not say where the LiDAR is; add R0_rect and Tr_velo_to_cam"
            )
        return self.rectification @ self.velo2camera

    @property
    def has_lidar(self) -> bool:
        return self.velo2camera is not None


def read_calibration(path: str | Path) -> KittiCalibration:
    """A calibration file, by the names of its lines; P2 must be there, and R0_rect with Tr_velo_to_cam or neither.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a missing or doubled matrix, a wrong number of values, or a value that is not a finite number.
    """
    matrices: dict[str, np.ndarray] = {}
    for number, line in enumerate(read_text(path, "calibration").splitlines(), start=1):
        key, colon, values = line.partition(":")
        key = key.strip()
        if not line.strip():
            continue
        if not colon:
            raise ValueError(f"{path}, line {number}: expected 'NAME: values', found {line.strip()[:40]!r}")
        if key in matrices:
            raise ValueError(f"{path}, line {number}: {key} is given twice")
        if key in _SHAPES and values.strip():  # View-of-Delft names Tr_imu_to_velo without a value
            matrices[key] = _matrix(values.split(), _SHAPES[key], f"{path}, line {number}: {key}")
    needed = ("P2", *_LIDAR) if any(key in matrices for key in _LIDAR) else ("P2",)
    missing = [key for key in needed if key not in matrices]
    if missing:
        raise ValueError(f"{path} has no {' and no '.join(missing)}")
    return KittiCalibration(
        p2=matrices["P2"],
        rectification=_homogeneous(matrices["R0_rect"]) if "R0_rect" in matrices else None,
        velo2camera=_homogeneous(matrices["Tr_velo_to_cam"]) if "Tr_velo_to_cam" in matrices else None,
        p0=matrices.get("P0"),
        p1=matrices.get("P1"),
        p3=matrices.get("P3"),
        imu2velo=_homogeneous(matrices["Tr_imu_to_velo"]) if "Tr_imu_to_velo" in matrices else None,
    )


def write_calibration(path: str | Path, calibration: KittiCalibration) -> None:
    """Write a calibration file in the order and precision of the published ones; absent matrices are left out."""
    matrices = {
        "P0": calibration.p0,
        "P1": calibration.p1,
        "P2": calibration.p2,
        "P3": calibration.p3,
        "R0_rect": None if calibration.rectification is None else calibration.rectification[:3, :3],
        "Tr_velo_to_cam": None if calibration.velo2camera is None else calibration.velo2camera[:3],
        "Tr_imu_to_velo": None if calibration.imu2velo is None else calibration.imu2velo[:3],
    }
    with atomic_write(path) as file:
        for key, matrix in matrices.items():
            if matrix is not None:
                file.write(f"{key}: {' '.join(f'{value:.12e}' for value in matrix.flat)}\n")


def _matrix(words: Sequence[str], shape: tuple[int, int], what: str) -> np.ndarray:
    count = shape[0] * shape[1]
    if len(words) != count:
        raise ValueError(f"{what} needs {count} numbers, found {len(words)}")
    try:
        matrix = np.array([float(word) for word in words]).reshape(shape)
    except ValueError as error:
        raise ValueError(f"{what} holds {str(error).rpartition(': ')[2]}, which is not a number") from None
    if not np.isfinite(matrix).all():
        raise ValueError(f"{what} holds a number that is not finite")
    return matrix


def _homogeneous(matrix: np.ndarray) -> np.ndarray:
    out = np.eye(4)
    out[:3, : matrix.shape[1]] = matrix
    return out


# -- split lists ----------------------------------------------------------------------------------------------------


def split_ids(split: str) -> list[str]:
    """Frame ids of `train` (3,712), `val` (3,769), `trainval` (7,481) or `test` (7,518), such as "000003".

    Train and val part the 7,481 training frames as nearly all papers do.

    Raises:
        ValueError: another name.
    """
    if split in _FRAMES:
        return [f"{i:06d}" for i in range(_FRAMES[split])]
    if split not in SPLITS:
        raise ValueError(f"KITTI has no split {split!r}{nearest(split, SPLITS)} (splits: {', '.join(SPLITS)})")
    return read_ids(_LISTS / f"{split}.txt")


def read_ids(path: str | Path, digits: int = 6) -> list[str]:
    """A list of frame ids, one per line: names of files without their suffix. Numbers are filled up to `digits`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a line that is no name of a file, an id named twice, or no id at all.
    """
    ids: dict[str, int] = {}
    for number, line in enumerate(read_text(path, "list of frame ids").splitlines(), start=1):
        word = line.strip()
        if not word:
            continue
        if not _NAME.fullmatch(word) or Path(word).suffix in _SUFFIXES:
            raise ValueError(
                f"{path}, line {number}: {word[:40]!r} is no frame id, which is the name of the frame's files without "
                "folder and suffix, such as 000012"
            )
        frame = word.zfill(digits) if word.isdigit() else word
        if frame in ids:
            raise ValueError(f"{path}, line {number}: frame {frame} is already in line {ids[frame]}")
        ids[frame] = number
    if not ids:
        raise ValueError(f"{path} names no frame")
    return list(ids)


# -- images, LiDAR and depth ------------------------------------------------------------------------------------------


def image_file(folder: str | Path, frame: str) -> Path:
    """The image of a frame in `folder`: its `.png`, as KITTI has it, or the `.jpg` or `.jpeg` that is there instead."""
    png = Path(folder) / f"{frame}.png"
    if png.is_file():
        return png
    return next((jpg for suffix in (".jpg", ".jpeg") if (jpg := png.with_suffix(suffix)).is_file()), png)


def read_scan(path: str | Path) -> np.ndarray:
    """A LiDAR scan: (N, 4) float32 x forward, y left, z up in metres, reflectance 0 to 1.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the size is no multiple of 16 bytes, or a value is not finite.
    """
    try:
        data = Path(path).read_bytes()
    except FileNotFoundError:
        raise FileNotFoundError(f"LiDAR scan {path} is missing") from None
    if len(data) % 16:
        raise ValueError(f"{path} is no LiDAR scan: {len(data)} bytes are no multiple of 16 (4 float32 per point)")
    points = np.frombuffer(data, dtype="<f4").reshape(-1, 4).astype(np.float32)
    if not np.isfinite(points).all():
        raise ValueError(f"{path}: point {int(np.flatnonzero(~np.isfinite(points).all(1))[0])} is not finite")
    return points


def write_points(path: str | Path, points: np.ndarray) -> None:
    """Write (N, 4) points as a LiDAR scan; it is whole or absent."""
    if points.ndim != 2 or points.shape[1] != 4:
        raise ValueError(f"points must have shape (N, 4), got {points.shape}")
    with atomic_write(path, "wb") as file:
        file.write(np.ascontiguousarray(points, dtype="<f4").tobytes())


def read_depth(path: str | Path, size: tuple[int, int] | None = None) -> np.ndarray:
    """A depth map: (H, W) float32 metres, 0 where nothing is known.

    Args:
        path: 16-bit PNG that holds metres x 256.
        size: height and width of the image. A smaller map is taken as its bottom centre, as the KITTI depth benchmark
            cuts it, and its border values are repeated.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no PNG of 16 bit, or a map larger than the image.
    """
    try:
        with Image.open(path) as image:
            mode, pixels = image.mode, np.array(image)
    except FileNotFoundError:
        raise FileNotFoundError(f"depth map {path} is missing") from None
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise ValueError(f"{path} is no readable PNG: {error}") from None
    if not mode.startswith("I"):
        raise ValueError(f"{path} must be a grey PNG of 16 bit (metres x {DEPTH_SCALE}), its mode is {mode}")
    depth = pixels.astype(np.float32) / DEPTH_SCALE
    if size is None or size == depth.shape:
        return depth
    top, spare = size[0] - depth.shape[0], size[1] - depth.shape[1]
    if top < 0 or spare < 0:
        raise ValueError(f"{path}: the depth map {depth.shape} is larger than the image {tuple(size)}")
    return np.pad(depth, ((top, 0), (spare // 2, spare - spare // 2)), mode="edge")


def read_depths(files: Sequence[Path], size: tuple[int, int]) -> list[np.ndarray]:
    """See `read_depth`."""
    return [read_depth(file, size) for file in files]


def write_depth(path: str | Path, depth: np.ndarray) -> None:
    """Write (H, W) metres as a 16-bit PNG of metres x 256 (to 2 mm, at most 255.996 m); it is whole or absent.

    Raises:
        ValueError: another number of dimensions, or a depth that is negative, too large or not finite.
    """
    steps = np.rint(np.asarray(depth, dtype=np.float64) * DEPTH_SCALE)
    if steps.ndim != 2:
        raise ValueError(f"depth must have shape (H, W), got {steps.shape}")
    if not ((steps >= 0) & (steps < 1 << 16)).all():
        raise ValueError(f"{path}: depths must lie between 0 and 255.996 m to fit into 16 bit")
    with atomic_write(path, "wb") as file:
        Image.fromarray(steps.astype(np.uint16)).save(file, format="PNG")
