"""A procedural driving world in the nuScenes format: ten classes, six cameras, a LiDAR, five radars."""

from mmdet3d.datasets.synthetic.generate import generate
from mmdet3d.datasets.synthetic.settings import WorldSettings
from mmdet3d.datasets.synthetic.tables import VERSION

__all__ = ["VERSION", "WorldSettings", "generate"]
