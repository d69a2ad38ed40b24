"""Data sets: files to samples."""

from __future__ import annotations

import inspect
import tempfile
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmdet3d.blocks import ConfigKeyError, check_kind
from mmdet3d.datasets.base import FrameDataset
from mmdet3d.datasets.kitti.dataset import KittiDataset
from mmdet3d.datasets.nuscenes import NuScenesDataset
from mmdet3d.datasets.sampling import CBGSDataset, MixedDataset
from mmdet3d.datasets.truckscenes.dataset import TruckScenesDataset
from mmdet3d.datasets.vod.dataset import VodDataset
from mmdet3d.evaluation.benchmark import Benchmark
from mmdet3d.registry import DATASETS

__all__ = [
    "CBGSDataset",
    "FrameDataset",
    "KittiDataset",
    "MixedDataset",
    "NuScenesDataset",
    "TruckScenesDataset",
    "VodDataset",
    "benchmark_of",
    "build_dataset",
    "build_split",
    "check_data",
    "named_split",
    "open_folder",
    "require_sensors",
]


def benchmark_of(block: Any) -> Benchmark:
    """What is reported on the data set of a config block; empty where that is not known."""
    try:
        return DATASETS.get(block["type"]).benchmark(block)
    except (AttributeError, KeyError, TypeError, ValueError):  # one that says nothing, or that its builder refuses
        return Benchmark()


def build_dataset(cfg: Mapping[str, Any], seed: int = 0, key: str = "", **fixed: Any) -> Any:
    """The data set that a config block describes.

    Args:
        cfg: `{type: NuScenesDataset, ...}`, `{type: KittiDataset, ...}`, or `{type: CBGSDataset, dataset: {...}}`.
        seed: for blocks that name none.
        key: of the config, where `cfg` stands, for messages.
        fixed: keys that replace the block's (`test_mode=True` for validation); with CBGS those of the inner block.

    Raises:
        ValueError: an unknown type or key, or what the data set itself refuses.
        FileNotFoundError: a missing info file or folder.
    """
    if isinstance(cfg.get("dataset"), Mapping):
        return DATASETS.build({**cfg, "dataset": {"seed": seed, **cfg["dataset"], **fixed}}, key)
    return DATASETS.build({"seed": seed, **cfg, **fixed}, key)


def build_split(
    data: Mapping[str, Any], split: str, seed: int = 0, sensors: Sequence[str] | None = None, **fixed: Any
) -> Any:
    """The data set of a split of a config's `data`, with the cache that `data.cache` and `data.cache_limit` ask for.

    The training set has the frames without labels of `data.unlabelled` beside it, `{share, ...}`: the share of a batch,
    and keys in which they differ from `data.train` (`ann_file`, `part`, ...).

    Args:
        data: of a config.
        split: train, val or test.
        sensors: what is read, such as camera and lidar, for a data set that can do without the others; beside those
            that its block names.
        seed, fixed: see `build_dataset`.

    Raises:
        ValueError, FileNotFoundError: see `build_dataset` and `open_cache`.
    """
    # A data set of another project need not know what a cache is as long as none is asked for.
    wanted = data.get("cache", "none") != "none"
    cache = {key: data[key] for key in ("cache", "cache_limit") if wanted and key in data}
    block = _inner(data[split])
    if sensors is not None and _takes_sensors(block):
        fixed["sensors"] = list(dict.fromkeys([*(block.get("sensors") or ()), *sensors]))
    dataset = build_dataset(data[split], seed, f"data.{split}", **cache, **fixed)
    extra = data.get("unlabelled") if split == "train" else None
    if extra is None:
        return dataset
    check_kind(extra, Mapping[str, Any], "data.unlabelled")
    if "share" not in extra:
        raise ConfigKeyError("data.unlabelled.share", " is missing: the share of each batch without labels")
    changes = {key: value for key, value in extra.items() if key != "share"}
    others = build_dataset({**block, **changes, "labelled": False}, seed, "data.unlabelled", **cache, **fixed)
    mixed = MixedDataset(dataset, others, extra["share"])
    _check_unlabelled(dataset.dataset if isinstance(dataset, CBGSDataset) else dataset, others)
    return mixed


