"""A page on what KITTI results find and miss, beside others if there are some."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from mmdet3d.datasets.kitti.files import image_file
from mmdet3d.datasets.kitti.labels import frame_files, read_labels, read_results
from mmdet3d.evaluation.kitti import CLASSES, DIFFICULTIES, STRICT, Metrics, evaluate, found_objects
from mmdet3d.evaluation.kitti_objects import Objects
from mmdet3d.evaluation.kitti_overlap import Pairs, pair_up
from mmdet3d.shell import number_of
from mmdet3d.visualization.page import Page, bars, signed_bars, table

__all__ = ["write_report"]

_LEVEL = len(DIFFICULTIES) - 1  # hard: every object that KITTI counts
_WORST = 4  # frames that are drawn
# By property of an object: a name and an upper end (exclusive) per bucket.
_BUCKETS: dict[str, tuple[tuple[str, ...], tuple[float, ...]]] = {
    "distance": (("0-10 m", "10-20 m", "20-30 m", "30-45 m", "45 m and more"), (10, 20, 30, 45, np.inf)),
    "occlusion": (("visible", "partly hidden", "largely hidden"), (0.5, 1.5, np.inf)),
    "truncation": (("inside the image", "up to 30 % outside", "more"), (1e-6, 0.3, np.inf)),
}
_HIT, _FALSE, _MISSED = (26, 121, 90), (230, 0, 0), (255, 161, 0)
# Why an object is missed, by the best overlap of a detection of its class: in space, else in the image.
_REASONS = ("near: overlap in space of half the limit or more", "seen: overlap in the image alone", "not seen")


@dataclass(frozen=True)
class _Side:
    """Results of one folder.

    Args:
        sizes: number of detections in each frame.
        found: by class which objects count, which detection found each, which detections are false.
    """

    title: str
    metrics: Metrics
    pairs: Pairs
    sizes: list[int]
    found: dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]


def write_report(
    folders: Mapping[str, Path],
    labels: Path,
    ids: Sequence[str],
    out_dir: Path,
    min_score: float = 0.3,
    class_map: Mapping[str, str] | None = None,
) -> Path:
    """Write `report.html` into `out_dir`: one file that needs no network.

    Args:
        folders: by title one or two folders of result files; the second is what the first is compared with.
        labels: folder of label files; images are looked for in `image_2` beside it.
        ids: frames.
        min_score: of the detections in all but the average precision, which needs no threshold.
        class_map: see `read_labels`.

    Raises:
        FileNotFoundError, ValueError: see `evaluate_folder`.
    """
    truth = [read_labels(file, class_map) for file in frame_files(labels, ids)]
    sides = []
    for title, folder in folders.items():
        results = [read_results(file) for file in frame_files(folder, ids)]
        pairs = pair_up(truth, results)
        found = {name: found_objects(pairs, name, _LEVEL, min_score) for name in CLASSES}
        sides.append(_Side(title, evaluate(truth, results), pairs, [len(r) for r in results], found))
    page = Page(f"Detections of {sides[0].title}" + (f", compared with {sides[1].title}" if sides[1:] else ""))
    counted = sum(int(sides[0].found[name][0].sum()) for name in CLASSES)
    limits = ", ".join(f"{name} {STRICT[name]['3d']:g}" for name in CLASSES)
    page.text(
        f"{number_of(len(ids), 'frame')}, {number_of(counted, 'object')} that KITTI counts "
        f"({DIFFICULTIES[_LEVEL]}). Average precision is the "
        f"official one at 40 recalls, of 1 at best. All else takes detections with a score of {min_score:g} or more; "
        f"an object is found by the official rules in space (overlap above {limits})."
    )
    _scores(page, sides)
    for by in _BUCKETS:
        _recall(page, sides, by)
    _errors(page, sides)
    _reasons(page, sides)
    if len(sides) == 2:
        _comparison(page, sides)
    _pictures(page, sides[0], ids, labels.parent / "image_2")
    return page.write(out_dir / "report.html")


def _scores(page: Page, sides: Sequence[_Side]) -> None:
    page.heading("Average precision")
    for side in sides:
        head = [side.title, *(f"{m} {level}" for m in ("3d", "bev", "aos") for level in DIFFICULTIES)]
        rows: list[list[str | float]] = []
        for name in CLASSES:
            shares = [v / 100 for m in ("3d", "bev", "aos") for v in side.metrics[name][m]["R40"]]
            rows.append([name, *shares])
        page.add(table(head, rows))
    page.add(bars({s.title: {n: s.metrics[n]["3d"]["R40"][1] / 100 for n in CLASSES} for s in sides}))


def _places(objects: Objects, by: str) -> np.ndarray:
    """Bucket of each object."""
    values = {
        "distance": np.hypot(objects.locations[:, 0], objects.locations[:, 2]),
        "occlusion": objects.occluded,
        "truncation": objects.truncated,
    }
    return np.searchsorted(_BUCKETS[by][1], values[by], side="right")


def _recall(page: Page, sides: Sequence[_Side], by: str) -> None:
    page.heading(f"Share of the objects that is found, by {by}")
    names = _BUCKETS[by][0]
    shares: dict[str, dict[str, float]] = {}
    for side in sides:
        places = _places(side.pairs.labels, by)
        rows: list[list[str | float]] = []
        for name in CLASSES:
            counts, finder, _ = side.found[name]
            rows.append([name, *(_share(finder[counts & (places == k)] >= 0) for k in range(len(names)))])
        counts = np.any([side.found[name][0] for name in CLASSES], axis=0)
        hit = np.any([side.found[name][1] >= 0 for name in CLASSES], axis=0)
        shares[side.title] = {bucket: _share(hit[counts & (places == k)]) for k, bucket in enumerate(names)}
        page.add(table([side.title, *names], rows))
    page.add(bars(shares))


def _share(hit: np.ndarray) -> float:
    return float(hit.mean()) if len(hit) else float("nan")


def _errors(page: Page, sides: Sequence[_Side]) -> None:
    page.heading("Errors of what is found: medians")
    for side in sides:
        head = [side.title, "place on the ground (m)", "along the view (m)", "height (m)", "size (%)", "heading (rad)"]
        rows: list[list[str | float]] = []
        for name in CLASSES:
            counts, finder, _ = side.found[name]
            which = counts & (finder >= 0)
            truth, guess = side.pairs.labels[which], side.pairs.results[finder[which]]
            step = guess.locations - truth.locations
            turn = np.abs((guess.rotation_y - truth.rotation_y + np.pi) % (2 * np.pi) - np.pi)
            size = 100 * np.abs(guess.sizes / truth.sizes - 1).mean(1)
            values = (np.hypot(step[:, 0], step[:, 2]), np.abs(step[:, 2]), np.abs(step[:, 1]), size, turn)
            rows.append([name, *(float(np.median(v)) if len(v) else float("nan") for v in values)])
        page.add(table(head, rows))


def _reasons(page: Page, sides: Sequence[_Side]) -> None:
    page.heading("What is missed, and why")
    page.text(
        "By the best detection of the class: one that lies nearly right in space, one that covers the object in the "
        "image and lies elsewhere in space (for a camera mostly a matter of depth), or none."
    )
    for side in sides:
        rows: list[list[str | float]] = []
        for name in CLASSES:
            counts, finder, false = side.found[name]
            missed = np.flatnonzero(counts & (finder < 0))
            same = side.pairs.results.names[side.pairs.result] == name
            best = {m: np.zeros(len(side.pairs.labels)) for m in ("3d", "bbox")}
            for metric, values in best.items():
                np.maximum.at(values, side.pairs.label[same], side.pairs.overlaps[metric][same])
            near = best["3d"][missed] >= STRICT[name]["3d"] / 2
            seen = ~near & (best["bbox"][missed] >= 0.5)
            number = [int(near.sum()), int(seen.sum()), int((~near & ~seen).sum()), int(false.sum())]
            rows.append([name, *map(str, number)])
        page.add(table([side.title, *_REASONS, "false detections"], rows))


def _comparison(page: Page, sides: Sequence[_Side]) -> None:
    first, second = sides
    page.heading(f"Objects won and lost: {first.title} against {second.title}")
    counts = {n: first.found[n][0] & second.found[n][0] for n in CLASSES}
    ours, theirs = ({n: side.found[n][1] >= 0 for n in CLASSES} for side in sides)
    won = {n: counts[n] & ours[n] & ~theirs[n] for n in CLASSES}
    lost = {n: counts[n] & theirs[n] & ~ours[n] for n in CLASSES}
    page.text(
        f"Both find {sum(int((counts[n] & ours[n] & theirs[n]).sum()) for n in CLASSES)} objects; {first.title} alone "
        f"finds {sum(int(w.sum()) for w in won.values())}, {second.title} alone "
        f"{sum(int(w.sum()) for w in lost.values())}."
    )
    page.add(signed_bars({n: (int(won[n].sum()), int(lost[n].sum())) for n in CLASSES}))
    places = _places(first.pairs.labels, "distance")
    pairs = {
        bucket: tuple(sum(int((side[n] & (places == k)).sum()) for n in CLASSES) for side in (won, lost))
        for k, bucket in enumerate(_BUCKETS["distance"][0])
    }
    page.add(signed_bars({bucket: (a, b) for bucket, (a, b) in pairs.items()}))


def _pictures(page: Page, side: _Side, ids: Sequence[str], images: Path) -> None:
    """The frames in which the first results miss and invent most."""
    numbers = np.repeat(np.arange(len(ids)), side.sizes)
    missed = np.any([side.found[n][0] & (side.found[n][1] < 0) for n in CLASSES], axis=0)
    false = np.any([side.found[n][2] for n in CLASSES], axis=0)
    faults = np.bincount(side.pairs.frames[missed], minlength=len(ids))
    faults = faults + np.bincount(numbers[false], minlength=len(ids))
    worst = np.argsort(-faults, kind="stable")[:_WORST]
    page.heading("Frames with most faults")
    for k in worst[faults[worst] > 0].tolist():
        file = image_file(images, ids[k])
        if not file.is_file():
            page.text(f"Frame {ids[k]} is not drawn: there is no {file}")
            continue
        picture = Image.open(file).convert("RGB")
        draw = ImageDraw.Draw(picture)
        here, there = side.pairs.frames == k, numbers == k
        hit = np.any([side.found[n][1] >= 0 for n in CLASSES], axis=0)
        for boxes, color in (
            (side.pairs.labels[here & hit], _HIT),
            (side.pairs.labels[here & missed], _MISSED),
            (side.pairs.results[there & false], _FALSE),
        ):
            for box in boxes.boxes2d.tolist():
                draw.rectangle(box, outline=color, width=2)
        counts = f"{int((here & missed).sum())} missed (orange), {int((there & false).sum())} false (red)"
        page.picture(picture, f"frame {ids[k]}: {counts}, found in green")
