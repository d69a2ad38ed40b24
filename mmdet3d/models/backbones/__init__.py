"""Image backbones: `(B*N, 3, H, W) -> list of (B*N, C_i, h_i, w_i)`."""

from mmdet3d.models.backbones.dla import DLA
from mmdet3d.models.backbones.resnet import ResNet
from mmdet3d.models.backbones.swin import SwinTransformer
from mmdet3d.models.backbones.vitae import ViTAEv2

__all__ = ["DLA", "ResNet", "SwinTransformer", "ViTAEv2"]
