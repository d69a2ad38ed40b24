"""The distillation losses; importing this package registers them."""

from mmdet3d.distill.losses.base import DistillLoss, full_precision
from mmdet3d.distill.losses.center_response import CenterResponseLoss
from mmdet3d.distill.losses.channel_softmax import ChannelSoftmaxLoss
from mmdet3d.distill.losses.correlation import CorrelationLoss
from mmdet3d.distill.losses.cross_head import CrossHeadLoss
from mmdet3d.distill.losses.dual_kl import DualKLLoss
from mmdet3d.distill.losses.feature import FeatureLoss, MaskedFeatureLoss
from mmdet3d.distill.losses.foreground import ForegroundLoss
from mmdet3d.distill.losses.map_response import MapResponseLoss
from mmdet3d.distill.losses.mimicking import MimickingLoss
from mmdet3d.distill.losses.object_response import ObjectResponseLoss
from mmdet3d.distill.losses.partition import PartitionedFeatureLoss
from mmdet3d.distill.losses.pearson import PearsonFeatureLoss
from mmdet3d.distill.losses.prediction import PredictionLoss
from mmdet3d.distill.losses.pseudo_labels import PseudoLabelLoss
from mmdet3d.distill.losses.radar import RadarActivationLoss
from mmdet3d.distill.losses.region import RegionFeatureLoss
from mmdet3d.distill.losses.relation import AffinityLoss
from mmdet3d.distill.losses.response import ResponseLoss

__all__ = [
    "AffinityLoss",
    "CenterResponseLoss",
    "ChannelSoftmaxLoss",
    "CorrelationLoss",
    "CrossHeadLoss",
    "DistillLoss",
    "DualKLLoss",
    "FeatureLoss",
    "ForegroundLoss",
    "MapResponseLoss",
    "MaskedFeatureLoss",
    "MimickingLoss",
    "ObjectResponseLoss",
    "PartitionedFeatureLoss",
    "PearsonFeatureLoss",
    "PredictionLoss",
    "PseudoLabelLoss",
    "RadarActivationLoss",
    "RegionFeatureLoss",
    "ResponseLoss",
    "full_precision",
]
