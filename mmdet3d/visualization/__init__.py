"""Headless pictures of frames: bird's-eye view, cameras, comparisons."""

from mmdet3d.visualization.bev import draw_bev
from mmdet3d.visualization.cameras import box_segments, draw_cameras
from mmdet3d.visualization.compose import draw_frame, side_by_side
from mmdet3d.visualization.layers import PALETTE, Layer

__all__ = ["PALETTE", "Layer", "box_segments", "draw_bev", "draw_cameras", "draw_frame", "side_by_side"]
