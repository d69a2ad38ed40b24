"""`convert` without a config: published files by their key tables, the account of every tensor, and the way back."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import test_distillation_files as mono
import test_labeldistill_checkpoint as label
import test_simdistill_checkpoint as sim
import torch
from published import tensors
from safetensors.torch import save_file
from torch import Tensor

from mmdet3d.commands import convert_checkpoint
from mmdet3d.config import load_config
from mmdet3d.distill.teacher import build_detector
from mmdet3d.engine.overrides import options_beside
from mmdet3d.interop.account import convert
from mmdet3d.interop.checkpoints import load_checkpoint
from mmdet3d.interop.sources import PROGRAMS, convert_published, geometry, published_networks, to_published
from mmdet3d.io.weights import read_metadata, read_weights, save_weights
from mmdet3d.models import build_model
from mmdet3d.models.backbones import DLA, ResNet, SwinTransformer, ViTAEv2

DET = "nuscenes/det/centerhead/lssfpn"
LABEL = "nuscenes/distill/labeldistill"
CALIBRATED = {
    "model.encoders.radar.backbone.type": "RadarEncoderCalib",
    "model.encoders.radar.backbone.distill_caliber": True,
}


def meta(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    return {k: torch.empty(s, device="meta") for k, s in shapes.items()}


def filled(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Random where shapes say so, whole numbers for counters."""
    generator = torch.Generator().manual_seed(0)
    return {k: torch.randn(v.shape, generator=generator) if v.ndim else torch.tensor(7) for k, v in state.items()}


def crkd(table: str) -> dict[str, Tensor]:
    return meta(tensors(table))


def label_file(*groups: str) -> dict[str, Tensor]:
    return {k: v.to("meta") for k, v in label.published(3).items() if k.startswith(groups)}


def centerpoint() -> dict[str, Tensor]:
    own = label.built(f"{LABEL}/teacher_centerpoint_voxel01.yaml").state_dict()
    return {k: v.to("meta") for k, v in label.shapes(own, label.LIDAR).items()}


def bevfusion(config: str) -> dict[str, Tensor]:
    with torch.device("meta"):
        return build_detector(load_config(config).model).state_dict()


LIDAR_CAMERA = "nuscenes/det/transfusion/secfpn/camera+lidar/swint_v0p075/convfuser.yaml"
LAST = {"model.encoders.camera.vtransform.pixel_depth": "last"}
MONO = {"detector.exact_affine": False}
FILES = {
    "CRKD teacher, Swin": (
        lambda: crkd("a_teacher_LC_swint_v0p075_gatedfuser"),
        None,
        f"{DET}/camera+lidar/swint_v0p075/gatedfuser.yaml",
        LAST,
    ),
    "CRKD teacher, ResNet": (
        lambda: crkd("b_teacher_LC_resnet50_gatedfuser"),
        None,
        f"{DET}/camera+lidar/resnet50/gatedfuser.yaml",
        LAST,
    ),
    "CRKD student, Swin": (
        lambda: crkd("c_student_CR_swint_default"),
        None,
        f"{DET}/camera+radar/swint/default.yaml",
        {},
    ),
    "CRKD student, ResNet": (
        lambda: crkd("d_student_CR_resnet50_default"),
        None,
        f"{DET}/camera+radar/resnet50/default.yaml",
        {},
    ),
    "CRKD distillation": (lambda: crkd("e_distill_swint"), None, f"{DET}/camera+radar/swint/default.yaml", CALIBRATED),
    "CRKD distillation, ResNet": (
        lambda: crkd("f_distill_resnet50"),
        "student",
        f"{DET}/camera+radar/resnet50/default.yaml",
        CALIBRATED,
    ),
    "CRKD distillation, its teacher": (
        lambda: crkd("e_distill_swint"),
        "teacher",
        f"{DET}/camera+lidar/swint_v0p075/gatedfuser.yaml",
        LAST,
    ),
    "BEVFusion": (lambda: bevfusion(LIDAR_CAMERA), None, LIDAR_CAMERA, LAST),
    "SimDistill": (
        lambda: sim.published(sim.as_published().state_dict()),
        None,
        f"{DET}/simulated/swint.yaml",
        {**sim.AS_PUBLISHED, **LAST},
    ),
    "LabelDistill, stage 1": (
        lambda: label_file("model.centerpoint.", "model.head."),
        None,
        f"{LABEL}/teacher_centerpoint_voxel01.yaml",
        {},
    ),
    "LabelDistill, stage 2": (
        lambda: label_file("model.centerpoint.", "model.label_encoder.", "model.head."),
        None,
        f"{LABEL}/label_encoder.yaml",
        {"model.label_encoder.raster": "published"},
    ),
    "LabelDistill, stage 3": (
        lambda: label_file("model."),
        None,
        "nuscenes/det/centerhead/bevdepth/camera/256x704/resnet50/2key.yaml",
        {"channel_order": "bgr"},
    ),
    "CenterPoint": (
        centerpoint,
        None,
        f"{LABEL}/teacher_centerpoint_voxel01.yaml",
        {"reference_frame": "lidar", "sweeps.max_distance": None},
    ),
    "DID-M3D": (mono.published_detector, None, "kitti/rgb_baseline.yaml", MONO),
    "MonoSKD": (mono.published_distillation, None, "kitti/rgb_baseline.yaml", MONO),
    "MonoSKD, its teacher": (
        mono.published_distillation,
        "teacher",
        "kitti/depth_teacher.yaml",
        MONO | {"detector.depth_norm": "legacy"},
    ),
}


