from __future__ import annotations

import pytest
import torch
from published import tensors
from torch.nn import functional as F

from mmdet3d.models.decoders import LSSFPN, SECOND, GeneralizedResNet
from mmdet3d.models.layers import Norm2d


def test_generalized_resnet_shapes_and_strides() -> None:
    backbone = GeneralizedResNet(8, [(2, 4, 2), (2, 8, 2), (1, 16, 1)])
    outputs = backbone(torch.randn(2, 8, 16, 24))
    assert [tuple(o.shape) for o in outputs] == [(2, 4, 8, 12), (2, 8, 4, 6), (2, 16, 4, 6)]
    assert backbone.strides == [2, 4, 4]


def test_residual_block_by_hand() -> None:
    torch.manual_seed(0)
    backbone = GeneralizedResNet(4, [(2, 4, 1)]).eval()
    x = torch.randn(1, 4, 5, 6)
    want = x
    for block in backbone[0]:
        hidden = F.relu(block.bn1(F.conv2d(want, block.conv1.weight, padding=1)))
        want = F.relu(block.bn2(F.conv2d(hidden, block.conv2.weight, padding=1)) + want)
    torch.testing.assert_close(backbone(x)[0], want)


def test_projection_strides_like_a_convolution() -> None:
    torch.manual_seed(0)
    block = GeneralizedResNet(4, [(1, 6, 2)]).eval()[0][0]
    x = torch.randn(1, 4, 7, 8)
    want = block.downsample[1](F.conv2d(x, block.downsample[0].weight, stride=2))
    torch.testing.assert_close(block.downsample(x), want)


def test_lss_fpn() -> None:
    torch.manual_seed(0)
    neck = LSSFPN([-1, 0], [6, 4], 5, scale_factor=2).eval()
    fine, coarse = torch.randn(1, 4, 8, 6), torch.randn(1, 6, 4, 3)
    joined = torch.cat([F.interpolate(coarse, (8, 6), mode="bilinear", align_corners=True), fine], 1)
    want = F.interpolate(neck.fuse(joined), scale_factor=2, mode="bilinear", align_corners=True)
    out = neck([fine, coarse])
    torch.testing.assert_close(out, F.relu(neck.upsample[2](neck.upsample[1](want))))
    assert out.shape == (1, 5, 16, 12)
    assert neck.output_stride([2, 4]) == 1


def test_lss_fpn_without_enlargement() -> None:
    neck = LSSFPN([-1, 0], [6, 4], 5)
    assert neck([torch.randn(2, 4, 8, 6), torch.randn(2, 6, 4, 3)]).shape == (2, 5, 8, 6)


def test_second() -> None:
    backbone = SECOND(3, [4, 8], [1, 2], [1, 2], norm_cfg=Norm2d("BN", eps=1e-3, momentum=0.01))
    assert [tuple(o.shape) for o in backbone(torch.randn(2, 3, 8, 6))] == [(2, 4, 8, 6), (2, 8, 4, 3)]
    assert backbone.strides == [1, 2]
    assert backbone.blocks[0][1].eps == 1e-3 and backbone.blocks[0][1].momentum == 0.01
    keys = {k.rsplit(".", 1)[0] for k in backbone.state_dict()}
    assert keys == {f"blocks.{i}.{j}" for i, n in enumerate((2, 3)) for k in range(n) for j in (3 * k, 3 * k + 1)}


def test_second_lists_must_agree() -> None:
    with pytest.raises(ValueError, match="one entry per stage, got 2, 1 and 2"):
        SECOND(3, [4, 8], [1], [1, 2])


def test_state_dict_is_the_published_one() -> None:
    backbone = GeneralizedResNet(256, [(2, 128, 2), (2, 256, 2), (2, 512, 1)])
    neck = LSSFPN([-1, 0], [512, 128], 256, scale_factor=2)
    have = {f"backbone.{k}": v for k, v in backbone.state_dict().items()}
    have |= {f"neck.{k}": v for k, v in neck.state_dict().items()}
    assert {k: tuple(v.shape) for k, v in have.items()} == tensors("c_student_CR_swint_default", "decoder.")
