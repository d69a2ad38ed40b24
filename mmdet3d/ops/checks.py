"""Shape checks at the door of an op: one sentence that names the offending shape."""

from __future__ import annotations

from torch import Tensor

__all__ = ["check_shapes"]


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
