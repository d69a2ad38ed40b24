"""The nuScenes data set."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mmdet3d.blocks import ConfigKeyError, check_keys, nearest
from mmdet3d.datasets.base import FrameDataset, unannotated, with_annotations
from mmdet3d.datasets.nuscenes.complete import incomplete_frames
from mmdet3d.datasets.nuscenes.create import list_frames
from mmdet3d.datasets.nuscenes.ego_frame import in_ego_frame
from mmdet3d.datasets.nuscenes.infos import read_infos
from mmdet3d.datasets.nuscenes.submission import MODALITIES, evaluate_submission, format_detections, write_submission
from mmdet3d.datasets.records import FrameRecord, SensorRecord
from mmdet3d.datasets.sampling import part_of
from mmdet3d.evaluation import nuscenes, segmentation
from mmdet3d.evaluation.benchmark import Benchmark, combined
from mmdet3d.evaluation.nuscenes import CLASSES
from mmdet3d.evaluation.segmentation import MapSegmentation
from mmdet3d.evaluation.tasks import Detection, Task
from mmdet3d.io.files import file_digest
from mmdet3d.registry import DATASETS
from mmdet3d.shell import command, quote, world_command
from mmdet3d.structures import Detections3D, point_sensors

__all__ = ["NuScenesDataset"]


@DATASETS.register
class NuScenesDataset(FrameDataset):
    """Key frames of an info file, in time order.

    Of an info file that was made with `--allow-missing`, frames without one of the cameras, or without the scan or
    radar that is needed, are left out, in training and in test mode; scores are of the other frames.

    Args:
        ann_file: info file (ours, CRKD's, BEVFusion's, mmdetection3d's), relative to `dataset_root`.
        dataset_root: nuScenes folder.
        pipeline: transform configs.
        object_classes: label -> class name; None for the ten detection classes.
        load_interval: take every n-th frame.
        part: lower and upper end, in [0, 1], of the share of all scenes whose frames are taken; scenes are in a random
            order that is always the same, so that [0, 0.25] and [0.25, 1] have no scene in common.
        labelled: false takes the annotations away, for frames that only a teacher comments on.
        use_valid_flag: annotations count if LiDAR or radar points lie in the box; otherwise LiDAR points alone count.
        filter_empty_gt: replace samples without boxes while training.
        test_mode: validation or test set: every sample is returned, annotations are optional.
        modality: `use_camera`, `use_lidar`, ...: what the submission file declares.
        version: nuScenes version for the evaluation; None for the info file's.
        eval_set: split for the evaluation; None for the info file's, or the validation split.
        seed: of augmentation.
        frame: of points, boxes and predictions: `lidar`, the scanner's, or `ego`, the vehicle's at the same time.
        cache, cache_limit: see `open_cache`.
        views: fixed augmentations of each sample, the same for every seed; None augments anew in every epoch.
        tasks: what is scored, by the names of the heads, the most important first: `object`, the boxes, and `map`, the
            classes that `LoadBEVSegmentation` of the pipeline loads.
        sensors: what a frame must have, such as camera and radar; None for all that the pipeline reads. The engine
            adds what the model and its teachers read; `[lidar]` shows a student without teacher the frames of one with.

    Raises:
        FileNotFoundError: no such info file.
        ValueError: an unreadable info file, an unknown class, modality, task or frame, or, of an info file that was
            made with `--allow-missing`, no frame whose files are all there; or a part without scenes.
    """

    known_classes: Sequence[str] = CLASSES
    modalities: Sequence[str] = MODALITIES
    created_by = "nuscenes"  # subcommand of create_data

    def __init__(
        self,
        ann_file: str,
        dataset_root: str,
        pipeline: Sequence[Mapping[str, Any]] = (),
        object_classes: Sequence[str] | None = None,
        load_interval: int = 1,
        use_valid_flag: bool = False,
        filter_empty_gt: bool = True,
        test_mode: bool = False,
        modality: Mapping[str, bool] | None = None,
        version: str | None = None,
        eval_set: str | None = None,
        seed: int = 0,
        frame: str = "lidar",
        part: Sequence[float] = (0.0, 1.0),
        labelled: bool = True,
        cache: str = "none",
        cache_limit: float = 8,
        views: int | None = None,
        tasks: Sequence[str] = ("object",),
        sensors: Sequence[str] | None = None,
    ) -> None:
        classes = tuple(object_classes or self.known_classes)
        _check_classes(classes, self.known_classes)
        self.modality = dict(modality or {})
        check_keys(self.modality, self.modalities, "modality")
        self.task_names = _checked_tasks(tasks, pipeline)
        if load_interval < 1:
            raise ValueError(f"load_interval: {load_interval} must be at least 1")
        known = ("camera", *(sensor.name for sensor in point_sensors()))
        for sensor in sensors or ():
            if sensor not in known:
                raise ConfigKeyError("sensors", f" may name {', '.join(known)}, got {sensor!r}")
        if frame not in ("lidar", "ego"):
            raise ValueError(f"frame: {frame!r} is unknown, use lidar or ego")
        info_file = _find_info_file(Path(dataset_root), ann_file, self.created_by)
        records, metadata = read_infos(info_file)
        records = sorted(records, key=lambda r: r.timestamp)
        if not records:
            raise ValueError(f"info file {ann_file} in {dataset_root} holds no frame")
        records = _of_scenes(records, part)
        why = "without LiDAR or radar points" if use_valid_flag else "without LiDAR points"
        records = [
            with_annotations(r, _counting(r, use_valid_flag), why) if labelled else unannotated(r) for r in records
        ]
        if frame == "ego":
            records = [in_ego_frame(r) for r in records]
        # Every file of the others was there when they were written; looking again costs time on a network drive.
        lacking: set[str] = set()
        if metadata.get("missing"):
            lacking, scanless = incomplete_frames(records, Path(dataset_root), pipeline, sensors, test_mode)
            records = [dataclasses.replace(r, lidar=_nowhere(r.lidar)) if r.token in scanless else r for r in records]
        self._map_classes = _map_classes(pipeline)
        super().__init__(
            records,
            dataset_root,
            pipeline,
            classes,
            test_mode,
            filter_empty_gt,
            seed,
            load_interval,
            lacking,
            cache,
            cache_limit,
            views,
            {
                "info_file": file_digest(info_file),
                "frame": frame,
                "use_valid_flag": use_valid_flag,
                "part": list(part),
                "labelled": labelled,
            },
        )
        self.x_ahead = self.x_ahead or frame == "ego"
        self.version = version or metadata.get("version")
        self.eval_set = eval_set or metadata.get("split")

    def check(self, inputs: Collection[str], scored: bool = False) -> None:
        super().check(inputs, scored and "object" in self.task_names)

    @staticmethod
    def benchmark(block: Mapping[str, Any]) -> Benchmark:
        """What is reported on the data set of a config block."""
        classes, pipeline = block.get("object_classes") or CLASSES, block.get("pipeline") or ()
        asked = _checked_tasks(block.get("tasks") or ("object",), pipeline)
        found = {"object": nuscenes.benchmark(classes), "map": segmentation.benchmark(_map_classes(pipeline))}
        return combined([found[name] for name in asked])

    @property
    def tasks(self) -> dict[str, Task]:
        """How what is scored is scored, by the names of the heads."""
        scored: dict[str, Task] = {}
        for name in self.task_names:
            scored[name] = Detection(self.evaluate) if name == "object" else MapSegmentation(self._map_classes)
        return scored

    @staticmethod
    def elsewhere(block: Mapping[str, Any], root: Path, part: str | Path | None, folder: Path) -> dict[str, Any]:
        """The block for the data in `root`.

        Args:
            part: info file, relative to `root`; None for the block's, and where that is not there all frames of the one
                version of tables that is.
            folder: for an info file of these, needed until the data set is built.
        """
        if part is None and not (root / block["ann_file"]).is_file():
            part = list_frames(root, folder / "frames.pkl")
        return {**block, "dataset_root": f"{root}/", "ann_file": str(part or block["ann_file"])}

    def format(self, detections: Sequence[Detections3D], out_dir: str | Path) -> Path:
        """Write detections (one per sample, in data-set order) as `{out_dir}/results_nusc.json`; returns its path.

        Raises:
            ValueError: another number of samples, or a number that is not finite.
        """
        if len(detections) != len(self):
            raise ValueError(f"{len(detections)} results for {len(self)} samples; each sample needs one")
        results = {}
        for index, found in enumerate(detections):
            frame = self.frame(index)
            results[frame.token] = self._entries(found, frame)
        return self._write(results, Path(out_dir) / "results_nusc.json")

    def _entries(self, found: Detections3D, frame: FrameRecord) -> list[dict[str, Any]]:
        return format_detections(found, frame.token, frame.lidar2ego, frame.ego2global, self.classes)

    def _write(self, results: Mapping[str, Sequence[Mapping[str, Any]]], path: Path) -> Path:
        return write_submission(results, path, **self.modality)

    def evaluate(self, detections: Sequence[Detections3D], out_dir: str | Path) -> dict[str, float]:
        """Official metrics of detections in data-set order; submission and metrics stay in `out_dir`.

        Returns:
            See `evaluate_submission`.

        Raises:
            ValueError: as `format`; or this data cannot be scored (`v1.0-test`, unknown version).
            FileNotFoundError: the nuScenes tables are not in the dataset root.
        """
        path = self.format(detections, out_dir)
        if self.version is None:
            raise ValueError(
                f"the info file does not say which nuScenes version it is of; set `version` ({path} is written)"
            )
        return evaluate_submission(path, self.root, self.version, self.eval_set, out_dir, self.tokens, self.classes)


def _checked_tasks(tasks: Sequence[str], pipeline: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    for name in tasks:
        if name not in ("object", "map"):
            raise ConfigKeyError("tasks", f": {name!r} is unknown (known: object, map)")
        if name == "map" and not _map_classes(pipeline):
            raise ConfigKeyError("tasks", ": 'map' needs LoadBEVSegmentation in the pipeline")
    return tuple(tasks)


def _map_classes(pipeline: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """Those that the pipeline loads."""
    loaders = [step for step in pipeline if isinstance(step, Mapping) and step.get("type") == "LoadBEVSegmentation"]
    return tuple(loaders[-1]["classes"]) if loaders else ()


def _find_info_file(root: Path, ann_file: str, created_by: str) -> Path:
    path = root / ann_file
    if path.is_file():
        return path
    prefix = ann_file.split("_infos_")[0]
    world = world_command(created_by, root, prefix)
    if not root.is_dir() and not world:
        raise FileNotFoundError(f"dataset_root {root} does not exist")
    there = sorted(p.name for p in root.glob("*infos*.pkl") if "dbinfos" not in p.name)
    versions = sorted(p.parent.name for p in root.glob("*/sample_data.json"))
    version = versions[0] if versions and "v1.0-trainval" not in versions else "v1.0-trainval"
    if world and not versions:
        from mmdet3d.datasets.synthetic import VERSION  # whose parts need this package

        version, make = VERSION, f"make the synthetic world, {world}, and then its info files"
    else:
        make = "create it"
    raise FileNotFoundError(
        f"info file {path} does not exist (info files there: {', '.join(there) or 'none'}); set ann_file / info_prefix "
        f"to one of them, or {make}: {command('create-data')} {created_by} --root-path {quote(root)} --out-dir "
        f"{quote(root)} --extra-tag {quote(prefix)} --version {version}"
    )


def _nowhere(sensor: SensorRecord) -> SensorRecord:
    """Of a sensor without a file."""
    return dataclasses.replace(sensor, path="")


def _of_scenes(records: list[FrameRecord], part: Sequence[float]) -> list[FrameRecord]:
    """The frames of a share of the scenes."""
    scenes = list(dict.fromkeys(r.scene_token for r in records))
    chosen = set(part_of(scenes, part, "scenes"))
    return [r for r in records if r.scene_token in chosen]


def _check_classes(classes: Sequence[str], known: Sequence[str]) -> None:
    for name in classes:
        if name not in known:
            raise ValueError(
                f"unknown class {name!r} in object_classes{nearest(name, known)} (known: {', '.join(known)})"
            )
    if len(set(classes)) != len(classes):
        raise ValueError(f"object_classes names a class twice: {', '.join(classes)}")


def _counting(record: FrameRecord, use_valid_flag: bool) -> np.ndarray:
    """(N,) bool: annotations with points."""
    points = record.num_lidar_pts
    if points is None:
        return np.ones(0 if record.boxes is None else len(record.boxes), dtype=bool)
    if use_valid_flag and record.num_radar_pts is not None:
        points = points + record.num_radar_pts
    return points > 0
