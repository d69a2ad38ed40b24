"""Fusion of the sensors' BEV features: `list of (B, C_i, X, Y) -> (fused, list of the inputs as used)`."""

from mmdet3d.models.fusers.add import AddFuser
from mmdet3d.models.fusers.conv import ConvFuser
from mmdet3d.models.fusers.gated import GatedFuser

__all__ = ["AddFuser", "ConvFuser", "GatedFuser"]
