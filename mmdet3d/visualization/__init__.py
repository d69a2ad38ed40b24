"""Headless pictures of frames: bird's-eye view, cameras, comparisons."""

from mmdet3d.visualization.areas import Areas
from mmdet3d.visualization.bev import draw_bev
from mmdet3d.visualization.cameras import box_segments, draw_camera, draw_cameras
from mmdet3d.visualization.compose import Panel, draw_frame, draw_panels
from mmdet3d.visualization.film import check_film, write_film
from mmdet3d.visualization.heat import Heat
from mmdet3d.visualization.layers import PALETTE, Layer
from mmdet3d.visualization.verdicts import judge, verdict_counts, verdict_layers

__all__ = [
    "PALETTE",
    "Areas",
    "Heat",
    "Layer",
    "Panel",
    "box_segments",
    "check_film",
    "draw_bev",
    "draw_camera",
    "draw_cameras",
    "draw_frame",
    "draw_panels",
    "judge",
    "verdict_counts",
    "verdict_layers",
    "write_film",
]
