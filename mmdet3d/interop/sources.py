"""Published weight files, told apart by their keys: the network in them, and the config and options that it needs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from mmdet3d.config import load_config
from mmdet3d.interop import crkd, labeldistill, monoskd, simdistill
from mmdet3d.interop.account import Entry, convert, traced
from mmdet3d.interop.checkpoints import EXCEPTIONS, TRAINING_ONLY, fitting_state, in_our_layout, published_options
from mmdet3d.models import build_model

__all__ = ["GEOMETRY", "PROGRAMS", "Network", "convert_published", "geometry", "published_networks", "to_published"]

State = dict[str, Tensor]

_DET = "nuscenes/det/centerhead/lssfpn"
_FUSION = "nuscenes/det/transfusion/secfpn"
_LABEL = "nuscenes/distill/labeldistill"
_STUDENTS = (f"{_DET}/camera+radar/swint/default.yaml", f"{_DET}/camera+radar/resnet50/default.yaml")
_TEACHERS = (
    f"{_DET}/camera+lidar/swint_v0p075/gatedfuser.yaml",
    f"{_DET}/camera+lidar/resnet50/gatedfuser.yaml",
)
_SIZES = ("256x704", "512x896", "512x1408", "896x1600")
_CALIBRATED = {
    "model.encoders.radar.backbone.type": "RadarEncoderCalib",
    "model.encoders.radar.backbone.distill_caliber": True,
}
# SimDistill's student lifts once, with compensated image features, and reads LiDAR depth.
_COMPENSATION = {"points": 10, "legacy_reference_points": True}
_LIFTS_ONCE = {
    "model.encoders.camera.vtransform.type": "DepthLSSTransform",
    "model.encoders.camera.vtransform.compensation": _COMPENSATION,
    "model.encoders.simulated.vtransform": None,
    "model.encoders.simulated.share_view_transform": True,
    "model.encoders.simulated.compensation.legacy_reference_points": True,
}
_MONO = {"detector.exact_affine": False}


# What keys tell of a detector in the names of BEVFusion.
_MARKS = {
    "camera": "encoders.camera.",
    "lidar": "encoders.lidar.",
    "radar": "encoders.radar.",
    "SwinTransformer": "encoders.camera.backbone.patch_embed.",
    "ResNet": "encoders.camera.backbone.layer1.",
    "ViTAEv2": "encoders.camera.backbone.layers.0.RC.",
    "GatedFuser": "fuser.input_conv_sensor_1.",
    "ConvFuser": "fuser.0.",
}


@dataclass(frozen=True)
class Network:
    """A network that a published file may hold.

    Args:
        name: of program and network.
        configs: that may describe it; shapes decide which does.
        options: overrides with which the config's network computes what the published one does.
        note: what the weights do not tell.
    """

    name: str
    configs: tuple[str, ...]
    options: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""


_PLAIN = (
    Network("teacher of CRKD", _TEACHERS),
    Network("student of CRKD", _STUDENTS),
    Network("distilled student of CRKD", _STUDENTS, _CALIBRATED),
    Network(
        "detector of BEVFusion",
        (
            f"{_FUSION}/camera+lidar/swint_v0p075/convfuser.yaml",
            f"{_FUSION}/lidar/voxelnet_0p075.yaml",
            f"{_FUSION}/lidar/pointpillars.yaml",
            "nuscenes/det/centerhead/secfpn/lidar/voxelnet_0p075.yaml",
            f"{_DET}/camera/256x704/swint/default.yaml",
            f"{_DET}/camera/256x704/resnet/default.yaml",
        ),
    ),
)
_LIDAR_DETECTOR = (f"{_LABEL}/teacher_centerpoint_voxel01.yaml",)
_LABEL_STUDENTS = tuple(
    f"nuscenes/det/centerhead/bevdepth/camera/256x704/resnet50/{name}.yaml" for name in ("2key", "4key")
)


def published_networks(state: Mapping[str, Tensor], part: str | None = None) -> tuple[Network, ...]:
    """The networks of which a file with these keys may hold one; none if no program is known that writes such keys.

    Args:
        part: `student` or `teacher` of a distillation, which None takes for the student.
    """
    teacher = part == "teacher"
    if simdistill.is_published(state):
        lifts = f"{_DET}/simulated"
        students = (f"{lifts}/swint.yaml", f"{lifts}/vitaev2.yaml", *(f"{lifts}/resnet50/{s}.yaml" for s in _SIZES))
        fused = tuple(f"{_DET}/camera+lidar/resnet50_dcn/convfuser-{s}.yaml" for s in _SIZES)
        if not teacher:
            return (Network("student of SimDistill", students, _LIFTS_ONCE),)
        compensated = {"model.encoders.camera.vtransform.compensation": _COMPENSATION}
        configs = (f"{_DET}/camera+lidar/swint_v0p075/convfuser.yaml", *fused)
        return (Network("teacher of SimDistill", configs, compensated),)
    if crkd.is_published(state):
        return (_PLAIN[0],) if teacher else (_PLAIN[2],)
    if monoskd.is_published(state) or "feat_up.ida_0.proj_1.conv.weight" in state:
        if teacher:
            depth = {**_MONO, "detector.depth_norm": "legacy"}
            return (Network("depth network of MonoSKD", ("kitti/depth_teacher.yaml",), depth),)
        return (Network("image network of DID-M3D or MonoSKD", ("kitti/rgb_baseline.yaml",), _MONO),)
    if labeldistill.is_published(state):
        return _labeldistill(state, teacher)
    return _PLAIN if any(k.startswith(("encoders.", "heads.object.")) for k in state) else ()


def _labeldistill(state: Mapping[str, Tensor], teacher: bool) -> tuple[Network, ...]:
    if any(k.startswith("pts_") for k in state):
        raw = {"reference_frame": "lidar", "sweeps.max_distance": None}
        note = "voxels are taken to be 0.1 m; of another model name the config"
        return (Network("CenterPoint of mmdetection3d", _LIDAR_DETECTOR, raw, note),)
    if any(k.startswith("model.backbone.img_backbone.") for k in state) and not teacher:
        return (Network("student of LabelDistill (stage 3)", _LABEL_STUDENTS, {"channel_order": "bgr"}),)
    if any(k.startswith("model.label_encoder.") for k in state):
        raster = {"model.label_encoder.raster": "published"}
        return (Network("label encoder of LabelDistill (stage 2)", (f"{_LABEL}/label_encoder.yaml",), raster),)
    return (Network("LiDAR teacher of LabelDistill (stage 1)", _LIDAR_DETECTOR),)


def convert_published(
    state: Mapping[str, Tensor], networks: tuple[Network, ...], part: str | None, source: str
) -> tuple[State, list[Entry], Network, str, dict[str, Any]]:
    """Weights by our names, what became of each tensor, which network they are, its config, and the options it needs.

    Raises:
        ValueError: none of the networks takes all of the file; the message is about the one that takes most of it.
    """
    if part is None and any(system.is_published(state) for system in (simdistill, crkd, monoskd)):
        part = "student"
    described = [(n, c, load_config(c, n.options).model) for n in networks for c in n.configs]
    likely = [(n, c, block) for n, c, block in described if _traits_of_block(block) == _traits_of_keys(state, part)]
    refused: list[tuple[int, str]] = []
    for network, config, block in likely or described:
        with torch.device("meta"):
            model = build_model(block)
        own = model.state_dict()
        try:
            converted, entries = convert(state, own, part, source, config)
        except ValueError as error:
            refused.append((len(own.keys() ^ in_our_layout(state, own, part, source).keys()), str(error)))
            continue
        return converted, entries, network, config, {**network.options, **published_options(model, {})}
    reason = min(refused)[1].rstrip("?.")
    raise ValueError(f"{reason}; if the file is of another config, name that (--config)")


def _traits_of_block(block: Mapping[str, Any]) -> set[str]:
    """What of a detector can be told without building it: its sensors, its image backbone, its fuser."""
    encoders = block.get("encoders") or {}
    traits = {sensor for sensor in ("camera", "lidar", "radar") if encoders.get(sensor)}
    if "camera" in traits:
        traits.add(encoders["camera"]["backbone"]["type"])
    return traits | ({block["fuser"]["type"]} if block.get("fuser") else set())


def _traits_of_keys(state: Mapping[str, Tensor], part: str | None) -> set[str]:
    """The same of tensors by BEVFusion's names; none by those of other programs."""
    half = "_student" if part == "student" and any("_student." in k for k in state) else ""
    text = "\n".join(k for k in state if k.startswith((f"encoders{half}.", f"fuser{half}.")))
    text = text.replace(f"{half}.", ".") if half else text
    return {trait for trait, mark in _MARKS.items() if mark in text}


