"""Backbones of timm; most of it needs the extra [timm] and a torchvision that fits the installed torch."""

from __future__ import annotations

import sys

import pytest
import torch

from mmdet3d.registry import MODELS

try:
    import timm
except Exception as error:  # torchvision fails in its own ways beside another torch
    timm, REASON = None, f"timm cannot be imported ({type(error).__name__}: {error}): needs the extra [timm]"
else:
    REASON = ""

needs_timm = pytest.mark.skipif(timm is None, reason=REASON)


def test_one_sentence_says_what_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ValueError, match=r"timm\.resnet18 needs timm, which .* pip install 'distill3d\[timm\]', with"):
        MODELS.build({"type": "timm.resnet18"})


@needs_timm
@pytest.mark.parametrize(
    ("cfg", "shapes"),
    [
        ({"type": "timm.resnet18"}, [(2, 64, 16, 24), (2, 128, 8, 12), (2, 256, 4, 6)]),
        ({"type": "timm.convnext_atto", "out_indices": [0, 3]}, [(2, 40, 16, 24), (2, 320, 2, 3)]),
        (
            {"type": "timm.swin_tiny_patch4_window7_224.ms_in1k", "out_indices": [1], "img_size": [64, 96]},
            [(2, 192, 8, 12)],
        ),
    ],
)
def test_levels_are_channels_first(cfg, shapes):
    backbone = MODELS.build(cfg)
    levels = backbone(torch.rand(2, 3, 64, 96))
    assert [tuple(level.shape) for level in levels] == shapes
    assert backbone.channels == [shape[1] for shape in shapes] and backbone.strides == [64 // s[2] for s in shapes]


@needs_timm
@pytest.mark.parametrize("name", ["resnet18", "convnext_atto", "vit_tiny_patch16_224"])
@pytest.mark.parametrize("whole", [True, False])
def test_weights_of_the_whole_model_are_loaded_from_a_file(name, whole, tmp_path):
    file, arguments = str(tmp_path / "weights.pth"), {"img_size": [64, 96]} if name.startswith("vit") else {}
    torch.manual_seed(1)
    peer = timm.create_model(name, **arguments).eval()
    torch.save(peer.state_dict(), file)
    init_cfg = {"type": "Pretrained", "checkpoint": file} if whole else file
    backbone = MODELS.build({"type": f"timm.{name}", "out_indices": [3], "init_cfg": init_cfg, **arguments})
    images = torch.rand(1, 3, 64, 96)
    (expected,) = peer.forward_intermediates(images, indices=[4 if name == "resnet18" else 3], intermediates_only=True)
    if name == "resnet18":  # whose first level is the stem's
        backbone = MODELS.build({"type": "timm.resnet18", "out_indices": [4], "init_cfg": init_cfg})
    assert not torch.equal(backbone.eval()(images)[0], expected)
    backbone.init_weights()
    torch.testing.assert_close(backbone(images)[0], expected)


@needs_timm
@pytest.mark.parametrize(
    ("cfg", "message"),
    [
        ({"type": "timm.resnet19"}, r"timm \S+ has no model 'resnet19', did you mean 'resnet1"),
        ({"type": "timm.resnet18", "out_indices": [7]}, r"timm\.resnet18 cannot be built with out_indices \[7\]"),
        ({"type": "timm.resnet18", "dept": 18}, r"timm\.resnet18 cannot be built .*'dept'"),
        ({"type": "timm.resnet18", "init_cfg": {"file": "a"}}, r"init_cfg of timm\.resnet18 must be FILE, "),
    ],
)
def test_what_cannot_be_built_is_said(cfg, message):
    with pytest.raises(ValueError, match=message):
        MODELS.build(cfg)


@needs_timm
def test_a_file_that_is_not_there():
    backbone = MODELS.build({"type": "timm.resnet18", "init_cfg": "absent.pth"})
    with pytest.raises(ValueError, match=r"pretrained weights of timm\.resnet18 not found: absent\.pth"):
        backbone.init_weights()
