"""Distill3D: cross-modal knowledge distillation for 3-D object detection.

Importing the package loads no model, no kernel and no launcher; what `__all__` names is the public API.
"""

from __future__ import annotations

import os
from typing import Any

# Read once, when torch loads its OpenMP and NumPy its BLAS. Threads that wait for work must sleep instead of spinning,
# and NumPy must not start threads beside those of torch, least of all in loader workers (see `machine`).
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

if os.path.isdir(os.path.join(os.path.dirname(__file__), "apis")):  # see also distill3d.py
    raise ImportError(
        "Distill3D and OpenMMLab's MMDetection3D both install a package mmdet3d, and "
        f"{os.path.dirname(__file__)} holds both, mixed; keep them in separate environments: here, "
        "pip uninstall mmdet3d distill3d, then install distill3d again"
    )

__version__ = "0.1.0"
__all__ = ["Detector", "build_model", "load_checkpoint", "load_config"]


def __getattr__(name: str) -> Any:
    if name == "load_config":
        from mmdet3d.config import load_config

        return load_config
    if name == "build_model":
        from mmdet3d.models import build_model

        return build_model
    if name == "load_checkpoint":
        from mmdet3d.interop.checkpoints import load_checkpoint

        return load_checkpoint
    if name == "Detector":
        from mmdet3d.engine.detector import Detector

        return Detector
    raise AttributeError(f"module 'mmdet3d' has no attribute {name!r}")
