"""What the maps and regions of an image should say (DID-M3D; the classes' mean sizes as in GUPNet)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor
from torch.nn import functional as F

from mmdet3d.models.heads.gaussian import draw_gaussians, gaussian_radius
from mmdet3d.models.heads.mono.geometry import ImageGeometry
from mmdet3d.ops.roi_align import roi_align
from mmdet3d.structures import ImageObjects, limit_period

__all__ = [
    "HEADING_BINS",
    "ROI_SIZE",
    "MonoTargets",
    "box_mask",
    "decode_heading",
    "encode_heading",
    "encode_objects",
    "heat_maps",
    "pool_depth",
    "support_mask",
    "visible_depth",
]

HEADING_BINS = 12
ROI_SIZE = 7
_BIN = 2 * torch.pi / HEADING_BINS
_OVERLAP = 0.7


@dataclass
class MonoTargets:
    """The N objects of a batch whose projected 3-D centre lies on the maps; lengths on the maps in cells.

    Args:
        image: (N,) int64, index of the sample.
        labels: (N,) int64.
        cells: (N, 2) int64 x, y of the cell that holds the projected 3-D centre.
        boxes: (N, 4) x1, y1, x2, y2 of the 2-D box; may reach beyond the maps.
        offset_2d: (N, 2) centre of the 2-D box minus the cell.
        size_2d: (N, 2) width and height of the 2-D box.
        offset_3d: (N, 2) projected 3-D centre minus the cell.
        size_3d: (N, 3) height, width, length minus the mean of the class, metres.
        depth: (N,) z of the 3-D centre, metres.
        heading_bin: (N,) int64.
        heading_residual: (N,) observation angle minus the bin's middle, radians.
        regressed: (N,) bool; the others only draw on the heat map.
    """

    image: Tensor
    labels: Tensor
    cells: Tensor
    boxes: Tensor
    offset_2d: Tensor
    size_2d: Tensor
    offset_3d: Tensor
    size_3d: Tensor
    depth: Tensor
    heading_bin: Tensor
    heading_residual: Tensor
    regressed: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: Tensor) -> MonoTargets:
        return MonoTargets(**{f.name: getattr(self, f.name)[index] for f in fields(self)})

    @property
    def radii(self) -> Tensor:
        """(N,) int64 radius of an object's Gaussian, cells."""
        width, height = self.size_2d.clamp(min=0).unbind(1)
        return gaussian_radius(height, width, _OVERLAP).floor().clamp(min=0).long()


def encode_objects(
    objects: Sequence[ImageObjects], geometry: ImageGeometry, map_size: tuple[int, int], mean_sizes: Tensor
) -> MonoTargets:
    """Targets of all objects whose projected 3-D centre lies on maps of `map_size` (height, width) cells.

    Args:
        objects: one entry per sample.
        mean_sizes: (K, 3) height, width, length by class, metres.
    """
    image = torch.cat([torch.full_like(o.labels, i) for i, o in enumerate(objects)])
    joined = {f.name: torch.cat([getattr(o, f.name) for o in objects]) for f in fields(ImageObjects)}
    labels, boxes2d, centers = (joined[name] for name in ("labels", "boxes2d", "centers"))
    corners = [geometry.to_cells(boxes2d[:, k : k + 2], image) for k in (0, 2)]
    center_3d = geometry.to_cells(geometry.project(centers, image), image)
    inside = ((center_3d >= 0) & (center_3d < center_3d.new_tensor([map_size[1], map_size[0]]))).all(1)
    cells = center_3d.floor()
    heading_bin, heading_residual = encode_heading(joined["alphas"])
    targets = MonoTargets(
        image=image,
        labels=labels,
        cells=cells.nan_to_num(0).clamp(-1, 2**20).long(),
        boxes=torch.cat(corners, dim=1),
        offset_2d=(corners[0] + corners[1]) / 2 - cells,
        size_2d=corners[1] - corners[0],
        offset_3d=center_3d - cells,
        size_3d=joined["sizes"] - mean_sizes[labels],
        depth=centers[:, 2],
        heading_bin=heading_bin,
        heading_residual=heading_residual,
        regressed=joined["regressed"],
    )
    return targets[inside]


