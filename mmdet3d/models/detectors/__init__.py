"""Detectors: what is trained and evaluated as a whole."""

from mmdet3d.models.detectors.bevfusion import BEVFusion
from mmdet3d.models.detectors.mono import MonoDetector
from mmdet3d.models.detectors.simdistill import SimulatedFusion
from mmdet3d.models.detectors.temporal import TemporalCamera

__all__ = ["BEVFusion", "MonoDetector", "SimulatedFusion", "TemporalCamera"]