# -- back -------------------------------------------------------------------------------------------------------------


# By program: under which key its files keep weights, and the names that it gives them.
PROGRAMS: dict[str, tuple[str, Callable[[Mapping[str, Tensor]], State]]] = {
    "bevfusion": ("state_dict", crkd.published_state),
    "crkd": ("state_dict", crkd.published_state),
    "simdistill": ("state_dict", simdistill.published_state),
    "labeldistill": ("state_dict", labeldistill.published_state),
    "mmdetection3d": ("state_dict", labeldistill.published_state),
    "monoskd": ("model_state", monoskd.published_state),
    "did-m3d": ("model_state", monoskd.detector_state),
}


# By program what its files hold besides weights, because it computes that from its config once.
_BEVFUSION_GEOMETRY = "vtransform.dx, bx, nx and frustum, and Swin's relative_position_index"
GEOMETRY: dict[str, str] = {
    **dict.fromkeys(("bevfusion", "crkd", "simdistill"), _BEVFUSION_GEOMETRY),
    "labeldistill": "backbone.voxel_size, voxel_coord, voxel_num and frustum",
}


def geometry(state: Mapping[str, Tensor], block: Mapping[str, Any], source: str) -> State:
    """What files of BEVFusion and CRKD hold besides the weights `state`, computed from the `model` of their config.

    Raises:
        ValueError: the weights are not of that model; `source` names them.
    """
    model = build_model(block)
    fitting_state(state, model.state_dict(), source=source, owner="the config's model")
    return {k: v for k, v in model.named_buffers() if _is_geometry(k)}


