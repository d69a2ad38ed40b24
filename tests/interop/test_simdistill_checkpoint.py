"""State dicts of the published SimDistill program, by the names and shapes that its configs give."""

from __future__ import annotations

import logging
import re

import pytest
import torch

from mmdet3d.config import load_config
from mmdet3d.distill import LiveTeacher, teacher
from mmdet3d.distill.teacher import build_detector
from mmdet3d.interop import checkpoints
from mmdet3d.interop.checkpoints import EXCEPTIONS, load_state
from mmdet3d.models import build_model

STUDENT = "nuscenes/det/centerhead/lssfpn/simulated/swint.yaml"
TEACHER = "nuscenes/det/centerhead/lssfpn/camera+lidar/swint_v0p075/convfuser.yaml"
DISTILLER = "nuscenes/distill/simdistill/swint/convfuser.yaml"

# The published student lifts once, with image features that are compensated, and with LiDAR depth.
AS_PUBLISHED = {
    "model.encoders.camera.vtransform.type": "DepthLSSTransform",
    "model.encoders.camera.vtransform.compensation": {"points": 10, "legacy_reference_points": True},
    "model.encoders.simulated.vtransform": None,
    "model.encoders.simulated.share_view_transform": True,
    "model.encoders.simulated.compensation.legacy_reference_points": True,
}


