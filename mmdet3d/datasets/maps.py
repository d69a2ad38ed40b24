"""The vector maps of the nuScenes map expansion, and rasters of them.

They are read by the devkit's map API. Its own rasters stop at lines that leave an area twice and at polygons that only
touch it (devkit 1.2 with Shapely 2), ignore the scale of an augmentation and know no mirror; drawing is therefore ours,
by the same rules: borders belong to polygons, lines are three cells wide.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mmdet3d.blocks import nearest
from mmdet3d.structures import BEVGrid

__all__ = ["DRAWABLE", "LOCATIONS", "layers_of", "map_file", "rasterise", "read_surroundings"]

LOCATIONS = ("singapore-onenorth", "singapore-hollandvillage", "singapore-queenstown", "boston-seaport")
_LINES = ("road_divider", "lane_divider")
_POLYGONS = ("road_segment", "road_block", "lane", "ped_crossing", "walkway", "stop_line", "carpark_area")
_COMPOSED = {"divider": _LINES, "drivable_area*": ("road_segment", "lane")}
DRAWABLE = ("drivable_area", *_POLYGONS, *_LINES, *_COMPOSED)
_LINE_WIDTH = 2  # of OpenCV, which draws three cells


def layers_of(name: str) -> tuple[str, ...]:
    """The layers of the map that a class of `LoadBEVSegmentation` unites.

    Raises:
        ValueError: there is no such class.
    """
    if name not in DRAWABLE:
        raise ValueError(f"unknown map class {name!r}{nearest(name, DRAWABLE)} (known: {', '.join(DRAWABLE)})")
    return _COMPOSED.get(name, (name,))


def map_file(root: Path, location: str) -> Path:
    return root / "maps" / "expansion" / f"{location}.json"


def read_surroundings(
    files: Sequence[Path], layers: Sequence[str], center: tuple[float, float], reach: float
) -> list[np.ndarray]:
    """What of a map lies near a place: per layer a geometry collection as well-known binary, (bytes,) uint8.

    Args:
        files: the map.
        center: global x and y, metres.
        reach: half the side of the square around it, metres.

    Raises:
        FileNotFoundError: the map expansion is not installed.
        ValueError: an outdated or damaged file.
    """
    import shapely

    (path,) = files
    area = shapely.box(center[0] - reach, center[1] - reach, center[0] + reach, center[1] + reach)
    found = []
    for layer in layers:
        shapes, tree = _layer(path, layer)
        near = [shapes[k] for k in sorted(tree.query(area))]  # in the order of the file: later holes erase
        found.append(np.frombuffer(shapely.to_wkb(shapely.GeometryCollection(near)), np.uint8))
    return found


def rasterise(shapes: Sequence[np.ndarray], to_local: np.ndarray, grid: BEVGrid) -> np.ndarray:
    """(layers, X, Y) bool: cells that the shapes of each layer cover.

    Cell k stands for the line k cells above the lower border, not for the middle of the cell, as published: labels lie
    half a cell low.

    Args:
        shapes: of `read_surroundings`.
        to_local: (2, 3), global metres to those of the raster.
    """
    import cv2
    import shapely
    from shapely import affinity

    upper = [low + size * n for low, size, n in zip(grid.lower, grid.cell, grid.shape, strict=True)]
    area = shapely.box(*grid.lower, *upper)
    (a, b, x), (c, d, y) = to_local
    masks = np.zeros((len(shapes), grid.shape[1], grid.shape[0]), np.uint8)  # OpenCV's rows are y
    for mask, packed in zip(masks, shapes, strict=True):
        for shape in shapely.from_wkb(packed.tobytes()).geoms:
            clipped = affinity.affine_transform(shape, [a, b, c, d, x, y]).intersection(area)
            parts = list(_parts(clipped, shape.geom_type))
            if shape.geom_type == "Polygon":
                cv2.fillPoly(mask, [_cells(p.exterior, grid).round().astype(np.int32) for p in parts], 1)
                holes = [_cells(h, grid).round().astype(np.int32) for p in parts for h in p.interiors]
                cv2.fillPoly(mask, holes, 0)
            else:
                cv2.polylines(mask, [_cells(p, grid).astype(np.int32) for p in parts], False, 1, _LINE_WIDTH)
    return masks.transpose(0, 2, 1).astype(bool)


def _cells(line: Any, grid: BEVGrid) -> np.ndarray:
    """(N, 2) vertices in cells above the lower border, free of the noise that would cut whole numbers down by one."""
    return ((np.asarray(line.coords)[:, :2] - grid.lower) / grid.cell).round(6)


def _parts(clipped: Any, kind: str) -> Iterator[Any]:
    """The polygons or lines in a geometry; borders and corners that are left of what only touches the area are none."""
    if clipped.geom_type == kind:
        if not clipped.is_empty:
            yield clipped
    elif hasattr(clipped, "geoms"):
        for part in clipped.geoms:
            yield from _parts(part, kind)


@functools.cache
def _layer(path: Path, layer: str) -> tuple[list[Any], Any]:
    """All polygons or lines of a layer in the order of the file, and where they lie."""
    import shapely

    with _in_words(path):
        api = _open(path)
        records = getattr(api, layer)
        if layer in _LINES:
            shapes = [line for line in (api.extract_line(r["line_token"]) for r in records) if not line.is_empty]
        elif layer == "drivable_area":
            # The devkit stops at one of these that crosses itself; of the other layers it leaves such out.
            whole = [api.extract_polygon(token) for record in records for token in record["polygon_tokens"]]
            shapes = [part for polygon in whole for part in _parts(shapely.make_valid(polygon), "Polygon")]
        else:
            shapes = [p for p in (api.extract_polygon(r["polygon_token"]) for r in records) if p.is_valid]
        return shapes, shapely.STRtree(shapes)


@contextlib.contextmanager
def _in_words(path: Path) -> Iterator[None]:
    """What the devkit says of a map, as one sentence."""
    if not path.is_file():
        raise FileNotFoundError(
            f"map file {path} does not exist; unpack the map expansion v1.3 of nuScenes (a download of its own) into "
            f"{path.parents[1]}, or train without LoadBEVSegmentation"
        )
    try:
        yield
    except Exception as error:  # the devkit raises bare ones
        raise ValueError(
            f"map file {path} cannot be read ({error!r}); take that of the map expansion v1.3 of nuScenes"
        ) from error


@functools.cache
def _open(path: Path) -> Any:
    """The devkit's map."""
    import matplotlib

    # Importing the map API changes how everything that is plotted looks.
    with matplotlib.rc_context():
        from nuscenes.map_expansion.map_api import NuScenesMap
    return NuScenesMap(str(path.parents[2]), path.stem)
