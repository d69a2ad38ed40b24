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
def _correlate(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The correlation; (2,) coefficients and (2, B) constants of the gradients, see `_blend`."""
    rows, count = student.shape
    chunks = -(-count // CHUNK)
    partial = student.new_zeros(rows, chunks, 5, dtype=torch.float64)
    student, teacher = student.contiguous(), teacher.contiguous()
    if student.numel():
        _kernels.call("spearman_moments", *_sizes(student), CHUNK, student, teacher, partial)
    return _finish(partial.sum(1), student, teacher)


def _finish(moments: Tensor, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Correlation and coefficients of the gradients from the moments (B, 5), which are shifted as cpu.cpp says."""
    rows, count = student.shape
    s, ss, t, tt, st = moments.unbind(1)
    mean_s, means_t = s.sum() / max(rows * count, 1), t / max(count, 1)
    norm_s = (ss.sum() - s.sum() * mean_s).clamp(min=0).sqrt().clamp(min=1e-8)
    norm_t = (tt - t * means_t).sum().clamp(min=0).sqrt().clamp(min=1e-8)
    cross = 1 / (norm_s * norm_t)
    rho = (st - s * means_t).sum() * cross
    own_s = torch.where(norm_s > 1e-8, rho / norm_s**2, 0)
    own_t = torch.where(norm_t > 1e-8, rho / norm_t**2, 0)
    first_s = student[:1, :1].double().sum()
    first_t = teacher[:, :1].double().sum(1)
    # d rho / d student = cross * teacher - own_s * student + constant of the row, and the same with sides exchanged.
    for_student = own_s * (mean_s + first_s) - cross * (means_t + first_t)
    for_teacher = own_t * (means_t + first_t) - cross * (s / max(count, 1) + first_s)
    return rho.to(student.dtype), torch.stack([cross, own_s, own_t]), torch.stack([for_student, for_teacher])


@_correlate.register_fake
def _(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    wide = {"dtype": torch.float64}
    return student.new_empty(()), student.new_empty(3, **wide), student.new_empty(2, student.shape[0], **wide)


@torch.library.custom_op("mmdet3d::spearman_closed_form_backward", mutates_args=())
def _blend(other: Tensor, own: Tensor, factors: Tensor, constants: Tensor) -> Tensor:
    """factors[0] * other - factors[1] * own + constants of the rows."""
    grad = torch.empty_like(own, memory_format=torch.contiguous_format)
    _kernels.call("spearman_blend", *_sizes(own), other.contiguous(), own.contiguous(), factors, constants, grad)
    return grad


@_blend.register_fake
def _(other: Tensor, own: Tensor, factors: Tensor, constants: Tensor) -> Tensor:
    return torch.empty_like(own, memory_format=torch.contiguous_format)


def _save(ctx: Any, inputs: tuple[Tensor, Tensor], output: tuple[Tensor, Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs, *output[1:])
    ctx.mark_non_differentiable(*output[1:])


def _differentiate(ctx: Any, grad: Tensor, *_: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    student, teacher, (cross, own_s, own_t), (for_student, for_teacher) = ctx.saved_tensors
    grads: list[Tensor | None] = [None, None]
    if ctx.needs_input_grad[0]:
        grads[0] = _blend(teacher, student, torch.stack([cross, own_s]) * grad, for_student * grad)
    if ctx.needs_input_grad[1]:
        grads[1] = _blend(student, teacher, torch.stack([cross, own_t]) * grad, for_teacher * grad)
    return grads[0], grads[1]


_correlate.register_autograd(_differentiate, setup_context=_save)


def _sizes(rows: Tensor) -> list[Any]:
    return [DTYPE_CODES[rows.dtype], *rows.shape]
