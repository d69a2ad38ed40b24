"""State dicts of the published LabelDistill program, and of mmdetection3d's CenterPoint, from which it starts.

Their BEV tensors are (B, C, Y, X), ours (B, C, X, Y); sparse kernels are (z, y, x), ours (x, y, z).
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping

from torch import Tensor

__all__ = ["is_published", "left_out", "model_state", "published_state", "rearranged"]

logger = logging.getLogger(__name__)

# What published names begin with, by what it is a part of, and our names.
_LIDAR = {
    "pts_middle_encoder.": "encoders.lidar.backbone.",
    "pts_backbone.": "decoder.backbone.",
    "pts_neck.": "decoder.neck.",
    "pts_bbox_head.": "heads.object.",
}
_STUDENT = {
    "backbone.img_backbone.": "encoders.camera.backbone.",
    "backbone.img_neck.": "encoders.camera.neck.",
    "backbone.depth_net.": "encoders.camera.vtransform.depthnet.",
    "head.trunk.": "decoder.backbone.",
    "head.neck.": "decoder.neck.",
    "head.": "heads.object.",
}
# The published depth branch is one sequence.
_DEPTH = {"0": "1.0", "1": "1.1", "2": "1.2", "3": "2.0", "4": "2.1", "5": "3.0"}
_SEQUENCE = {ours: theirs for theirs, ours in _DEPTH.items()}
# What tensors are that a model of ours may have no place for.
_KINDS = {
    "centerpoint.": "of the LiDAR detector",
    **dict.fromkeys(_LIDAR, "of the LiDAR detector"),
    "label_encoder.": "of the label encoder",
    "distill_encoder_": "of a distillation loss",
    "backbone.voxel_": "geometry, a function of the config",
    "backbone.": "of the student",
    "head.": "of the student's head, which the program builds in every stage",
}
_FINAL = re.compile(r"heads\.object\.task_heads\.\d+\.(dim|rot)\.\d+\.(?:weight|bias)")


def is_published(keys: Iterable[str]) -> bool:
    """Whether these are the keys of a published LabelDistill model, or of mmdetection3d's CenterPoint."""
    marks = ("model.centerpoint.", "model.label_encoder.", "model.backbone.img_backbone.", *_LIDAR)
    return any(key.startswith(marks) for key in keys)


