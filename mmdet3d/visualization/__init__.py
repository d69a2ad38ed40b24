"""Headless pictures of frames: bird's-eye view, cameras, comparisons."""

from mmdet3d.visualization.bev import draw_bev
from mmdet3d.visualization.cameras import box_segments, draw_camera, draw_cameras
from mmdet3d.visualization.compose import Panel, draw_frame, draw_panels
from mmdet3d.visualization.layers import PALETTE, RADAR, Layer
from mmdet3d.visualization.verdicts import judge, verdict_layers

__all__ = [
    "PALETTE",
    "RADAR",
    "Layer",
    "Panel",
    "box_segments",
    "draw_bev",
    "draw_camera",
    "draw_cameras",
    "draw_frame",
    "draw_panels",
    "judge",
    "verdict_layers",
]
