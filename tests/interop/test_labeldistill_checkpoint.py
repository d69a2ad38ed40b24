"""State dicts of the published LabelDistill program, whose axes are (y, x) and (z, y, x)."""

from __future__ import annotations

import copy
import functools
import math
import re
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mmdet3d.config import load_config
from mmdet3d.distill.label_encoder import LabelEncoder, paint_labels
from mmdet3d.interop.checkpoints import load_state
from mmdet3d.interop.labeldistill import is_published, model_state
from mmdet3d.models import build_model
from mmdet3d.models.decoders import SECOND
from mmdet3d.models.heads.centerhead import CenterHead
from mmdet3d.models.heads.config import CenterHeadTesting, HeadTraining
from mmdet3d.models.necks import SECONDFPN
from mmdet3d.ops.sparse_conv import SparseTensor, SubMConv3d
from mmdet3d.structures import BEVGrid, Boxes3D

GOLDEN = Path(__file__).parent / "golden" / "centerpoint.pth"
FOLDER = "nuscenes/distill/labeldistill"
LIDAR = {
    "encoders.lidar.backbone.": "pts_middle_encoder.",
    "decoder.backbone.": "pts_backbone.",
    "decoder.neck.": "pts_neck.",
    "heads.object.": "pts_bbox_head.",
}
STUDENT = {
    "encoders.camera.backbone.": "backbone.img_backbone.",
    "encoders.camera.neck.": "backbone.img_neck.",
    "encoders.camera.vtransform.depthnet.depth_conv_1.": "backbone.depth_net.depth_conv.",
    "encoders.camera.vtransform.depthnet.depth_conv_2.0.": "backbone.depth_net.depth_conv.3.",
    "encoders.camera.vtransform.depthnet.depth_conv_2.1.": "backbone.depth_net.depth_conv.4.",
    "encoders.camera.vtransform.depthnet.depth_conv_3.0.": "backbone.depth_net.depth_conv.5.",
    "encoders.camera.vtransform.depthnet.": "backbone.depth_net.",
    "decoder.backbone.": "head.trunk.",
    "decoder.neck.": "head.neck.",
    "heads.object.": "head.",
}
DERIVED = ("dx", "bx", "nx", "frustum")


@functools.cache
def built(name: str, *words: str) -> nn.Module:
    with torch.device("meta"):
        return build_model(load_config(name, words).model)


def shapes(own: dict[str, torch.Tensor], names: dict[str, str], prefix: str = "") -> dict[str, torch.Tensor]:
    """Tensors by published name, with published shapes; meta tensors are enough to see names and shapes."""
    made = {}
    for key, value in own.items():
        if key.rpartition(".")[2] in DERIVED:
            continue
        ours = next(k for k in names if key.startswith(k))
        shape = list(value.shape)
        if len(shape) == 5:
            shape = [*shape[2::-1], *shape[3:]]
        made[prefix + names[ours] + key.removeprefix(ours)] = torch.empty(shape)
    return made


@functools.cache
def published(frames: int) -> dict[str, torch.Tensor]:
    """A whole student's file: student, adapters, LiDAR detector, label encoder, and buffers that the config gives."""
    key = {3: "2key", 5: "4key"}[frames]
    distiller = built(f"{FOLDER}/r50_{key}.yaml", "--partition", "contiguous_thirds")
    encoder = built(f"{FOLDER}/label_encoder.yaml")
    state = shapes(distiller.student.state_dict(), STUDENT, "model.")
    state |= shapes(encoder.detector.state_dict(), LIDAR, "model.centerpoint.")
    state |= {f"model.label_encoder.{k}": torch.empty(v.shape) for k, v in encoder.label_encoder.state_dict().items()}
    for name, loss in distiller.losses.items():
        for k, v in loss.state_dict().items():
            state[f"model.distill_encoder_{name}.{k.replace('adaptors', 'blocks')}"] = torch.empty(v.shape)
    for name in ("voxel_size", "voxel_coord", "voxel_num", "frustum"):
        state[f"model.backbone.{name}"] = torch.empty(3)
    return state


