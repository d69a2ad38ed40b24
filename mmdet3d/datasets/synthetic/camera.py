"""Cameras: textured, shaded solids over a textured ground, hidden surfaces removed per pixel."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from mmdet3d.datasets.synthetic.geometry import BOTTOM, FACES, face_planes, invert, transform
from mmdet3d.datasets.synthetic.textures import SIZE
from mmdet3d.datasets.synthetic.world import World

__all__ = ["Look", "Picture", "draw_look", "render"]

_NEAR, _FARTHEST = 0.2, 100.0
_HAZE = np.array([176.0, 188.0, 200.0])
_HAZE_DISTANCE = 150.0


@dataclass(frozen=True)
class Look:
    """Light and sensor.

    Args:
        sun: (3,) unit vector towards the sun, global.
        gain: (3,) brightness of each colour channel.
        noise: standard deviation of the pixel noise, grey levels.
    """

    sun: np.ndarray
    gain: np.ndarray
    noise: float


def draw_look(brightness: float, noise: float, rng: np.random.Generator) -> Look:
    """A random time of day; `brightness` is the relative standard deviation of the gain."""
    height, direction = rng.uniform(0.5, 1.2), rng.uniform(-np.pi, np.pi)
    sun = np.array([np.cos(height) * np.cos(direction), np.cos(height) * np.sin(direction), np.sin(height)])
    gain = np.exp(rng.normal(0, brightness))
    return Look(sun, gain * np.exp(rng.normal(0, 0.3 * brightness, 3)), noise)


@dataclass
class Picture:
    """A rendered view.

    Args:
        image: (H, W, 3) uint8 RGB.
        depth: (H, W) float32, metres along the optical axis, 0 in the sky.
        actor: (H, W) int16, the actor at each pixel, -1 for ground and sky.
        visible: (A,) pixels that show each actor.
        extent: (A,) pixels it would cover if nothing else stood in front; 0 for buildings.
        bounds: (A, 4) int, first column and row and the ends of those pixels; zeros where there are none.
    """

    image: np.ndarray
    depth: np.ndarray
    actor: np.ndarray
    visible: np.ndarray
    extent: np.ndarray
    bounds: np.ndarray


class _View:
    """One image in the making. Rays are (x, y, 1) per pixel; inverse depth over the image is affine in the pixel."""

    def __init__(self, intrinsics: np.ndarray, width: int, height: int) -> None:
        self.k, self.width, self.height = intrinsics, width, height
        self.x = ((np.arange(width) + 0.5 - intrinsics[0, 2]) / intrinsics[0, 0]).astype(np.float32)
        self.y = ((np.arange(height) + 0.5 - intrinsics[1, 2]) / intrinsics[1, 1]).astype(np.float32)
        self.image = np.empty((height, width, 3), np.uint8)
        self.inverse_depth = np.zeros((height, width), np.float32)
        self.actor = np.full((height, width), -1, np.int16)

    def affine(self, vector: np.ndarray, rows: slice = slice(None), columns: slice = slice(None)) -> np.ndarray:
        """`vector` . ray over a window."""
        a, b, c = (np.float32(v) for v in vector)
        return (b * self.y[rows] + c)[:, None] + (a * self.x[columns])[None]

    def inside(self, edges: np.ndarray, rows: slice, columns: slice) -> np.ndarray:
        """Which rays of a window pass through a convex polygon given by `_edges`."""
        mask = self.affine(edges[0], rows, columns) < 0
        for edge in edges[1:]:
            mask &= self.affine(edge, rows, columns) < 0
        return mask


def render(
    world: World,
    t: float,
    camera2global: np.ndarray,
    intrinsics: np.ndarray,
    size: tuple[int, int],
    look: Look,
    rng: np.random.Generator,
) -> Picture:
    """Take a picture.

    Args:
        world: the scene.
        t: seconds.
        camera2global: (4, 4); camera x right, y down, z forward.
        intrinsics: (3, 3) pixels.
        size: width and height, pixels.
        look: light and sensor.
        rng: pixel noise.
    """
    view = _View(intrinsics, *size)
    to_camera = invert(camera2global)
    _draw_sky_and_ground(view, world, camera2global, look)
    _draw_shadows(view, world, t, to_camera)
    extent, bounds = _draw_solids(
        view, world, transform(to_camera, world.solids(t)), to_camera[:3, :3] @ look.sun, look
    )
    _add_noise(view.image, look.noise, rng)
    shown = view.actor[view.actor >= 0]
    visible = np.bincount(shown, minlength=len(world.actors))
    inverse = view.inverse_depth
    depth = np.divide(1, inverse, out=np.zeros_like(inverse), where=inverse > 0)
    return Picture(view.image, depth, view.actor, visible, extent, bounds)


def _draw_sky_and_ground(view: _View, world: World, camera2global: np.ndarray, look: Look) -> None:
    height, up = np.float32(camera2global[2, 3]), camera2global[2, :3]
    inverse = view.affine(-up / height)
    slope = np.clip(-inverse[:, view.width // 2] * height, 0, 1)[:, None]
    sky = _HAZE * (1 - slope) + np.array([118.0, 158.0, 214.0]) * slope
    view.image[:] = np.clip(sky * look.gain, 0, 255).astype(np.uint8)[:, None]
    # The horizon is nearly level: rows below its highest point hold all the ground.
    first = int(np.argmax((inverse > 1 / 250).any(1)))
    rows = slice(first, None)
    inverse = inverse[rows]
    on_ground = inverse > 1 / 250
    depth = 1 / np.maximum(inverse, 1 / 250)
    x = view.affine(camera2global[0, :3], rows) * depth + np.float32(camera2global[0, 3])
    y = view.affine(camera2global[1, :3], rows) * depth + np.float32(camera2global[1, 3])
    # Blending in 8.8 fixed point is several times faster than in floats.
    haze = _haze(inverse[:, view.width // 2].clip(1 / 250))[:, None, None]
    light = (0.5 + 0.5 * max(look.sun[2], 0)) * look.gain
    share = np.minimum(255 * light * (1 - haze), 256).astype(np.uint16)
    colours = world.ground.colours.take(world.ground.cells(x, y), 0) * share
    colours += np.minimum(256 * _HAZE * look.gain * haze, 65535 - 255 * share.astype(float)).astype(np.uint16)
    np.copyto(view.image[rows], (colours >> 8).astype(np.uint8), where=on_ground[..., None])
    np.copyto(view.inverse_depth[rows], inverse, where=on_ground)


def _draw_shadows(view: _View, world: World, t: float, to_camera: np.ndarray) -> None:
    """Darker ground below and beside everything."""
    pose = world.poses(t)
    corners = np.array([[0.54, 0.56], [-0.54, 0.56], [-0.54, -0.56], [0.54, -0.56]]) * world.sizes[:, None, :2]
    c, s = np.cos(pose[:, 2])[:, None], np.sin(pose[:, 2])[:, None]
    x = c * corners[..., 0] - s * corners[..., 1] + pose[:, :1]
    y = s * corners[..., 0] + c * corners[..., 1] + pose[:, 1:2]
    polygons = transform(to_camera, np.stack([x, y, np.zeros_like(x)], -1))
    windows = _windows(view, polygons)
    for i, edges in enumerate(_edges(polygons)):
        window = windows[i]
        if window is None or polygons[i, :, 2].min() > 60:
            continue
        ground = view.image[window]
        mask = view.inside(edges, *window) & (view.inverse_depth[window] > 0)
        ground[mask] = (ground[mask] * np.float32(0.45)).astype(np.uint8)


def _draw_solids(
    view: _View, world: World, corners: np.ndarray, sun: np.ndarray, look: Look
) -> tuple[np.ndarray, np.ndarray]:
    """Draw all faces that look at the camera; number (A,) and bounds (A, 4) of the pixels of each actor on its own."""
    normals, offsets = face_planes(corners)
    polygons = corners[:, FACES[:BOTTOM]]
    facing = (offsets[:, :BOTTOM] < 0) & (polygons[..., 2].max(2) > _NEAR) & (polygons[..., 2].min(2) < _FARTHEST)
    solid, number = np.nonzero(facing)
    polygons, normals, offsets = polygons[solid, number], normals[solid, number], offsets[solid, number]
    windows, edges, planes = _windows(view, polygons), _edges(polygons), normals / offsets[:, None]
    shade = 0.5 + 0.5 * np.maximum(normals @ sun, 0)
    axes, shifts = _texture_axes(polygons)
    silhouettes: dict[int, list[tuple[slice, slice, np.ndarray]]] = {}
    for i, window in enumerate(windows):
        if window is None:
            continue
        actor = int(world.owner[solid[i]])
        mask = view.inside(edges[i], *window)
        silhouettes.setdefault(actor, []).append((*window, mask))
        rows, columns = _uncovered(view, window, mask, planes[i], actor)
        if len(rows):
            u, v = _surface_coordinates(view, axes[i], shifts[i], rows, columns)
            repeat = world.repeats[solid[i], number[i]] * SIZE
            texture = _lit(world.skins[solid[i]][number[i]], shade[i], polygons[i, :, 2].mean(), look)
            spot = (v * repeat[1]).astype(np.int32) % SIZE * SIZE + (u * repeat[0]).astype(np.int32) % SIZE
            view.image[rows, columns] = texture.reshape(-1, 3).take(spot, 0)
    extent, bounds = np.zeros(len(world.actors), int), np.zeros((len(world.actors), 4), int)
    for actor, faces in silhouettes.items():
        if world.labelled[actor]:
            extent[actor], bounds[actor] = _union(faces)
    return extent, bounds


def _uncovered(
    view: _View, window: tuple[slice, slice], mask: np.ndarray, plane: np.ndarray, actor: int
) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns at which a face is the nearest so far; they are marked as the actor's."""
    inverse = view.affine(plane, *window)
    nearest = mask & (inverse > view.inverse_depth[window])
    np.copyto(view.inverse_depth[window], inverse, where=nearest)
    view.actor[window][nearest] = actor
    rows, columns = np.nonzero(nearest)
    return rows + window[0].start, columns + window[1].start