BACK = {
    "CRKD student, ResNet": "crkd",
    "CenterPoint": "mmdetection3d",
    "LabelDistill, stage 2": "labeldistill",
    "LabelDistill, stage 3": "labeldistill",
    "MonoSKD": "monoskd",
    "DID-M3D": "did-m3d",
    "SimDistill": "simdistill",
}
QUICK = ("CenterPoint", "MonoSKD, its teacher")


@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in FILES])
def test_a_published_file_is_read_without_a_config_and_goes_back(name: str) -> None:
    """It names its config and options; what was taken goes back under its name, with its values."""
    make, part, config, options = FILES[name]
    state = filled(make()) if name in BACK else make()
    ours, entries, _, found, needed = convert_published(state, published_networks(state, part), part, "file.pth")
    assert (found, needed) == (config, options)
    assert [entry.source for entry in entries] == list(state)
    assert all(entry.reason for entry in entries if entry.kind in ("dropped", "permuted"))
    assert {target for entry in entries for target in entry.targets} == ours.keys()
    if name in BACK:
        back, _ = to_published(ours, BACK[name], "ours.safetensors")
        taken = [entry.source for entry in entries if entry.targets]
        assert back.keys() == set(taken)
        for key in taken:  # our test's sparse kernels are laid out as by spconv 1.x, and go back as by 2.x
            expected = state[key].permute(4, 0, 1, 2, 3) if "pts_middle" in key and state[key].ndim == 5 else state[key]
            assert torch.equal(back[key], expected), key


@pytest.mark.parametrize("name", FILES)
def test_files_are_told_apart_by_their_keys(name: str) -> None:
    make, part, config, _ = FILES[name]
    assert any(config in network.configs for network in published_networks(make(), part))


def test_the_account_tells_what_was_done_to_each_tensor() -> None:
    state = filled(centerpoint())
    with torch.device("meta"):
        own = build_model(load_config(f"{LABEL}/teacher_centerpoint_voxel01.yaml").model).state_dict()
    by_name = {entry.source: entry for entry in convert(state, own)[1]}
    kernel = by_name["pts_middle_encoder.conv_input.0.weight"]
    assert (kernel.kind, kernel.targets) == ("permuted", ("encoders.lidar.backbone.conv_input.0.weight",))
    assert kernel.reason == "sparse kernel: axes to (x, y, z, in, out)"
    turned = by_name["pts_bbox_head.task_heads.0.rot.1.weight"]
    assert turned.kind == "permuted" and "yaw to -yaw - pi / 2" in turned.reason
    assert by_name["pts_backbone.blocks.0.1.weight"].kind == "renamed"
    text = str(by_name["pts_backbone.blocks.0.1.weight"])
    assert text == "renamed  pts_backbone.blocks.0.1.weight -> decoder.backbone.blocks.0.1.weight"


