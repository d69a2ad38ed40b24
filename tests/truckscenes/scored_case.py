"""Annotations and detections of a few samples, drawn at random, behind the access of the devkits' tables."""

from __future__ import annotations

from typing import Any

import numpy as np

CATEGORIES = {
    "vehicle.car": "vehicle.moving",
    "vehicle.truck": "vehicle.parked",
    "vehicle.bus.rigid": "vehicle.stopped",
    "vehicle.ego_trailer": "vehicle.moving",
    "vehicle.other": "vehicle.parked",
    "human.pedestrian.adult": "pedestrian.moving",
    "vehicle.motorcycle": "cycle.with_rider",
    "vehicle.bicycle": "cycle.without_rider",
    "movable_object.trafficcone": "",
    "movable_object.barrier": "",
    "animal": "",
    "static_object.traffic_sign": "traffic_sign.overhanging",
    "static_object.bicycle_rack": "",
    "vehicle.train": "vehicle.moving",
}
CLASSES = (
    *("car", "truck", "bus", "trailer", "other_vehicle", "pedestrian", "motorcycle", "bicycle"),
    *("traffic_cone", "barrier", "animal", "traffic_sign"),
)
NAMES = dict(zip(CATEGORIES, CLASSES, strict=False))
ORIGIN = np.array([691_000.0, 5_334_000.0, 0.0])


class Tables:
    """`get`, `box_velocity` and the tables that are looked through."""

    def __init__(self, samples: int = 6, seed: int = 0) -> None:
        rng = np.random.RandomState(seed)
        names = sorted({name for name in CATEGORIES.values() if name})
        self.attribute = [{"token": f"a-{name}", "name": name} for name in names]
        self.rows: dict[str, dict[str, Any]] = {
            "sample": {},
            "sample_annotation": {},
            "sample_data": {},
            "ego_pose": {},
        }
        self.velocity: dict[str, np.ndarray] = {}
        for k in range(samples):
            place = ORIGIN + np.array([*rng.uniform(-50, 50, 2), 0])
            self.rows["ego_pose"][f"p{k}"] = {"translation": place.tolist()}
            self.rows["sample_data"][f"d{k}"] = {"ego_pose_token": f"p{k}"}
            anns = [self._annotate(rng, f"s{k}", n, place) for n in range(70)]
            self.rows["sample"][f"s{k}"] = {"data": {"LIDAR_LEFT": f"d{k}"}, "anns": anns}

    def _annotate(self, rng: np.random.RandomState, sample: str, number: int, place: np.ndarray) -> str:
        token = f"{sample}-{number}"
        category = list(CATEGORIES)[number % len(CATEGORIES)]
        far = rng.uniform(2, 170 if number % 14 < 5 else 85)
        turn = rng.uniform(-np.pi, np.pi)
        yaw = rng.uniform(-np.pi, np.pi)
        size = rng.uniform(0.5, 4, 3)
        if category.endswith("rack"):
            size *= 3
        attribute = CATEGORIES[category]
        self.rows["sample_annotation"][token] = {
            "token": token,
            "category_name": category,
            "attribute_tokens": [f"a-{attribute}"] if attribute and rng.random_sample() < 0.9 else [],
            "translation": (place + np.array([far * np.cos(turn), far * np.sin(turn), rng.uniform(0, 2)])).tolist(),
            "size": size.tolist(),
            "rotation": [np.cos(yaw / 2), 0.0, 0.0, np.sin(yaw / 2)],
            "num_lidar_pts": int(rng.randint(0, 4)),
            "num_radar_pts": int(rng.randint(0, 2)),
        }
        velocity = np.array([*rng.uniform(-10, 10, 2), 0.0])
        self.velocity[token] = velocity if rng.random_sample() < 0.9 else np.full(3, np.nan)
        if category.endswith("bicycle") and number > 40:  # parked in the rack before it
            rack = self.rows["sample_annotation"][f"{sample}-{number - 9}"]
            assert rack["category_name"].endswith("rack")
            self.rows["sample_annotation"][token]["translation"] = list(rack["translation"])
        return token

    def get(self, table: str, token: str) -> dict[str, Any]:
        return self.rows[table][token]

    def box_velocity(self, token: str) -> np.ndarray:
        return self.velocity[token]


def detections(tables: Tables, seed: int = 1) -> dict[str, list[dict[str, Any]]]:
    """Most objects with errors, some turned round, some of a wrong class, some twice, and false ones."""
    rng = np.random.RandomState(seed)
    names, attributes = list(NAMES.values()), [a["name"] for a in tables.attribute]
    results: dict[str, list[dict[str, Any]]] = {}
    for sample, row in tables.rows["sample"].items():
        results[sample] = []
        for truth in (tables.get("sample_annotation", a) for a in row["anns"]):
            for _ in range(rng.choice([0, 1, 2], p=[0.2, 0.65, 0.15])):
                name = NAMES.get(truth["category_name"], "car")
                yaw = rng.normal(0, 0.3) + np.pi * (rng.random_sample() < 0.3)
                w, _, _, z = truth["rotation"]
                c, s = np.cos(yaw / 2), np.sin(yaw / 2)
                results[sample].append(
                    {
                        "sample_token": sample,
                        "translation": (np.array(truth["translation"]) + rng.normal(0, 0.8, 3)).tolist(),
                        "size": (np.array(truth["size"]) * rng.uniform(0.8, 1.25, 3)).tolist(),
                        "rotation": [w * c - z * s, 0.0, 0.0, w * s + z * c],
                        "velocity": rng.uniform(-10, 10, 2).tolist(),
                        "detection_name": name if rng.random_sample() < 0.9 else str(rng.choice(names)),
                        "detection_score": float(np.round(rng.random_sample(), 3)),
                        "attribute_name": str(rng.choice(attributes)),
                    }
                )
    return results
