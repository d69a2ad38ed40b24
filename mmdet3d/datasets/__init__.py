"""Data sets: files to samples."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmdet3d.datasets.base import FrameDataset
from mmdet3d.datasets.kitti.dataset import KittiDataset
from mmdet3d.datasets.nuscenes import NuScenesDataset
from mmdet3d.datasets.sampling import CBGSDataset
from mmdet3d.registry import DATASETS

__all__ = ["CBGSDataset", "FrameDataset", "KittiDataset", "NuScenesDataset", "build_dataset", "build_split"]


def build_dataset(cfg: Mapping[str, Any], seed: int = 0, **fixed: Any) -> FrameDataset | CBGSDataset | KittiDataset:
    """The data set that a config block describes.

    Args:
        cfg: `{type: NuScenesDataset, ...}`, `{type: KittiDataset, ...}`, or `{type: CBGSDataset, dataset: {...}}`.
        seed: for blocks that name none.
        fixed: keys that replace the block's (`test_mode=True` for validation); with CBGS those of the inner block.

    Raises:
        ValueError: an unknown type or key, or what the data set itself refuses.
        FileNotFoundError: a missing info file or folder.
    """
    if isinstance(cfg.get("dataset"), Mapping):
        return DATASETS.build({**cfg, "dataset": {"seed": seed, **cfg["dataset"], **fixed}})
    return DATASETS.build({"seed": seed, **cfg, **fixed})


def build_split(
    data: Mapping[str, Any], split: str, seed: int = 0, **fixed: Any
) -> FrameDataset | CBGSDataset | KittiDataset:
    """The data set of a split of a config's `data`, with the cache that `data.cache` and `data.cache_limit` ask for.

    Args:
        data: of a config.
        split: train, val or test.
        seed, fixed: see `build_dataset`.

    Raises:
        ValueError, FileNotFoundError: see `build_dataset` and `open_cache`.
    """
    # A data set of another project need not know what a cache is as long as none is asked for.
    wanted = data.get("cache", "none") != "none"
    cache = {key: data[key] for key in ("cache", "cache_limit") if wanted and key in data}
    return build_dataset(data[split], seed, **cache, **fixed)
