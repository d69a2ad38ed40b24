"""DLA-34 and DLAUp: published sizes and names, shapes, starting weights."""

from __future__ import annotations

import re

import pytest
import torch

from mmdet3d.models.backbones import DLA
from mmdet3d.models.backbones.pretrained import Pretrained
from mmdet3d.models.necks import DLAUp
from mmdet3d.registry import MODELS


def test_published_sizes():
    assert sum(p.numel() for p in DLA().parameters()) == 15_783_832
    assert sum(p.numel() for p in DLAUp().parameters()) == 3_995_392


def test_published_names_and_root_widths():
    state = DLA().state_dict()
    assert {name.split(".")[0] for name in state} == {"base_layer", "fc", *(f"level{i}" for i in range(6))}
    assert state["fc.weight"].shape == (1000, 512, 1, 1)
    assert state["base_layer.0.weight"].shape == (16, 3, 7, 7)
    roots = {name.removesuffix(".root.conv.weight"): v.shape[1] for name, v in state.items() if "root.conv" in name}
    assert roots == {
        "level2": 128, "level3.tree1": 256, "level3.tree2": 448, "level4.tree1": 512, "level4.tree2": 896,
        "level5": 1280,
    }  # fmt: skip
    assert {"level3.project.0.weight", "level3.tree1.project.1.bias", "level5.tree2.bn2.running_var"} <= set(state)


def test_names_of_the_neck():
    state = DLAUp().state_dict()
    assert {m[1] for m in (re.match(r"(ida_\d\.(?:proj|up|node)_\d)\.", name) for name in state)} == {
        f"ida_{j}.{part}_{i}" for j in range(3) for part in ("proj", "up", "node") for i in range(1, j + 2)
    }
    assert state["ida_2.up_3.weight"].shape == (64, 1, 4, 4)


def test_a_narrow_twin_has_the_same_strides():
    backbone = MODELS.build({"type": "DLA", "depth": 34, "base_channels": 4}).eval()
    neck = MODELS.build({"type": "DLAUp", "in_channels": backbone.channels[2:]}).eval()
    maps = backbone(torch.rand(2, 3, 64, 96))
    assert [tuple(m.shape[1:]) for m in maps] == [(4 * 2**i, 64 // 2**i, 96 // 2**i) for i in range(6)]
    merged = neck(maps[2:])
    assert merged[0] is maps[-1]
    assert [tuple(m.shape[1:]) for m in merged] == [(128, 2, 3), (64, 4, 6), (32, 8, 12), (16, 16, 24)]
    assert neck.out_channels == (128, 64, 32, 16)


def test_upsampling_starts_bilinear():
    up = DLAUp((4, 8)).ida_0.up_1
    ramp = torch.arange(8.0).expand(1, 4, 8, 8)
    wanted = torch.nn.functional.interpolate(ramp, scale_factor=2, mode="bilinear", align_corners=False)
    assert torch.allclose(up(ramp)[..., 2:-2, 2:-2], wanted[..., 2:-2, 2:-2])


def test_every_trainable_parameter_takes_part():
    backbone = DLA(base_channels=2)
    neck = DLAUp(backbone.channels[2:])
    sum(m.square().mean() for m in neck(backbone(torch.rand(2, 3, 64, 64))[2:])).backward()
    for name, parameter in [*backbone.named_parameters(), *neck.named_parameters()]:
        assert (parameter.grad is not None) == parameter.requires_grad, name


def test_weights_come_from_a_local_file(tmp_path):
    weights = DLA(base_channels=2).state_dict()
    torch.save(weights, tmp_path / "dla.pth")
    model = DLA(base_channels=2, init_cfg=Pretrained(str(tmp_path / "dla.pth")))
    model.init_weights()
    assert all(torch.equal(v, weights[k]) for k, v in model.state_dict().items())


def test_nothing_is_downloaded():
    url = "http://dl.yf.io/dla/models/imagenet/dla34-ba72cf86-missing.pth"
    model = DLA(base_channels=2, init_cfg=Pretrained(url))
    with pytest.raises(ValueError, match=r"not downloaded automatically.*--model.backbone.init_cfg null"):
        model.init_weights()


def test_other_depths_are_refused():
    with pytest.raises(ValueError, match="34, got 60"):
        DLA(depth=60)
