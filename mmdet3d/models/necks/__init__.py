"""Necks: a list of feature maps to one map (`DLAUp`: to a list of maps)."""

from mmdet3d.models.necks.dla_up import DLAUp
from mmdet3d.models.necks.generalized_lss import GeneralizedLSSFPN
from mmdet3d.models.necks.second import SECONDFPN

__all__ = ["SECONDFPN", "DLAUp", "GeneralizedLSSFPN"]