def test_what_nothing_accounts_for_is_an_error() -> None:
    state = mono.published_distillation() | {"adaptor": torch.empty(3)}
    with pytest.raises(ValueError, match=r"file\.pth holds 1 tensor that nothing accounts for \(adaptor\)"):
        convert_published(state, published_networks(state), None, "file.pth")
    state = mono.published_detector() | {"more.weight": torch.empty(3)}
    with pytest.raises(ValueError, match=r"rgb_baseline\.yaml: 1 unexpected \(more\.weight\).*--config"):
        convert_published(state, published_networks(state), None, "file.pth")


@pytest.mark.parametrize(
    ("state", "program", "message"),
    [
        ({"encoders.simulated.vtransform.w": 1}, "simdistill", "lifts once"),
        ({"encoders.camera.vtransform.depthnet.w": 1}, "simdistill", "lifts by DepthLSSTransform"),
        ({"encoders.camera.w": 1, "losses.x": 1}, "labeldistill", "has a place for encoders.camera.w"),
        ({"encoders.lidar.w": 1, "encoders.camera.vtransform.dtransform.w": 1}, "simdistill", "simulates LiDAR"),
        ({"encoders.lidar.w": 1, "heads.object.w": 1}, "monoskd", "such as encoders.lidar.w, are of another detector"),
        ({"encoders.lidar.w": 1, "heads.object.w": 1}, "did-m3d", "such as encoders.lidar.w, are of another detector"),
        ({"feat_up.w": 1, "backbone.w": 1}, "crkd", "neither BEVFusion nor CRKD has a place for feat_up.w"),
        ({"encoders.simulated.w": 1}, "bevfusion", "has a place for encoders.simulated.w"),
    ],
)
def test_a_network_that_the_program_does_not_have_is_refused(state, program, message) -> None:
    with pytest.raises(ValueError, match=rf"^ours\.safetensors is of no network that {program} has: .*{message}"):
        to_published({k: torch.ones(2) for k in state}, program, "ours.safetensors")


def _original_swin() -> dict[str, Tensor]:
    """Names and shapes as the authors of Swin save them."""
    own = SwinTransformer(embed_dims=8, depths=(1, 2), num_heads=(1, 2), window_size=3, out_indices=(0, 1)).state_dict()
    names = (
        ("stages.", "layers."),
        ("attn.w_msa.", "attn."),
        ("ffn.layers.0.0.", "mlp.fc1."),
        ("ffn.layers.1.", "mlp.fc2."),
        ("patch_embed.projection.", "patch_embed.proj."),
    )
    state = {}
    for key, value in own.items():
        for ours, theirs in names:
            key = key.replace(ours, theirs)
        state[key] = value
    state = {k: v for k, v in state.items() if not k.startswith(("norm0", "norm1"))}
    mask = {"layers.0.blocks.0.attn_mask": torch.ones(4, 9, 9)}
    return (
        state | mask | {"head.weight": torch.ones(10, 16), "norm.weight": torch.ones(16), "norm.bias": torch.ones(16)}
    )


BACKBONES = {
    "ResNet": (lambda: ResNet(18).state_dict() | {"fc.weight": torch.ones(10, 512)}, lambda: ResNet(18)),
    "DLA": (lambda: DLA(base_channels=4).state_dict(), lambda: DLA(base_channels=4)),
    "ViTAEv2": (
        lambda: {f"backbone.{k}": v for k, v in ViTAEv2().state_dict().items()} | {"neck.w": torch.ones(1)},
        ViTAEv2,
    ),
    "SwinTransformer": (
        _original_swin,
        lambda: SwinTransformer(embed_dims=8, depths=(1, 2), num_heads=(1, 2), window_size=3, out_indices=(0, 1)),
    ),
}


