"""A data set that asks nothing of the disk; `mmdet3d.engine.data.DetectionDataset` says what a data set is.

For frames that lie in files, build on `mmdet3d.datasets.FrameDataset`, which brings the pipeline of transforms.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch

from mmdet3d.registry import DATASETS
from mmdet3d.structures import Boxes3D, Calibration, Detections3D, Sample

SIZE = (4.5, 1.9, 1.6)  # of a car, metres
REACH = 2.0  # metres between the centres of an object and of a detection that has found it


@DATASETS.register
class ThreeFrames:
    """Three LiDAR frames with two cars each, on an empty plain. A car is a block full of points.

    Args:
        points: per car.
        seed: of the places.
        test_mode: as every data set is told; the frames are the same.
    """

    def __init__(self, points: int = 60, seed: int = 0, test_mode: bool = False) -> None:
        self.classes = ("car",)
        self.tokens = ["frame-0", "frame-1", "frame-2"]
        self._samples = [self._make(token, points, seed + k) for k, token in enumerate(self.tokens)]

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: int) -> Sample:
        return self._samples[index]

    def set_epoch(self, epoch: int) -> None:
        """Nothing is augmented."""

    def evaluate(self, detections: Sequence[Detections3D], out_dir: str | Path) -> dict[str, float]:
        """`object/found`: share of the cars that have a detection nearby."""
        self.format(detections, out_dir)
        found = total = 0
        for sample, seen in zip(self._samples, detections, strict=True):
            cars, centers = sample.boxes.tensor[:, :2], seen.boxes.tensor[:, :2].cpu()
            total += len(cars)
            if len(centers):
                found += int((torch.cdist(cars, centers).min(1).values < REACH).sum())
        return {"object/found": found / total}

    def format(self, detections: Sequence[Detections3D], out_dir: str | Path) -> Path:
        """The boxes as JSON, by frame."""
        path = Path(out_dir) / "boxes.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        boxes = {token: seen.boxes.tensor.tolist() for token, seen in zip(self.tokens, detections, strict=True)}
        path.write_text(json.dumps(boxes) + "\n")
        return path

    @staticmethod
    def _make(token: str, points: int, seed: int) -> Sample:
        draw = torch.Generator().manual_seed(seed)
        size = torch.tensor(SIZE)
        # One car before and one behind the sensor, standing, along x.
        places = torch.rand(2, 2, generator=draw) * 10 + torch.tensor([[10.0, -5.0], [-20.0, -5.0]])
        centers = torch.cat([places, torch.full((2, 1), -1.0)], dim=1)
        boxes = torch.cat([centers, size.expand(2, 3), torch.zeros(2, 3)], dim=1)
        cloud = centers[:, None] + (torch.rand(2, points, 3, generator=draw) - 0.5) * size
        cloud = torch.cat([cloud.reshape(-1, 3), torch.zeros(2 * points, 2)], dim=1)  # intensity, time lag
        eye, no_cameras = torch.eye(4), torch.zeros(0, 4, 4)
        return Sample(
            token=token,
            calibration=Calibration(eye, eye, no_cameras, no_cameras, no_cameras, no_cameras, eye),
            clouds={"points": cloud},
            boxes=Boxes3D(boxes),
            labels=torch.zeros(2, dtype=torch.int64),
        )