def open_folder(
    block: Mapping[str, Any], root: str | Path, part: str | Path | None = None, sensors: Sequence[str] | None = None
) -> Any:
    """The frames of another folder, for detection: what the `val` of a config describes, with `root` in its place.

    Args:
        part: which frames, in the data set's own words, see its `elsewhere`; None for the config's.
        sensors: see `build_split`.

    Raises:
        ValueError, FileNotFoundError: see the data set.
    """
    block = _inner(block)
    with tempfile.TemporaryDirectory() as folder:
        moved = DATASETS.get(block["type"]).elsewhere(block, Path(root), part, Path(folder))
        return build_split({"val": moved}, "val", 0, sensors, test_mode=True)


def require_sensors(block: dict[str, Any], sensors: Sequence[str]) -> None:
    """Let the data set of a block use only frames that have these sensors, if it can leave out others; in place."""
    if sensors and _takes_sensors(_inner(block)):
        _inner(block)["sensors"] = list(sensors)


def _inner(block: Any) -> Any:
    """The block of the data set itself, without what repeats it."""
    return block["dataset"] if isinstance(block.get("dataset"), Mapping) else block


def _takes_sensors(block: Mapping[str, Any]) -> bool:
    return "sensors" in inspect.signature(DATASETS.get(block["type"])).parameters


def named_split(data: Mapping[str, Any], split: str) -> Mapping[str, Any]:
    """The block of a split of a config's `data`; `test` of a data set with splits by name are that split's frames.

    Configs whose test set is the validation set say so by the name alone, and its labels are not those of `test`.
    """
    block = data[split]
    if split == "test" and "split" in block and block["split"] == (data.get("val") or {}).get("split"):
        return {**block, "split": "test"}
    return block


def _check_unlabelled(labelled: Any, others: Any) -> None:
    """Raises ValueError if frames of `data.unlabelled` are those of `data.train`, or have no depth maps as those do."""
    shared = _frames(labelled) & _frames(others)
    if shared:
        raise ValueError(
            f"data.unlabelled has {len(shared)} of the {len(_frames(labelled))} frames of data.train, whose labels are "
            "known; name what differs, such as ann_file or part, so that both have none in common"
        )
    if getattr(labelled, "depth_dir", None) is not None and getattr(others, "depth_dir", None) is None:
        raise ValueError(
            f"data.unlabelled: the split {others.split} of KITTI has no depth maps, which depth_dir asks for and the "
            "frames of data.train have; take frames of the folder training (split, part), or set depth_dir to null"
        )


def _frames(dataset: Any) -> set[tuple[str, ...]]:
    """Names of a data set's frames; KITTI gives a frame of training and one of testing the same number."""
    folder = str(getattr(dataset, "folder", ""))
    return {(folder, token) for token in getattr(dataset, "tokens", ())}


def check_data(dataset: Any, inputs: Collection[str], key: str, scored: bool = False) -> None:
    """Say before a training or test what a model needs and its data never has. Data sets of other projects pass.

    Args:
        inputs: sensors that the model reads.
        key: of the config, which the message names.
        scored: detections will be scored.

    Raises:
        ValueError: what is missing, see the data set's `check`.
    """
    if isinstance(dataset, MixedDataset):
        check_data(dataset.labelled, inputs, key, scored)
        check_data(dataset.unlabelled, inputs, "data.unlabelled")
        return
    dataset = dataset.dataset if isinstance(dataset, CBGSDataset) else dataset
    if isinstance(dataset, (FrameDataset, KittiDataset)):
        try:
            dataset.check(inputs, scored)
        except ValueError as error:
            raise ValueError(f"{key}: {error}") from None