_NORM = r"(weight|bias|running_mean|running_var|num_batches_tracked)"
_CONV = r"(weight|bias)"
# As the published program names its modules, written down from its modules and not from ours.
FOREIGN = [
    rf"backbone\.img_backbone\.(conv1\.weight|bn1\.{_NORM})",
    rf"backbone\.img_backbone\.layer[1-4]\.\d\.(conv[123]\.weight|bn[123]\.{_NORM}|downsample\.(0\.weight|1\.{_NORM}))",
    rf"(backbone\.img_neck|head\.neck)\.deblocks\.[0-3]\.(0\.weight|1\.{_NORM})",
    rf"backbone\.depth_net\.(reduce_conv\.(0\.{_CONV}|1\.{_NORM})|context_conv\.{_CONV}|bn\.{_NORM})",
    rf"backbone\.depth_net\.(depth|context)_(mlp\.fc[12]|se\.conv_(reduce|expand))\.{_CONV}",
    rf"backbone\.depth_net\.depth_conv\.[012]\.(conv[12]\.weight|bn[12]\.{_NORM})",
    rf"backbone\.depth_net\.depth_conv\.3\.(aspp[1-4]\.(atrous_conv\.weight|bn\.{_NORM})|conv1\.weight|bn1\.{_NORM})",
    rf"backbone\.depth_net\.depth_conv\.3\.global_avg_pool\.(1\.weight|2\.{_NORM})",
    rf"backbone\.depth_net\.depth_conv\.(4\.(weight|conv_offset\.{_CONV})|5\.{_CONV})",
    r"backbone\.(voxel_size|voxel_coord|voxel_num|frustum)",
    rf"head\.trunk\.(conv1\.weight|bn1\.{_NORM})",
    rf"head\.trunk\.layer[123]\.[01]\.(conv[12]\.weight|bn[12]\.{_NORM}|downsample\.(0\.weight|1\.{_NORM}))",
    rf"head\.shared_conv\.(conv\.weight|bn\.{_NORM})",
    rf"head\.task_heads\.[0-5]\.(reg|height|dim|rot|vel|heatmap)\.(0\.(conv\.weight|bn\.{_NORM})|1\.{_CONV})",
    rf"distill_encoder_(lidar|label)\.blocks\.[01]\.(0\.{_CONV}|1\.{_NORM}|3\.(conv[12]\.weight|bn[12]\.{_NORM}))",
    rf"label_encoder\.(mlp_box|mlp_label|mlp2)\.fc[12]\.{_CONV}",
    rf"label_encoder\.(ln2\.{_CONV}|conv1\.(conv[12]\.weight|bn[12]\.{_NORM})|conv_blocks\.[01]\.[01]\.{_CONV})",
]


def test_every_name_is_one_of_the_published_program():
    """And the detector's names hold those of a real file of mmdetection3d's CenterPoint."""
    names = {key.removeprefix("model.") for key in published(3)}
    detector = {n.removeprefix("centerpoint.") for n in names if n.startswith("centerpoint.")}
    assert detector >= torch.load(GOLDEN, weights_only=True)["state_dict"].keys()
    names = {n for n in names if not n.startswith("centerpoint.")}
    found = {pattern: {n for n in names if re.fullmatch(pattern, n)} for pattern in FOREIGN}
    assert all(found.values()) and set().union(*found.values()) == names


