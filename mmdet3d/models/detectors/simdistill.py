"""Detection from cameras alone, by a network that has the shape of LiDAR-camera fusion."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from mmdet3d.models.detectors.bevfusion import BEVFusion, build_camera
from mmdet3d.models.detectors.config import DecoderBlock, SimulatedEncoders
from mmdet3d.ops.bev_pool import PoolPlan
from mmdet3d.registry import MODELS
from mmdet3d.structures import Batch, BEVGrid

__all__ = ["SimulatedFusion"]

_SIMULATED = "encoders.simulated"


@MODELS.register
class SimulatedFusion(BEVFusion):
    """A camera branch and a simulated LiDAR branch from the same image features, fused (SimDistill, AAAI 2024).

    Both branches lift the image features into a BEV of their own; that of the simulated branch is to look like LiDAR
    features, and its geometry is compensated in the image, in the BEV, or both. Nothing but images and calibration is
    read. The fuser gets [simulated, camera].

    Args:
        encoders: of both branches.
        decoder, heads, fuser: see `BEVFusion`.

    Raises:
        ValueError: an unknown key, a missing branch, changes to a shared view transform, or parts on different rasters.
    """

    def __init__(
        self,
        encoders: SimulatedEncoders,
        decoder: DecoderBlock,
        heads: Mapping[str, Any],
        fuser: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(encoders, decoder, heads, fuser)

    def _build_encoders(self, encoders: SimulatedEncoders) -> nn.ModuleDict:
        block = encoders.simulated
        changes = block.vtransform or {}
        camera = build_camera(encoders.camera, "encoders.camera")
        simulated = nn.ModuleDict()
        if not block.share_view_transform:
            simulated["vtransform"] = MODELS.build(
                {**encoders.camera.vtransform, **changes}, f"{_SIMULATED}.vtransform"
            )
        elif changes:
            raise ValueError(
                f"model.{_SIMULATED}.vtransform changes {', '.join(changes)}, but with share_view_transform there is "
                "only the view transform of the camera branch: make the changes there"
            )
        if block.compensation is not None:
            lift = simulated["vtransform"] if "vtransform" in simulated else camera["vtransform"]
            arguments = {"type": "GeometryCompensation", **block.compensation}
            simulated["compensation"] = MODELS.build(
                arguments, f"{_SIMULATED}.compensation", channels=lift.bev_channels, size=lift.grid.shape
            )
        return nn.ModuleDict({"camera": camera, "simulated": simulated})

    @property
    def shares_view_transform(self) -> bool:
        """Whether both branches are lifted by one module."""
        return "vtransform" not in self.encoders["simulated"]

    def _declare_encoders(self) -> None:
        self._declare_camera()
        if self.shares_view_transform:
            self.add_stage(_SIMULATED, self._compensate, ("encoders.camera",))
            return
        self._declare_view_transform("simulated", self._simulate)
        if self.encoders["simulated"]["vtransform"].supervises_depth:
            self.loss_taps = (*self.loss_taps, f"{_SIMULATED}.depth")

    def _simulate(
        self, batch: Batch, features: Tensor, plan: PoolPlan, drawn: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        bev, depth = self.encoders["simulated"]["vtransform"](features, batch, plan=plan, drawn=drawn)
        return self._compensate(batch, bev), depth

    def _compensate(self, batch: Batch, bev: Tensor) -> Tensor:
        simulated = self.encoders["simulated"]
        return simulated["compensation"](bev) if "compensation" in simulated else bev

    def losses(self, features: Mapping[str, Any], batch: Batch) -> dict[str, Tensor]:
        """`loss/object/...` of the head; with supervised depth `loss/depth` and `loss/depth_simulated`.

        Raises:
            ValueError: the batch holds no ground truth.
        """
        losses = super().losses(features, batch)
        if f"{_SIMULATED}.depth" in self.loss_taps:
            transform = self.encoders["simulated"]["vtransform"]
            losses["loss/depth_simulated"] = transform.depth_loss(features[f"{_SIMULATED}.depth"], batch)
        return losses

    def _sensor_grid(self, name: str) -> BEVGrid:
        shared = name == "simulated" and self.shares_view_transform
        return self.encoders["camera" if shared else name]["vtransform"].grid