def _surface_coordinates(
    view: _View, axes: np.ndarray, shifts: np.ndarray, rows: np.ndarray, columns: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """u along the lower edge and v up the face, each in [0, 1), of pixels on the face."""
    x, y, depth = view.x[columns], view.y[rows], 1 / view.inverse_depth[rows, columns]
    a, b = axes.astype(np.float32)
    u = (x * a[0] + y * a[1] + a[2]) * depth - np.float32(shifts[0])
    v = (x * b[0] + y * b[1] + b[2]) * depth - np.float32(shifts[1])
    return np.clip(u, 0, 0.9999), np.clip(v, 0, 0.9999)


def _texture_axes(polygons: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Per face the vectors (F, 2, 3) and shifts (F, 2) with which a point p has u, v = axes . p - shifts."""
    sides = np.stack([polygons[:, 1] - polygons[:, 0], polygons[:, 3] - polygons[:, 0]], 1)
    axes = np.linalg.inv(sides @ sides.transpose(0, 2, 1)) @ sides
    return axes, (axes * polygons[:, None, 0]).sum(-1)


def _edges(polygons: np.ndarray) -> np.ndarray:
    """(F, 4, 3) planes through the camera and each edge; a ray inside has negative products with all four."""
    return np.cross(polygons, polygons[:, [1, 2, 3, 0]])


def _windows(view: _View, polygons: np.ndarray) -> list[tuple[slice, slice] | None]:
    """Smallest window around each polygon (F, 4, 3), None for those outside the image."""
    depth = np.maximum(polygons[..., 2], _NEAR)
    u = polygons[..., 0] / depth * view.k[0, 0] + view.k[0, 2]
    v = polygons[..., 1] / depth * view.k[1, 1] + view.k[1, 2]
    bounds = np.stack([v.min(1), v.max(1) + 1, u.min(1), u.max(1) + 1], 1)
    for i in np.nonzero((polygons[..., 2] < _NEAR).any(1))[0]:
        bounds[i] = _clipped_bounds(view, polygons[i])
    limit = np.array([view.height, view.height, view.width, view.width])
    bounds = np.clip(np.floor(bounds), 0, limit).astype(int)
    some = (bounds[:, 0] < bounds[:, 1]) & (bounds[:, 2] < bounds[:, 3])
    return [(slice(b[0], b[1]), slice(b[2], b[3])) if ok else None for b, ok in zip(bounds.tolist(), some, strict=True)]


def _clipped_bounds(view: _View, polygon: np.ndarray) -> list[float]:
    """Top, bottom, left, right of the part of a polygon in front of the near plane."""
    points = []
    for a, b in zip(polygon, np.roll(polygon, -1, axis=0), strict=True):
        if a[2] >= _NEAR:
            points.append(a)
        if (a[2] >= _NEAR) != (b[2] >= _NEAR):
            points.append(a + (b - a) * (_NEAR - a[2]) / (b[2] - a[2]))
    if not points:
        return [0.0, 0.0, 0.0, 0.0]
    x, y, z = np.array(points).T
    u, v = x / z * view.k[0, 0] + view.k[0, 2], y / z * view.k[1, 1] + view.k[1, 2]
    return [v.min(), v.max() + 1, u.min(), u.max() + 1]


def _lit(texture: np.ndarray, shade: float, distance: float, look: Look) -> np.ndarray:
    haze = float(_haze(np.array(1 / max(distance, 1.0))))
    light = (look.gain * (shade * (1 - haze))).astype(np.float32)
    return np.minimum(texture * light + (look.gain * haze * _HAZE).astype(np.float32), 255).astype(np.uint8)


def _haze(inverse_depth: np.ndarray) -> np.ndarray:
    """Share of haze in the colour; a rational stand-in for the exponential law, equal to it nearby."""
    return 1 / (1 + inverse_depth * _HAZE_DISTANCE)


def _union(faces: list[tuple[slice, slice, np.ndarray]]) -> tuple[int, tuple[int, int, int, int]]:
    """Number and bounds of the pixels that the faces of one actor cover together."""
    top, left = min(r.start for r, _, _ in faces), min(c.start for _, c, _ in faces)
    bottom, right = max(r.stop for r, _, _ in faces), max(c.stop for _, c, _ in faces)
    covered = np.zeros((bottom - top, right - left), bool)
    for rows, columns, mask in faces:
        covered[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left] |= mask
    y, x = (np.flatnonzero(covered.any(axis)) for axis in (1, 0))
    if not len(y):
        return 0, (0, 0, 0, 0)
    return int(covered.sum()), (left + x[0], top + y[0], left + x[-1] + 1, top + y[-1] + 1)


@lru_cache(maxsize=4)
def _grain(level: float) -> np.ndarray:
    """One fixed field of grey noise (fresh numbers per pixel would cost more than rendering)."""
    field = np.random.default_rng(0).standard_normal((1024, 1024), dtype=np.float32)
    return np.rint(field * level).astype(np.int16)


def _add_noise(image: np.ndarray, level: float, rng: np.random.Generator) -> None:
    """Grey noise, cut at a random place from the fixed field, which repeats where the image is larger."""
    height, width = image.shape[:2]
    top, left = rng.integers(0, 1024, 2)
    rows, columns = (np.arange(height) + top) % 1024, (np.arange(width) + left) % 1024
    grain = _grain(level).take(rows, 0).take(columns, 1)
    image[:] = np.clip(image + grain[..., None], 0, 255)