def test_names_of_the_specification_are_there():
    names = published(3).keys()
    for name in (
        "backbone.depth_net.depth_conv.4.conv_offset.bias",
        "backbone.depth_net.depth_conv.3.global_avg_pool.1.weight",
        "head.task_heads.5.heatmap.1.weight",
        "head.trunk.layer3.1.bn2.running_var",
        "distill_encoder_lidar.blocks.1.3.conv2.weight",
        "centerpoint.pts_middle_encoder.encoder_layers.encoder_layer4.1.bn2.weight",
        "label_encoder.conv_blocks.1.1.bias",
        "label_encoder.mlp2.fc2.weight",
    ):
        assert f"model.{name}" in names


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (f"{FOLDER}/teacher_centerpoint_voxel01.yaml", ()),
        (f"{FOLDER}/label_encoder.yaml", ()),
        ("nuscenes/det/centerhead/bevdepth/camera/256x704/resnet50/2key.yaml", ()),
        (f"{FOLDER}/r50_2key.yaml", ("--partition", "contiguous_thirds")),
    ],
)
def test_every_model_comes_out_of_a_published_file_complete(config, words):
    model = built(config, *words)
    assert is_published(published(3))
    converted = model_state(published(3), model.state_dict())
    wanted = {k: v.shape for k, v in model.state_dict().items() if k.rpartition(".")[2] not in DERIVED}
    assert {k: v.shape for k, v in converted.items()} == wanted


def test_a_term_that_is_off_needs_no_adapter():
    model = built(f"{FOLDER}/r50_4key.yaml", "--partition", "contiguous_thirds", "--model.losses.label", "null")
    converted = model_state(published(5), model.state_dict())
    assert converted.keys() >= {k for k in model.state_dict() if k.startswith("losses.")}
    assert not any(k.startswith("losses.label.") for k in converted)


def test_mmdetection3ds_centerpoint_loads():
    teacher = built(f"{FOLDER}/teacher_centerpoint_voxel01.yaml")
    state = shapes(teacher.state_dict(), LIDAR)
    model = copy.deepcopy(teacher).to_empty(device="cpu")
    load_state(model, {k: torch.ones(v.shape) for k, v in state.items()})
    assert (model.decoder["neck"].deblocks[0][0].weight == 1).all()


def test_a_checkpoint_that_lacks_a_layer_is_refused():
    state = {k: v for k, v in published(3).items() if "ln2" not in k}
    model = copy.deepcopy(built(f"{FOLDER}/label_encoder.yaml")).to_empty(device="cpu")
    with pytest.raises(ValueError, match=r"2 missing \(label_encoder.ln2.weight"):
        load_state(model, state)


# -- the same function ------------------------------------------------------------------------------------------------


def shaken(module: nn.Module) -> nn.Module:
    """All parameters and statistics random."""
    for value in module.state_dict().values():
        if value.is_floating_point():
            value.copy_(torch.rand_like(value) - 0.3 if value.ndim > 1 else torch.rand_like(value) + 0.5)
    return module.eval()


def head() -> CenterHead:
    area = [-4.0, -3.0, -5.0, 4.0, 3.0, 3.0]
    return CenterHead(
        in_channels=6,
        share_conv_channel=4,
        tasks=[["car"], ["truck", "bus"]],
        train_cfg=HeadTraining(area, [0.125, 0.125, 8], 8),
        test_cfg=CenterHeadTesting(area),
    )


def converted(modules: dict[str, nn.Module]) -> dict[str, torch.Tensor]:
    """Their weights, named as in a published file, as our converter gives them."""
    state = {f"{prefix}.{k}": v for prefix, module in modules.items() for k, v in module.state_dict().items()}
    return model_state({f"model.centerpoint.{k}": v for k, v in state.items()}, {"encoders.lidar.x": torch.empty(0)})


def below(state: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}


