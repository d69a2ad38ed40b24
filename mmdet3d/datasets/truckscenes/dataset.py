"""The MAN TruckScenes data set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmdet3d.datasets.nuscenes.create import list_frames
from mmdet3d.datasets.nuscenes.dataset import NuScenesDataset
from mmdet3d.datasets.nuscenes.submission import MODALITIES, MOVING, format_detections, read_submission, write_entries
from mmdet3d.datasets.records import FrameRecord
from mmdet3d.datasets.truckscenes.frames import TRUCKSCENES
from mmdet3d.datasets.truckscenes.tables import CLASS_OF_CATEGORY, load_tables, split_tokens
from mmdet3d.evaluation import truckscenes
from mmdet3d.evaluation.benchmark import Benchmark
from mmdet3d.evaluation.truckscenes import CLASSES, RANGES
from mmdet3d.registry import DATASETS
from mmdet3d.structures import Detections3D

__all__ = ["TruckScenesDataset", "attribute", "evaluate_submission"]

_WORDS = ("method_name", "authors", "affiliation", "description", "code_url", "paper_url")
_VEHICLES = ("car", "truck", "trailer", "other_vehicle", "bus")
_STILL = {
    **dict.fromkeys(_VEHICLES, "vehicle.parked"),
    "bus": "vehicle.stopped",
    **dict.fromkeys(("motorcycle", "bicycle"), "cycle.without_rider"),
    "pedestrian": "pedestrian.standing",
    "traffic_sign": "traffic_sign.pole_mounted",
}
_MOVING = {
    **dict.fromkeys(_VEHICLES, "vehicle.moving"),
    **dict.fromkeys(("motorcycle", "bicycle"), "cycle.with_rider"),
    "pedestrian": "pedestrian.moving",
    "traffic_sign": "traffic_sign.pole_mounted",
}


def attribute(name: str, speed: float) -> str:
    """The attribute that a class most likely has at `speed` m/s; empty for classes without attributes."""
    return (_MOVING if speed > MOVING else _STILL).get(name, "")


@DATASETS.register
class TruckScenesDataset(NuScenesDataset):
    """Key frames of an info file of TruckScenes, in time order: the vehicle's frame, x ahead, y left.

    Arguments are those of `NuScenesDataset`, with twelve classes; `frame` makes no difference.
    """

    x_ahead = True
    known_classes = CLASSES
    modalities = (*MODALITIES, "use_future_frames", "use_tta")
    created_by = "truckscenes"

    @staticmethod
    def benchmark(block: Mapping[str, Any]) -> Benchmark:
        """What `evaluate` reports on the data set of a config block."""
        return truckscenes.benchmark(block.get("object_classes") or CLASSES)

    @staticmethod
    def elsewhere(block: Mapping[str, Any], root: Path, part: str | Path | None, folder: Path) -> dict[str, Any]:
        """See `NuScenesDataset.elsewhere`."""
        if part is None and not (root / block["ann_file"]).is_file():
            part = list_frames(root, folder / "frames.pkl", source=TRUCKSCENES)
        return {**block, "dataset_root": f"{root}/", "ann_file": str(part or block["ann_file"])}

    def evaluate(self, detections: Sequence[Detections3D], out_dir: str | Path) -> dict[str, float]:
        """Official metrics of detections in data-set order; the submission stays in `out_dir`.

        Returns:
            See `evaluate_submission`.

        Raises:
            ValueError: as `format`, or the tables have no such split or annotation.
            FileNotFoundError: the tables are not in the dataset root.
        """
        path = self.format(detections, out_dir)
        if self.version is None:
            raise ValueError(f"the info file does not say of which version it is; set `version` ({path} is written)")
        return evaluate_submission(path, self.root, self.version, self.eval_set, self.tokens, self.classes)

    def _entries(self, found: Detections3D, frame: FrameRecord) -> list[dict[str, Any]]:
        return format_detections(found, frame.token, frame.lidar2ego, frame.ego2global, self.classes, RANGES, attribute)

    def _write(self, results: Mapping[str, Sequence[Mapping[str, Any]]], path: Path) -> Path:
        used = {name: bool(self.modality.get(name, False)) for name in self.modalities}
        return write_entries(results, path, used | dict.fromkeys(_WORDS, ""))


def evaluate_submission(
    results_json: str | Path,
    dataroot: str | Path,
    version: str,
    split: str | None,
    tokens: Sequence[str] | None = None,
    classes: Sequence[str] = CLASSES,
) -> dict[str, float]:
    """Official TruckScenes metrics (detection_cvpr_2024) of a submission file.

    Args:
        split: of that version; None for its validation split.
        tokens: score these samples only; None for all of the split.
        classes: that were looked for.

    Returns:
        See `evaluation.truckscenes.score_results`.

    Raises:
        FileNotFoundError: the file, the tables or the splits are missing.
        ValueError: the file is no submission for exactly these samples, or there is nothing to score.
    """
    results, _ = read_submission(results_json)
    whole = split_tokens(dataroot, version, split)
    wanted = whole if tokens is None else [t for t in whole if t in set(tokens)]
    missing = [t for t in wanted if t not in results]
    if missing or (tokens is None and len(results) > len(wanted)):
        raise ValueError(
            f"{results_json} has entries for {len(results)} samples, of which {len(missing)} of the {len(wanted)} to "
            "score are none; each sample of the split needs one, if only an empty list, and no other"
        )
    tables = load_tables(dataroot, version)
    if not tables.sample_annotation:
        raise ValueError(f"{version} has no public annotations, so it cannot be scored here; submit {results_json}")
    chosen = {t: results[t] for t in wanted}
    return truckscenes.score_results(tables, chosen, CLASS_OF_CATEGORY, classes, str(results_json))
