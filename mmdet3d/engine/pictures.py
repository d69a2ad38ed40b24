"""Pictures of what models see and find, on any data set that reads frames."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from mmdet3d.datasets import FrameDataset, KittiDataset
from mmdet3d.engine.settings import autocast_dtype
from mmdet3d.models.detectors.base import Trainable
from mmdet3d.progress import progress_bar
from mmdet3d.structures import Batch, Detections3D, Sample
from mmdet3d.visualization import Layer, draw_frame, side_by_side

__all__ = ["compare", "detect", "draw_sample", "picture_extent"]

# Ground truth beside detections; no class has this colour.
_TRUTH = (0, 190, 80)
_EXTENT = 54.0  # metres, where a config names no range


def picture_extent(cfg: Mapping[str, Any]) -> float:
    """Half width of the bird's-eye view, metres: the farthest that the config's point cloud range reaches."""
    return float(max(map(abs, cfg.get("point_cloud_range") or [_EXTENT])))


@torch.no_grad()
def detect(model: Trainable, sample: Sample, device: torch.device, precision: str = "auto") -> Detections3D:
    """Detections of one sample, on the CPU."""
    dtype = autocast_dtype(precision, device)
    with torch.autocast(device.type, dtype or torch.bfloat16, enabled=dtype is not None):
        return model.predict(Batch.collate([sample]).to(device))[0].to("cpu")


def draw_sample(
    sample: Sample,
    dataset: FrameDataset | KittiDataset,
    detections: Detections3D | None = None,
    truth: bool = True,
    min_score: float = 0.1,
    only: Collection[int] = (),
    extent: float = _EXTENT,
    tall: bool = False,
) -> Image.Image:
    """Ground truth, detections or both of one sample, in its cameras and from above.

    Images are the raw ones: boxes are brought back from the augmented frame.

    Args:
        only: labels to draw; all if empty.
        extent: half width of the bird's-eye view, metres.
        tall: bird's-eye view below the cameras instead of beside them.

    Raises:
        ValueError: `truth` of a sample that has no annotation.
    """
    scene = dataset.scene(sample)
    layers = []
    if truth:
        if scene.boxes is None:
            raise ValueError(f"sample {sample.token} has no annotation to draw; draw detections only")
        layers.append(Layer("ground truth", scene.boxes, scene.labels, None if detections is None else _TRUTH))
    if detections is not None:
        found = replace(detections, boxes=detections.boxes.transform(scene.from_detections))
        layers.append(Layer.from_detections(f"detections >= {min_score:g}", found, min_score))
    if only:
        layers = [layer.select(only) for layer in layers]
    return draw_frame(
        layers,
        dataset.classes,
        scene.calibration,
        images=scene.images,
        names=scene.names,
        points=scene.points,
        radar=scene.radar,
        extent=extent,
        behind=scene.behind,
        tall=tall,
    )


def compare(
    columns: Mapping[str, tuple[Trainable, FrameDataset | KittiDataset]],
    indices: Sequence[int],
    out_dir: Path,
    extent: float,
    min_score: float = 0.2,
) -> list[Path]:
    """One picture per sample: a column per model, each with the ground truth and its own detections.

    Args:
        columns: by title a model, in eval mode, on the CPU or on one device, and the data set as that model reads it.
        indices: samples, the same of every data set.
        extent: half width of the bird's-eye view, metres.
        min_score: of the detections that are drawn.
    """
    out_dir.mkdir(parents=True, exist_ok=True)
    paths = []
    for index in progress_bar(indices, desc="draw", unit="picture"):
        pictures = {}
        for title, (model, dataset) in columns.items():
            sample = dataset[index]
            found = detect(model, sample, next(model.parameters()).device)
            pictures[title] = draw_sample(sample, dataset, found, min_score=min_score, extent=extent, tall=True)
        paths.append(out_dir / f"{index:04d}-{sample.token}.png")
        side_by_side(pictures).save(paths[-1])
    return paths
