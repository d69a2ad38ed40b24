"""Pictures of what models see and find, on any data set that reads frames."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from PIL import Image
from tqdm import tqdm

from mmdet3d.datasets import FrameDataset
from mmdet3d.datasets.transforms.images import read_image
from mmdet3d.engine.settings import autocast_dtype
from mmdet3d.models.detectors.base import Trainable
from mmdet3d.structures import Batch, Detections3D, Sample
from mmdet3d.visualization import Layer, draw_frame, side_by_side

__all__ = ["compare", "detect", "draw_sample"]

# Ground truth beside detections; no class has this colour.
_TRUTH = (0, 190, 80)


@torch.no_grad()
def detect(model: Trainable, sample: Sample, device: torch.device, precision: str = "auto") -> Detections3D:
    """Detections of one sample, on the CPU."""
    dtype = autocast_dtype(precision, device)
    with torch.autocast(device.type, dtype or torch.bfloat16, enabled=dtype is not None):
        return model.predict(Batch.collate([sample]).to(device))[0].to("cpu")


def draw_sample(
    sample: Sample,
    dataset: FrameDataset,
    detections: Detections3D | None = None,
    truth: bool = True,
    min_score: float = 0.1,
    only: Collection[int] = (),
    extent: float = 54.0,
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
    layers = []
    if truth:
        if sample.boxes is None:
            raise ValueError(f"sample {sample.token} has no annotation to draw; draw detections only")
        layers.append(Layer("ground truth", sample.boxes, sample.labels, None if detections is None else _TRUTH))
    if detections is not None:
        layers.append(Layer.from_detections(f"detections >= {min_score:g}", detections, min_score))
    if only:
        layers = [layer.select(only) for layer in layers]
    identity = torch.eye(4).expand_as(sample.calibration.image_aug)
    return draw_frame(
        layers,
        dataset.classes,
        replace(sample.calibration, image_aug=identity),
        images=[read_image(dataset.root / path) for path in sample.meta["image_paths"]],
        names=sample.meta["cameras"],
        points=sample.points,
        radar=sample.radar,
        extent=extent,
        tall=tall,
    )


def compare(
    models: Mapping[str, Trainable], dataset: FrameDataset, indices: Sequence[int], out_dir: Path, extent: float
) -> list[Path]:
    """One picture per sample: a column per model, each with the ground truth and its own detections.

    Args:
        models: by title, in eval mode, on the CPU or on one device.
        indices: samples of the data set.
        extent: half width of the bird's-eye view, metres.
    """
    out_dir.mkdir(parents=True, exist_ok=True)
    paths = []
    for index in tqdm(indices, desc="draw", unit="picture"):
        sample = dataset[index]
        columns = {}
        for title, model in models.items():
            device = next(model.parameters()).device
            found = detect(model, sample, device)
            columns[title] = draw_sample(sample, dataset, found, min_score=0.2, extent=extent, tall=True)
        paths.append(out_dir / f"{index:04d}-{sample.token}.png")
        side_by_side(columns).save(paths[-1])
    return paths
