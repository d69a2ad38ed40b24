"""Ground truth as a teacher: boxes painted on the BEV, and the network that encodes them (LabelDistill, ECCV 2024)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmdet3d.distill.masks import footprints
from mmdet3d.models.layers import BasicBlock
from mmdet3d.structures import BEVGrid, Boxes3D

__all__ = ["BOX_CHANNELS", "RASTERS", "LabelEncoder", "paint_labels"]

# The numbers of a box as `Boxes3D` holds them, unscaled.
BOX_CHANNELS = 9
RASTERS = ("exact", "published")
# Boxes are painted with half their length and width, so that neighbours stay apart.
_FOOTPRINT = 0.5


def paint_labels(
    boxes: Sequence[Boxes3D], labels: Sequence[Tensor], classes: int, grid: BEVGrid, raster: str = "exact"
) -> tuple[Tensor, Tensor]:
    """Every box painted on the raster with half its length and width, later classes over earlier ones.

    Boxes of one class are painted in their order. Background is 0.

    Args:
        boxes, labels: of each sample, LiDAR frame; boxes without extent or with a negative label are not painted.
        classes: how many there are.
        grid: the raster.
        raster: `exact` paints the boxes whose centre is on the grid, on the cells whose centre they cover, and the
            cell of a box's centre before all others. `published` cuts corners down to whole cells, so that a thin box
            may miss its own centre, and paints boxes beyond the upper borders on the last cells.

    Returns:
        (B, 9, X, Y) the numbers of the box that a cell belongs to, (B, classes, X, Y) its class, one-hot; float32.

    Raises:
        ValueError: a label that `classes` classes do not have, or an unknown raster.
    """
    if raster not in RASTERS:
        raise ValueError(f"raster must be one of {', '.join(RASTERS)}, got {raster!r}")
    maps = [_paint(b.to(torch.float32), label, classes, grid, raster) for b, label in zip(boxes, labels, strict=True)]
    box_maps, label_maps = zip(*maps, strict=True)
    return torch.stack(box_maps), torch.stack(label_maps)


def _paint(boxes: Boxes3D, labels: Tensor, classes: int, grid: BEVGrid, raster: str) -> tuple[Tensor, Tensor]:
    if (labels >= classes).any():
        raise ValueError(f"ground truth has label {int(labels.max())}, but there are {classes} classes")
    keep = (labels >= 0) & (boxes.dims[:, :2] > 0).all(1)
    if raster == "exact":
        keep &= _on_grid(boxes, grid)
    order = labels[keep].argsort(stable=True)
    boxes, labels = boxes[keep][order], labels[keep][order]
    half = boxes.clone()
    half.tensor[:, 3:5] *= _FOOTPRINT
    owner = (_exact_owner if raster == "exact" else _published_owner)(half, grid)
    painted = owner >= 0
    box_map = boxes.tensor.new_zeros(*grid.shape, BOX_CHANNELS)
    box_map[painted] = boxes.tensor[owner[painted]]
    label_map = boxes.tensor.new_zeros(*grid.shape, classes)
    label_map[painted] = F.one_hot(labels[owner[painted]], classes).to(label_map)
    return box_map.permute(2, 0, 1), label_map.permute(2, 0, 1)


def _on_grid(boxes: Boxes3D, grid: BEVGrid) -> Tensor:
    cells = grid.to_cells(boxes.centers[:, :2]).floor()
    return ((cells >= 0) & (cells < cells.new_tensor(grid.shape))).all(1)


def _exact_owner(boxes: Boxes3D, grid: BEVGrid) -> Tensor:
    """(X, Y) int64: the last box whose centre is in the cell, or else that covers the cell's centre; -1 for none."""
    rank = torch.arange(1, len(boxes) + 1, device=boxes.device)
    covered = footprints(boxes, grid) * rank[:, None, None]
    owner = torch.cat([covered.new_zeros(1, *grid.shape), covered]).amax(0)
    cells = grid.to_cells(boxes.centers[:, :2]).floor().long()
    index = cells[:, 0] * grid.shape[1] + cells[:, 1]
    owner.view(-1).scatter_reduce_(0, index, len(boxes) + rank, "amax")
    return torch.where(owner > len(boxes), owner - len(boxes), owner) - 1


def _published_owner(boxes: Boxes3D, grid: BEVGrid) -> Tensor:
    """(X, Y) int64: the last box whose polygon of truncated corners holds the cell; -1 for none."""
    owner = torch.full((grid.shape[0] * grid.shape[1],), -1, device=boxes.device)
    if len(boxes) == 0:
        return owner.view(grid.shape)
    corners = grid.to_cells(boxes.footprint()).trunc().long()
    low = corners.amin(1)
    side = torch.arange(int((corners.amax(1) - low).max()) + 1, device=boxes.device)
    window = torch.cartesian_prod(side, side)
    cells = low[:, None] + window
    hit = _in_polygon(cells, corners) & (cells >= 0).all(-1)
    cells = cells.minimum(cells.new_tensor(grid.shape) - 1)
    rank = torch.arange(len(boxes), device=boxes.device)[:, None].expand_as(hit)
    owner.scatter_reduce_(0, (cells[..., 0] * grid.shape[1] + cells[..., 1])[hit], rank[hit], "amax")
    return owner.view(grid.shape)


