"""KITTI scenes, and the evaluation rules as plain loops over frames, objects and detections to compare with."""

from __future__ import annotations

import math

import numpy as np
import shapely
import shapely.affinity

from mmdet3d.evaluation.kitti_objects import Objects

LIMITS = [(40, 0, 0.15), (25, 1, 0.3), (25, 2, 0.5)]  # height, occlusion, truncation
NEIGHBOURS = {"Car": "Van", "Pedestrian": "Person_sitting", "Cyclist": None}


def row(name="Car", x=0.0, z=20.0, **changes):
    """A car of 4 x 1.6 x 1.5 m, 60 pixels high, as a dict; its 2-D box moves with x."""
    values = {
        "names": name,
        "truncated": 0.0,
        "occluded": 0,
        "alpha": 0.3,
        "boxes2d": [600 + 10 * x, 150, 700 + 10 * x, 210],
        "sizes": [1.5, 1.6, 4.0],
        "locations": [x, 1.6, z],
        "rotation_y": 0.4,
        "scores": 0.5,
    }
    return values | changes


def frame(*rows) -> Objects:
    if not rows:
        return Objects.empty()
    return Objects(**{key: np.array([r[key] for r in rows]) for key in rows[0]})


def dont_care(box):
    away = {"sizes": [-1] * 3, "locations": [-1000] * 3, "rotation_y": -10, "alpha": -10, "scores": -1}
    return row("DontCare", truncated=-1, occluded=-1, boxes2d=box, **away)


def random_frame(rng, classes) -> tuple[Objects, Objects]:
    """Labels and detections that overlap by chance: jittered copies, duplicates, wrong classes, equal scores."""
    labels, results = [], []
    for _ in range(rng.integers(0, 7)):
        high = rng.choice([20.0, 25, 30, 40, 45, 70])
        left, top = rng.uniform(0, 900), rng.uniform(100, 200)
        label = row(
            rng.choice([*classes, "Van", "Person_sitting", "Misc"]),
            truncated=rng.choice([0, 0.15, 0.2, 0.45, 0.8]),
            occluded=rng.integers(0, 4),
            alpha=rng.uniform(-3, 3),
            boxes2d=[left, top, left + rng.uniform(20, 120), top + high],
            sizes=rng.uniform([1.4, 1.5, 3.0], [1.8, 1.8, 4.5]),
            locations=[*rng.uniform([-15, 1], [15, 2]), rng.uniform(5, 60)],
            rotation_y=rng.uniform(-3, 3),
            scores=-1,
        )
        labels.append(label)
        for _ in range(rng.integers(0, 4)):
            results.append(jittered(rng, label, rng.choice([*classes, *[label["names"]] * 6])))
    if labels and rng.random() < 0.5:
        box = np.add(labels[0]["boxes2d"], [200, 0, 200, 0])
        labels.append(dont_care(box))
        results.append(row(rng.choice(classes), boxes2d=box + rng.uniform(-3, 3, 4), x=40, scores=rng.random()))
    return frame(*labels), frame(*results)


def jittered(rng, label, name):
    return label | {
        "names": name,
        "truncated": 0,
        "alpha": rng.choice([label["alpha"] + rng.normal(0, 0.5), -10], p=[0.9, 0.1]),
        "boxes2d": np.array(label["boxes2d"]) + rng.normal(0, 2, 4),
        "sizes": label["sizes"] * rng.uniform(0.95, 1.05, 3),
        "locations": np.array(label["locations"]) + rng.normal(0, 0.1, 3),
        "rotation_y": label["rotation_y"] + rng.normal(0, 0.05),
        "scores": round(rng.normal(0, 1), 1),
    }


# -- the rules ------------------------------------------------------------------------------------------------------


def overlap(metric, a, i, b, j) -> float:
    if metric == "bbox":
        common, first, second = common_2d(a.boxes2d[i], b.boxes2d[j])
        return common / (first + second - common)
    ground = polygon(a, i).intersection(polygon(b, j)).area
    if metric == "bev":
        return ground / (polygon(a, i).area + polygon(b, j).area - ground)
    bottom, top = min(a.locations[i, 1], b.locations[j, 1]), max(upper(a, i), upper(b, j))
    common = ground * max(0.0, bottom - top)
    return common / (a.sizes[i].prod() + b.sizes[j].prod() - common)


