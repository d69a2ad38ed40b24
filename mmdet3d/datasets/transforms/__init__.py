"""Steps from a `FrameRecord` to a `Sample`: loading, augmentation, filters, and the runner that chains them."""

from mmdet3d.datasets.transforms.augment import GlobalRotScaleTrans, ImageAug3D, PointShuffle, RandomFlip3D
from mmdet3d.datasets.transforms.compose import Compose, empty_sample
from mmdet3d.datasets.transforms.depth import GTDepth, LoadDepthFromFiles
from mmdet3d.datasets.transforms.filters import ObjectNameFilter, ObjectRangeFilter, PointsInView, PointsRangeFilter
from mmdet3d.datasets.transforms.history import LoadHistoryImages
from mmdet3d.datasets.transforms.images import GridMask, ImageNormalize, LoadMultiViewImageFromFiles
from mmdet3d.datasets.transforms.lidar import LoadPointsFromFile, LoadPointsFromMultiSweeps, read_points
from mmdet3d.datasets.transforms.lidar_pcd import LoadPointsOfScanners
from mmdet3d.datasets.transforms.loading import LoadAnnotations3D
from mmdet3d.datasets.transforms.paste import ObjectPaste
from mmdet3d.datasets.transforms.radar import LoadRadarPointsMultiSweeps, read_radar_pcd
from mmdet3d.datasets.transforms.radar4d import LoadRadarPoints4D
from mmdet3d.datasets.transforms.segmentation import LoadBEVSegmentation

__all__ = [
    "Compose",
    "GTDepth",
    "GlobalRotScaleTrans",
    "GridMask",
    "ImageAug3D",
    "ImageNormalize",
    "LoadAnnotations3D",
    "LoadBEVSegmentation",
    "LoadDepthFromFiles",
    "LoadHistoryImages",
    "LoadMultiViewImageFromFiles",
    "LoadPointsFromFile",
    "LoadPointsFromMultiSweeps",
    "LoadPointsOfScanners",
    "LoadRadarPoints4D",
    "LoadRadarPointsMultiSweeps",
    "ObjectNameFilter",
    "ObjectPaste",
    "ObjectRangeFilter",
    "PointShuffle",
    "PointsInView",
    "PointsRangeFilter",
    "RandomFlip3D",
    "empty_sample",
    "read_points",
    "read_radar_pcd",
]
