"""Pictures of what models see and find, on any data set that reads frames."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from mmdet3d.config import Config
from mmdet3d.datasets import build_split
from mmdet3d.datasets.scene import Scene
from mmdet3d.distill.distiller import Distiller
from mmdet3d.engine.data import PictureDataset
from mmdet3d.engine.heat_maps import TapMap, difference, loss_map, tap_map
from mmdet3d.engine.settings import autocast_dtype
from mmdet3d.interop.checkpoints import load_checkpoint
from mmdet3d.models import build_model
from mmdet3d.models.detectors.base import Detector, Trainable
from mmdet3d.progress import progress_bar
from mmdet3d.shell import number_of
from mmdet3d.structures import Batch, BEVMasks, Boxes3D, Detections3D, Sample, by_sensor, point_sensors
from mmdet3d.visualization import Areas, Heat, Layer, Panel, draw_frame, draw_panels, verdict_counts, verdict_layers

__all__ = [
    "Answer",
    "Columns",
    "ask",
    "compare",
    "detect",
    "draw_maps",
    "draw_sample",
    "in_scene",
    "open_model",
    "picture_extent",
    "side_by_side",
]

# By title a model and the data set as it reads it.
Columns = Mapping[str, tuple[Trainable, PictureDataset]]

_NEAR, _FAR = 55.0, 100.0  # metres, of a view that reaches as far as its boxes
_STRENGTH = "weak to strong"


def picture_extent(cfg: Mapping[str, Any]) -> float | None:
    """Half width of the bird's-eye view, metres: the farthest that the config's point cloud range reaches.

    None where a config has none: each picture then reaches as far as its boxes do.
    """
    limits = cfg.get("point_cloud_range")
    return float(max(map(abs, limits))) if limits else None


def _reach(extent: float | None, layers: Iterable[Layer]) -> float:
    if extent is not None:
        return extent
    ends = [layer.boxes.footprint().abs().max().item() for layer in layers if len(layer.boxes)]
    return min(max([_NEAR, *(5.0 * math.ceil(end / 5.0) for end in ends)]), _FAR)


def open_model(cfg: Config, weights: str | Path) -> tuple[Trainable, PictureDataset]:
    """A trained model in eval mode, and the validation set as it reads it."""
    model = build_model(cfg.model).eval()
    load_checkpoint(model, weights)
    return model, build_split(cfg.data, "val", 0, model.inputs, test_mode=True)


@dataclass(frozen=True)
class Answer:
    """What of a model's answers can be drawn, on the CPU; None where no head says such a thing.

    Args:
        detections: boxes.
        masks: probabilities of the classes of the ground.
    """

    detections: Detections3D | None
    masks: BEVMasks | None


@torch.no_grad()
def ask(model: Trainable, sample: Sample, device: torch.device, precision: str = "auto") -> Answer:
    """What all heads of a model say of one sample."""
    dtype = autocast_dtype(precision, device)
    with torch.autocast(device.type, dtype or torch.bfloat16, enabled=dtype is not None):
        said = [answers[0] for answers in model.predict_tasks(Batch.collate([sample]).to(device)).values()]
    found = next((each.to("cpu") for each in said if isinstance(each, Detections3D)), None)
    return Answer(found, next((each.to("cpu") for each in said if isinstance(each, BEVMasks)), None))


@torch.no_grad()
def detect(model: Trainable, sample: Sample, device: torch.device, precision: str = "auto") -> Detections3D:
    """Detections of one sample, on the CPU."""
    dtype = autocast_dtype(precision, device)
    with torch.autocast(device.type, dtype or torch.bfloat16, enabled=dtype is not None):
        return model.predict(Batch.collate([sample]).to(device))[0].to("cpu")


def draw_sample(
    sample: Sample,
    dataset: PictureDataset,
    detections: Detections3D | None = None,
    truth: bool = True,
    min_score: float = 0.1,
    only: Collection[int] = (),
    extent: float | None = None,
    scores: bool = False,
    sensors: Collection[str] | None = None,
    masks: BEVMasks | None = None,
    map_score: float = 0.5,
) -> Image.Image:
    """Ground truth, detections or, told apart, what of both agrees, in the cameras of one sample and from above.

    Images are the raw ones: boxes are brought back from the augmented frame. Of a map there is one view from above for
    the ground truth and one for what is predicted.

    Args:
        detections, masks: what is predicted, if anything.
        only: labels to draw; all if empty.
        extent: half width of the bird's-eye view, metres; None for as far as the boxes reach.
        scores: write them beside the detections.
        sensors: whose points are drawn, such as those that a model reads; None for all.
        map_score: lowest probability at which a cell belongs to a class.

    Raises:
        ValueError: `truth` of a sample that has no annotation.
    """
    scene = _annotated(dataset, sample) if truth else dataset.scene(sample)
    areas = [_true_areas(scene)] if truth and scene.masks is not None else []
    if masks is not None:
        areas.append(_areas(f"map >= {map_score:g}", masks, scene, map_score))
    if detections is None:
        layers = [Layer("ground truth", *_truth(scene))] if truth else []
    elif truth:
        layers = verdict_layers(*_truth(scene), in_scene(detections, scene, min_score), scores)
    else:
        found = in_scene(detections, scene, min_score)
        layers = [Layer.from_detections(f"detections >= {min_score:g}", found, with_scores=scores)]
    if only:
        layers = [layer.select(only) for layer in layers]
    return draw_frame(
        layers,
        dataset.classes,
        scene.calibration,
        images=scene.images,
        names=scene.names,
        clouds=scene.clouds if sensors is None else _clouds_of(scene, sensors),
        extent=_reach(extent, layers),
        behind=scene.behind,
        areas=areas,
    )


def compare(
    columns: Columns,
    indices: Sequence[int],
    out_dir: Path,
    extent: float | None,
    min_score: float = 0.2,
    scores: bool = False,
) -> list[Path]:
    """One picture of `side_by_side` per sample, as PNG in `out_dir`."""
    out_dir.mkdir(parents=True, exist_ok=True)
    paths = []
    for index in progress_bar(indices, desc="draw", unit="picture"):
        picture, sample = side_by_side(columns, index, extent, min_score, scores)
        paths.append(out_dir / f"{index:04d}-{sample.token}.png")
        picture.save(paths[-1])
    return paths


def side_by_side(
    columns: Columns,
    index: int,
    extent: float | None,
    min_score: float = 0.2,
    scores: bool = False,
    only: Collection[int] = (),
    truth_column: bool = False,
    camera: str | None = None,
    map_score: float = 0.5,
) -> tuple[Image.Image, Sample]:
    """A column per model with its sensors, and what it hits, invents and misses; and the sample.

    Args:
        columns: by title a model, in eval mode, on the CPU or on one device, and the data set as that model reads it.
        index: of a sample, the same of every data set.
        extent: half width of the bird's-eye view, metres; None for as far as the boxes reach.
        min_score: of the detections that count.
        scores: write them beside the detections.
        only: labels to draw; all if empty.
        truth_column: begin with a column of the ground truth alone, with all sensors; so it does if the first model
            predicts a map.
        camera: that is shown; None for the one that sees most boxes.
        map_score: see `draw_sample`.

    Raises:
        ValueError: a sample without annotation, or another sample in another data set.
    """
    panels: list[Panel] = []
    tokens: dict[str, str] = {}
    for title, (model, dataset) in columns.items():
        sample = dataset[index]
        tokens[sample.token] = title
        answer = ask(model, sample, next(model.parameters()).device)
        scene = _annotated(dataset, sample)
        layers = []
        if answer.detections is not None:
            layers = verdict_layers(*_truth(scene), in_scene(answer.detections, scene, min_score), scores)
        layers = [layer.select(only) if only else layer for layer in layers]
        # Verdicts show what is there of the objects, but nothing does of a map.
        if (truth_column or answer.masks is not None) and not panels:
            truth = Layer("ground truth", *_truth(scene))
            panels.append(_truth_panel(truth.select(only) if only else truth, scene))
        areas = None if answer.masks is None else _areas(f"map >= {map_score:g}", answer.masks, scene, map_score)
        panels.append(_panel(title, model.inputs, layers, scene, areas))
    if len(tokens) > 1:
        titles = " and ".join(tokens.values())
        raise ValueError(f"{titles} read different frames as number {index}; give them one data set (--dataset_root)")
    reach = _reach(extent, (layer for panel in panels for layer in panel.layers))
    return draw_panels(panels, dataset.classes, reach, scene.behind, camera=camera), sample


def draw_maps(
    columns: Columns,
    index: int,
    extent: float | None,
    taps: Sequence[str] = (),
    pulls: tuple[Distiller, str] | None = None,
    camera: str | None = None,
) -> tuple[Image.Image, Sample]:
    """Where models answer how strongly, and the objects that are there; and the sample.

    Columns of `taps` per model, then of what each has more or less than the first.

    Args:
        columns, index, extent, camera: see `side_by_side`.
        taps: one of the first model and one of all others, or one of all.
        pulls: a distiller and a loss of it, where it pulls the student is a last column.
    """
    panels: list[Panel] = []
    maps: dict[str, TapMap] = {}
    for title, (model, dataset) in columns.items():
        sample = dataset[index]
        batch = Batch.collate([sample]).to(next(model.parameters()).device)
        scene = _annotated(dataset, sample)
        if taps:
            tap = taps[min(len(maps), len(taps) - 1)]
            assert isinstance(model, Detector), f"{title} is no detector, whose taps could be drawn"
            maps[title] = tap_map(model, batch, tap)
            panels.append(_heat_panel(title, f"tap {tap}", maps[title].heat(_STRENGTH, scene, batch), scene))
    titles = list(maps)
    for title in titles[1:]:
        more = difference(maps[titles[0]], maps[title])
        heat = more.heat(f"less to more than {titles[0]}", scene, batch, signed=True)
        panels.append(_heat_panel(f"{title} - {titles[0]}", "difference", heat, scene))
    if pulls is not None:
        heat = loss_map(pulls[0], batch, pulls[1]).heat(_STRENGTH, scene, batch)
        panels.append(_heat_panel(f"loss {pulls[1]}", "where it pulls the student", heat, scene))
    reach = _reach(extent, (layer for panel in panels for layer in panel.layers))
    return draw_panels(panels, dataset.classes, reach, scene.behind, camera=camera), sample


def _annotated(dataset: PictureDataset, sample: Sample) -> Scene:
    scene = dataset.scene(sample)
    if scene.boxes is None:
        raise ValueError(f"sample {sample.token} has no annotation to draw; draw detections only")
    return scene


def _truth(scene: Scene) -> tuple[Boxes3D, Tensor]:
    """Of a scene that is `_annotated`."""
    assert scene.boxes is not None and scene.labels is not None
    return scene.boxes, scene.labels


def in_scene(detections: Detections3D, scene: Scene, min_score: float) -> Detections3D:
    """Those with a score of at least `min_score`, in the frame of the scene."""
    kept = detections[detections.scores >= min_score].to("cpu")
    return replace(kept, boxes=kept.boxes.transform(scene.from_detections))


def _areas(title: str, masks: BEVMasks, scene: Scene, least: float = 0.5) -> Areas:
    """Cells of at least that probability."""
    return Areas(title, replace(masks, values=masks.values.float().cpu() >= least), scene.from_detections)


def _true_areas(scene: Scene) -> Areas:
    """Of a scene with a map."""
    assert scene.masks is not None
    return _areas("map: ground truth", scene.masks, scene)


def _heat_panel(title: str, subtitle: str, heat: Heat, scene: Scene) -> Panel:
    truth = [Layer("ground truth", *_truth(scene))]
    return Panel(title, subtitle, truth, scene.calibration, scene.images, scene.names, heat=heat)


def _truth_panel(truth: Layer, scene: Scene) -> Panel:
    there = [sensor.name for sensor, _ in by_sensor(scene.clouds)] + ["camera"] * bool(scene.images)
    subtitle = f"{_titles(there)}\n{number_of(len(truth.boxes), 'object')}"
    return Panel(
        "ground truth",
        subtitle,
        [truth],
        scene.calibration,
        scene.images,
        scene.names,
        scene.clouds,
        None if scene.masks is None else _true_areas(scene),
    )


def _panel(
    title: str, inputs: Collection[str], layers: Sequence[Layer], scene: Scene, areas: Areas | None = None
) -> Panel:
    return Panel(
        title,
        f"{_titles(inputs)}\n{verdict_counts(layers)}",
        layers,
        scene.calibration,
        scene.images if "camera" in inputs else (),
        scene.names,
        _clouds_of(scene, inputs),
        areas,
    )


def _clouds_of(scene: Scene, sensors: Collection[str]) -> dict[str, Tensor]:
    return {sensor.field: points for sensor, points in by_sensor(scene.clouds) if sensor.name in sensors}


def _titles(sensors: Collection[str]) -> str:
    """In words, in the order of point_sensors, the cameras after the first."""
    first, *others = [(sensor.name, sensor.title) for sensor in point_sensors()]
    return " + ".join(title for name, title in (first, ("camera", "cameras"), *others) if name in sensors)
