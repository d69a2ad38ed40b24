"""The View-of-Delft data set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mmdet3d.blocks import nearest
from mmdet3d.datasets.base import FrameDataset
from mmdet3d.datasets.nuscenes.infos import read_infos
from mmdet3d.datasets.records import FrameRecord
from mmdet3d.datasets.vod.create import CAMERA
from mmdet3d.datasets.vod.files import VodCalibration
from mmdet3d.datasets.vod.labels import evaluate_folder, objects_of, write_objects
from mmdet3d.evaluation import vod
from mmdet3d.evaluation.benchmark import Benchmark
from mmdet3d.evaluation.kitti_objects import Objects
from mmdet3d.evaluation.vod import CLASSES
from mmdet3d.io.files import file_digest
from mmdet3d.registry import DATASETS
from mmdet3d.shell import command, quote, world_command
from mmdet3d.structures import Detections3D

__all__ = ["VodDataset"]


@DATASETS.register
class VodDataset(FrameDataset):
    """Frames of an info file of View-of-Delft: one camera, one LiDAR, one 4-D radar; LiDAR frame, x ahead, y left.

    Objects have no velocity: give the head `code_weights` that end in two zeros.

    Args:
        ann_file: info file, relative to `dataset_root`.
        dataset_root: folder with `lidar`, `radar`, ...
        pipeline: transform configs.
        object_classes: label -> class name; None for Car, Pedestrian, Cyclist, the classes that are scored.
        load_interval: take every n-th frame.
        filter_empty_gt: replace samples without boxes while training.
        test_mode: validation or test set: every sample is returned, annotations are optional.
        seed: of augmentation.
        cache, cache_limit: see `open_cache`.
        views: fixed augmentations of each sample, the same for every seed; None augments anew in every epoch.

    Raises:
        FileNotFoundError: no such info file.
        ValueError: an unreadable info file or one of another data set, or an unknown class.
    """

    x_ahead = True
    knows_velocity = False

    def __init__(
        self,
        ann_file: str,
        dataset_root: str,
        pipeline: Sequence[Mapping[str, Any]] = (),
        object_classes: Sequence[str] | None = None,
        load_interval: int = 1,
        filter_empty_gt: bool = True,
        test_mode: bool = False,
        seed: int = 0,
        cache: str = "none",
        cache_limit: float = 8,
        views: int | None = None,
    ) -> None:
        classes = tuple(object_classes or CLASSES)
        for name in classes:
            if name not in CLASSES:
                raise ValueError(
                    f"unknown class {name!r} in object_classes{nearest(name, CLASSES)} (known: {', '.join(CLASSES)})"
                )
        if load_interval < 1:
            raise ValueError(f"load_interval: {load_interval} must be at least 1")
        info_file = Path(dataset_root) / ann_file
        if not info_file.is_file():
            world = "" if (Path(dataset_root) / "lidar").is_dir() else world_command("vod", dataset_root)
            make = f"make the synthetic world, {world}, and then its info files" if world else "create it"
            raise FileNotFoundError(
                f"info file {info_file} does not exist; set ann_file / info_prefix to one that does, or {make}: "
                f"{command('create-data')} vod --root-path {quote(dataset_root)} --extra-tag "
                f"{quote(ann_file.split('_infos_')[0])}"
            )
        records, metadata = read_infos(info_file)
        if metadata.get("dataset") != "vod":
            raise ValueError(f"info file {info_file} is not of View-of-Delft; write one with create_data.py vod")
        super().__init__(
            records,
            dataset_root,
            pipeline,
            classes,
            test_mode,
            filter_empty_gt,
            seed,
            load_interval,
            cache=cache,
            cache_limit=cache_limit,
            views=views,
            content={"info_file": file_digest(info_file)},
        )

    @staticmethod
    def benchmark(block: Mapping[str, Any]) -> Benchmark:
        """What `evaluate` reports on the data set of a config block."""
        return vod.benchmark()

    @staticmethod
    def elsewhere(block: Mapping[str, Any], root: Path, part: str | Path | None, folder: Path) -> dict[str, Any]:
        """The block for the data in `root`; `part` is an info file, relative to it, None for the block's."""
        return {**block, "dataset_root": f"{root}/", "ann_file": str(part or block["ann_file"])}

    def format(self, detections: Sequence[Detections3D], out_dir: str | Path) -> Path:
        """Write `{out_dir}/detections/{frame}.txt` for every frame, in data-set order; returns the folder.

        Boxes that no part of the image shows are left out.

        Raises:
            ValueError: another number of samples, or a number that is not finite.
        """
        if len(detections) != len(self):
            raise ValueError(f"{len(detections)} results for {len(self)} samples; each sample needs one")
        folder = Path(out_dir) / "detections"
        for index, found in enumerate(detections):
            if not (found.boxes.tensor.isfinite().all() and found.scores.isfinite().all()):
                raise ValueError(
                    f"frame {self.tokens[index]}: a detection is not finite; the model diverged or its weights are not "
                    "for this config"
                )
            write_objects(folder / f"{self.tokens[index]}.txt", self._objects(self.frame(index), found))
        return folder

    def evaluate(self, detections: Sequence[Detections3D], out_dir: str | Path) -> dict[str, float]:
        """Official metrics of detections in data-set order; the result files stay in `out_dir`.

        Returns:
            See `evaluation.vod.evaluate`.

        Raises:
            ValueError: as `format`.
            FileNotFoundError: a label file is not in the dataset root (the test split has none).
        """
        folder = self.format(detections, out_dir)
        return evaluate_folder(folder, self.root / "lidar" / "training" / "label_2", self.tokens)

    def _objects(self, record: FrameRecord, found: Detections3D) -> Objects:
        camera = record.cameras[CAMERA]
        assert camera.size is not None  # info files of this data set have it
        to_camera = np.linalg.inv(camera.sensor2lidar)
        calibration = VodCalibration(camera.intrinsics, lidar2camera=to_camera, radar2camera=to_camera)
        names = [self.classes[k] for k in found.labels.tolist()]
        scores = found.scores.detach().cpu().double().numpy()
        objects = objects_of(found.boxes.to("cpu"), names, scores, calibration, camera.size)
        return objects[(objects.boxes2d[:, 2:] > objects.boxes2d[:, :2]).all(axis=1)]
