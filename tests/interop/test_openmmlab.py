from __future__ import annotations

import importlib.util
import subprocess
import sys

import pytest
import torch

from mmdet3d.config import Config
from mmdet3d.interop import openmmlab
from mmdet3d.registry import MODELS

needs_mmdet = pytest.mark.skipif(importlib.util.find_spec("mmdet") is None, reason="needs the extra [openmmlab]")


def test_nothing_of_openmmlab_is_imported_unasked():
    program = "import sys, mmdet3d.models, mmdet3d.interop.openmmlab; sys.exit('mmcv' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_unknown_library():
    with pytest.raises(ValueError, match=r"type: mmdett.ResNet: there is no module 'mmdett', did you mean 'mmdet'\?"):
        MODELS.get("mmdett.ResNet")


def test_library_that_is_not_installed(monkeypatch):
    monkeypatch.setitem(openmmlab.LIBRARIES, "mmabsent", ("mmabsent.models", "mmabsent.registry"))
    with pytest.raises(ValueError, match=r"needs mmabsent.models, which cannot be imported .* pip install -e"):
        MODELS.get("mmabsent.ResNet")


@needs_mmdet
@pytest.mark.slow
def test_backbone_and_neck_by_name():
    norm = Config(type="BN", requires_grad=True)
    backbone = MODELS.build(Config(type="mmdet.ResNet", depth=18, out_indices=[1, 2, 3], norm_cfg=norm))
    neck = MODELS.build(Config(type="mmdet.FPN", in_channels=[128, 256, 512], out_channels=16, num_outs=3))
    levels = neck(backbone(torch.rand(2, 3, 64, 96)))
    assert [tuple(level.shape) for level in levels] == [(2, 16, 8, 12), (2, 16, 4, 6), (2, 16, 2, 3)]
    assert callable(backbone.init_weights)


@needs_mmdet
@pytest.mark.slow
def test_errors_name_the_class_the_key_and_the_operator():
    with pytest.raises(ValueError, match=r"mmdet registers no model 'ResNett', did you mean 'ResNet'\?"):
        MODELS.get("mmdet.ResNett")
    with pytest.raises(ValueError, match=r"unknown config key ResNet.dept, did you mean 'depth'"):
        MODELS.build({"type": "mmdet.ResNet", "dept": 18})
    if isinstance(sys.modules["mmcv._ext"], openmmlab._MissingOperators):
        with pytest.raises(NotImplementedError, match="operator nms is not compiled"):
            sys.modules["mmcv._ext"].nms(torch.zeros(1, 4))
