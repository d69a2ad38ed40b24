"""The prediction layers, with the published names and starting weights."""

from __future__ import annotations

from torch import nn

from mmdet3d.models.heads.mono.targets import HEADING_BINS

__all__ = ["DENSE", "REGION", "dense_layers", "region_layers"]

# Published names of the layers on the whole map, and of those on the regions of objects.
DENSE = ("heatmap", "offset_2d", "size_2d")
REGION = ("offset_3d", "size_3d", "heading", "vis_depth", "att_depth", "vis_depth_uncer", "att_depth_uncer")
_POOLED = {"offset_3d": 2, "size_3d": 3, "heading": 2 * HEADING_BINS}


def dense_layers(in_channels: int, channels: int, classes: int) -> dict[str, nn.Sequential]:
    """Per name of `DENSE` a network from (B, C, H, W) to (B, outputs, H, W)."""
    layers = {}
    for name, outputs in zip(DENSE, (classes, 2, 2), strict=True):
        layers[name] = nn.Sequential(
            nn.Conv2d(in_channels, channels, 3, padding=1), nn.ReLU(inplace=True), nn.Conv2d(channels, outputs, 1)
        )
        if name == "heatmap":
            nn.init.constant_(layers[name][-1].bias, -2.19)
            continue
        for conv in (layers[name][0], layers[name][-1]):
            nn.init.normal_(conv.weight, std=0.001)
            nn.init.zeros_(conv.bias)
    return layers


def region_layers(in_channels: int, channels: int) -> dict[str, nn.Sequential]:
    """Per name of `REGION` a network from (N, C, 7, 7) to (N, 1, 7, 7) for depths, to (N, outputs, 1, 1) for others."""
    layers = {}
    for name in REGION:
        first = nn.Conv2d(in_channels, channels, 3, padding=1)
        if name in _POOLED:
            norm = [nn.BatchNorm2d(channels), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1)]
            layers[name] = nn.Sequential(first, *norm, nn.Conv2d(channels, _POOLED[name], 1))
        else:
            layers[name] = nn.Sequential(first, nn.LeakyReLU(0.01, inplace=True), nn.Conv2d(channels, 1, 1))
        for conv in (first, layers[name][-1]):
            nn.init.xavier_uniform_(conv.weight)
            nn.init.zeros_(conv.bias)
    return layers