@pytest.mark.parametrize("kind", BACKBONES)
def test_image_weights_are_recognised(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    make, build = BACKBONES[kind]
    torch.save(make(), tmp_path / "in.pth")
    convert_checkpoint.main([str(tmp_path / "in.pth"), str(tmp_path / "out.safetensors")])
    printed = capsys.readouterr().out
    assert f"this is an image backbone, {kind}" in printed
    kinds = ("loaded", "renamed", "permuted", "dropped")
    assert sum(line.startswith(kinds) for line in printed.splitlines()) == len(make())
    direct, through = build(), build()
    direct._checkpoint, through._checkpoint = str(tmp_path / "in.pth"), str(tmp_path / "out.safetensors")
    if kind == "SwinTransformer":
        direct.convert_weights = True
        assert "neighbours that patch merging joins" in printed
    direct.init_weights()
    through.init_weights()
    assert all(torch.equal(v, through.state_dict()[k]) for k, v in direct.state_dict().items())


def test_the_command_writes_the_options_and_later_commands_take_them(tmp_path, capsys) -> None:
    """A published depth network, converted and read back with what its JSON says."""
    published, target = tmp_path / "MonoSKD.pth", tmp_path / "teacher.safetensors"
    torch.save({"epoch": 150, "model_state": filled(mono.published_distillation())}, published)
    convert_checkpoint.main([str(published), str(target), "--part", "teacher"])
    printed = capsys.readouterr().out
    assert "depth network of MonoSKD" in printed and "detector.depth_norm: legacy" in printed
    assert "(of the student)" in printed and "(of a distillation loss)" in printed
    assert read_metadata(target)["config"] == "kitti/depth_teacher.yaml"
    needed = options_beside(target, "configs/kitti/depth_teacher.yaml")
    assert needed == {"detector.exact_affine": False, "detector.depth_norm": "legacy"}
    assert options_beside(target, "configs/kitti/rgb_baseline.yaml") == {}
    model = build_model(load_config("kitti/depth_teacher.yaml", needed).model)
    load_checkpoint(model, target)
    back = tmp_path / "back.pth"
    convert_checkpoint.main([str(target), str(back), "--to", "did-m3d"])
    assert torch.load(back, weights_only=True)["model_state"].keys() == mono.published_detector().keys()


@pytest.mark.parametrize("there", ["kept.safetensors", "kept.json"])
def test_nothing_that_is_there_is_overwritten(there, tmp_path) -> None:
    """Neither the target, nor the JSON that would come beside it."""
    torch.save({"something": torch.ones(2)}, tmp_path / "in.pth")
    (tmp_path / there).write_text("mine")
    with pytest.raises(ValueError, match=rf"{there} exists already"):
        convert_checkpoint.main([str(tmp_path / "in.pth"), str(tmp_path / "kept.safetensors")])
    assert {p.name for p in tmp_path.iterdir()} == {"in.pth", there} and (tmp_path / there).read_text() == "mine"
    with pytest.raises(ValueError, match=r"written as \.safetensors or \.pth, not as kept\.onnx"):
        convert_checkpoint.main([str(tmp_path / "in.pth"), str(tmp_path / "kept.onnx")])


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({0: torch.ones(2), "a.weight": torch.ones(2)}, "holds tensors by 0 instead of by name"),
        ({"a.weight": torch.eye(2).to_sparse()}, "the tensor a.weight is sparse, and weights are dense"),
        ({"a.weight": torch.ones(2, device="meta")}, "the tensor a.weight is without values"),
        ({"a.weight": torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)}, "a.weight is quantized"),
    ],
)
def test_tensors_that_are_no_weights_are_refused(state, message, tmp_path) -> None:
    torch.save({"state_dict": state}, tmp_path / "in.pth")
    with pytest.raises(ValueError, match=rf"in\.pth.*{message}"):
        convert_checkpoint.main([str(tmp_path / "in.pth"), str(tmp_path / "out.safetensors")])
    assert [p.name for p in tmp_path.iterdir()] == ["in.pth"]


def test_geometry_is_computed_from_the_config_that_fits() -> None:
    """A view transform lies in a detector under the name that it has there."""
    block = {
        "type": "LSSTransform",
        "in_channels": 2,
        "out_channels": 3,
        "image_size": [16, 32],
        "feature_size": [2, 4],
    }
    block |= {"xbound": [-4, 4, 1], "ybound": [-2, 2, 1], "zbound": [-10, 10, 20], "dbound": [1, 9, 2]}
    state = build_model(block).state_dict()
    found = geometry(state, block, "ours.safetensors")
    assert {k: v.tolist() for k, v in found.items() if k != "frustum"} == {
        "dx": [1, 1, 20],
        "bx": [-3.5, -1.5, 0],
        "nx": [8, 4, 1],
    }
    assert found["frustum"].shape == (4, 2, 4, 3) and found["nx"].dtype == torch.int64
    with pytest.raises(ValueError, match=r"ours\.safetensors does not fit the config's model: 1 missing"):
        geometry({k: v for k, v in state.items() if k != "depthnet.bias"}, block, "ours.safetensors")