def _in_polygon(points: Tensor, corners: Tensor) -> Tensor:
    """Whether integer points lie in a polygon, on its edge, or on a corner, by the crossings of two opposite rays.

    A polygon without area holds its corners alone.

    Args:
        points: (N, P, 2).
        corners: (N, K, 2).

    Returns:
        (N, P) bool.
    """
    # The published label encoder paints with scikit-image, which counts edges and corners as inside; its weights have
    # only seen masks drawn so. A single ray counts the edges of one side of the polygon as inside and those of the
    # other as outside: a point on an edge is where the two opposite rays disagree.
    a = corners[:, None] - points[:, :, None]
    b = a.roll(1, dims=2)
    # Where the edge crosses the line through the point, times a positive number: without a division, all is exact in
    # integers.
    crossing = (b[..., 0] * a[..., 1] - a[..., 0] * b[..., 1]) * (a[..., 1] - b[..., 1])
    above = ((b[..., 1] > 0) != (a[..., 1] > 0)) & (crossing > 0)
    below = ((b[..., 1] < 0) != (a[..., 1] < 0)) & (crossing < 0)
    right, left = above.sum(-1) % 2 == 1, below.sum(-1) % 2 == 1
    return right | (right != left) | (a == 0).all(-1).any(-1)


class _CellMLP(nn.Module):
    """Two linear layers on the last dimension."""

    def __init__(self, in_features: int, features: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(in_features, features)
        self.fc2 = nn.Linear(features, features)

    def forward(self, x: Tensor) -> Tensor:
        gate: Tensor = self.fc2(self.fc1(x).relu())
        return gate


class LabelEncoder(nn.Module):
    """Painted ground truth to the levels that a LiDAR detector's BEV backbone would give: an approximate inverse of
    its neck and head.

    Args:
        classes: how many there are.
        shape: (X, Y) of the raster.
        strides: of each level with respect to the raster.
        channels: of each level.
        hidden: features of a cell before the levels.
        norm: affine of the levels' layer norm: `spatial` has a factor per channel and cell, which ties it to this
            raster; `channel` one per channel.

    Raises:
        ValueError: lists of different lengths, or an unknown norm.
    """

    def __init__(
        self,
        classes: int,
        shape: Sequence[int],
        strides: Sequence[int],
        channels: Sequence[int] = (128, 256),
        hidden: int = 256,
        norm: str = "spatial",
    ) -> None:
        super().__init__()
        if len(channels) != len(strides):
            raise ValueError(
                f"label_encoder.channels must name one number per level of the detector's decoder.backbone, which has "
                f"{len(strides)} (strides {list(strides)}), got {list(channels)}"
            )
        if norm not in ("spatial", "channel"):
            raise ValueError(f"label_encoder.norm must be spatial or channel, got {norm!r}")
        self.mlp_box = _CellMLP(BOX_CHANNELS, hidden)
        self.mlp_label = _CellMLP(classes, hidden)
        self.mlp2 = _CellMLP(hidden, hidden)
        self.ln2 = nn.LayerNorm(hidden)
        self.conv1 = BasicBlock(hidden)
        self.conv_blocks = nn.ModuleList()
        for width, stride in zip(channels, strides, strict=True):
            size = [(n - 1) // stride + 1 for n in shape]
            self.conv_blocks.append(
                nn.Sequential(
                    nn.Conv2d(hidden, width, 3, stride, padding=1, padding_mode="replicate"),
                    nn.LayerNorm([width, *size]) if norm == "spatial" else nn.GroupNorm(1, width),
                    nn.ReLU(inplace=True),
                )
            )

    def forward(self, box_maps: Tensor, label_maps: Tensor) -> list[Tensor]:
        """Maps of `paint_labels` (B, 9, X, Y) and (B, classes, X, Y) to one (B, C_i, X_i, Y_i) per level."""
        boxes, labels = (maps.permute(0, 2, 3, 1) for maps in (box_maps, label_maps))
        with torch.autocast(boxes.device.type, enabled=False):  # metres in bfloat16 come in steps of 25 cm
            codes = self.mlp_box(boxes)
        cells = self.ln2(self.mlp2(codes + self.mlp_label(labels)))
        bev = self.conv1(cells.permute(0, 3, 1, 2))
        return [block(bev) for block in self.conv_blocks]
