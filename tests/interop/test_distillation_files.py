"""Published distillations hold two networks: names as the original programs write them, and which network is meant."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mmdet3d.config import load_config
from mmdet3d.interop.checkpoints import load_state
from mmdet3d.models.backbones import DLA
from mmdet3d.models.detectors import MonoDetector
from mmdet3d.registry import MODELS

CLASSES = ("Pedestrian", "Car", "Cyclist")
NORM = {"weight": 0, "bias": 0, "running_mean": 0, "running_var": 0, "num_batches_tracked": None}


def detector() -> MonoDetector:
    with torch.device("meta"):
        return MODELS.build(
            {
                "type": "MonoDetector",
                "backbone": {"type": "DLA"},
                "neck": {"type": "DLAUp"},
                "classes": CLASSES,
                "mean_sizes": {name: [1.0, 1.0, 1.0] for name in CLASSES},
            }
        ).to_empty(device="cpu")


def _conv_bn(name: str, inputs: int, width: int, conv: str, bn: str) -> dict[str, tuple[int, ...]]:
    shapes = {f"{name}.{conv}.weight": (width, inputs, 3, 3)}
    return shapes | {f"{name}.{bn}.{k}": () if size is None else (width,) for k, size in NORM.items()}


def published_detector() -> dict[str, Tensor]:
    """A DID-M3D or MonoSKD detector by its published names; those of the backbone are DLA-34's own."""
    shapes = {f"backbone.{k}": tuple(v.shape) for k, v in DLA().state_dict().items()} | {"mean_size": (3, 3)}
    for stage, width in enumerate((256, 128, 64)):
        for i in range(1, stage + 2):
            ida = f"feat_up.ida_{stage}"
            shapes |= _conv_bn(f"{ida}.proj_{i}", 2 * width, width, "conv", "bn")
            shapes |= _conv_bn(f"{ida}.node_{i}", 2 * width, width, "conv", "bn")
            shapes[f"{ida}.up_{i}.weight"] = (width, 1, 4, 4)
    for name, out in {"heatmap": 3, "offset_2d": 2, "size_2d": 2}.items():
        shapes |= {f"{name}.0.weight": (256, 64, 3, 3), f"{name}.0.bias": (256,)}
        shapes |= {f"{name}.2.weight": (out, 256, 1, 1), f"{name}.2.bias": (out,)}
    own = detector().state_dict()
    regions = ("offset_3d", "size_3d", "heading", "vis_depth", "att_depth", "vis_depth_uncer", "att_depth_uncer")
    shapes |= {k: tuple(v.shape) for k, v in own.items() if k.partition(".")[0] in regions}
    return {k: torch.zeros(s) for k, s in shapes.items()}


def published_distillation() -> dict[str, Tensor]:
    student = {f"centernet_rgb.{k}": v + 1 for k, v in published_detector().items()}
    teacher = {f"centernet_depth.{k}": v + 2 for k, v in published_detector().items()}
    return student | teacher | {"adapt_layer8.0.weight": torch.zeros(3, 3)}


def test_a_published_monocular_detector_loads():
    published = published_detector()
    assert sum("proj_" in k or "node_" in k for k in published) == 72
    model = detector()
    assert published.keys() == model.state_dict().keys()
    load_state(model, published)


@pytest.mark.parametrize("part, value", [("student", 1), ("teacher", 2)])
def test_the_network_that_is_asked_for(part, value):
    model = detector()
    load_state(model, published_distillation(), part=part)
    assert all((v == value).all() for k, v in model.state_dict().items() if "num_batches" not in k)


def test_two_networks_that_fit_must_be_told_apart():
    with pytest.raises(ValueError, match=r"MonoSKD\.pth holds two networks that fit.*--part student \(or teacher\)"):
        load_state(detector(), published_distillation(), source="MonoSKD.pth")


def test_a_student_alone_is_no_teacher():
    student = {k: v for k, v in published_distillation().items() if not k.startswith("centernet_depth.")}
    load_state(detector(), student)
    with pytest.raises(ValueError, match=r"alone\.pth is a published distillation that holds its student alone"):
        load_state(detector(), student, part="teacher", source="alone.pth")


def test_the_teacher_comes_out_of_a_published_crkd_distillation(shared):
    """By the published names and shapes: the teacher's config takes the teacher, the student's the student."""
    rows = (shared / "fixtures/state_dicts/e_distill_swint.tsv").read_text().splitlines()[1:]
    state = {}
    for key, shape, *_ in (row.split("\t") for row in rows):
        size = [int(n) for n in shape.strip("(),").split(",") if n.strip()]
        state[key] = torch.empty(size, device="meta")
    base = "nuscenes/det/centerhead/lssfpn"
    for config in (f"{base}/camera+lidar/swint_v0p075/gatedfuser.yaml", f"{base}/camera+radar/swint/default.yaml"):
        with torch.device("meta"):
            model = MODELS.build(load_config(config).model)
        if "radar" in config:
            # The distilled student has the calibrated radar encoder.
            with pytest.raises(ValueError, match="RadarEncoderCalib"):
                load_state(model, state)
        else:
            load_state(model, state)
            load_state(model, state, part="teacher")


@pytest.mark.parametrize("backbone", ["swint", "resnet50"])
def test_width_of_the_depth_network_that_sees_radar(backbone):
    """576 channels enter, image features and drawn points; 512 are inside, as in the published network."""
    config = load_config(f"nuscenes/det/centerhead/lssfpn/camera+radar/{backbone}/dlss.yaml")
    with torch.device("meta"):
        state = MODELS.build(config.model).state_dict()
    net = "encoders.camera.vtransform.depthnet"
    image = config.model.encoders.camera.vtransform.in_channels
    assert state[f"{net}.reduce_conv.0.weight"].shape == (image, image + 64, 3, 3)
    assert state[f"{net}.context_conv.weight"].shape[:2] == (
        config.model.encoders.camera.vtransform.out_channels,
        image,
    )
    assert image == 512