@pytest.mark.slow
def test_geometry_goes_back_where_a_config_determines_it(tmp_path, capsys) -> None:
    """CRKD's files hold it, and its program loads strictly; the card of converted weights names their config."""
    name, config = "d_student_CR_resnet50_default", f"{DET}/camera+radar/resnet50/default.yaml"
    published = {k: torch.zeros(v.shape) if v.ndim else torch.tensor(0) for k, v in crkd(name).items()}
    torch.save({"state_dict": published}, tmp_path / "theirs.pth")
    convert_checkpoint.main([str(tmp_path / "theirs.pth"), str(tmp_path / "ours.safetensors")])
    convert_checkpoint.main([str(tmp_path / "ours.safetensors"), str(tmp_path / "back.pth"), "--to", "crkd"])
    assert "4 of them geometry" in capsys.readouterr().out
    back = torch.load(tmp_path / "back.pth", weights_only=True)["state_dict"]
    assert {k: tuple(v.shape) for k, v in back.items()} == tensors(name)
    view = "encoders.camera.vtransform."
    assert torch.allclose(back[f"{view}dx"], torch.tensor([0.6, 0.6, 20.0]))
    assert torch.allclose(back[f"{view}bx"], torch.tensor([-53.7, -53.7, 0.0]))
    assert back[f"{view}nx"].tolist() == [180, 180, 1]
    assert back[f"{view}frustum"][-1, -1, -1].tolist() == [703, 255, 59.0]

    (tmp_path / "ours.json").unlink()
    convert_checkpoint.main([str(tmp_path / "ours.safetensors"), str(tmp_path / "bare.pth"), "--to", "crkd"])
    assert "not in it: vtransform.dx, bx, nx and frustum" in capsys.readouterr().out
    bare = torch.load(tmp_path / "bare.pth", weights_only=True)["state_dict"]
    assert published.keys() - bare.keys() == {f"{view}{n}" for n in ("dx", "bx", "nx", "frustum")}
    words = [str(tmp_path / "ours.safetensors"), str(tmp_path / "named.pth"), "--to", "crkd", "--config", config]
    convert_checkpoint.main(words)
    assert torch.load(tmp_path / "named.pth", weights_only=True)["state_dict"].keys() == published.keys()


def test_a_file_without_tensors_is_refused(tmp_path) -> None:
    save_file({}, tmp_path / "in.safetensors")
    with pytest.raises(ValueError, match=r"in\.safetensors holds no weights"):
        convert_checkpoint.main([str(tmp_path / "in.safetensors"), str(tmp_path / "out.safetensors")])


def test_the_programs_that_the_command_offers_are_those_that_there_are() -> None:
    assert tuple(PROGRAMS) == convert_checkpoint._PROGRAMS


def test_files_of_ours_and_of_nobody_change_their_container_alone(tmp_path, capsys) -> None:
    state = {"encoders.camera.w": torch.ones(2)}
    save_weights(state, tmp_path / "ours.safetensors", {"versions": {"mmdet3d": "1"}})
    torch.save({"something": torch.ones(2)}, tmp_path / "other.pth")
    for name in ("ours.safetensors", "other.pth"):
        convert_checkpoint.main([str(tmp_path / name), str(tmp_path / f"{name}.safetensors")])
    assert "is of no program that is known" in capsys.readouterr().out
    assert read_weights(tmp_path / "ours.safetensors.safetensors")[0].keys() == state.keys()
    for name, message in (("other.pth", "not recognised"), ("ours.safetensors", "is a file of this project")):
        with pytest.raises(ValueError, match=f"--part is about published distillations, and .*{message}"):
            convert_checkpoint.main([str(tmp_path / name), str(tmp_path / "a.pth"), "--part", "student"])
    with pytest.raises(ValueError, match="leave out --part, or name the --config"):
        convert_checkpoint.main([*(str(tmp_path / n) for n in ("other.pth", "a.pth")), "--part=teacher", "--prefix=x"])
    with pytest.raises(ValueError, match=r"--to crkd writes a file for another program, a \.pth"):
        convert_checkpoint.main([str(tmp_path / "ours.safetensors"), str(tmp_path / "a.safetensors"), "--to", "crkd"])
