"""Detection heads: `forward(bev) -> raw`, `loss(raw, boxes, labels) -> dict`, `decode(raw) -> detections`."""

from mmdet3d.models.heads.centerhead import CenterHead
from mmdet3d.models.heads.transfusion import TransFusionHead

__all__ = ["CenterHead", "TransFusionHead"]
