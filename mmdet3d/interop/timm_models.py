"""Backbones of timm by name (`type: timm.resnet18` in a config)."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any

from torch import Tensor, nn

from mmdet3d.blocks import nearest
from mmdet3d.models.backbones.pretrained import backbone_weights, load_fitting

__all__ = ["LIBRARY", "TimmBackbone", "find_class"]

LIBRARY = "timm"


def find_class(name: str) -> Callable[..., TimmBackbone]:
    """What builds the backbone `timm.NAME`; see `TimmBackbone` for its arguments.

    Raises:
        ValueError: timm cannot be imported, or has no such model.
    """
    timm, model = _import(name), name.partition(".")[2]
    if not timm.is_model(model):
        raise ValueError(f"timm {timm.__version__} has no model {model!r}{nearest(model, timm.list_models())}")

    def build(
        out_indices: Sequence[int] = (1, 2, 3), init_cfg: str | Mapping[str, Any] | None = None, **arguments: Any
    ) -> TimmBackbone:
        return TimmBackbone(model, out_indices, init_cfg, **arguments)

    build.__name__ = name
    return build


class TimmBackbone(nn.Module):
    """A model of timm as an image backbone: without classifier, with random weights until `init_weights`.

    Args:
        name: timm's; a tag of weights (`resnet18.a1_in1k`) makes no difference, as nothing is downloaded.
        out_indices: which of timm's feature levels are returned. For most convolutional networks level i has stride
            2**(i + 1), for transformers with stages 4 * 2**i.
        init_cfg: a file of timm's weights, or `{checkpoint: FILE}`; None starts from scratch.
        arguments: whatever timm's model takes besides, such as `img_size` (height, width) of a transformer.

    Raises:
        ValueError: no such model or argument, a level that it does not have, or a model without feature levels.
    """

    def __init__(
        self,
        name: str,
        out_indices: Sequence[int] = (1, 2, 3),
        init_cfg: str | Mapping[str, Any] | None = None,
        **arguments: Any,
    ) -> None:
        super().__init__()
        self.name = f"{LIBRARY}.{name}"
        self._checkpoint = _checkpoint(init_cfg, self.name)
        arguments |= {"features_only": True, "out_indices": tuple(out_indices), "pretrained": False}
        try:
            self.features = _import(self.name).create_model(name, **arguments)
        except (AssertionError, IndexError, RuntimeError, TypeError, ValueError) as error:
            raise ValueError(
                f"{self.name} cannot be built with out_indices {list(out_indices)} and what else its block holds: "
                f"{error}"
            ) from error
        # Some transformers answer with channels last.
        self._channels_last = str(getattr(self.features, "output_fmt", "")).endswith("NHWC")

    @property
    def channels(self) -> list[int]:
        """Of each level that is returned."""
        return self.features.feature_info.channels()

    @property
    def strides(self) -> list[int]:
        """Of each level that is returned."""
        return self.features.feature_info.reduction()

    def init_weights(self) -> None:
        """Load the file of `init_cfg` (names of timm; the classifier is ignored); without one do nothing.

        Raises:
            ValueError: the file is missing, or of another architecture.
        """
        if self._checkpoint is None:
            return
        # timm flattens the names of modules that it returns features of: `stem.0` becomes `stem_0`.
        own = {_flat(name): name for name in self.features.state_dict()}
        weights = backbone_weights(self._checkpoint, self.name)
        load_fitting(self.features, {own.get(_flat(k), k): v for k, v in weights.items()}, self._checkpoint)

    def forward(self, images: Tensor) -> list[Tensor]:
        """(B, 3, H, W) normalised RGB to a list of (B, C_i, H / s_i, W / s_i), one per entry of `out_indices`."""
        levels = self.features(images)
        return [level.permute(0, 3, 1, 2).contiguous() for level in levels] if self._channels_last else list(levels)


def _flat(name: str) -> str:
    return name.removeprefix("model.").replace(".", "_")


def _checkpoint(init_cfg: str | Mapping[str, Any] | None, owner: str) -> str | None:
    if init_cfg is None or isinstance(init_cfg, str):
        return init_cfg
    if not init_cfg.get("checkpoint") or not set(init_cfg) <= {"type", "checkpoint"}:
        raise ValueError(f"init_cfg of {owner} must be FILE, {{checkpoint: FILE}} or null, got {dict(init_cfg)}")
    return str(init_cfg["checkpoint"])


def _import(wanted: str) -> ModuleType:
    try:
        return importlib.import_module(LIBRARY)
    except Exception as error:  # torchvision, which timm imports, fails in its own ways beside another torch
        raise ValueError(
            f"{wanted} needs timm, which cannot be imported ({type(error).__name__}: {error}); pip install "
            "'distill3d[timm]', with the torchvision that was built for the installed torch"
        ) from error