def to_published(state: Mapping[str, Tensor], program: str, source: str) -> tuple[State, list[Entry]]:
    """Weights of a model of ours by the names of a published program (see `PROGRAMS`), and what became of each tensor.

    What the program computes from its config, and what only training uses, is left out; of a distillation all but the
    student.

    Raises:
        ValueError: the program has no such network, so that the file would not read back as what it was made from.
    """
    names = PROGRAMS[program][1]
    student = "student." if any(k.startswith("student.") for k in state) else ""

    def kept(tensors: Mapping[str, Tensor]) -> State:
        own = {k.removeprefix(student): v for k, v in tensors.items() if k.startswith(student)}
        return {k: v for k, v in own.items() if not _why_not_shipped(k)}

    def left_out(key: str) -> str:
        if not key.startswith(student):
            return "not of the student"
        return _why_not_shipped(key.removeprefix(student))

    own = kept(state)
    try:
        names(own)
    except ValueError as error:
        raise ValueError(f"{source} is of no network that {program} has: {error}") from error
    published, entries = traced(state, lambda t: names(kept(t)), left_out, labeldistill.rearranged, source)
    back = fitting_state(published, own, source=f"{source}, as a file of {program},", owner="what it was made from")
    moved = [k for k, v in own.items() if not torch.equal(back[k], v)]
    if moved:
        raise ValueError(f"{source} is of no network that {program} has: {moved[0]} would not come back as it is")
    return published, entries


def _why_not_shipped(key: str) -> str:
    if _is_geometry(key):
        return EXCEPTIONS[key.rpartition(".")[2]]
    return next((f"it {reason}" for part, reason in TRAINING_ONLY.items() if key.startswith(part)), "")


def _is_geometry(key: str) -> bool:
    name = key.rpartition(".")[2]
    return name in EXCEPTIONS and name != "num_batches_tracked"
