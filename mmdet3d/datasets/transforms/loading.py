"""What every loader shares, and the annotations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from mmdet3d.datasets.records import Context, Transform
from mmdet3d.registry import TRANSFORMS
from mmdet3d.structures import Boxes3D, Sample

__all__ = ["LoadAnnotations3D", "need", "read_bytes"]


def read_bytes(path: Path, what: str) -> bytes:
    """The content of a sensor file.

    Raises:
        FileNotFoundError: it does not exist.
    """
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise FileNotFoundError(
            f"{what} file {path} does not exist; check dataset_root, or fetch the missing part of the data set"
        ) from None


def need(sample: Sample, field: str, user: Transform, loader: str) -> Any:
    """The sample's `field`, or a ValueError that says which transform must run before `user`."""
    value = sample.held(field)
    if value is None:
        raise ValueError(f"{type(user).__name__} needs {field}; put {loader} before it in the pipeline")
    return value


@TRANSFORMS.register
class LoadAnnotations3D(Transform):
    """Boxes and labels of the frame; frames without labels pass unchanged, here and in the filters.

    Labels index the data set's class list. Unknown velocities become 0. While training, boxes of other classes stay
    with label -1 until `ObjectNameFilter`, so that no object is pasted onto them; otherwise they are dropped here.
    """

    def __call__(self, sample: Sample, context: Context) -> Sample:
        record = context.record
        if record.boxes is None or record.names is None:
            return sample
        boxes = np.array(record.boxes, dtype=np.float64).reshape(-1, 9)
        boxes[np.isnan(boxes[:, 7:]).any(axis=1), 7:] = 0
        index = {name: i for i, name in enumerate(context.classes)}
        labels = np.array([index.get(name, -1) for name in record.names], dtype=np.int64)
        if not context.training:
            boxes, labels = boxes[labels >= 0], labels[labels >= 0]
        sample.boxes = Boxes3D(torch.as_tensor(boxes).float())
        sample.labels = torch.as_tensor(labels)
        return sample
