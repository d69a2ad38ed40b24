"""Published weights of image networks, recognised by their keys: Swin, ResNet, DLA, ViTAEv2."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mmdet3d.interop.account import Entry, traced
from mmdet3d.interop.checkpoints import EXCEPTIONS, fitting_state
from mmdet3d.models.backbones.pretrained import image_backbone
from mmdet3d.models.backbones.swin_weights import convert_original
from mmdet3d.registry import MODELS

__all__ = ["backbone_block", "convert_backbone"]

_RESNETS = {(False, 2): 18, (False, 6): 34, (True, 6): 50, (True, 23): 101}  # bottlenecks, blocks of the third stage
_CLASSIFIER = re.compile(r"(?:head|fc|norm)\.")


def backbone_block(weights: Mapping[str, Tensor]) -> dict[str, Any] | None:
    """The block of the image backbone that weights are of, by keys and shapes; None if they are of none that is known.

    Args:
        weights: of the backbone, by the names that its program gave them.
    """
    if "layers.0.RC.attn.norm1.weight" in weights:
        return {"type": "ViTAEv2"}
    if "base_layer.0.weight" in weights and "level5.root.conv.weight" in weights:
        return {"type": "DLA", "base_channels": len(weights["base_layer.0.weight"])}
    if "conv1.weight" in weights and "layer1.0.conv1.weight" in weights:
        return _resnet(weights)
    stages = "layers" if "layers.0.blocks.0.norm1.weight" in weights else "stages"
    tables = {k: v for k, v in weights.items() if k.endswith(".blocks.0.attn.relative_position_bias_table")}
    tables |= {k: v for k, v in weights.items() if k.endswith(".blocks.0.attn.w_msa.relative_position_bias_table")}
    if not tables:
        return None
    window = (int(len(next(iter(tables.values()))) ** 0.5) + 1) // 2
    return {
        "type": "SwinTransformer",
        "embed_dims": len(weights[f"{stages}.0.blocks.0.norm1.weight"]),
        "depths": [_blocks(weights, f"{stages}.{i}.blocks") for i in range(len(tables))],
        "num_heads": [tables[k].shape[1] for k in sorted(tables)],
        "window_size": window,
        "out_indices": list(range(len(tables))),
    }


def convert_backbone(state: Mapping[str, Tensor], source: str) -> tuple[dict[str, Tensor], list[Entry], str] | None:
    """An image backbone's weights by our names, an entry per tensor of the file, and the backbone's type.

    Returns:
        None where the keys are those of no image backbone that is known.

    Raises:
        ValueError: several backbones are in the file, or one does not fit the architecture that its keys say.
    """
    inside = image_backbone(state, source, "a model")
    block = backbone_block(inside)
    if block is None:
        return None
    with torch.device("meta"):
        own = MODELS.build(block).state_dict()

    def conversion(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        weights = image_backbone(tensors, source, "a model")
        if block["type"] == "SwinTransformer" and any(k.startswith("layers.") for k in weights):
            weights = convert_original(weights)
        weights = {k: v for k, v in weights.items() if k in own or not _left_out(k)}
        return fitting_state(weights, own, [f"norm{i}." for i in range(4)], source, owner=str(block["type"]))

    first = next(iter(inside))
    prefix = next(k.removesuffix(first) for k in state if k.endswith(first))

    def left_out(key: str) -> str:
        if not key.startswith(prefix):
            return "of the detector that the backbone was trained in"
        return _left_out(key.removeprefix(prefix))

    moved = "neighbours that patch merging joins: one after the other to interleaved"
    return *traced(state, conversion, left_out, lambda key: moved, source), str(block["type"])


def _left_out(key: str) -> str:
    name = key.rpartition(".")[2]
    if name == "attn_mask":
        return "mask of shifted windows, a function of the image's size"
    if name in EXCEPTIONS and name != "num_batches_tracked":
        return EXCEPTIONS[name]
    return "of the classifier" if _CLASSIFIER.match(key) else ""


def _resnet(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    kind = ("layer1.0.conv3.weight" in weights, _blocks(weights, "layer3"))
    deformable = [f"layer{i}.0.conv2.conv_offset.weight" in weights for i in range(1, 5)]
    block: dict[str, Any] = {"type": "ResNet", "depth": _RESNETS.get(kind, 50)}
    return block | ({"dcn": {"type": "DCNv2"}, "stage_with_dcn": deformable} if any(deformable) else {})


def _blocks(weights: Mapping[str, Tensor], prefix: str) -> int:
    return len({m[1] for k in weights if (m := re.match(rf"{re.escape(prefix)}\.(\d+)\.", k))})
