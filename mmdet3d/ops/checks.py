"""Shape checks at the door of an op: one sentence that names the offending shape."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

__all__ = ["check_deterministic", "check_floating", "check_shapes", "compute_dtype"]


def check_shapes(**tensors: tuple[Tensor, str]) -> dict[str, int]:
    """Match tensors against shape patterns whose symbols must agree between tensors.

    Args:
        tensors: per argument name the tensor and its pattern, for instance `depth=(depth, "P D h w")`. A word of a
            pattern is a number (that extent), a symbol (any extent, the same everywhere) or `_` (any extent).

    Returns:
        The extent of every symbol.

    Raises:
        ValueError: a tensor does not match; names it, its shape and the shape expected.
    """
    sizes: dict[str, int] = {}
    for name, (tensor, pattern) in tensors.items():
        words = pattern.split()
        found = tuple(tensor.shape)
        expected = tuple(int(w) if w.isdigit() else sizes.get(w) for w in words)
        if len(found) != len(words) or any(e is not None and e != f for e, f in zip(expected, found, strict=True)):
            fixed = ", ".join(f"{w} = {sizes[w]}" for w in words if w in sizes)
            raise ValueError(
                f"{name} must have shape ({', '.join(words)}){' with ' + fixed if fixed else ''}, got {found}"
            )
        sizes.update({w: f for w, f in zip(words, found, strict=True) if not w.isdigit() and w != "_"})
    return sizes


def check_floating(**tensors: Tensor) -> None:
    """Whether tensors have a floating dtype and lie on one device.

    Raises:
        ValueError: a tensor does not; names it.
    """
    first, device = next((name, tensor.device) for name, tensor in tensors.items())
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            raise ValueError(f"{name} must be floating, got {tensor.dtype}")
        if tensor.device != device:
            raise ValueError(f"{name} must lie on {device} as {first} does, got {tensor.device}")


def compute_dtype(*tensors: Tensor) -> torch.dtype:
    """The dtype that sums are kept in: float64 if any tensor has it, else float32."""
    return torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32


def check_deterministic(what: str, tensor: Tensor) -> None:
    """Called before sums by atomic additions on CUDA, whose order is not fixed.

    Raises:
        RuntimeError: `torch.use_deterministic_algorithms(True)` is in force; with `warn_only` it is a warning.
    """
    if not (tensor.is_cuda and torch.are_deterministic_algorithms_enabled()):
        return
    message = f"{what} has no deterministic implementation on CUDA"
    if not torch.is_deterministic_algorithms_warn_only_enabled():
        raise RuntimeError(f"{message}, but torch.use_deterministic_algorithms(True) is in force")
    warnings.warn(message, stacklevel=2)
