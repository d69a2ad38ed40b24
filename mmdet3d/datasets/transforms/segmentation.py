"""Ground truth of the map."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from mmdet3d.blocks import numbers
from mmdet3d.datasets.maps import LOCATIONS, layers_of, map_file, rasterise, read_surroundings
from mmdet3d.datasets.records import Context, FrameRecord, Transform
from mmdet3d.registry import TRANSFORMS
from mmdet3d.shell import command
from mmdet3d.structures import BEVGrid, BEVMasks, Sample

__all__ = ["LoadBEVSegmentation"]

_REACH = 50.0  # metres; what is read of a map reaches a multiple of it, so that views of a frame share it in the cache


@TRANSFORMS.register
class LoadBEVSegmentation(Transform):
    """Which class of the map covers which cell, in the augmented LiDAR frame: turned, scaled, shifted and mirrored.

    It must come after all that moves that frame. Frames without labels pass unchanged.

    Args:
        xbound, ybound: lower end, upper end and cell of the raster along x and y, metres.
        classes: layers of the nuScenes map expansion, `divider` (of roads and lanes) or `drivable_area*` (road segments
            and lanes).
        dataset_root: where `maps/expansion` lies; None for the data set's own folder.

    Raises:
        ValueError: an unknown class, or bounds that hold no cell.
    """

    def __init__(
        self,
        xbound: Sequence[float],
        ybound: Sequence[float],
        classes: Sequence[str],
        dataset_root: str | None = None,
    ) -> None:
        for key, bound in {"xbound": xbound, "ybound": ybound}.items():
            numbers("lower upper cell", bound, key)
        self.grid = BEVGrid.from_range([xbound[0], ybound[0], 0, xbound[1], ybound[1], 0], [xbound[2], ybound[2]])
        self.classes = tuple(classes)
        self._layers = tuple(dict.fromkeys(layer for name in self.classes for layer in layers_of(name)))
        self._root = None if dataset_root is None else Path(dataset_root)

    def __call__(self, sample: Sample, context: Context) -> Sample:
        record = context.record
        if sample.unlabelled:
            return sample
        lidar2global = record.ego2global @ record.lidar2ego
        to_local = _to_local(lidar2global @ np.linalg.inv(sample.calibration.lidar_aug.double().numpy()))
        origin = (float(lidar2global[0, 3]), float(lidar2global[1, 3]))
        path = map_file(self._root or context.root, _location(record))
        shapes = context.read(read_surroundings, [path], self._layers, origin, self._reach(to_local, origin))
        drawn = dict(zip(self._layers, rasterise(shapes, to_local, self.grid), strict=True))
        masks = np.stack([np.logical_or.reduce([drawn[layer] for layer in layers_of(name)]) for name in self.classes])
        sample.masks = BEVMasks(torch.from_numpy(masks), self.classes, self.grid)
        return sample

    def _reach(self, to_local: np.ndarray, origin: tuple[float, float]) -> float:
        """How far from the LiDAR the corners of the raster lie, rounded up."""
        lower = np.array(self.grid.lower)
        upper = lower + np.array(self.grid.cell) * self.grid.shape
        corners = np.array([[x, y] for x in (lower[0], upper[0]) for y in (lower[1], upper[1])])
        places = np.linalg.solve(to_local[:, :2], (corners - to_local[:, 2]).T).T
        return float(np.ceil(np.linalg.norm(places - origin, axis=1).max() / _REACH) * _REACH)


def _to_local(local2global: np.ndarray) -> np.ndarray:
    """(2, 3) from global x, y to those of an augmented LiDAR frame that is levelled, as the devkit levels its patches.

    Args:
        local2global: (4, 4), a similarity that may mirror.
    """
    ahead, aside = local2global[:2, 0], local2global[:2, 1]
    yaw = np.arctan2(ahead[1], ahead[0])
    scale = 1 / np.linalg.norm(local2global[:3, 0])
    side = np.sign(ahead[0] * aside[1] - ahead[1] * aside[0])
    turn = scale * np.array([[np.cos(yaw), np.sin(yaw)], [-side * np.sin(yaw), side * np.cos(yaw)]])
    return np.concatenate([turn, -turn @ local2global[:2, 3:]], axis=1)


def _location(record: FrameRecord) -> str:
    if record.location in LOCATIONS:
        return record.location
    if record.location:
        raise ValueError(
            f"sample {record.token} was recorded at {record.location!r}, of which nuScenes has no map (there are "
            f"{', '.join(LOCATIONS)}); train without LoadBEVSegmentation"
        )
    raise ValueError(
        f"LoadBEVSegmentation needs the location of sample {record.token}, which the info file does not say; create it "
        f"anew with {command('create-data')}"
    )
