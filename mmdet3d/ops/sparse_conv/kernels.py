"""The compiled kernels of sparse convolution: for the CPU all of it, for CUDA what surrounds the products."""

from __future__ import annotations

from torch import Tensor

from mmdet3d.ops import native
from mmdet3d.ops.native import Kernels

__all__ = ["kernels", "takes_cpu_kernels"]

kernels = Kernels("sparse_conv")


def takes_cpu_kernels(tensor: Tensor) -> bool:
    """Whether a call with tensors like this one takes `csrc/cpu.cpp`."""
    return tensor.device.type == "cpu" and native.setting() != "emulated" and kernels.available(tensor)
