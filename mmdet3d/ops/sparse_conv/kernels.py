"""The compiled kernels of sparse convolution: for the CPU all of it, for CUDA what surrounds the products."""

from __future__ import annotations

from mmdet3d.ops.native import Kernels

__all__ = ["kernels"]

kernels = Kernels("sparse_conv")