def model_state(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The part of a published file that a model of ours is.

    Published students see images in the order blue, green, red: give their config `channel_order: bgr`. A published
    label encoder needs `raster: published`. The detector beside it in the file has batch statistics that drifted while
    it was trained (and in a student's file drifted further).

    Args:
        state: tensors by published name.
        own: state of the model that is to be loaded: a LiDAR detector (`BEVFusion`), a `LabelEncoderDetector`, a
            student (`TemporalCamera`) or a `Distiller`, whose losses must be named `label` and `lidar`.
    """
    published = {k.removeprefix("model."): v for k, v in state.items()}
    lidar = _renamed({k.removeprefix("centerpoint."): v for k, v in published.items()}, _LIDAR)
    student = _renamed(published, _STUDENT)
    if any(k.startswith("label_encoder.") for k in own):
        encoder = {k: v for k, v in published.items() if k.startswith("label_encoder.")}
        chosen = encoder | {f"detector.{k}": v for k, v in lidar.items()}
    elif any(k.startswith("student.") for k in own):
        chosen = {f"student.{k}": v for k, v in student.items()} | _adapters(published, own)
    else:
        chosen = lidar if any(k.startswith("encoders.lidar.") for k in own) else student
    logger.info("%d tensors of other models in the file left out", len(state) - len(chosen))
    return {k: _in_our_axes(k, v) for k, v in chosen.items()}


def published_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A model of ours by the names and in the axes of the published program, or of mmdetection3d.

    A LiDAR detector becomes mmdetection3d's CenterPoint with kernels of spconv 2.x, a `LabelEncoderDetector` and a
    student a file of LabelDistill.

    Args:
        state: tensors by our name.

    Raises:
        ValueError: these programs have no such tensor.
    """
    published = {}
    encoder = any(k.startswith("label_encoder.") for k in state)
    names = _LIDAR if encoder or any(k.startswith("encoders.lidar.") for k in state) else _STUDENT
    before = "" if names is _LIDAR and not encoder else "model."
    for key, value in state.items():
        name = key.removeprefix("detector.")
        theirs = next((k for k, ours in names.items() if name.startswith(ours)), None)
        turned = value.permute(4, 2, 1, 0, 3).contiguous() if value.ndim == 5 else _in_our_axes(key, value)
        if theirs is None:
            if not key.startswith("label_encoder."):
                raise ValueError(f"neither LabelDistill nor mmdetection3d has a place for {key}")
            published[f"{before}{key}"] = turned
            continue
        inner = f"{theirs}{name.removeprefix(names[theirs])}"
        inner = re.sub(r"(\.depth_conv)_(\d\.\d)\.", lambda m: f"{m[1]}.{_SEQUENCE[m[2]]}.", inner)
        published[f"{before}{'centerpoint.' if encoder else ''}{inner}"] = turned
    return published


def left_out(key: str) -> str:
    """What a tensor of a published file is that a model of ours does not take; empty if unknown."""
    name = key.removeprefix("model.")
    return next((kind for prefix, kind in _KINDS.items() if name.startswith(prefix)), "")


def rearranged(key: str) -> str:
    """How the values of a tensor, by our name, lie in a published file and in ours."""
    if key.startswith("encoders.lidar.") or ".encoders.lidar." in key:
        return "sparse kernel: axes to (x, y, z, in, out)"
    if match := _FINAL.fullmatch(re.sub(r"^(?:student|detector)\.", "", key)):
        order = "length, width, height to width, length, height" if match[1] == "dim" else "yaw to -yaw - pi / 2"
        return f"axes (y, x) to (x, y); {order}"
    return "axes (y, x) to (x, y)"


def _renamed(state: Mapping[str, Tensor], names: Mapping[str, str]) -> dict[str, Tensor]:
    """What begins with one of `names`, the first that fits, under our name."""
    renamed = {}
    for key, value in state.items():
        theirs = next((prefix for prefix in names if key.startswith(prefix)), None)
        if theirs is not None:
            name = names[theirs] + key.removeprefix(theirs)
            renamed[re.sub(r"(\.depth_conv)\.(\d)\.", lambda m: f"{m[1]}_{_DEPTH[m[2]]}.", name)] = value
    return renamed


def _adapters(published: Mapping[str, Tensor], own: Iterable[str]) -> dict[str, Tensor]:
    """Those of the losses that `own` has."""
    sources = {k: re.sub(r"losses\.(\w+)\.adaptors\.", r"distill_encoder_\1.blocks.", k) for k in own}
    return {k: published[source] for k, source in sources.items() if source != k and source in published}


def _in_our_axes(key: str, value: Tensor) -> Tensor:
    name = re.sub(r"^(?:student|detector)\.", "", key)
    if name.startswith("encoders.camera."):
        return value
    if name.startswith("encoders.lidar."):
        return _sparse_kernel(value) if value.ndim == 5 else value
    # Kernels (out, in, y, x) and layer norms (channels, y, x).
    value = value.transpose(-1, -2).contiguous() if value.ndim in (3, 4) else value
    match = _FINAL.fullmatch(name)
    if match is None:
        return value
    # Length, width, height to width, length, height; sine and cosine of the yaw to those of -yaw - pi / 2.
    return value[[1, 0, 2]] if match[1] == "dim" else -value[[1, 0]]


def _sparse_kernel(value: Tensor) -> Tensor:
    """(z, y, x, in, out) of spconv 1.x or (out, z, y, x, in) of spconv 2.x to (x, y, z, in, out)."""
    # Spatial sizes are at most 3 and channels at least 5.
    order = (2, 1, 0, 3, 4) if value.shape[0] <= 3 else (3, 2, 1, 4, 0)
    return value.permute(order).contiguous()
