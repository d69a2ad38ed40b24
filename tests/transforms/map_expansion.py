"""A small map in the format of the nuScenes map expansion."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mmdet3d.datasets.records import Context, FrameRecord, SensorRecord
from mmdet3d.datasets.transforms import empty_sample
from mmdet3d.structures import Sample

CLASSES = ("drivable_area", "ped_crossing", "walkway", "stop_line", "carpark_area", "divider")
BOUND = [-50.0, 50.0, 0.5]
Points = Sequence[tuple[float, float]]
EMPTY = ("road_segment", "road_block", "lane", "traffic_light", "lane_connector")


def rectangle(x0: float, x1: float, y0: float, y1: float) -> list[tuple[float, float]]:
    return [(x0, y0), (x1, y0), (x1, y1), (x0, y1)]


class MapWriter:
    """Collects polygons and lines."""

    def __init__(self) -> None:
        self.tables: dict[str, list[dict[str, Any]]] = {
            name: [] for name in ("polygon", "line", "node", *CLASSES[:-1], "road_divider", "lane_divider", *EMPTY)
        }

    def _nodes(self, points: Points) -> list[str]:
        rows = self.tables["node"]
        rows += [{"token": f"n{len(rows) + k}", "x": x, "y": y} for k, (x, y) in enumerate(points)]
        return [row["token"] for row in rows[len(rows) - len(points) :]]

    def polygon(self, layer: str, points: Points, holes: Sequence[Points] = ()) -> None:
        token = f"p{len(self.tables['polygon'])}"
        rings = [{"node_tokens": self._nodes(hole)} for hole in holes]
        self.tables["polygon"].append({"token": token, "exterior_node_tokens": self._nodes(points), "holes": rings})
        row: dict[str, Any] = {"token": f"{layer}-{token}"}
        row |= {"polygon_tokens": [token]} if layer == "drivable_area" else {"polygon_token": token}
        self.tables[layer].append(row | ({"stop_line_type": "STOP_SIGN"} if layer == "stop_line" else {}))

    def line(self, layer: str, points: Points) -> None:
        token = f"l{len(self.tables['line'])}"
        self.tables["line"].append({"token": token, "node_tokens": self._nodes(points)})
        self.tables[layer].append({"token": f"{layer}-{token}", "line_token": token})

    def write(self, root: Path, location: str = "boston-seaport", version: str = "1.3") -> Path:
        path = root / "maps" / "expansion" / f"{location}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        rest: Mapping[str, Any] = {"version": version, "canvas_edge": [500.0, 500.0]}
        path.write_text(json.dumps({**rest, **self.tables, "arcline_path_3": {}, "connectivity": {}}))
        return path


def golden_map() -> MapWriter:
    """Of the specification, section 2.4."""
    world = MapWriter()
    world.polygon("drivable_area", rectangle(210, 230, 195, 199), [rectangle(214, 216, 196, 198)])
    world.polygon("ped_crossing", rectangle(190, 195, 220, 230))
    world.polygon("stop_line", rectangle(180, 185, 180, 181))
    world.line("lane_divider", [(160, 205), (240, 205)])
    world.line("road_divider", [(205, 160), (205, 240)])
    return world


def turn(angle: float) -> np.ndarray:
    """(4, 4) about z, counter-clockwise; degrees."""
    c, s = np.cos(np.deg2rad(angle)), np.sin(np.deg2rad(angle))
    out = np.eye(4)
    out[:2, :2] = [[c, -s], [s, c]]
    return out


def frame(root: Path, location: str = "boston-seaport", x: float = 200, y: float = 200) -> tuple[Sample, Context]:
    """Ego at x, y without yaw; nuScenes' LiDAR, whose y axis looks ahead."""
    ego2global = np.eye(4)
    ego2global[:2, 3] = x, y
    scan = SensorRecord("lidar.bin", 0, np.eye(4))
    boxes = np.zeros((0, 9))
    record = FrameRecord("a", 0, scan, turn(-90), ego2global, boxes=boxes, names=np.array([]), location=location)
    return empty_sample(record), Context(record, root, np.random.RandomState(0))
