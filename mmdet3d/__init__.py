"""Distill3D: cross-modal knowledge distillation for 3-D object detection.

Importing the package loads no model, no kernel and no launcher; the three functions below are the public API.
"""

from __future__ import annotations

from typing import Any

__version__ = "0.1.0"
__all__ = ["build_model", "load_checkpoint", "load_config"]


def __getattr__(name: str) -> Any:
    if name == "load_config":
        from mmdet3d.config import load_config

        return load_config
    if name == "build_model":
        from mmdet3d.models import build_model

        return build_model
    if name == "load_checkpoint":
        from mmdet3d.engine.checkpoint import load_checkpoint

        return load_checkpoint
    raise AttributeError(f"module 'mmdet3d' has no attribute {name!r}")
