"""Image necks: published layouts, values against a plain reference, errors."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from published import tensors
from torch import nn

from mmdet3d.models.necks import SECONDFPN, GeneralizedLSSFPN
from mmdet3d.models.necks.generalized_lss import Resizing
from mmdet3d.registry import MODELS

LSS = {
    "type": "GeneralizedLSSFPN",
    "in_channels": [192, 384, 768],
    "start_level": 0,
    "num_outs": 3,
    "norm_cfg": {"type": "BN2d", "requires_grad": True},
    "act_cfg": {"type": "ReLU", "inplace": True},
    "upsample_cfg": {"mode": "bilinear", "align_corners": False},
}
SECOND = {"type": "SECONDFPN", "in_channels": [256, 512, 1024, 2048], "upsample_strides": [0.5, 1, 2, 4]}


@pytest.mark.parametrize(
    ("model", "cfg"),
    [
        ("a_teacher_LC_swint_v0p075_gatedfuser", LSS | {"out_channels": 256}),
        ("c_student_CR_swint_default", LSS | {"out_channels": 512}),
        ("b_teacher_LC_resnet50_gatedfuser", SECOND | {"out_channels": [64] * 4}),
        ("d_student_CR_resnet50_default", SECOND | {"out_channels": [128] * 4}),
    ],
)
def test_published_layout(model: str, cfg: dict) -> None:
    with torch.device("meta"):
        neck = MODELS.build(cfg)
    expected = list(tensors(model, "encoders.camera.neck.").items())
    assert [(k, tuple(v.shape)) for k, v in neck.state_dict().items()] == expected


# -- GeneralizedLSSFPN ------------------------------------------------------------------------------


def levels(channels: list[int], size: int = 8) -> list[torch.Tensor]:
    torch.manual_seed(0)
    return [torch.randn(2, c, size >> i, (size + 4) >> i) for i, c in enumerate(channels)]


def test_generalized_lss_merges_top_down() -> None:
    inputs = levels([3, 4, 5])
    neck = GeneralizedLSSFPN([3, 4, 5], 6, upsample_cfg=Resizing(align_corners=False)).eval()

    def up(x: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        return F.interpolate(x, size=like.shape[2:], mode="bilinear", align_corners=False)

    def conv(block: nn.Module, x: torch.Tensor) -> torch.Tensor:
        y = F.conv2d(x, block.conv.weight, padding=block.conv.kernel_size[0] // 2)
        return (y / (1 + 1e-5) ** 0.5).relu()  # batch norm with fresh statistics

    middle = conv(neck.lateral_convs[1], torch.cat([inputs[1], up(inputs[2], inputs[1])], 1))
    middle = conv(neck.fpn_convs[1], middle)
    fine = conv(neck.fpn_convs[0], conv(neck.lateral_convs[0], torch.cat([inputs[0], up(middle, inputs[0])], 1)))
    torch.testing.assert_close(neck(inputs), fine)


def test_generalized_lss_uses_the_levels_asked_for() -> None:
    inputs = levels([3, 4, 5, 6])
    neck = GeneralizedLSSFPN([3, 4, 5, 6], 7, start_level=1, end_level=2)
    assert len(neck.lateral_convs) == 1
    assert neck.lateral_convs[0].conv.in_channels == 4 + 5
    assert neck(inputs).shape == (2, 7, 4, 6)


def test_generalized_lss_without_norm_on_lateral() -> None:
    neck = GeneralizedLSSFPN([3, 4], 6, no_norm_on_lateral=True)
    assert {k for k in neck.state_dict() if k.startswith("lateral")} == {
        "lateral_convs.0.conv.weight",
        "lateral_convs.0.conv.bias",
    }


def test_generalized_lss_initialisation() -> None:
    torch.manual_seed(0)
    conv = GeneralizedLSSFPN([64, 64], 64).fpn_convs[0].conv
    assert conv.weight.std().item() == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.03)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"end_level": 3}, "start_level < end_level < 3"),
        ({"start_level": 2}, "start_level < end_level < 3"),
        ({"act_cfg": {"type": "GELU"}}, r"act_cfg\.type must be ReLU, got 'GELU'"),
        ({"norm_cfg": {"type": "GN"}}, r"norm_cfg\.type must be one of BN, BN2d"),
    ],
)
def test_generalized_lss_rejects(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MODELS.build({"type": "GeneralizedLSSFPN", "in_channels": [3, 4, 5], "out_channels": 6, **changes})


# -- SECONDFPN --------------------------------------------------------------------------------------


def test_second_resamples_and_concatenates() -> None:
    torch.manual_seed(0)
    inputs = [torch.randn(1, 2, 8, 12), torch.randn(1, 3, 4, 6), torch.randn(1, 4, 2, 3)]
    neck = SECONDFPN([2, 3, 4], [5, 6, 7], [0.5, 1, 2]).eval()
    down, same, up = (block[0].weight for block in neck.deblocks)
    norm = (1 + 1e-3) ** 0.5
    expected = [
        F.conv2d(inputs[0], down, stride=2),
        torch.einsum("bchw,co->bohw", inputs[1], same[:, :, 0, 0]),
        # every input pixel paints a 2x2 patch
        torch.einsum("bchw,coij->bohiwj", inputs[2], up).reshape(1, 7, 4, 6),
    ]
    torch.testing.assert_close(neck(inputs), (torch.cat(expected, 1) / norm).relu())


def test_second_norms() -> None:
    norms = [m for m in SECONDFPN([2], [3], [1]).modules() if isinstance(m, nn.BatchNorm2d)]
    assert [(m.eps, m.momentum) for m in norms] == [(1e-3, 0.01)]


def test_second_weight_layout_at_stride_one() -> None:
    assert SECONDFPN([2], [3], [1]).deblocks[0][0].weight.shape == (2, 3, 1, 1)
    assert SECONDFPN([2], [3], [1], use_conv_for_no_stride=True).deblocks[0][0].weight.shape == (3, 2, 1, 1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"in_channels": [192, 384, 768]}, "one entry per level"),  # the published Swin teacher config
        ({"upsample_cfg": {"type": "nearest"}}, r"upsample_cfg\.type must be deconv"),
    ],
)
def test_second_rejects(changes: dict, message: str) -> None:
    arguments = {"in_channels": [2, 3, 4, 5], "out_channels": [6] * 4, "upsample_strides": [0.5, 1, 2, 4]}
    with pytest.raises(ValueError, match=message):
        MODELS.build({"type": "SECONDFPN", **arguments, **changes})


def test_second_names_levels_of_different_size() -> None:
    with pytest.raises(ValueError, match=r"different sizes \[\(8, 12\), \(4, 6\)\]"):
        SECONDFPN([2, 3], [4, 4], [1, 1])(levels([2, 3]))


# -- both -------------------------------------------------------------------------------------------


def make_necks() -> list[nn.Module]:
    return [GeneralizedLSSFPN([3, 4, 5], 6), SECONDFPN([3, 4, 5], [2, 2, 2], [0.5, 1, 2])]


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("which", [0, 1])
def test_gradients_reach_every_parameter(which: int, bf16: bool) -> None:
    neck = make_necks()[which].train()
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        output = neck(levels([3, 4, 5]))
    (output.float() ** 2).mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in neck.parameters())


@pytest.mark.parametrize("which", [0, 1])
def test_wrong_number_of_levels(which: int) -> None:
    with pytest.raises(ValueError, match="built for 3 levels and is given 2"):
        make_necks()[which](levels([3, 4]))


@pytest.mark.parametrize("which", [0, 1])
def test_gradient(which: int) -> None:
    torch.manual_seed(0)
    neck = make_necks()[which].double().eval()
    inputs = [x[:1].double().requires_grad_() for x in levels([3, 4, 5], size=4)]
    assert torch.autograd.gradcheck(lambda *x: neck(x), inputs, fast_mode=True)
