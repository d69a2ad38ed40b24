"""Weights files that the user has on disk; nothing is ever downloaded."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from torch import Tensor, nn

from mmdet3d.io.weights import read_weights
from mmdet3d.shell import command, quote

__all__ = ["FOLDER", "Pretrained", "backbone_weights", "image_backbone", "load_fitting", "weight_file"]

FOLDER = Path("pretrained")
_OPTION = "--model.encoders.camera.backbone.init_cfg"
_TORCHVISION = {
    "resnet18": "resnet18-f37072fd.pth",
    "resnet34": "resnet34-b627a593.pth",
    "resnet50": "resnet50-0676ba61.pth",
    "resnet101": "resnet101-63fe2227.pth",
}
# Where a file of a whole detector has its image backbone, the surest sign first.
_PLACES = (
    re.compile(r".*\b(?:camera\.backbone|img_backbone)\."),
    re.compile(r"(?:student\.|centernet_\w+\.)?backbone\."),
)

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Pretrained:
    """The block `init_cfg` of a backbone: where its weights come from; null leaves them random.

    Args:
        checkpoint: a `.pth` or `.safetensors` file, or a URL, which stands for the file of that name in `pretrained/`.
        type: there is no other.
    """

    checkpoint: str
    type: Literal["Pretrained"] = "Pretrained"


def backbone_weights(checkpoint: str, owner: str, option: str = _OPTION) -> dict[str, Tensor]:
    """Tensors by name from a `.pth` or `.safetensors` file.

    A URL stands for the file of that name in `pretrained/`. What a file of a detector holds beside its image backbone
    is left out, and the names lose what stands before those of the backbone; see also `read_weights`.

    Args:
        owner: what error messages call the network.
        option: the command line's option for `init_cfg`, for error messages.

    Raises:
        ValueError: the file is not there, cannot be read, or holds several image backbones; the message says what to
            do.
    """
    path = _locate(checkpoint, owner, option)
    return image_backbone(read_weights(path)[0], path, owner)


def image_backbone(weights: Mapping[str, Tensor], path: str | Path, owner: str) -> dict[str, Tensor]:
    """What of the tensors of a file its image backbone is, without what stands before its names.

    Raises:
        ValueError: there are several image backbones.
    """
    for place in _PLACES:
        prefixes = sorted({match[0] for match in map(place.match, weights) if match})
        if len(prefixes) > 1:
            raise ValueError(
                f"{path} holds several networks ({', '.join(prefixes)}...), so it is not clear which is the image "
                f"backbone of {owner}; take one out: {command('convert')} {quote(path)} OUT.safetensors "
                f"--prefix {prefixes[0].rstrip('.')}"
            )
        if prefixes:
            return {k.removeprefix(prefixes[0]): v for k, v in weights.items() if k.startswith(prefixes[0])}
    return dict(weights)


def load_fitting(model: nn.Module, weights: Mapping[str, Tensor], source: str) -> int:
    """Copy the weights whose name and shape fit, report the rest, and return how many tensors were copied.

    Raises:
        ValueError: nothing fits.
    """
    own = model.state_dict()
    fitting = {k: v for k, v in weights.items() if k in own and v.shape == own[k].shape}
    reshaped = [k for k, v in weights.items() if k in own and v.shape != own[k].shape]
    name = type(model).__name__
    if not fitting:
        detail = (
            f"{reshaped[0]} is {tuple(weights[reshaped[0]].shape)}, expected {tuple(own[reshaped[0]].shape)}"
            if reshaped
            else f"it holds {next(iter(weights))}, expected {next(iter(own))}"
        )
        raise ValueError(f"{source} does not fit {name}: {detail}; give a checkpoint of the same architecture")
    model.load_state_dict(fitting, strict=False)
    logger.info(
        "%s: %d of %d tensors loaded from %s, %d of the file unused",
        name, len(fitting), len(own), source, len(weights) - len(fitting),
    )  # fmt: skip
    if reshaped:
        logger.warning("%s: %d tensors of another shape were left out: %s", name, len(reshaped), ", ".join(reshaped))
    return len(fitting)


def weight_file(checkpoint: str) -> Path:
    """Where a checkpoint lies, if it is there; a URL stands for the file of that name in `pretrained/`."""
    scheme, url, name = checkpoint.partition("://")
    if not url:
        return Path(checkpoint)
    return FOLDER / (_TORCHVISION.get(name, f"{name}.pth") if scheme == "torchvision" else name.rsplit("/", 1)[-1])


def _locate(checkpoint: str, owner: str, option: str) -> Path:
    file = weight_file(checkpoint)
    if file.is_file():
        return file
    if "://" not in checkpoint:
        raise ValueError(
            f"pretrained weights of {owner} not found: {checkpoint} does not exist; put the file there, "
            f"or start from scratch with {_from_scratch(option)}"
        )
    torchvision = checkpoint.startswith("torchvision://")
    url = f"https://download.pytorch.org/models/{file.name}" if torchvision else checkpoint
    raise ValueError(
        f"pretrained weights of {owner} are not downloaded automatically: fetch {url} into {FOLDER}/, "
        f"give your own file with {option}.checkpoint FILE, or start from scratch with {_from_scratch(option)}"
    )


def _from_scratch(option: str) -> str:
    key = option.removeprefix("--")
    return f"{option} null (the student of a distillation: --model.student.overrides '{{{key}: null}}')"
