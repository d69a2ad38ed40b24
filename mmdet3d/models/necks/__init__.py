"""Necks: a list of feature maps to one map."""

from mmdet3d.models.necks.generalized_lss import GeneralizedLSSFPN
from mmdet3d.models.necks.second import SECONDFPN

__all__ = ["SECONDFPN", "GeneralizedLSSFPN"]
