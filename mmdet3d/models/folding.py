"""Batch norm of a frozen model as part of the layers before it."""

from __future__ import annotations

import collections
import copy
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

__all__ = ["fold_batch_norm"]

Model = TypeVar("Model", bound=nn.Module)
_LAYERS = (nn.Conv2d, nn.Linear)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


@torch.no_grad()
def fold_batch_norm(model: Model, run: Callable[[Model], Any]) -> Model:
    """A copy of `model` in eval mode that computes what `run` asks for without most of the batch norms.

    In evaluation a batch norm is a factor and an offset per channel. Where its input is what a convolution or linear
    layer put out, these go into the weights of that layer, and results differ by rounding. Which layers these are is
    seen in one call of `run`: a layer's output must go into one batch norm and nowhere else, be it a result of `run`.

    Args:
        model: stays as it is; the copy shares all weights with it but those that changed.
        run: calls the model it is given as it will be called, and returns all that will be looked at.
    """
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    folded = copy.deepcopy(model, shared).eval()
    names = {module: name for name, module in folded.named_modules()}
    for layer, norm in _pairs(folded, run):
        fuse = fuse_linear_bn_eval if isinstance(layer, nn.Linear) else fuse_conv_bn_eval
        folded.set_submodule(names[layer], fuse(layer, norm).requires_grad_(False))
        folded.set_submodule(names[norm], nn.Identity())
    return folded


def _pairs(model: nn.Module, run: Callable[[nn.Module], Any]) -> list[tuple[nn.Module, nn.Module]]:
    """Layers and the batch norms that are all that reads them."""
    made: dict[int, tuple[nn.Module, Tensor]] = {}  # with the tensor, so that no other gets its number
    readers: dict[nn.Module, list[nn.Module | None]] = collections.defaultdict(list)
    sources: dict[nn.Module, list[nn.Module | None]] = collections.defaultdict(list)

    def noted(layer: nn.Module, _: Any, output: Tensor) -> None:
        made[id(output)] = (layer, output)
        readers[layer].append(None)

    def fed(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        layer = made.get(id(inputs[0]), (None,))[0]
        sources[norm].append(layer)
        if layer is not None:
            readers[layer][-1] = norm

    hooks = [m.register_forward_hook(noted) for m in model.modules() if isinstance(m, _LAYERS)]
    hooks += [m.register_forward_pre_hook(fed) for m in model.modules() if isinstance(m, _NORMS)]
    try:
        with _Uses(made) as uses:
            results = run(model)
    finally:
        for hook in hooks:
            hook.remove()
    uses.count.update(id(leaf) for leaf in tree_leaves(results))
    shared = {layer for number, (layer, _) in made.items() if uses.count[number] != 1}
    return [
        (layer, norms[0])
        for layer, norms in readers.items()
        if layer not in shared and norms[0] is not None and {*norms} == {norms[0]} and {*sources[norms[0]]} == {layer}
    ]


class _Uses(TorchFunctionMode):
    """How often functions that compute are given each of the tensors `watched`, by number."""

    def __init__(self, watched: dict[int, Any]) -> None:
        super().__init__()
        self.count: collections.Counter[int] = collections.Counter()
        self._watched = watched

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = [id(leaf) for leaf in tree_leaves((args, kwargs)) if id(leaf) in self._watched]
        result = func(*args, **(kwargs or {}))
        if given and (result is None or any(isinstance(leaf, Tensor) for leaf in tree_leaves(result))):
            self.count.update(given)
        return result
