"""What each distillation term asks of the student, beside what its own losses ask."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mmdet3d.distill.distiller import Distiller
from mmdet3d.structures import Batch

__all__ = ["DETECTION", "Pull", "audit", "audit_table"]

DETECTION = "detection"  # the student's own losses together


@dataclass(frozen=True)
class Pull:
    """The gradient of one term on one part of the student, averaged over batches.

    Args:
        value: the weighted loss.
        norm: length of its gradient.
        cosine: of the angle to the gradient of the student's own losses: 1 asks for the same, 0 for something
            unrelated, negative for the opposite. Over the batches where neither is zero; NaN if there is none.
    """

    value: float
    norm: float
    cosine: float


def audit(distiller: Distiller, batches: Iterable[Batch]) -> dict[str, dict[str, Pull]]:
    """Gradients of the terms at the present weights. Nothing is changed: weights, their gradients, buffers, schedules.

    A term whose gradient is much longer than that of the detection losses takes the training over; one that is long
    and unrelated to them (cosine near 0) costs the student capacity; one that is tiny does nothing.

    Args:
        distiller: after `setup_training`, on its device, in the mode (train or eval) that it is to be audited in.
        batches: on the same device, with ground truth.

    Returns:
        Per part of the student (`encoders.camera`, `fuser`, ...), per term (`detection` and the names of the losses).

    Raises:
        ValueError: no batch, or the distiller has no losses.
    """
    if not distiller.losses:
        raise ValueError("the distiller has no losses to audit (is this the control?)")
    parts = _parts(distiller.student)
    found: dict[str, dict[str, list[Pull]]] = {p: {t: [] for t in [DETECTION, *distiller.losses]} for p in parts}
    buffers, state = {k: v.clone() for k, v in distiller.named_buffers()}, distiller.training_state()
    for batch in batches:
        terms = _terms(distiller, batch)
        parameters = [p for group in parts.values() for p in group]
        gradients = {name: _gradient(value, parameters) for name, value in terms.items()}
        start = 0
        for part, group in parts.items():
            own = _flat(gradients[DETECTION][start : start + len(group)])
            for name, value in terms.items():
                pull = _flat(gradients[name][start : start + len(group)])
                cosine = pull @ own / (pull.norm() * own.norm())
                found[part][name].append(Pull(*(float(x) for x in (value.detach(), pull.norm(), cosine))))
            start += len(group)
    for name, buffer in distiller.named_buffers():
        buffer.copy_(buffers[name])
    distiller.load_training_state(state)
    if not found[next(iter(parts))][DETECTION]:
        raise ValueError("audit needs at least one batch")
    return {part: {term: _mean(pulls) for term, pulls in row.items()} for part, row in found.items()}


def audit_table(result: Mapping[str, Mapping[str, Pull]]) -> str:
    """The audit as text: a row per term, per part its gradient's length over detection's and their cosine."""
    parts = list(result)
    terms = list(result[parts[0]])
    lines = [" " * 22 + "".join(f"{part[-20:]:>22}" for part in parts)]
    lines.append(f"{'term':<12}{'value':>10}" + "".join(f"{'ratio':>14}{'cosine':>8}" for _ in parts))
    for term in terms:
        line = f"{term:<12}{result[parts[0]][term].value:>10.3f}"
        for part in parts:
            pull, own = result[part][term], result[part][DETECTION]
            ratio = pull.norm / own.norm if own.norm else float("nan")
            line += f"{ratio:>14.3f}{pull.cosine:>8.2f}" if pull.norm else f"{'-':>14}{'-':>8}"
        lines.append(line)
    return "\n".join(lines)


def _mean(pulls: Sequence[Pull]) -> Pull:
    """Over batches; the cosine over those where there is one."""
    angles = [pull.cosine for pull in pulls if not math.isnan(pull.cosine)]
    value, norm = (sum(x) / len(pulls) for x in zip(*((pull.value, pull.norm) for pull in pulls), strict=True))
    return Pull(value, norm, sum(angles) / len(angles) if angles else math.nan)


def _parts(student: nn.Module) -> dict[str, list[nn.Parameter]]:
    """Trainable parameters by part: `encoders.camera`, `fuser`, `decoder`, `heads.object`."""
    parts: dict[str, list[nn.Parameter]] = {}
    for name, parameter in student.named_parameters():
        if parameter.requires_grad:
            words = name.split(".")
            deep = isinstance(student.get_submodule(words[0]), nn.ModuleDict) and words[0] != "decoder"
            parts.setdefault(".".join(words[: 2 if deep else 1]), []).append(parameter)
    return parts


def _terms(distiller: Distiller, batch: Batch) -> dict[str, Tensor]:
    losses = distiller.loss(batch)
    own = [v for k, v in losses.items() if k.startswith("loss/") and not k.startswith("loss/kd/")]
    terms = {DETECTION: torch.stack([v.sum() for v in own]).sum()}
    for name in distiller.losses:
        values = [v.sum() for k, v in losses.items() if k == f"loss/kd/{name}" or k.startswith(f"loss/kd/{name}/")]
        terms[name] = torch.stack(values).sum()
    return terms


def _gradient(value: Tensor, parameters: list[nn.Parameter]) -> list[Tensor]:
    found = torch.autograd.grad(value, parameters, retain_graph=True, allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for g, p in zip(found, parameters, strict=True)]


def _flat(gradients: list[Tensor]) -> Tensor:
    return torch.cat([g.flatten().double() for g in gradients])
