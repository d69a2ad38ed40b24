"""Detectors: what is trained and evaluated as a whole."""

from mmdet3d.models.detectors.bevfusion import BEVFusion

__all__ = ["BEVFusion"]
