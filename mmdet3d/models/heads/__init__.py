"""Heads, each a task: `forward(bev) -> raw`, `loss(raw, batch) -> dict`, `decode(raw, batch) -> one per sample`."""

from mmdet3d.models.heads.base import DetectionHead, Head
from mmdet3d.models.heads.centerhead import CenterHead
from mmdet3d.models.heads.segmentation import BEVGridTransform, BEVSegmentationHead
from mmdet3d.models.heads.transfusion import TransFusionHead

__all__ = ["BEVGridTransform", "BEVSegmentationHead", "CenterHead", "DetectionHead", "Head", "TransFusionHead"]
