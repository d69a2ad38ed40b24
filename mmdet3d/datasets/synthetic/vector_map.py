"""The roads of a world as a map in the format of the nuScenes map expansion (v1.3).

All scenes share one map, side by side in a square lattice, because the map API of the devkit knows four names of
locations and no others.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from mmdet3d.datasets.synthetic.road import CURB, EDGE, EXTENT, SIDEWALK, Road
from mmdet3d.datasets.synthetic.tables import token

__all__ = ["LOCATION", "place", "vector_map"]

LOCATION = "boston-seaport"  # of the four names one where people drive on the right
_POLYGONS = ("drivable_area", "ped_crossing", "walkway", "stop_line", "carpark_area")
_LINES = ("road_divider", "lane_divider")
_EMPTY = ("road_segment", "road_block", "lane", "traffic_light", "lane_connector")
_HALF_LENGTH = 120.0  # metres of road to both sides of the middle of a scene's square
_STREET = 5.0  # half the width of the side street, which is 60 m long to both sides
_STREET_LENGTH = 60.0
_CLEAR = 9.0  # metres to both sides of the middle of the crossing where nobody parks
_STEP = 5.0  # metres between two vertices along the road; a line has two, so that no raster of the devkit stops at it

Band = tuple[float, float, float, float]  # from s to s, from d to d, in the frame of the road


def place(index: int, scenes: int) -> np.ndarray:
    """(2,) x and y of the lower left corner of a scene's square, metres."""
    columns = math.ceil(math.sqrt(scenes))
    return EXTENT * np.array([index % columns, index // columns], dtype=float)


def vector_map(roads: Sequence[Road]) -> dict[str, Any]:
    """The content of `maps/expansion/LOCATION.json`.

    Args:
        roads: of all scenes, each in the frame of its own square.
    """
    tables: dict[str, list[dict[str, Any]]] = {
        name: [] for name in ("polygon", "line", "node", *_POLYGONS, *_LINES, *_EMPTY)
    }
    for index, road in enumerate(roads):
        corner = place(index, len(roads))
        for layer, band in _bands(road):
            _add(tables, layer, road, band, corner)
    side = EXTENT * math.ceil(math.sqrt(len(roads)))
    return {"version": "1.3", "canvas_edge": [side, side], **tables, "arcline_path_3": {}, "connectivity": {}}


def _bands(road: Road) -> Iterator[tuple[str, Band]]:
    """Layers and what they cover; bands of no width are lines."""
    middle = float(road.from_global(np.full(2, EXTENT / 2))[0])
    start, stop, crossing = middle - _HALF_LENGTH, middle + _HALF_LENGTH, road.crossing
    yield "drivable_area", (start, stop, -CURB, CURB)
    for s0, s1 in _without(start, stop, crossing, _STREET):
        yield "road_divider", (s0, s1, 0.0, 0.0)
        for side in (-1, 1):
            yield "walkway", (s0, s1, side * CURB, side * SIDEWALK)
            yield "lane_divider", (s0, s1, side * EDGE / 2, side * EDGE / 2)
    for s0, s1 in _without(start, stop, crossing, _CLEAR):
        for side in (-1, 1):
            yield "carpark_area", (s0, s1, side * EDGE, side * CURB)
    if crossing is None:
        return
    yield "drivable_area", (crossing - _STREET, crossing + _STREET, -_STREET_LENGTH, _STREET_LENGTH)
    for side in (-1, 1):
        yield "ped_crossing", (crossing + side * 5.5, crossing + side * 8.5, -EDGE, EDGE)
        # Who drives with growing s keeps to negative d, and stops before the crossing.
        yield "stop_line", (crossing + side * 9.0, crossing + side * 10.0, 0.0, side * EDGE)


def _without(start: float, stop: float, crossing: float | None, clear: float) -> list[tuple[float, float]]:
    """What is left of a stretch of road beside the crossing."""
    if crossing is None:
        return [(start, stop)]
    return [(start, crossing - clear), (crossing + clear, stop)]


def _add(tables: dict[str, list[dict[str, Any]]], layer: str, road: Road, band: Band, corner: np.ndarray) -> None:
    s0, s1, d0, d1 = band
    along = np.linspace(s0, s1, max(2, math.ceil((s1 - s0) / _STEP) + 1))
    if layer in _LINES:
        nodes = _nodes(tables, road, along, np.full_like(along, d0), corner)
        for ends in itertools.pairwise(nodes):
            line = _record(tables, "line", node_tokens=list(ends))
            extra: dict[str, Any] = (
                {"lane_divider_segments": []} if layer == "lane_divider" else {"road_segment_token": None}
            )
            _record(tables, layer, line_token=line, **extra)
        return
    around = np.concatenate([along, along[::-1]])
    aside = np.repeat([d0, d1], len(along))
    polygon = _record(tables, "polygon", exterior_node_tokens=_nodes(tables, road, around, aside, corner), holes=[])
    if layer == "drivable_area":
        _record(tables, layer, polygon_tokens=[polygon])
    elif layer == "stop_line":
        _record(tables, layer, polygon_token=polygon, stop_line_type="STOP_SIGN")
    else:
        _record(tables, layer, polygon_token=polygon)


def _nodes(
    tables: dict[str, list[dict[str, Any]]], road: Road, s: np.ndarray, d: np.ndarray, corner: np.ndarray
) -> list[str]:
    places = (road.to_global(s, d)[0] + corner).round(3)
    return [_record(tables, "node", x=x, y=y) for x, y in places.tolist()]


def _record(tables: dict[str, list[dict[str, Any]]], layer: str, **fields: Any) -> str:
    """Append a record with a token of its own, which is returned."""
    name = token("map", layer, len(tables[layer]))
    tables[layer].append({"token": name, **fields})
    return name
