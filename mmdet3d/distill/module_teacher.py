"""Any PyTorch module as a teacher: its submodules are the taps."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mmdet3d.blocks import nearest
from mmdet3d.distill.outline import Outline
from mmdet3d.distill.teacher import Teacher
from mmdet3d.structures import Batch

__all__ = ["ModuleTeacher", "weights_digest"]

Inputs = Callable[[Batch], Any]
Outputs = Callable[[dict[str, Any]], Mapping[str, Any]]


class ModuleTeacher(Teacher):
    """A trained module that answers with what its submodules return.

    Args:
        module: trained; changed in place (frozen, eval mode).
        taps: submodule by name of the tap, as `named_modules` calls it; empty for what the module itself returns.
        inputs: from a batch to the argument of `module`, a tuple of its arguments, or a dict of them by name.
        outline: the same taps, and how their values are to be read.
        outputs: from what the submodules returned, by tap, to the answers; None takes them as they are. Maps of a
            bird's-eye view are (B, C, X, Y) with LiDAR x along dim 2, see docs/teachers.md.
        digest, about: see `Teacher`.

    Raises:
        ValueError: there is no such submodule.
    """

    def __init__(
        self,
        module: nn.Module,
        taps: Mapping[str, str],
        inputs: Inputs,
        outline: Outline,
        outputs: Outputs | None = None,
        digest: str = "",
        about: Mapping[str, Any] | None = None,
    ) -> None:
        self.module = module.requires_grad_(False).eval()
        self.model, self.digest, self.about = outline, digest, about or {}
        self._inputs, self._outputs = inputs, outputs
        parts = dict(module.named_modules())
        for tap, path in taps.items():
            if path not in parts:
                name = type(module).__name__
                raise ValueError(f"taps.{tap} of the teacher: {name} has no submodule {path!r}{nearest(path, parts)}")
        self._parts = {tap: parts[path] for tap, path in taps.items()}

    @torch.no_grad()
    def extract(self, batch: Batch, taps: Collection[str]) -> dict[str, Any]:
        """
        Raises:
            ValueError: a submodule was not called once, or `outputs` lacks a tap.
        """
        seen: dict[str, list[Any]] = {tap: [] for tap in self._parts}
        handles = [
            part.register_forward_hook(lambda _, __, value, tap=tap: seen[tap].append(value))
            for tap, part in self._parts.items()
        ]
        given = self._inputs(batch)
        try:
            self.module.eval()
            if isinstance(given, Mapping):
                self.module(**given)
            else:
                self.module(*(given if isinstance(given, (tuple, list)) else (given,)))
        finally:
            for handle in handles:
                handle.remove()
        for tap in self._parts if self._outputs else taps:
            if len(seen[tap]) != 1:
                raise ValueError(
                    f"the submodule of the teacher's tap {tap} is called {len(seen[tap])} times for a batch; name one "
                    "that is called once"
                )
        found = {tap: values[0] for tap, values in seen.items() if values}
        answers = found if self._outputs is None else self._outputs(found)
        lacking = [tap for tap in taps if tap not in answers]
        if lacking:
            raise ValueError(f"outputs of the teacher gives no {', '.join(lacking)}, only {', '.join(answers)}")
        return {tap: answers[tap] for tap in taps}

    def move(self, function: Callable[[Tensor], Tensor]) -> None:
        self.module._apply(function)


def weights_digest(module: nn.Module, description: Mapping[str, Any]) -> str:
    """Of a module's weights and of plain values that say what it is; what its code does is no part of it."""
    digest = hashlib.sha256(json.dumps(description, sort_keys=True, default=str).encode())
    for name, value in sorted(module.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
