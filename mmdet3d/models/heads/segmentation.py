"""BEVFusion's head for the map: which class of the ground covers which cell."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmdet3d.blocks import ConfigKeyError
from mmdet3d.models.heads.base import Head
from mmdet3d.models.layers import conv_bn_relu
from mmdet3d.models.losses import sigmoid_focal
from mmdet3d.registry import MODELS
from mmdet3d.structures import Batch, BEVGrid, BEVMasks

__all__ = ["BEVGridTransform", "BEVSegmentationHead"]

Scope = Sequence[Sequence[float]]


def _cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(logits, target, reduction="none")


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"focal": sigmoid_focal, "xent": _cross_entropy}


class BEVGridTransform(nn.Module):
    """Maps over one raster sampled, bilinearly, at the cell centres of another. It has no parameters.

    Args:
        input_scope: lower end, upper end and cell along x and along y of the maps that come in, metres.
        output_scope: likewise of those that go out.
        prescale_factor: maps are first enlarged by it.

    Raises:
        ConfigKeyError: a scope is no pair of three numbers, or covers no cell.
    """

    places: Tensor

    def __init__(self, input_scope: Scope, output_scope: Scope, prescale_factor: float = 1) -> None:
        super().__init__()
        self.input_grid = _grid(input_scope, "input_scope")
        self.output_grid = _grid(output_scope, "output_scope")
        self.prescale_factor = prescale_factor
        # What the sampler is told, -1 and 1 at the outer borders of the input, is computed in float32 as published.
        along = [
            torch.arange(n, dtype=torch.float32).mul(step).add(lower + step / 2).sub(low).div(high - low).mul(2).sub(1)
            for n, (lower, _, step), (low, high, _) in zip(
                self.output_grid.shape, output_scope, input_scope, strict=True
            )
        ]
        # `grid_sample` names the last dimension of the maps, y, first.
        places = torch.stack(torch.meshgrid(*along, indexing="ij"), dim=-1).flip(-1)
        self.register_buffer("places", places, persistent=False)

    def forward(self, bev: Tensor) -> Tensor:
        """(B, C, X, Y) over the input scope, of any number of cells, to (B, C, X', Y'); 0 where the input ends."""
        if self.prescale_factor != 1:
            bev = F.interpolate(bev, scale_factor=self.prescale_factor, mode="bilinear", align_corners=False)
        # In half precision places would be off by a tenth of a cell.
        exact = torch.promote_types(bev.dtype, torch.float32)
        places = self.places.to(exact).expand(len(bev), -1, -1, -1)
        return F.grid_sample(bev.to(exact), places, padding_mode="zeros", align_corners=False).to(bev.dtype)


def _grid(scope: Scope, key: str) -> BEVGrid:
    try:
        (x0, x1, dx), (y0, y1, dy) = ([float(value) for value in axis] for axis in scope)
        return BEVGrid.from_range([x0, y0, 0.0, x1, y1, 0.0], [dx, dy])
    except (TypeError, ValueError):
        raise ConfigKeyError(
            f"grid_transform.{key}", f" must be [[min, max, cell], [min, max, cell]] of x and y in metres, got {scope}"
        ) from None


@MODELS.register
class BEVSegmentationHead(Head):
    """Classes that overlap, so a probability for each of them in every cell (BEVFusion, MIT).

    Two 3x3 convolutions and a 1x1 run on the raster that is predicted, after the features were resampled to it.

    Args:
        in_channels: of the decoder's output.
        grid_transform: arguments of a `BEVGridTransform`, from the raster of the features to that of the map.
        classes: of the map, one output channel each; those of `LoadBEVSegmentation`.
        loss: `focal` (Lin et al. 2017, gamma 2, without weights of positives) or `xent`, the cross entropy.

    Attributes:
        map_grid: the raster of the output.

    Raises:
        ValueError: another loss, no class, or scopes that are none.
    """

    needs = ("masks",)

    def __init__(self, in_channels: int, grid_transform: Mapping[str, Any], classes: Sequence[str], loss: str) -> None:
        super().__init__()
        if loss not in LOSSES:
            raise ConfigKeyError("loss", f" must be {' or '.join(LOSSES)}, got {loss!r}")
        if not classes:
            raise ConfigKeyError("classes", " names no class of the map")
        self.classes = tuple(classes)
        self.loss_name = loss
        self.transform = BEVGridTransform(**grid_transform)
        self.grid, self.map_grid = self.transform.input_grid, self.transform.output_grid
        self.classifier = nn.Sequential(
            *conv_bn_relu(in_channels, in_channels, 3, padding=1),
            *conv_bn_relu(in_channels, in_channels, 3, padding=1),
            nn.Conv2d(in_channels, len(self.classes), 1),
        )

    def forward(self, bev: Tensor) -> Tensor:
        """Logits (B, classes, X', Y') of the features (B, in_channels, X, Y)."""
        return self.classifier(self.transform(bev))

    def loss(self, raw: Tensor, batch: Batch) -> dict[str, Tensor]:
        """A term per class, `CLASS/focal` or `CLASS/xent`: the mean over all cells of all samples, in float32."""
        target = self._truth(batch)
        cells = LOSSES[self.loss_name](raw.float(), target)
        return {f"{name}/{self.loss_name}": cells[:, k].mean() for k, name in enumerate(self.classes)}

    def decode(self, raw: Tensor, batch: Batch) -> list[BEVMasks]:
        """Probabilities."""
        return [BEVMasks(values, self.classes, self.map_grid) for values in raw.float().sigmoid()]

    def _truth(self, batch: Batch) -> Tensor:
        """(B, classes, X', Y') float32."""
        masks: list[BEVMasks] = batch.require("masks", type(self).__name__)
        for found in masks:
            if found.classes != self.classes or not found.grid.matches(self.map_grid):
                raise ValueError(
                    f"the map head predicts {', '.join(self.classes)} over {self.map_grid}, but LoadBEVSegmentation "
                    f"gives {', '.join(found.classes)} over {found.grid}; give both the same classes and bounds"
                )
        return torch.stack([found.values for found in masks]).float()
