"""The distillation losses; importing this package registers them."""

from mmdet3d.distill.losses.base import DistillLoss, full_precision
from mmdet3d.distill.losses.feature import FeatureLoss, MaskedFeatureLoss
from mmdet3d.distill.losses.prediction import PredictionLoss
from mmdet3d.distill.losses.radar import RadarActivationLoss
from mmdet3d.distill.losses.relation import AffinityLoss
from mmdet3d.distill.losses.response import ResponseLoss

__all__ = [
    "AffinityLoss",
    "DistillLoss",
    "FeatureLoss",
    "MaskedFeatureLoss",
    "PredictionLoss",
    "RadarActivationLoss",
    "ResponseLoss",
    "full_precision",
]
