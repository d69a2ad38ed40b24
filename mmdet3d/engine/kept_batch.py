"""A batch on disk, to be looked into after a training found something wrong with it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmdet3d.io.weights import read_state, save_state
from mmdet3d.structures import Batch, BEVGrid, BEVMasks, Boxes3D, Calibration, ImageObjects

__all__ = ["keep_batch", "read_batch"]

_HELD: list[Any] = [Batch, BEVGrid, BEVMasks, Boxes3D, Calibration, ImageObjects]
_PLAIN = (str, bool, int, float, Tensor, type(None))


def keep_batch(batch: Batch, path: Path) -> None:
    """Write a batch, on the CPU; of what data sets say beside the fields, plain values alone.

    Raises:
        ValueError: the file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    save_state({"batch": _plain(batch).to("cpu")}, path)


def read_batch(path: str | Path) -> Batch:
    """What `keep_batch` wrote.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it holds something else, or is damaged.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"--batch {path} does not exist")
    try:
        with torch.serialization.safe_globals(_HELD):
            batch = read_state(Path(path)).get("batch")
    except Exception as error:
        raise ValueError(f"--batch {path} is damaged, or no batch that a training kept ({error})") from error
    if not isinstance(batch, Batch) or "clouds" not in vars(batch):
        raise ValueError(f"--batch {path} is no batch that a training of this version kept")
    return batch


def _plain(batch: Batch) -> Batch:
    metas: list[dict[str, Any]] = [{k: v for k, v in meta.items() if _is_plain(v)} for meta in batch.metas]
    return replace(batch, metas=metas, history=batch.history and [_plain(past) for past in batch.history])


def _is_plain(value: Any) -> bool:
    # By the very type: NumPy's float64 is a float, too, and would not be read.
    return all(map(_is_plain, value)) if isinstance(value, (list, tuple)) else type(value) in _PLAIN
