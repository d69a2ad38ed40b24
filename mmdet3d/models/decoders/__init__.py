"""BEV backbones and necks between fusion and heads. (`SECONDFPN` serves images too and lives in `necks`.)"""

from mmdet3d.models.decoders.lss_fpn import LSSFPN
from mmdet3d.models.decoders.resnet import BEVResNet, GeneralizedResNet
from mmdet3d.models.decoders.second import SECOND

__all__ = ["LSSFPN", "SECOND", "BEVResNet", "GeneralizedResNet"]