@torch.no_grad()
def test_decoder_and_head_answer_the_transposed_map_with_the_transposed_answer():
    """The published network sees (y, x); its sizes are length, width, height, its angle sine and cosine of the yaw."""
    torch.manual_seed(0)
    parts = {
        "pts_backbone": lambda: SECOND(3, [4, 5], [1, 1], [1, 2]),
        "pts_neck": lambda: SECONDFPN([4, 5], [3, 3], [1, 2], use_conv_for_no_stride=True),
        "pts_bbox_head": head,
    }
    theirs = {name: shaken(make()) for name, make in parts.items()}
    theirs["pts_bbox_head"].grid = BEVGrid((-3.0, -4.0), (1.0, 1.0), (6, 8))
    state = converted(theirs)
    ours = {name: make().eval() for name, make in parts.items()}
    for name, prefix in (
        ("pts_backbone", "decoder.backbone."),
        ("pts_neck", "decoder.neck."),
        ("pts_bbox_head", "heads.object."),
    ):
        ours[name].load_state_dict(below(state, prefix))

    def run(net: dict[str, nn.Module], bev: torch.Tensor) -> list[dict[str, torch.Tensor]]:
        return net["pts_bbox_head"](net["pts_neck"](net["pts_backbone"](bev)))

    bev = torch.randn(1, 3, 8, 6)
    for mine, published_task in zip(run(ours, bev), run(theirs, bev.transpose(-1, -2).contiguous()), strict=True):
        expected = {k: v.transpose(-1, -2) for k, v in published_task.items()}
        for name in ("reg", "height", "vel", "heatmap"):
            torch.testing.assert_close(mine[name], expected[name])
        length, width, height = expected["dim"].unbind(1)
        torch.testing.assert_close(mine["dim"], torch.stack([width, length, height], 1))
        yaw = torch.atan2(expected["rot"][:, 0], expected["rot"][:, 1])
        old = torch.atan2(mine["rot"][:, 0], mine["rot"][:, 1])
        difference = (old - (-yaw - math.pi / 2)) / (2 * math.pi)
        torch.testing.assert_close(difference, difference.round(), atol=1e-5, rtol=0)


@torch.no_grad()
def test_the_label_encoder_answers_the_transposed_maps_with_the_transposed_levels():
    torch.manual_seed(0)
    theirs = shaken(LabelEncoder(2, (7, 9), (1, 2), channels=(3, 4), hidden=5))
    ours = LabelEncoder(2, (9, 7), (1, 2), channels=(3, 4), hidden=5).eval()
    state = {f"model.label_encoder.{k}": v for k, v in theirs.state_dict().items()}
    own = {f"label_encoder.{k}": v for k, v in ours.state_dict().items()}
    ours.load_state_dict(below(model_state(state, own), "label_encoder."))
    boxes = Boxes3D(torch.tensor([[1.0, -2, 0.5, 4, 2, 1.5, 0.4, 1, 2]]))
    maps = paint_labels([boxes], [torch.tensor([1])], 2, BEVGrid((-4.5, -3.5), (1.0, 1.0), (9, 7)))
    turned = [m.transpose(-1, -2).contiguous() for m in maps]
    for mine, level in zip(ours(*maps), theirs(*turned), strict=True):
        torch.testing.assert_close(mine, level.transpose(-1, -2))


@pytest.mark.parametrize("layout", ["spconv1", "spconv2"])
@torch.no_grad()
def test_sparse_kernels_see_the_same_neighbours(layout):
    """On a full grid a submanifold convolution is an ordinary one over (z, y, x)."""
    torch.manual_seed(0)
    kernel = torch.randn(3, 3, 3, 5, 6)  # z, y, x, in, out
    stored = kernel if layout == "spconv1" else kernel.permute(4, 0, 1, 2, 3)
    state = {"pts_middle_encoder.conv_input.0.weight": stored.contiguous()}
    (weight,) = model_state(state, {"encoders.lidar.backbone.conv_input.0.weight": kernel}).values()
    conv = SubMConv3d(5, 6, 3)
    conv.load_state_dict({"weight": weight})
    volume = torch.randn(1, 5, 4, 3, 2)  # x, y, z
    sites = torch.cartesian_prod(torch.tensor([0]), *(torch.arange(n) for n in (4, 3, 2))).int()
    found = conv(SparseTensor(volume[0].flatten(1).T.contiguous(), sites, (4, 3, 2), 1)).features
    expected = F.conv3d(volume.permute(0, 1, 4, 3, 2), kernel.permute(4, 3, 0, 1, 2), padding=1)
    torch.testing.assert_close(found, expected.permute(0, 1, 4, 3, 2)[0].flatten(1).T, atol=1e-4, rtol=1e-4)
