"""Detectors: what is trained and evaluated as a whole."""

from mmdet3d.models.detectors.bevfusion import BEVFusion
from mmdet3d.models.detectors.mono import MonoDetector
from mmdet3d.models.detectors.simdistill import SimulatedFusion

__all__ = ["BEVFusion", "MonoDetector", "SimulatedFusion"]
