"""Detectors and their parts; importing this package registers all of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmdet3d.models import backbones, compensation, decoders, detectors, encoders, fusers, heads, necks, vtransforms
from mmdet3d.models.detectors.base import Trainable
from mmdet3d.registry import MODELS

__all__ = [
    "backbones",
    "build_model",
    "compensation",
    "decoders",
    "detectors",
    "encoders",
    "fusers",
    "heads",
    "necks",
    "vtransforms",
]


def build_model(cfg: Mapping[str, Any]) -> Trainable:
    """The model that `cfg` (the `model` block of a config) describes.

    Raises:
        ValueError: unknown type or key, each with the nearest known one.
    """
    return MODELS.build(cfg, "model")
