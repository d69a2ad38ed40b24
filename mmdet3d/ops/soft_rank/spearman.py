"""MonoSKD's Spearman term without sorting.

The released term ranks the teacher softly (torchsort, "l2", strength 1, per sample), divides by n and takes the Pearson
correlation with the raw student over the whole batch. The soft rank projects the values theta onto the permutahedron of
(n, ..., 1). As long as all partial means of the sorted values stay below those of the ranks, which holds while the
values spread far less than n (checked up to a standard deviation of 100 at n = 30,720 and 245,760), only the
permutahedron's sum constraint is active, and the projection is a shift:

    soft_rank(theta) = theta - mean(theta) + (n + 1) / 2

The correlation does not see the constant nor the factor 1 / n. What remains is the Pearson correlation of the student
with the teacher centred per sample, and float32 ranks near 1e5, which lose the teacher's detail, are never formed.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mmdet3d.ops.checks import check_shapes
from mmdet3d.ops.native import DTYPE_CODES, Kernels
from mmdet3d.ops.soft_rank import reference

__all__ = ["spearman_closed_form"]

_kernels = Kernels("soft_rank")
CHUNK = 16384  # values summed by one worker


def spearman_closed_form(student: Tensor, teacher: Tensor) -> Tensor:
    """Pearson correlation over the batch of the student with the teacher centred per sample.

    Args:
        student: (B, n).
        teacher: (B, n).

    Returns:
        A scalar in [-1, 1], at least float32; 0 where one side is constant. MonoSKD's term is one minus it.

    Raises:
        ValueError: shapes or dtypes that differ, or that are not floating point.
    """
    check_shapes(student=(student, "B n"), teacher=(teacher, "B n"))
    for name, tensor in (("student", student), ("teacher", teacher)):
        if not tensor.is_floating_point():
            raise ValueError(f"{name} must be floating point, got {tensor.dtype}")
    dtype = torch.promote_types(torch.promote_types(student.dtype, teacher.dtype), torch.float32)
    student, teacher = student.to(dtype), teacher.to(dtype)
    if not _kernels.available(student):
        return reference.spearman_closed_form(student, teacher)
    return _correlate(student, teacher)[0]


@torch.library.custom_op("mmdet3d::spearman_closed_form", mutates_args=())
def _correlate(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """The correlation, and (4 + 2 B,) float64 that its gradients are made of, see csrc/correlation.h."""
    rows, count = student.shape
    rho, summary = student.new_zeros(()), student.new_zeros(4 + 2 * rows, dtype=torch.float64)
    if student.numel():
        partial = student.new_empty(rows, -(-count // CHUNK), 5, dtype=torch.float64)
        sides = student.contiguous(), teacher.contiguous()
        _kernels.call("spearman_correlation", *_sizes(student), CHUNK, *sides, partial, rho, summary)
    return rho, summary


@_correlate.register_fake
def _(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    return student.new_empty(()), student.new_empty(4 + 2 * student.shape[0], dtype=torch.float64)


@torch.library.custom_op("mmdet3d::spearman_closed_form_backward", mutates_args=())
def _gradient(other: Tensor, own: Tensor, summary: Tensor, scale: Tensor, side: int) -> Tensor:
    """`scale` times the gradient of the correlation by `own`: the student (side 0) or the teacher (side 1)."""
    grad = torch.empty_like(own, memory_format=torch.contiguous_format)
    if grad.numel():
        sides = other.contiguous(), own.contiguous()
        _kernels.call("spearman_gradient", *_sizes(own), side, *sides, summary, scale.contiguous(), grad)
    return grad


@_gradient.register_fake
def _(other: Tensor, own: Tensor, summary: Tensor, scale: Tensor, side: int) -> Tensor:
    return torch.empty_like(own, memory_format=torch.contiguous_format)


def _save(ctx: Any, inputs: tuple[Tensor, Tensor], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs, output[1])
    ctx.mark_non_differentiable(output[1])


def _differentiate(ctx: Any, grad: Tensor, *_: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    student, teacher, summary = ctx.saved_tensors
    return (
        _gradient(teacher, student, summary, grad, 0) if ctx.needs_input_grad[0] else None,
        _gradient(student, teacher, summary, grad, 1) if ctx.needs_input_grad[1] else None,
    )


_correlate.register_autograd(_differentiate, setup_context=_save)


def _sizes(rows: Tensor) -> list[Any]:
    return [DTYPE_CODES[rows.dtype], *rows.shape]
