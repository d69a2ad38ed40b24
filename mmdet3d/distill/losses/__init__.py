"""The distillation losses; importing this package registers them."""

from mmdet3d.distill.losses.active import ActiveFeatureLoss
from mmdet3d.distill.losses.base import DistillLoss, full_precision
from mmdet3d.distill.losses.center_response import CenterResponseLoss
from mmdet3d.distill.losses.channel_softmax import ChannelSoftmaxLoss
from mmdet3d.distill.losses.correlation import CorrelationLoss
from mmdet3d.distill.losses.cross_head import CrossHeadLoss
from mmdet3d.distill.losses.dual_kl import DualKLLoss
from mmdet3d.distill.losses.feature import FeatureLoss, MaskedFeatureLoss
from mmdet3d.distill.losses.foreground import ForegroundLoss
from mmdet3d.distill.losses.gaussian_features import GaussianFeatureLoss, TrajectoryFeatureLoss
from mmdet3d.distill.losses.gaussian_response import GaussianResponseLoss
from mmdet3d.distill.losses.instances import ContrastiveLoss, InstanceLoss
from mmdet3d.distill.losses.map_response import MapResponseLoss
from mmdet3d.distill.losses.mimicking import MimickingLoss
from mmdet3d.distill.losses.object_points import ObjectPointsLoss
from mmdet3d.distill.losses.object_response import ObjectResponseLoss
from mmdet3d.distill.losses.occupancy import OccupancyLoss
from mmdet3d.distill.losses.partition import PartitionedFeatureLoss
from mmdet3d.distill.losses.pearson import PearsonFeatureLoss
from mmdet3d.distill.losses.prediction import PredictionLoss
from mmdet3d.distill.losses.pseudo_labels import PseudoLabelLoss
from mmdet3d.distill.losses.radar import RadarActivationLoss
from mmdet3d.distill.losses.region import RegionFeatureLoss
from mmdet3d.distill.losses.relation import AffinityLoss
from mmdet3d.distill.losses.response import ResponseLoss

__all__ = [
    "ActiveFeatureLoss",
    "AffinityLoss",
    "CenterResponseLoss",
    "ChannelSoftmaxLoss",
    "ContrastiveLoss",
    "CorrelationLoss",
    "CrossHeadLoss",
    "DistillLoss",
    "DualKLLoss",
    "FeatureLoss",
    "ForegroundLoss",
    "GaussianFeatureLoss",
    "GaussianResponseLoss",
    "InstanceLoss",
    "MapResponseLoss",
    "MaskedFeatureLoss",
    "MimickingLoss",
    "ObjectPointsLoss",
    "ObjectResponseLoss",
    "OccupancyLoss",
    "PartitionedFeatureLoss",
    "PearsonFeatureLoss",
    "PredictionLoss",
    "PseudoLabelLoss",
    "RadarActivationLoss",
    "RegionFeatureLoss",
    "ResponseLoss",
    "TrajectoryFeatureLoss",
    "full_precision",
]
