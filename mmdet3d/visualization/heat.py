"""Maps of numbers as colours: over the ground, or over the images of the cameras."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from mmdet3d.structures import BEVGrid, Calibration
from mmdet3d.visualization.layers import Color

__all__ = ["Heat", "cells_of_picture", "look_up"]

# From nothing to much, and from less than nothing to more; light in the middle, so that boxes stay visible on top.
_MUCH: list[Color] = [(255, 255, 255), (254, 224, 182), (247, 152, 72), (204, 76, 2), (102, 37, 6)]
_MORE: list[Color] = [(33, 102, 172), (146, 197, 222), (255, 255, 255), (244, 165, 130), (178, 24, 43)]
_OPAQUE = 0.85  # of the strongest colour on an image


@dataclass
class Heat:
    """A map to colour.

    Args:
        title: for the legend.
        values: (X, Y) over the ground or (N, h, w), one map per camera; in [0, 1], or in [-1, 1] if `signed`.
        grid: where the cells of a map over the ground lie, in the frame `to_scene` leads from; None for cameras.
        to_scene: (4, 4) from that frame to the one that is drawn.
        calibration: of a map over the images: its `image_aug` leads from the raw image to the detector's input.
        input_size: height and width of that input, pixels.
        signed: the colours tell more from less.
    """

    title: str
    values: Tensor
    grid: BEVGrid | None = None
    to_scene: Tensor | None = None
    calibration: Calibration | None = None
    input_size: tuple[int, int] | None = None
    signed: bool = False

    def ground(self, extent: float, size: int) -> Image.Image:
        """The square of `draw_bev`, with white where the map ends."""
        assert self.grid is not None and self.to_scene is not None
        cells = cells_of_picture(self.grid, self.to_scene, extent, size)
        return self._colored(look_up(self.values, cells[..., 0], cells[..., 1]))

    def over(self, image: Image.Image, camera: int) -> Image.Image:
        """An image with its map laid over it, the more opaque the stronger it is."""
        assert self.calibration is not None and self.input_size is not None
        values = self.values[camera]
        y, x = torch.meshgrid(torch.arange(image.height) + 0.5, torch.arange(image.width) + 0.5, indexing="ij")
        aug = self.calibration.image_aug[camera].float()
        seen = torch.stack([x, y], dim=-1) @ aug[:2, :2].T + aug[:2, 3]
        rows = (seen[..., 1] * values.shape[0] / self.input_size[0]).floor().long()
        columns = (seen[..., 0] * values.shape[1] / self.input_size[1]).floor().long()
        found = look_up(values, rows, columns)
        mask = Image.fromarray((found.abs().clamp(max=1) * 255 * _OPAQUE).to(torch.uint8).numpy(), "L")
        return Image.composite(self._colored(found), image.convert("RGB"), mask)

    def strip(self, size: tuple[int, int]) -> Image.Image:
        """The colours from the lowest value to the highest, for the legend."""
        values = torch.linspace(-1.0 if self.signed else 0.0, 1.0, size[0])
        return self._colored(values.expand(size[1], -1))

    def _colored(self, values: Tensor) -> Image.Image:
        stops = torch.tensor(_MORE if self.signed else _MUCH, dtype=torch.float32)
        share = (values.clamp(-1, 1) + 1) / 2 if self.signed else values.clamp(0, 1)
        place = share * (len(stops) - 1)
        low = place.floor().long().clamp(max=len(stops) - 2)
        colors = torch.lerp(stops[low], stops[low + 1], (place - low)[..., None])
        return Image.fromarray(colors.round().to(torch.uint8).numpy(), "RGB")


def cells_of_picture(grid: BEVGrid, to_scene: Tensor, extent: float, size: int) -> Tensor:
    """(size, size, 2) int64: the cell below each pixel of `draw_bev`; those beside the grid have no such cell."""
    steps = (torch.arange(size) + 0.5) * 2 * extent / size - extent
    y, x = torch.meshgrid(-steps, steps, indexing="ij")
    places = torch.stack([x, y, torch.zeros_like(x), torch.ones_like(x)], dim=-1)
    back = torch.linalg.inv(to_scene.double()).float()
    return grid.to_cells((places @ back.T)[..., :2]).floor().long()


def look_up(values: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Values (R, C) at rows and columns, 0 outside."""
    inside = (rows >= 0) & (rows < values.shape[0]) & (columns >= 0) & (columns < values.shape[1])
    found = values.float().cpu()[rows.clamp(0, values.shape[0] - 1), columns.clamp(0, values.shape[1] - 1)]
    return found.where(inside, torch.zeros(()))
