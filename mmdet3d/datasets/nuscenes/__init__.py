"""nuScenes: info files, ground-truth database, data set."""

from mmdet3d.datasets.nuscenes.database import DatabaseRecord, create_database, read_database
from mmdet3d.datasets.nuscenes.dataset import NuScenesDataset
from mmdet3d.datasets.nuscenes.ego_frame import in_ego_frame
from mmdet3d.datasets.nuscenes.infos import read_infos, write_infos

__all__ = [
    "DatabaseRecord",
    "NuScenesDataset",
    "create_database",
    "in_ego_frame",
    "read_database",
    "read_infos",
    "write_infos",
]
