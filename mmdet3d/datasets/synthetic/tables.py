"""Rows of the nuScenes tables that are the same for every synthetic scene."""

from __future__ import annotations

import hashlib
from typing import Any

from mmdet3d.datasets.synthetic.catalog import KINDS
from mmdet3d.datasets.synthetic.rig import Rig
from mmdet3d.datasets.synthetic.settings import WorldSettings

__all__ = ["SCENE_TABLES", "TABLES", "VERSION", "common_tables", "scene_name", "token"]

VERSION = "v1.0-synthetic"
SCENE_TABLES = ("log", "map", "scene", "sample", "sample_data", "ego_pose", "instance", "sample_annotation")
TABLES = ("category", "attribute", "visibility", "sensor", "calibrated_sensor", *SCENE_TABLES)

_ATTRIBUTES = {
    "vehicle.moving": "Vehicle is moving.",
    "vehicle.stopped": "Vehicle stands in traffic.",
    "vehicle.parked": "Vehicle is parked.",
    "cycle.with_rider": "Somebody rides it.",
    "cycle.without_rider": "Nobody rides it.",
    "pedestrian.moving": "Person walks.",
    "pedestrian.standing": "Person stands.",
    "pedestrian.sitting_lying_down": "Person sits or lies.",
}
_VISIBILITY = ("v0-40", "v40-60", "v60-80", "v80-100")


def token(*parts: object) -> str:
    """32 hexadecimal digits that depend on nothing but `parts`."""
    return hashlib.md5("/".join(map(str, parts)).encode(), usedforsecurity=False).hexdigest()


def scene_name(index: int) -> str:
    return f"synthetic-{index:04d}"


def common_tables(settings: WorldSettings, rig: Rig) -> dict[str, list[dict[str, Any]]]:
    """Tables `category`, `attribute`, `visibility`, `sensor`, `calibrated_sensor`."""
    categories = sorted({c for kind in KINDS.values() for c in kind.categories})
    mounts = (*rig.cameras, *rig.lidars, *rig.radars)
    width, height = settings.image_size
    return {
        "category": [
            {"token": token("category", c), "name": c, "description": "Synthetic.", "index": i + 1}
            for i, c in enumerate(categories)
        ],
        "attribute": [{"token": token("attribute", n), "name": n, "description": d} for n, d in _ATTRIBUTES.items()],
        "visibility": [
            {"token": str(i + 1), "level": v, "description": f"visibility of whole object is between {v[1:]} percent"}
            for i, v in enumerate(_VISIBILITY)
        ],
        "sensor": [{"token": token("sensor", m.channel), "channel": m.channel, "modality": m.modality} for m in mounts],
        "calibrated_sensor": [
            {
                "token": token("calibrated_sensor", m.channel),
                "sensor_token": token("sensor", m.channel),
                "translation": list(m.translation),
                "rotation": list(m.rotation),
                "camera_intrinsic": m.intrinsics(width, height).tolist() if m.pinhole else [],
            }
            for m in mounts
        ],
    }
