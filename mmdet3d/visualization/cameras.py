"""Boxes in the camera images."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor

from mmdet3d.structures import Boxes3D, Calibration
from mmdet3d.visualization.layers import BACKGROUND, INK, Layer, Style
from mmdet3d.visualization.strokes import LINE, Pad

__all__ = ["box_segments", "draw_camera", "draw_cameras"]

# Corner pairs of `Boxes3D.corners`: bottom, top, pillars; then the heading, from the centre of the bottom (8) to its
# front (9).
_EDGES = torch.tensor(
    [[0, 1], [1, 2], [2, 3], [3, 0], [4, 5], [5, 6], [6, 7], [7, 4], [0, 4], [1, 5], [2, 6], [3, 7], [8, 9]]
)
_NEAR = 0.1
_COLUMNS = 3
_MOSAIC = ["CAM_FRONT_LEFT", "CAM_FRONT", "CAM_FRONT_RIGHT", "CAM_BACK_LEFT", "CAM_BACK", "CAM_BACK_RIGHT"]


def box_segments(
    boxes: Boxes3D, calibration: Calibration, camera: int, size: tuple[int, int]
) -> tuple[Tensor, Tensor, Tensor]:
    """The visible parts of all box edges in one image.

    Edges are cut at the near plane and at the image's borders, so a box that reaches behind the camera shows the part
    in front.

    Args:
        boxes: augmented LiDAR frame (`calibration.lidar_aug` is undone).
        calibration: of one sample; `image_aug` is applied.
        camera: index of the camera.
        size: width and height of the image, pixels.

    Returns:
        Pixels (S, 2, 2) of the segments' ends, (S,) index of the box of each, and (N,) depth of the boxes' centres.
    """
    corners = boxes.corners()
    bottom = corners[:, :4].mean(dim=1, keepdim=True)
    front = corners[:, [0, 3]].mean(dim=1, keepdim=True)
    vertices = _to_pixels(torch.cat([corners, bottom, front], dim=1), calibration, camera)
    ends = vertices[:, _EDGES].flatten(0, 1)
    owner = torch.arange(len(boxes)).repeat_interleave(len(_EDGES))
    width, height = size
    # Half spaces n . (u d, v d, d) >= offset: in front of the near plane, inside the four borders.
    planes = torch.tensor([[0.0, 0, 1], [1, 0, 0], [-1, 0, width], [0, 1, 0], [0, -1, height]], dtype=ends.dtype)
    offsets = [_NEAR, 0.0, 0.0, 0.0, 0.0]
    for plane, offset in zip(planes, offsets, strict=True):
        ends, kept = _clip(ends, plane, offset)
        owner = owner[kept]
    depth = _to_pixels(boxes.centers, calibration, camera)[:, 2]
    return ends[..., :2] / ends[..., 2:], owner, depth


def _to_pixels(points: Tensor, calibration: Calibration, camera: int) -> Tensor:
    """(..., 3) augmented LiDAR metres to homogeneous pixels (u d, v d, d) of the augmented image, float64."""
    lidar2image = calibration.lidar2image[camera].double() @ torch.linalg.inv(calibration.lidar_aug.double())
    image_aug = torch.eye(3, dtype=torch.float64)
    image_aug[:2, :2] = calibration.image_aug[camera, :2, :2]
    image_aug[:2, 2] = calibration.image_aug[camera, :2, 3]
    projected = points.double() @ lidar2image[:3, :3].T + lidar2image[:3, 3]
    return projected @ image_aug.T


def _clip(ends: Tensor, plane: Tensor, offset: float) -> tuple[Tensor, Tensor]:
    """Segments (S, 2, 3) cut at `plane . x >= offset`: those that remain, and (S,) which do."""
    distance = ends @ plane - offset
    kept = (distance > 0).any(dim=1)
    ends, distance = ends[kept], distance[kept]
    start, stop = distance.unbind(dim=1)
    share = (start / (start - stop))[:, None]
    crossing = ends[:, 0] + share * (ends[:, 1] - ends[:, 0])
    outside = (distance <= 0)[..., None]
    return torch.where(outside, crossing[:, None], ends), kept


def draw_cameras(
    images: Sequence[Image.Image],
    calibration: Calibration,
    layers: Sequence[Layer],
    classes: Sequence[str],
    names: Sequence[str] | None = None,
    width: int = 640,
) -> Image.Image:
    """All cameras in rows of three with the boxes drawn in, far ones first.

    Args:
        images: one per camera, as `calibration.image_aug` describes them (identity for raw images).
        calibration: of one sample, on the CPU.
        layers: boxes in the augmented LiDAR frame.
        classes: class list of the labels.
        names: camera names; the six of nuScenes are arranged as they look around the car.
        width: width of each image in the mosaic, pixels.

    Raises:
        ValueError: the number of images differs from the number of cameras.
    """
    if len(images) != len(calibration.intrinsics):
        raise ValueError(f"draw_cameras got {len(images)} images for {len(calibration.intrinsics)} cameras")
    names = list(names) if names is not None else [f"camera {i}" for i in range(len(images))]
    tiles = [draw_camera(image, calibration, i, layers, classes, names[i], width) for i, image in enumerate(images)]
    if set(names) == set(_MOSAIC):
        tiles = [tiles[names.index(name)] for name in _MOSAIC]
    return _mosaic(tiles)


def draw_camera(
    image: Image.Image,
    calibration: Calibration,
    camera: int,
    layers: Sequence[Layer],
    classes: Sequence[str],
    name: str,
    width: int,
) -> Image.Image:
    """One camera with the boxes drawn in, far ones first; arguments as in `draw_cameras`."""
    pad = Pad(image, (width, round(image.height * width / image.width)))
    scale = width / image.width
    for layer in layers:
        segments, owner, depth = box_segments(layer.boxes.to("cpu"), calibration, camera, image.size)
        truth = layer.style == "filled"
        colors = [BACKGROUND] * len(layer.boxes) if truth else layer.colors(classes)
        style: Style = "solid" if truth else layer.style
        thickness = 1 if truth else LINE
        ends = (segments * scale).tolist()
        for i in depth[owner].argsort(descending=True, stable=True).tolist():
            start, end = ends[i]
            pad.line(start, end, colors[owner[i]], thickness, style)
        _write_scores(pad, layer, classes, segments * scale, owner)
    pad.text((8, 4), name, BACKGROUND, halo=INK)
    return pad.finish()


def _write_scores(pad: Pad, layer: Layer, classes: Sequence[str], segments: Tensor, owner: Tensor) -> None:
    """Each score above the left end of what is seen of its box."""
    for i, (color, text) in enumerate(zip(layer.colors(classes), layer.texts(), strict=True)):
        seen = segments[owner == i].flatten(0, 1)
        if text and len(seen):
            left, top = seen.amin(dim=0).tolist()
            pad.text((left, max(top - 26, 0)), text, color, size=22, halo=BACKGROUND)


def _mosaic(tiles: Sequence[Image.Image]) -> Image.Image:
    columns = min(_COLUMNS, len(tiles))
    width, height = max(t.width for t in tiles), max(t.height for t in tiles)
    rows = -(-len(tiles) // columns)
    picture = Image.new("RGB", (columns * width, rows * height), BACKGROUND)
    for i, tile in enumerate(tiles):
        picture.paste(tile, (i % columns * width, i // columns * height))
    return picture
