"""LiDAR and radar branches: points to voxels to a bird's-eye view."""

from mmdet3d.models.encoders.pillars import PillarFeatureNet, PointPillarsEncoder, PointPillarsScatter
from mmdet3d.models.encoders.radar import RadarEncoder, RadarEncoderCalib, RadarFeatureNet
from mmdet3d.models.encoders.sparse import SparseEncoder
from mmdet3d.models.encoders.voxelizer import (
    DynamicVoxelizer,
    VoxelizeBlock,
    Voxelizer,
    build_voxelizer,
    voxelize_batch,
)

__all__ = [
    "DynamicVoxelizer",
    "PillarFeatureNet",
    "PointPillarsEncoder",
    "PointPillarsScatter",
    "RadarEncoder",
    "RadarEncoderCalib",
    "RadarFeatureNet",
    "SparseEncoder",
    "VoxelizeBlock",
    "Voxelizer",
    "build_voxelizer",
    "voxelize_batch",
]
