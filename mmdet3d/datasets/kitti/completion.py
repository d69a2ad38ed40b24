"""Dense depth from a LiDAR scan: projection, then completion by morphology, as classical methods do it.

Near surfaces grow first: depths are turned round (`_HORIZON` - z), so that a maximum prefers what is near. The steps
follow Ku, Harakeh, Waslander, "In Defense of Classical Image Processing: Fast Depth Completion on the CPU" (2018).
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from mmdet3d.datasets.kitti.files import KittiCalibration

__all__ = ["complete", "project_scan"]

_HORIZON = 200.0  # metres, farther than any LiDAR sees
_DIAMOND = ndimage.generate_binary_structure(2, 1)
_SMALL = ndimage.iterate_structure(_DIAMOND, 2)  # 5 x 5 without its corners
_CLOSE, _HOLE, _WIDE, _MEDIAN, _SIGMA = 5, 7, 31, 5, 1.0


def project_scan(points: np.ndarray, calibration: KittiCalibration, size: tuple[int, int]) -> np.ndarray:
    """The depth of the nearest point in each pixel of the left colour camera.

    Args:
        points: (N, >=3) LiDAR coordinates.
        calibration: of the frame.
        size: height and width of the image.

    Returns:
        (H, W) float32 metres along the rectified z axis, 0 where no point falls.
    """
    rect = points[:, :3].astype(np.float64) @ calibration.lidar2rect[:3, :3].T + calibration.lidar2rect[:3, 3]
    rect = rect[rect[:, 2] > 0.1]
    depth = rect[:, 2]
    pixels = (rect @ calibration.p2[:2, :3].T + calibration.p2[:2, 3]) / depth[:, None]
    column, row = np.floor(pixels).astype(np.int64).T
    seen = (column >= 0) & (column < size[1]) & (row >= 0) & (row < size[0]) & (depth < _HORIZON)
    nearest = np.full(size, np.inf, dtype=np.float32)
    np.minimum.at(nearest, (row[seen], column[seen]), depth[seen])
    return np.where(np.isfinite(nearest), nearest, 0).astype(np.float32)


def complete(sparse: np.ndarray) -> np.ndarray:
    """A depth at every pixel; pixels with a measurement keep it.

    Above the highest measurement of a column its depth is repeated up to the border: what lies there, sky included, is
    guessed.

    Args:
        sparse: (H, W) metres, 0 where unknown.

    Raises:
        ValueError: no pixel is known.
    """
    measured = sparse > 0
    if not measured.any():
        raise ValueError("no LiDAR point falls into the image")
    near = np.where(measured, _HORIZON - sparse, 0).astype(np.float32)
    near = ndimage.grey_dilation(near, footprint=_SMALL)
    near = ndimage.grey_closing(near, size=(_CLOSE, _CLOSE))
    near = _fill(near, ndimage.maximum_filter(near, _HOLE))
    near = _fill(near, _upwards(near))
    near = _fill(near, ndimage.maximum_filter(near, _WIDE))
    nearest = ndimage.distance_transform_edt(near == 0, return_distances=False, return_indices=True)
    near = near[tuple(nearest)]
    smooth = ndimage.gaussian_filter(ndimage.median_filter(near, _MEDIAN), _SIGMA)
    return np.where(measured, sparse, _HORIZON - smooth).astype(np.float32)


def _fill(known: np.ndarray, guess: np.ndarray) -> np.ndarray:
    return np.where(known > 0, known, guess)


def _upwards(near: np.ndarray) -> np.ndarray:
    """The first known value of each column, above it; 0 in columns without one."""
    first = (near > 0).argmax(0)
    top = near[first, np.arange(near.shape[1])]
    return np.where(np.arange(near.shape[0])[:, None] < first, top, 0)
