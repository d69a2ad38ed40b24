"""MonoSKD's Spearman term at its largest level (four samples of 512 x 12 x 40 values), and the soft rank itself."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.framework import Case, Implementation, forward_backward, optional, twin
from mmdet3d.ops.soft_rank import soft_rank, spearman_closed_form


def cases(device: torch.device, samples: int = 4, n: int = 245760, ranked: int = 4096) -> list[Case]:
    student = torch.randn(samples, n, device=device, requires_grad=True)
    teacher = torch.randn(samples, n, device=device)
    theta = (torch.randn(samples, ranked, device=device) * ranked).requires_grad_()
    term = _both(lambda s: 1 - spearman_closed_form(s, teacher), student)
    ranks = _both(soft_rank, theta)
    if torchsort := optional("torchsort"):
        term["torchsort"] = forward_backward(lambda s: _released(s, torchsort.soft_rank(teacher) / n), student)
        ranks["torchsort"] = forward_backward(torchsort.soft_rank, theta)
    term["ours, ranked"] = forward_backward(lambda s: _released(s, soft_rank(teacher) / n), student)
    return [
        Case("spearman term forward + backward", f"{samples}x{n}", term, bytes=5 * teacher.nbytes),
        Case("soft_rank forward + backward", f"{samples}x{ranked}", ranks, bytes=4 * theta.nbytes),
    ]


def _both(function: Callable[[Tensor], Tensor], leaf: Tensor) -> dict[str, Implementation]:
    call = forward_backward(function, leaf)
    return {"ours": call, "twin": twin(call)}


def _released(student: Tensor, ranks: Tensor) -> Tensor:
    """The term as released, with the teacher's ranks over n."""
    student, ranks = student - student.mean(), ranks - ranks.mean()
    return 1 - (student / student.norm() * (ranks / ranks.norm())).sum()