def encode_heading(alphas: Tensor) -> tuple[Tensor, Tensor]:
    """Observation angles (...) to the index of one of twelve sectors and the angle from its middle.

    Sector k is centred at k times 30 degrees.
    """
    shifted = torch.remainder(torch.remainder(alphas, 2 * torch.pi) + _BIN / 2, 2 * torch.pi)
    index = (shifted / _BIN).floor().clamp(max=HEADING_BINS - 1)
    return index.long(), shifted - index * _BIN - _BIN / 2


def decode_heading(index: Tensor, residual: Tensor) -> Tensor:
    """Inverse of `encode_heading`, in [-pi, pi)."""
    return limit_period(index * _BIN + residual)


def heat_maps(targets: MonoTargets, shape: tuple[int, int, int, int]) -> Tensor:
    """(B, K, H, W) with a Gaussian of peak 1 at every object's cell, on the map of its class."""
    batch, classes, height, width = shape
    maps = targets.image * classes + targets.labels
    return draw_gaussians((batch * classes, height, width), maps, targets.cells.flip(1), targets.radii).view(shape)


def support_mask(targets: MonoTargets, shape: tuple[int, int, int]) -> Tensor:
    """(B, H, W) bool: the squares under the Gaussians that the objects would have at the centres of their 2-D boxes."""
    rows, columns = (torch.arange(n, device=targets.cells.device) for n in shape[1:])
    center = ((targets.boxes[:, :2] + targets.boxes[:, 2:]) / 2).floor()
    near_row = (rows - center[:, 1:]).abs() <= targets.radii[:, None]
    near_column = (columns - center[:, :1]).abs() <= targets.radii[:, None]
    squares = (near_row[:, :, None] & near_column[:, None, :]).int()
    return squares.new_zeros(shape).index_add_(0, targets.image, squares) > 0


def box_mask(targets: MonoTargets, shape: tuple[int, int, int]) -> Tensor:
    """(B, H, W) bool: the cells that the 2-D boxes touch."""
    rows, columns = (torch.arange(n, device=targets.cells.device) for n in shape[1:])
    x1, y1, x2, y2 = targets.boxes[:, :, None].unbind(1)
    in_row, in_column = (rows + 1 > y1) & (rows < y2), (columns + 1 > x1) & (columns < x2)
    boxes = (in_row[:, :, None] & in_column[:, None, :]).int()
    return boxes.new_zeros(shape).index_add_(0, targets.image, boxes) > 0


def pool_depth(depths: Tensor, map_size: tuple[int, int]) -> Tensor:
    """Per cell of `map_size` the mean depth with unknown pixels as 0, and the share of known pixels.

    Args:
        depths: (B, H, W) metres, 0 where unknown.

    Returns:
        (B, 2, h, w); the first over the second is the mean of the known pixels.
    """
    known = (depths > 0).to(depths)
    return F.adaptive_avg_pool2d(torch.stack([depths * known, known], dim=1), map_size)


def visible_depth(
    depths: Tensor, targets: MonoTargets, map_size: tuple[int, int], window: float = 3.0
) -> tuple[Tensor, Tensor]:
    """Depth of the surface that is seen in 7 x 7 bins of each 2-D box, and where it belongs to the object.

    A bin is the mean over its measured pixels; a bin counts if that differs from the object's depth by less than
    `window` metres.

    Args:
        depths: (B, H, W) metres in network pixels, 0 where unknown.

    Returns:
        (N, 7, 7) metres, 0 where it does not count; (N, 7, 7) bool.
    """
    boxes = torch.cat([targets.image[:, None].to(targets.boxes), targets.boxes], dim=1)
    total, share = roi_align(pool_depth(depths, map_size), boxes, ROI_SIZE).unbind(1)
    seen = total / share.clamp(min=1e-6)
    belongs = (share > 1e-6) & ((seen - targets.depth[:, None, None]).abs() < window)
    return torch.where(belongs, seen, 0), belongs
