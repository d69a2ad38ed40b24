"""`compile: true`: the dense stages of a model's detectors through `torch.compile`.

Not the whole step: voxels, targets and losses have shapes that depend on the data, where the compiler gives up again
and again (docs/performance.md, Compiled).
"""

from __future__ import annotations

import importlib.util

import torch
from torch import nn

from mmdet3d.models.detectors.base import Detector
from mmdet3d.ops import build

__all__ = ["compile_dense_stages"]


def compile_dense_stages(model: nn.Module, device: torch.device, backend: str = "inductor") -> None:
    """Have the dense stages of all detectors in `model` compiled when they first run in training mode.

    The model stays the module it is: checkpoints, averaging and evaluation see no difference. A distiller's teacher is
    no part of it and stays as it is.

    Raises:
        ValueError: what compiling on this device needs is not installed, or nothing in the model can be compiled.
    """
    _check_compiler(device)
    detectors = [m for m in model.modules() if isinstance(m, Detector)]
    if not detectors:
        raise ValueError(
            f"config key compile is true, but {type(model).__name__} has no detector to compile; set compile: false"
        )
    for detector in detectors:
        detector.compile_dense_stages(backend)


def _check_compiler(device: torch.device) -> None:
    missing = None
    if build.compiler("cpu") is None:
        missing = "a C++ compiler (install g++)"
    elif device.type == "cuda" and importlib.util.find_spec("triton") is None:
        missing = "Triton (pip install triton)"
    if missing:
        raise ValueError(
            f"config key compile is true, which on {device.type} needs {missing}; without it set compile: false"
        )
