"""Classes of the ground as areas of colour."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from mmdet3d.structures import BEVMasks
from mmdet3d.visualization.heat import cells_of_picture, look_up
from mmdet3d.visualization.layers import Color

__all__ = ["AREA_COLORS", "Areas"]

# As BEVFusion paints its maps.
AREA_COLORS: dict[str, Color] = {
    "drivable_area": (166, 206, 227),
    "drivable_area*": (166, 206, 227),
    "ped_crossing": (251, 154, 153),
    "walkway": (227, 26, 28),
    "stop_line": (253, 191, 111),
    "carpark_area": (255, 127, 0),
    "road_divider": (202, 178, 214),
    "lane_divider": (106, 61, 154),
    "divider": (106, 61, 154),
    "lane": (51, 160, 44),
    "road_segment": (31, 120, 180),
    "road_block": (178, 223, 138),
}
_OTHER: Color = (150, 150, 150)
_NOTHING: Color = (240, 240, 240)


@dataclass
class Areas:
    """A map to paint, later classes over earlier ones.

    Args:
        title: for the picture's corner.
        masks: bool.
        to_scene: (4, 4) from the frame of the map to the one that is drawn.
    """

    title: str
    masks: BEVMasks
    to_scene: Tensor

    @property
    def colors(self) -> dict[str, Color]:
        """By class."""
        return {name: AREA_COLORS.get(name, _OTHER) for name in self.masks.classes}

    def ground(self, extent: float, size: int) -> Image.Image:
        """The square of `draw_bev`, in light grey where no class is."""
        cells = cells_of_picture(self.masks.grid, self.to_scene, extent, size)
        painted = torch.tensor(_NOTHING, dtype=torch.uint8).repeat(size, size, 1)
        for mask, color in zip(self.masks.values, self.colors.values(), strict=True):
            painted[look_up(mask, cells[..., 0], cells[..., 1]) > 0] = torch.tensor(color, dtype=torch.uint8)
        return Image.fromarray(painted.numpy(), "RGB")
