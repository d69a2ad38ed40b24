"""A page on what a nuScenes submission finds and misses, beside another one if there is one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from mmdet3d.datasets.nuscenes.frames import FrameReader
from mmdet3d.datasets.nuscenes.tables import load_tables
from mmdet3d.datasets.records import Context
from mmdet3d.datasets.transforms import Compose
from mmdet3d.evaluation.breakdown import (
    BUCKETS,
    REACH,
    EvaluatedBoxes,
    bucket_table,
    class_hits,
    confusion,
    found_objects,
    objects_of,
)
from mmdet3d.evaluation.nuscenes import CLASSES, DISTANCES, ERRORS, Scored
from mmdet3d.shell import number_of
from mmdet3d.structures import Boxes3D, Detections3D
from mmdet3d.visualization import Panel, draw_panels, verdict_counts, verdict_layers
from mmdet3d.visualization.page import Page, bars, heat_table, signed_bars, table

__all__ = ["write_report"]

_UNITS = ("m", "1 - IoU", "rad", "m/s", "1 - accuracy")
_WORST = 4  # samples that are drawn
_WIDTH = 1280  # of their pictures, pixels
_EXTENT = 54.0  # metres


@dataclass(frozen=True)
class _Side:
    """One submission."""

    title: str
    scored: Scored
    found: EvaluatedBoxes


def write_report(
    results: Mapping[str, Scored], dataroot: str | Path, version: str, out_dir: str | Path, min_score: float = 0.3
) -> Path:
    """Write `report.html` into `out_dir`: one file that needs no network.

    Args:
        results: by title one or two evaluated submissions of the same samples; the second is what the first is compared
            with.
        dataroot, version: of the tables, which know visibility and files.
        min_score: of the detections in confusion, comparison and pictures. The average precision needs no threshold.

    Raises:
        ValueError: the two are of different samples.
    """
    tokens = list(next(iter(results.values())).truth)
    for title, scored in results.items():
        if list(scored.truth) != tokens:
            raise ValueError(f"{title} has other samples ({len(scored.truth)}) than the first results ({len(tokens)})")
    tables = load_tables(dataroot, version)
    truth = objects_of(next(iter(results.values())).truth, CLASSES, _visibility(tables, tokens))
    sides = [_Side(title, scored, objects_of(scored.found, CLASSES)) for title, scored in results.items()]
    page = Page(f"Detections of {sides[0].title}" + (f", compared with {sides[1].title}" if sides[1:] else ""))
    page.text(
        f"{number_of(len(tokens), 'sample')} of {version}, {number_of(len(truth), 'object')} within the range "
        f"of evaluation. Scores are those of "
        f"nuScenes; confusion, comparison and pictures take detections with a score of {min_score:g} or more, and an "
        f"object is found by a detection of its class less than {REACH:g} m away."
    )
    _summary(page, sides)
    matched = [class_hits(truth, side.found, len(CLASSES)) for side in sides]
    for by in BUCKETS:
        _buckets(page, sides, truth, matched, by)
    _errors(page, sides)
    for side in sides:
        counts = confusion(truth, side.found, len(CLASSES), min_score)
        page.heading(f"Confusion: {side.title}")
        page.text("Rows: what is there; columns: the class of the detection that lies nearest, whatever its class.")
        page.add(heat_table([*CLASSES, "nothing there"], [*CLASSES, "missed"], counts))
    hits = [found_objects(truth, side.found, min_score) for side in sides]
    if len(sides) == 2:
        _comparison(page, sides, truth, hits[0][0], hits[1][0])
    _pictures(page, sides, truth, hits, tokens, tables, Path(dataroot), min_score)
    return page.write(Path(out_dir) / "report.html")


def _visibility(tables: Any, tokens: Sequence[str]) -> dict[tuple, float]:
    """By sample and place the level; NaN where the tables do not know it."""
    levels = {row["token"]: float(row["token"]) for row in tables.visibility if row["token"].isdecimal()}
    found = {}
    for token in tokens:
        for name in tables.get("sample", token)["anns"]:
            row = tables.get("sample_annotation", name)
            found[token, tuple(row["translation"])] = levels.get(row["visibility_token"], float("nan"))
    return found


def _summary(page: Page, sides: Sequence[_Side]) -> None:
    page.heading("Scores")
    names = {"mAP": "object/map", "NDS": "object/nds", **{short: f"object/{short}" for short in ERRORS.values()}}
    page.add(table(["", *names], [[s.title, *(s.scored.metrics[key] for key in names.values())] for s in sides]))
    page.heading("Average precision by class")
    aps = {
        s.title: {n: float(np.mean([s.scored.metrics[f"object/{n}_ap_dist_{d}"] for d in DISTANCES])) for n in CLASSES}
        for s in sides
    }
    page.add(bars(aps))


def _buckets(page: Page, sides: Sequence[_Side], truth: EvaluatedBoxes, matched: Sequence[Any], by: str) -> None:
    page.heading(f"Average precision by {by}")
    if by == "visibility":
        page.text(
            "A detection that hits nothing has no visibility and counts as false in every column, so these numbers are "
            "lower than those above; compare them with each other."
        )
    found = {
        side.title: bucket_table(truth, side.found, hits, CLASSES, by)
        for side, hits in zip(sides, matched, strict=True)
    }
    page.add(bars({title: rows["mean"] for title, rows in found.items()}))
    names = BUCKETS[by][0]
    for title, rows in found.items():
        page.add(table([title, *names], [[name, *row.values()] for name, row in rows.items()]))


def _errors(page: Page, sides: Sequence[_Side]) -> None:
    page.heading("Errors of what is found")
    for side in sides:
        head = [side.title, *(f"{short[1:]} ({unit})" for short, unit in zip(ERRORS.values(), _UNITS, strict=True))]
        rows: list[list[str | float]] = [
            [name, *(side.scored.metrics[f"object/{name}_{error}"] for error in ERRORS)] for name in CLASSES
        ]
        page.add(table(head, rows))


def _comparison(
    page: Page, sides: Sequence[_Side], truth: EvaluatedBoxes, ours: np.ndarray, theirs: np.ndarray
) -> None:
    first, second = (side.title for side in sides)
    page.heading(f"Objects won and lost: {first} against {second}")
    page.text(
        f"Both find {(ours & theirs).sum()} of {len(truth)} objects, neither {(~ours & ~theirs).sum()}; {first} alone "
        f"finds {(ours & ~theirs).sum()}, {second} alone {(theirs & ~ours).sum()}."
    )
    won, lost = ours & ~theirs, theirs & ~ours
    by_class = {
        n: (int((won & (truth.classes == k)).sum()), int((lost & (truth.classes == k)).sum()))
        for k, n in enumerate(CLASSES)
    }
    page.add(signed_bars(by_class))
    names, ends = BUCKETS["distance"]
    place = np.searchsorted(ends, truth.distance, side="right")
    page.add(
        signed_bars(
            {n: (int((won & (place == k)).sum()), int((lost & (place == k)).sum())) for k, n in enumerate(names)}
        )
    )


def _pictures(
    page: Page,
    sides: Sequence[_Side],
    truth: EvaluatedBoxes,
    hits: Sequence[tuple[np.ndarray, np.ndarray]],
    tokens: Sequence[str],
    tables: Any,
    root: Path,
    min_score: float,
) -> None:
    """The samples in which the first results miss and invent most."""
    taken, false = hits[0]
    missed = np.bincount(truth.samples[~taken], minlength=len(tokens))
    faults = missed + np.pad(false, (0, len(tokens) - len(false)))
    worst = np.argsort(-faults, kind="stable")[:_WORST]
    page.heading("Samples with most faults")
    for index in worst[faults[worst] > 0].tolist():
        try:
            picture = _draw(sides, tokens[index], tables, root, min_score)
        except OSError as error:
            page.text(f"Sample {tokens[index]} is not drawn: {error}")
            continue
        page.picture(picture, f"sample {tokens[index]}: {missed[index]} missed, {faults[index] - missed[index]} false")


def _draw(sides: Sequence[_Side], token: str, tables: Any, root: Path, min_score: float) -> Image.Image:
    reader = FrameReader(tables, max_sweeps=0, allow_missing=True, annotated=False, radar=False)
    record = next(r for r in reader.scene(tables.get("sample", token)["scene_token"]) if r.token == token)
    steps = [{"type": "LoadMultiViewImageFromFiles"}] * bool(record.cameras)
    steps += [{"type": "LoadPointsFromFile"}] * bool(record.lidar.path)
    sample = Compose(steps).load(Context(record, root, np.random.RandomState(0), classes=CLASSES))
    assert sample is not None, "a loader drops no sample"
    global2lidar = np.linalg.inv(record.ego2global @ record.lidar2ego)
    panels = []
    for side in sides:
        boxes, labels, _ = _in_lidar(side.scored.truth[token], global2lidar)
        found, guessed, scores = _in_lidar(side.scored.found[token], global2lidar)
        kept = scores >= min_score
        layers = verdict_layers(boxes, labels, Detections3D(found, scores, guessed)[kept])
        counts = verdict_counts(layers)
        images = list(sample.images) if sample.images is not None else []
        panels.append(
            Panel(side.title, counts, layers, sample.calibration, images, list(record.cameras), sample.clouds)
        )
    picture = draw_panels(panels, CLASSES, _EXTENT, width=1920)
    return picture.resize((_WIDTH, round(picture.height * _WIDTH / picture.width)))


def _in_lidar(boxes: Sequence[Any], global2lidar: np.ndarray) -> tuple[Boxes3D, torch.Tensor, torch.Tensor]:
    """Boxes, labels and scores of the devkit's boxes."""
    from pyquaternion import Quaternion

    turn = global2lidar[:3, :3]
    rows = []
    for box in boxes:
        heading = turn @ Quaternion(box.rotation).rotation_matrix[:, 0]
        center = turn @ np.array(box.translation) + global2lidar[:3, 3]
        velocity = turn @ np.nan_to_num([*box.velocity, 0.0])
        width, length, height = box.size
        rows.append([*center, length, width, height, np.arctan2(heading[1], heading[0]), *velocity[:2]])
    labels = torch.tensor([CLASSES.index(box.detection_name) for box in boxes], dtype=torch.int64)
    scores = torch.tensor([float(box.detection_score) for box in boxes])
    return Boxes3D(torch.tensor(rows, dtype=torch.float32).reshape(-1, 9)), labels, scores
