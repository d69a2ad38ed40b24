"""Camera-aware depth estimation of BEVDepth (Li et al., AAAI 2023).

A suffix of a name says its shape: P = B*N images, V camera values, C channels, D depth bins, h x w feature pixels,
R = P*h rows of pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mmdet3d.models.deformable import DeformConv
from mmdet3d.models.layers import BasicBlock, conv_bn_relu
from mmdet3d.structures import Calibration

__all__ = ["CAMERA_VALUES", "DepthNet", "FrustumRefinement", "camera_vector"]

CAMERA_VALUES = 27
_DILATIONS = (1, 6, 12, 18)


def camera_vector(calibration: Calibration) -> Tensor:
    """(B*N, 27) float32: what the depth of a pixel depends on besides its appearance.

    Focal lengths and principal point; the 2x3 image augmentation; the 2x2 LiDAR augmentation on the ground plane and
    its factor on z; the 3x4 camera pose in the ego frame, row-major.
    """
    camera = calibration.to(torch.float32)
    k, image = camera.intrinsics, camera.image_aug
    lidar = camera.lidar_aug[:, None].expand_as(k)
    values = torch.stack(
        [
            k[..., 0, 0],
            k[..., 1, 1],
            k[..., 0, 2],
            k[..., 1, 2],
            image[..., 0, 0],
            image[..., 0, 1],
            image[..., 0, 3],
            image[..., 1, 0],
            image[..., 1, 1],
            image[..., 1, 3],
            lidar[..., 0, 0],
            lidar[..., 0, 1],
            lidar[..., 1, 0],
            lidar[..., 1, 1],
            lidar[..., 2, 2],
        ],
        dim=-1,
    )
    return torch.cat([values, camera.camera2ego[..., :3, :].flatten(2)], dim=-1).flatten(0, 1)


class _MLP(nn.Module):
    def __init__(self, in_features: int, features: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(in_features, features)
        self.fc2 = nn.Linear(features, features)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.fc1(x).relu())


class _SqueezeExcite(nn.Module):
    """Scale channels by a gate that is computed from a vector."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv_reduce = nn.Conv2d(channels, channels, 1)
        self.conv_expand = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor, vector: Tensor) -> Tensor:
        """(P, C, h, w) and (P, C) to (P, C, h, w)."""
        gate = self.conv_expand(self.conv_reduce(vector[..., None, None]).relu())
        return x * gate.sigmoid()


class _DilatedConv(nn.Module):
    def __init__(self, channels: int, dilation: int) -> None:
        super().__init__()
        kernel = 1 if dilation == 1 else 3
        padding = 0 if dilation == 1 else dilation
        self.atrous_conv = nn.Conv2d(channels, channels, kernel, padding=padding, dilation=dilation, bias=False)
        self.bn = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.atrous_conv(x)).relu()


class _ASPP(nn.Module):
    """Atrous spatial pyramid pooling (Chen et al., "Rethinking Atrous Convolution", 2017)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.aspp1, self.aspp2, self.aspp3, self.aspp4 = (_DilatedConv(channels, d) for d in _DILATIONS)
        self.global_avg_pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), *conv_bn_relu(channels, channels, 1))
        self.conv1 = nn.Conv2d(5 * channels, channels, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.dropout = nn.Dropout(0.5)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, x: Tensor) -> Tensor:
        pooled = self.global_avg_pool(x).expand(-1, -1, *x.shape[-2:])
        x = torch.cat([self.aspp1(x), self.aspp2(x), self.aspp3(x), self.aspp4(x), pooled], dim=1)
        return self.dropout(self.bn1(self.conv1(x)).relu())


class DepthNet(nn.Module):
    """Depth logits and context features, both gated by the camera parameters.

    Args:
        in_channels: of the input.
        mid_channels: inside.
        context_channels: C.
        depth_channels: D.
        dcn_groups: 0 ends the depth branch in a convolution, and normalises it and the logits, as BEVFusion does;
            otherwise a deformable convolution of so many groups stands there, without norms, as in BEVDepth (4).
    """

    def __init__(
        self, in_channels: int, mid_channels: int, context_channels: int, depth_channels: int, dcn_groups: int = 0
    ) -> None:
        super().__init__()
        mid = mid_channels
        self.reduce_conv = nn.Sequential(*conv_bn_relu(in_channels, mid, 3, padding=1, bias=True))
        self.context_conv = nn.Conv2d(mid, context_channels, 1)
        self.bn = nn.BatchNorm1d(CAMERA_VALUES)
        self.depth_mlp = _MLP(CAMERA_VALUES, mid)
        self.depth_se = _SqueezeExcite(mid)
        self.context_mlp = _MLP(CAMERA_VALUES, mid)
        self.context_se = _SqueezeExcite(mid)
        self.depth_conv_1 = nn.Sequential(*(BasicBlock(mid) for _ in range(3)))
        last = nn.Conv2d(mid, depth_channels, 1)
        if dcn_groups:
            self.depth_conv_2 = nn.Sequential(_ASPP(mid), DeformConv(mid, mid, 3, padding=1, groups=dcn_groups))
            self.depth_conv_3 = nn.Sequential(last)
        else:
            self.depth_conv_2 = nn.Sequential(_ASPP(mid), nn.Conv2d(mid, mid, 3, padding=1), nn.BatchNorm2d(mid))
            self.depth_conv_3 = nn.Sequential(last, nn.BatchNorm2d(depth_channels))

    def forward(self, x: Tensor, cameras: Tensor) -> Tensor:
        """(P, in_channels, h, w) and camera vectors (P, 27) to (P, D + C, h, w)."""
        cameras_PV = self.bn(cameras)
        features_PChw = self.reduce_conv(x)
        context_PChw = self.context_conv(self.context_se(features_PChw, self.context_mlp(cameras_PV)))
        gated_PChw = self.depth_se(features_PChw, self.depth_mlp(cameras_PV))
        depth_PDhw = self.depth_conv_3(self.depth_conv_2(self.depth_conv_1(gated_PChw)))
        return torch.cat([depth_PDhw, context_PChw], dim=1)


class FrustumRefinement(nn.Module):
    """Convolutions over depth and image column, one image row at a time."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.reduce_conv = nn.Sequential(*conv_bn_relu(channels, channels, 3, padding=1))
        self.conv = nn.Sequential(
            *conv_bn_relu(channels, channels, 3, padding=1), *conv_bn_relu(channels, channels, 3, padding=1)
        )
        self.out_conv = nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1))

    def forward(self, lifted: Tensor) -> Tensor:
        """(P, C, D, h, w) to the same shape."""
        p, c, d, h, w = lifted.shape
        rows_RCwD = lifted.permute(0, 3, 1, 4, 2).reshape(p * h, c, w, d)
        rows_RCwD = self.reduce_conv(rows_RCwD)
        rows_RCwD = self.out_conv(self.conv(rows_RCwD) + rows_RCwD)
        return rows_RCwD.view(p, h, c, w, d).permute(0, 2, 4, 1, 3)
