"""Published encoder configs and tables of their states."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from torch import nn


def published(shared: Path, name: str, *keys: str) -> dict[str, Any]:
    """A block of a resolved published config."""
    block = yaml.safe_load((shared / "specs" / "crkd_resolved" / f"{name}.yaml").read_text())["model"]
    for key in keys:
        block = block[key]
    return block


def state(module: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


def randomise(module: nn.Module) -> None:
    """Batch norms that do something in evaluation mode."""
    for layer in module.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            nn.init.normal_(layer.running_mean, std=0.1)
            nn.init.uniform_(layer.running_var, 0.5, 1.5)
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.normal_(layer.bias, std=0.1)