def _attention(prefix: str, channels: int, points: int, rows: int, columns: int) -> dict[str, tuple[int, ...]]:
    sampled = 8 * points
    shapes = {
        "query_embeds.0.weight": (rows * columns, channels),
        "pe.0.col_embed.weight": (rows, channels // 2),
        "pe.0.row_embed.weight": (columns, channels // 2),
    }
    layers = {"sampling_offsets": 2 * sampled, "attention_weights": sampled, "value_proj": channels}
    for name, out in (layers | {"output_proj": channels}).items():
        shapes |= {f"el.0.self_attn.{name}.weight": (out, channels), f"el.0.self_attn.{name}.bias": (out,)}
    return {f"{prefix}{k}": s for k, s in shapes.items()}


def _view_transform(prefix: str) -> dict[str, tuple[int, ...]]:
    def norm(i: int, name: str, channels: int) -> dict[str, tuple[int, ...]]:
        parts = {k: (channels,) for k in ("weight", "bias", "running_mean", "running_var")}
        return {f"{name}.{i}.{k}": s for k, s in (parts | {"num_batches_tracked": ()}).items()}

    shapes = {"dx": (3,), "bx": (3,), "nx": (3,), "frustum": (118, 32, 88, 3)}
    convolutions = [
        ("dtransform.0", (8, 1, 1, 1)),
        ("dtransform.3", (32, 8, 5, 5)),
        ("dtransform.6", (64, 32, 5, 5)),
        ("depthnet.0", (256, 320, 3, 3)),
        ("depthnet.3", (256, 256, 3, 3)),
        ("depthnet.6", (198, 256, 1, 1)),
        ("conv", (80, 256, 3, 3)),
        ("deconv", (256, 80, 3, 3)),
        ("deformconv.defconv1", (80, 80, 3, 3)),
        ("deformconv.defconv2", (80, 80, 3, 3)),
    ]
    for name, shape in convolutions:
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    shapes |= {f"downsample.{i}.weight": (80, 80, 3, 3) for i in (0, 3, 6)}
    for name, places in (("dtransform", {1: 8, 4: 32, 7: 64}), ("depthnet", {1: 256, 4: 256})):
        for i, channels in places.items():
            shapes |= norm(i, name, channels)
    for i in (1, 4, 7):
        shapes |= norm(i, "downsample", 80)
    return {f"{prefix}{k}": s for k, s in (shapes | _attention("deformAttn.", 256, 10, 32, 88)).items()}


def published(own: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The published state dict; backbone, neck, fuser, decoder and head are named as in our model `own`."""
    named = {k.replace(".", "_student.", 1): tuple(v.shape) for k, v in own.items()}
    shapes = {k: s for k, s in named.items() if "vtransform" not in k and "simulated" not in k}
    for name in ("vtransform", "vtransform2"):
        shapes |= _view_transform(f"encoders_student.camera.{name}.")
        shapes |= _view_transform("encoders.camera.vtransform.")
    shapes |= _attention("deformAttn.", 80, 20, 180, 180)
    for i in (1, 2):
        shapes |= {f"deform.defconv{i}.weight": (80, 80, 3, 3), f"deform.defconv{i}.bias": (80,)}
    projection = {"0.weight": (256, 80, 3, 3), "1.num_batches_tracked": ()}
    projection |= {f"1.{k}": (256,) for k in ("weight", "bias", "running_mean", "running_var")}
    shapes |= {f"trans_student.{k}": s for k, s in projection.items()}
    # Parts of the teacher, which a student leaves in the file.
    shapes |= {"fuser.0.weight": (256, 336, 3, 3), "encoders.lidar.backbone.conv_input.0.weight": (3, 3, 3, 5, 16)}
    return {k: torch.empty(s, device="meta") for k, s in shapes.items()}


def published_teacher() -> dict[str, torch.Tensor]:
    """As a distillation is published, teacher and student in one; the teacher's parts are named as ours."""
    with torch.device("meta"):
        plain = build_detector(load_config(TEACHER).model)
    shapes = {k: tuple(v.shape) for k, v in plain.state_dict().items() if "vtransform" not in k}
    shapes |= _view_transform("encoders.camera.vtransform.") | {"trans_student.0.weight": (256, 80, 3, 3)}
    return {k: torch.empty(s, device="meta") for k, s in shapes.items()}


def as_published() -> torch.nn.Module:
    with torch.device("meta"):
        return build_detector(load_config(STUDENT, AS_PUBLISHED).model)


_NORM = r"(weight|bias|running_mean|running_var|num_batches_tracked)"
# As the published program names the modules that `published` takes from our model, written down from its modules.
FOREIGN = [
    rf"fuser(_student)?\.(0\.weight|1\.{_NORM})",
    rf"decoder(_student)?\.backbone\.[012]\.[01]\.(conv[12]\.weight|bn[12]\.{_NORM}|downsample\.(0\.weight|1\.{_NORM}))",
    rf"decoder(_student)?\.neck\.(fuse\.[03]\.weight|fuse\.[14]\.{_NORM}|upsample\.1\.weight|upsample\.2\.{_NORM})",
    rf"heads(_student)?\.object\.shared_conv\.(conv\.weight|bn\.{_NORM})",
    r"heads(_student)?\.object\.task_heads\.[0-5]\.(reg|height|dim|rot|vel|heatmap)\."
    rf"(0\.(conv\.weight|bn\.{_NORM})|1\.(weight|bias))",
]


def test_every_name_is_one_of_the_published_program(shared):
    """Encoders are built of the modules whose names the table of another program of this code base lists."""
    table = (shared / "fixtures/state_dicts/a_teacher_LC_swint_v0p075_gatedfuser.tsv").read_text().splitlines()[1:]
    listed = {row.partition("\t")[0] for row in table}
    student, teacher = published(as_published().state_dict()), published_teacher()
    ours = {k for k in (*student, *teacher) if "deform" not in k and "vtransform" not in k and "trans_student" not in k}
    encoders = {k for k in ours if k.startswith("encoders")}
    assert {k.replace("_student", "") for k in encoders} <= listed
    found = {pattern: {k for k in ours if re.fullmatch(pattern, k)} for pattern in FOREIGN}
    assert all(found.values()) and set().union(*found.values()) == ours - encoders


def test_student_comes_out_of_a_published_checkpoint(caplog):
    model = as_published()
    own = model.state_dict()
    with caplog.at_level(logging.INFO):
        load_state(model, published(own))
    for reason in ("query tables", "the second view transform", "deformable convolutions that are switched off"):
        assert reason in caplog.text


def test_every_published_tensor_is_named():
    """What is left out is derived geometry or one of the three kinds of dead tensors."""
    from mmdet3d.interop.simdistill import _DEAD, student_state

    model = as_published()
    state = {k: v for k, v in published(model.state_dict()).items() if "_student" in k or k.startswith("deform")}
    kept = student_state(state, model.state_dict())
    assert {k for k in kept if k.rpartition(".")[2] not in EXCEPTIONS} == {
        k for k in model.state_dict() if k.rpartition(".")[2] not in EXCEPTIONS
    }
    assert len(_DEAD) == 3


def test_the_projection_goes_to_the_loss_of_a_distiller():
    cfg = load_config(DISTILLER, {"model.student.overrides": AS_PUBLISHED})
    with torch.device("meta"):
        distiller = build_model(cfg.model)
    state = published(distiller.student.state_dict())
    load_state(distiller, state)
    del state["trans_student.0.weight"]
    with pytest.raises(ValueError, match=r"1 missing \(losses\.lidar\.projection\.0\.weight\)"):
        load_state(distiller, state)


def test_a_published_teacher_needs_the_compensation_of_its_view_transform(monkeypatch):
    file = "published.pth"
    monkeypatch.setattr(checkpoints, "read_weights", lambda _: (published_teacher(), {}))
    monkeypatch.setattr(teacher, "file_digest", lambda _: "digest")
    with torch.device("meta"), pytest.raises(ValueError, match=r"unexpected .*vtransform\.compensation"):
        LiveTeacher.load(load_config(TEACHER).model, file)
    overrides = {"model.encoders.camera.vtransform.compensation": {"points": 10, "legacy_reference_points": True}}
    with torch.device("meta"):
        LiveTeacher.load(load_config(TEACHER, overrides).model, file)


def test_two_view_transforms_start_from_the_published_one():
    separate = AS_PUBLISHED | {
        "model.encoders.simulated.vtransform": {},
        "model.encoders.simulated.share_view_transform": False,
    }
    with torch.device("meta"):
        model = build_detector(load_config(STUDENT, separate).model)
    assert any(k.startswith("encoders.simulated.vtransform.") for k in model.state_dict())
    load_state(model, published(as_published().state_dict()))


def test_the_camera_only_student_says_what_does_not_fit():
    with torch.device("meta"):
        model = build_detector(load_config(STUDENT).model)
    with pytest.raises(ValueError, match=r"encoders\.camera\.vtransform\.dtransform\.0\.weight"):
        load_state(model, published(model.state_dict()))