def common_2d(p, q):
    width, height = min(p[2], q[2]) - max(p[0], q[0]), min(p[3], q[3]) - max(p[1], q[1])
    common = width * height if width > 0 and height > 0 else 0.0
    return common, (p[2] - p[0]) * (p[3] - p[1]), (q[2] - q[0]) * (q[3] - q[1])


def upper(objects, i):
    return objects.locations[i, 1] - objects.sizes[i, 0]


def polygon(objects, i):
    _, width, length = objects.sizes[i]
    x, _, z = objects.locations[i]
    c, s = math.cos(objects.rotation_y[i]), math.sin(objects.rotation_y[i])
    local = [(length / 2, width / 2), (length / 2, -width / 2), (-length / 2, -width / 2), (-length / 2, width / 2)]
    return shapely.Polygon([(c * a + s * b + x, -s * a + c * b + z) for a, b in local])


def state_of_label(labels, i, name, level):
    """1 counts, 0 ignored, None does not matter."""
    height, occlusion, truncation = LIMITS[level]
    if labels.names[i] == NEIGHBOURS[name]:
        return 0
    if labels.names[i] != name:
        return None
    y = labels.boxes2d[i]
    hard = labels.occluded[i] > occlusion or labels.truncated[i] > truncation or y[3] - y[1] <= height
    return 0 if hard else 1


def state_of_result(results, j, name, level):
    if abs(results.boxes2d[j, 3] - results.boxes2d[j, 1]) < LIMITS[level][0]:
        return 0
    return 1 if results.names[j] == name else None


def one_frame(labels, results, name, level, metric, minimum, limit):
    """(scores of true positives, similarities, false positives, missed) at the score `limit`, or None for the first
    pass."""
    states = [state_of_result(results, j, name, level) for j in range(len(results))]
    above = [limit is None or results.scores[j] >= limit for j in range(len(results))]
    taken, scores, similarities, missed = set(), [], [], 0
    for i in range(len(labels)):
        state = state_of_label(labels, i, name, level)
        if state is None:
            continue
        options = [j for j in range(len(results)) if states[j] is not None and above[j] and j not in taken]
        values = {j: overlap(metric, labels, i, results, j) for j in options}
        values = {j: v for j, v in values.items() if v > minimum}
        valid = [j for j in values if states[j]]
        if limit is None:
            best = max(values, key=lambda j: results.scores[j], default=None)
        else:
            best = max(valid, key=values.get) if valid else min(values, default=None)
        if best is None:
            missed += state
            continue
        taken.add(best)
        if state and states[best]:
            scores.append(results.scores[best])
            delta = labels.alpha[i] - results.alpha[best]
            similarities.append(0.0 if results.alpha[best] == -10 else (1 + math.cos(delta)) / 2)
    false = [j for j in range(len(results)) if states[j] and above[j] and j not in taken]
    if metric == "bbox":
        false = [j for j in false if not in_dont_care(labels, results.boxes2d[j], minimum)]
    return scores, similarities, len(false), missed


def in_dont_care(labels, box, minimum):
    for region in labels.boxes2d[labels.names == "DontCare"]:
        common, area, _ = common_2d(box, region)
        if common / area > minimum:
            return True
    return False


def curve(labels, results, name, level, metric, minimum):
    """(41,) precision and orientation similarity."""
    frames = list(zip(labels, results, strict=True))
    found = sorted((s for f in frames for s in one_frame(*f, name, level, metric, minimum, None)[0]), reverse=True)
    total = sum(state_of_label(f, i, name, level) or 0 for f in labels for i in range(len(f)))
    limits, recall = [], 0.0
    for k, score in enumerate(found):
        last = k == len(found) - 1
        if not last and (k + 2) / total - recall < recall - (k + 1) / total:
            continue
        limits.append(score)
        recall += 1 / 40
    precision, similarity = np.zeros(41), np.zeros(41)
    for k, limit in enumerate(limits):
        outcomes = [one_frame(*f, name, level, metric, minimum, limit) for f in frames]
        true, false = sum(len(o[0]) for o in outcomes), sum(o[2] for o in outcomes)
        if true + false:
            precision[k] = true / (true + false)
            similarity[k] = sum(sum(o[1]) for o in outcomes) / (true + false)
    return [np.array([c[k:].max() for k in range(41)]) for c in (precision, similarity)]
