"""How the stages of a model's detectors run in training: compiled (`compile`), or with less memory
(`activation_checkpointing`).

`compile: true` is not the whole step: voxels, targets and losses have shapes that depend on the data, where the
compiler gives up again and again (docs/performance.md, Compiled).
"""

from __future__ import annotations

import importlib.util
import logging

import torch
from torch import nn

from mmdet3d.models.detectors.base import Detector
from mmdet3d.ops import build

__all__ = ["checkpoint_activations", "compile_dense_stages"]

logger = logging.getLogger("mmdet3d")


def checkpoint_activations(model: nn.Module) -> None:
    """Have the stages of all detectors in `model` keep little for backward, which computes the rest again.

    The model stays the module it is. A distiller's teacher, which has no backward, is no part of it.

    Raises:
        ValueError: nothing in the model has stages.
    """
    for detector in _detectors(model, "activation_checkpointing"):
        detector.recompute_stages()


def compile_dense_stages(model: nn.Module, device: torch.device, backend: str = "inductor") -> None:
    """Have the dense stages of all detectors in `model` compiled when they first run in training mode.

    The model stays the module it is: checkpoints, averaging and evaluation see no difference. A distiller's teacher is
    no part of it and stays as it is.

    Raises:
        ValueError: what compiling on this device needs is not installed, or nothing in the model can be compiled.
    """
    _check_compiler(device)
    for detector in _detectors(model, "compile"):
        detector.compile_dense_stages(backend)
    logger.info("the first steps compile the dense stages, which takes minutes; a signal is answered after such a step")


def _detectors(model: nn.Module, key: str) -> list[Detector]:
    detectors = [m for m in model.modules() if isinstance(m, Detector)]
    if not detectors:
        raise ValueError(
            f"config key {key} is true, but {type(model).__name__} has no detector, whose stages it is about; set "
            f"{key}: false"
        )
    return detectors


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
