"""Which labelled objects a network learns from, and whether labels, calibration and image of a frame fit."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from mmdet3d.datasets.kitti.files import image_file, read_calibration
from mmdet3d.datasets.kitti.labels import read_labels
from mmdet3d.datasets.tally import Tally
from mmdet3d.evaluation.kitti_objects import DONT_CARE, Objects

__all__ = ["check_frames", "count_objects", "why_left_out"]

# What is learnt: objects that the benchmark counts as hard or easier, the height as upstream measures it, not too near.
_MIN_HEIGHT, _MAX_TRUNCATION, _MAX_OCCLUSION, _MIN_DEPTH = 25.0, 0.5, 2, 2.0
_OUTSIDE = 0.2  # share of labels whose middle may lie outside of their images


def why_left_out(objects: Objects) -> np.ndarray:
    """(N,) text: why an object is not learnt, whatever its class; empty where it is.

    Truncation and occlusion that are not given (-1) hide nothing, as in the benchmark.
    """
    height = objects.boxes2d[:, 3] - objects.boxes2d[:, 1] + 1
    reasons = {
        f"less than {_MIN_HEIGHT:.0f} pixels high": height < _MIN_HEIGHT,
        f"occluded {_MAX_OCCLUSION + 1} or more": objects.occluded > _MAX_OCCLUSION,
        f"truncated more than {_MAX_TRUNCATION}": objects.truncated > _MAX_TRUNCATION,
        f"nearer than {_MIN_DEPTH:.0f} m": objects.locations[:, 2] < _MIN_DEPTH,
    }
    return np.select(list(reasons.values()), list(reasons), default="")


def count_objects(frames: Iterable[Objects], classes: Collection[str]) -> Tally:
    """Which objects of the frames are learnt, and why the others are not."""
    tally = Tally()
    for objects in frames:
        objects = objects[objects.names != DONT_CARE]
        reasons = why_left_out(objects)
        hidden = (reasons != "") & np.isin(objects.names, list(classes))
        left_out: dict[str, int] = {}
        for name, reason in zip(objects.names[hidden].tolist(), reasons[hidden].tolist(), strict=True):
            left_out[f"{name} {reason}"] = left_out.get(f"{name} {reason}", 0) + 1
        tally.add(objects.names[~hidden].tolist(), classes, left_out)
    return tally


def check_frames(folder: Path, ids: Iterable[str], class_map: Mapping[str, str] | None = None) -> None:
    """Compare the sizes of some images with where labels and calibration expect their content.

    Args:
        folder: with `image_2`, `label_2` and `calib`, all with the files of `ids`.
        class_map: see `read_labels`.

    Raises:
        FileNotFoundError: one of the files is missing.
        ValueError: they belong to images of another size.
    """
    boxes, outside = 0, 0
    for frame in ids:
        path = image_file(folder / "image_2", frame)
        if not path.is_file():
            raise FileNotFoundError(f"image file {path} does not exist; check dataset_root")
        try:
            with Image.open(path) as image:
                size = np.array(image.size)
        except UnidentifiedImageError:
            raise ValueError(f"{path} is no image; fetch it again") from None
        p2 = read_calibration(folder / "calib" / f"{frame}.txt").p2
        labels = read_labels(folder / "label_2" / f"{frame}.txt", class_map).boxes2d
        middles = (labels[:, :2] + labels[:, 2:]) / 2
        boxes, outside = boxes + len(labels), outside + int((middles > size).any(axis=1).sum())
        if (p2[:2, 2] > size).any() or outside > max(1, _OUTSIDE * boxes):
            raise ValueError(
                f"{path} has {size[0]} x {size[1]} pixels, but the principal point of its calibration is at "
                f"({p2[0, 2]:.0f}, {p2[1, 2]:.0f}), and {outside} of {boxes} labels up to here lie outside of their "
                "images; they belong to another size: take the original images, or scale P2 and the 2-D boxes "
                "with them"
            )
