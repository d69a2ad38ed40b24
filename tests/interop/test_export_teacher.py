"""The exporter for mmdetection3d: what it writes, out of what the peer answered, is what our network answers.

`golden/answers.npz` is of mmdetection3d 1.4 itself (see test_mmdetection3d.py); only the model that hands it to the
exporter's hooks is a stub here.
"""

from __future__ import annotations

import ast
import importlib.util
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks.peers import ours
from mmdet3d.distill.recorded_teacher import RecordedTeacher

EXPORTER = Path(__file__).resolve().parents[2] / "examples" / "export_mmdet3d_teacher.py"
GOLDEN = Path(__file__).with_name("golden")


class Told(nn.Module):
    """A part of the peer that says what it is given."""

    def forward(self, value):
        return value


class Peer(nn.Module):
    """The outside of a CenterPoint of mmdetection3d 1.4."""

    def __init__(self, config: dict, answers: dict[str, torch.Tensor]) -> None:
        super().__init__()
        self.pts_neck, self.pts_bbox_head = Told(), Told()
        self.pts_bbox_head.bbox_coder = SimpleNamespace(
            pc_range=config["point_cloud_range"][:2], voxel_size=config["voxel_size"][:2], out_size_factor=8
        )
        self.pts_bbox_head.class_names, self.pts_bbox_head.norm_bbox = config["tasks"], True
        self.answers = answers

    def test_step(self, data):
        assert data == "data of the frame"
        self.pts_neck([self.answers["decoder"]])
        tasks = len(self.pts_bbox_head.class_names)
        names = ("reg", "height", "dim", "rot", "vel", "heatmap")
        self.pts_bbox_head(tuple([{n: self.answers[f"head/{t}/{n}"] for n in names}] for t in range(tasks)))


@pytest.fixture(scope="module")
def exporter():
    spec = importlib.util.spec_from_file_location("exporter", EXPORTER)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_it_needs_nothing_of_this_package_and_stays_short():
    text = EXPORTER.read_text()
    imports = [n for n in ast.walk(ast.parse(text)) if isinstance(n, (ast.Import, ast.ImportFrom))]
    names = {getattr(node, "module", None) or node.names[0].name for node in imports}
    assert names == {
        "argparse", "json", "pathlib", "torch", "safetensors.torch",
        "mmdet3d.apis", "mmengine.config", "mmengine.runner",
    }  # fmt: skip
    assert len(text.splitlines()) < 90


def test_the_peers_answers_become_ours(exporter, tmp_path):
    model = ours.build(GOLDEN / "centerpoint.pth", small=True)
    head = model.heads["object"]
    theirs = {name: torch.from_numpy(v).float() for name, v in np.load(GOLDEN / "answers.npz").items()}
    config = {"tasks": head.tasks} | {k: getattr(head.train_cfg, k) for k in ("point_cloud_range", "voxel_size")}
    exporter.export(Peer(config, theirs), [("frame", "data of the frame")], tmp_path / "told")

    teacher = RecordedTeacher(tmp_path / "told")
    assert teacher.grid.matches(head.grid) and json.loads((tmp_path / "told/metadata.json").read_text())["norm_bbox"]
    batch = ours.read_frame(np.load(GOLDEN / "frame.npz"))
    batch.tokens[0] = "frame"
    told = teacher.extract(batch, {"decoder", "heads.object"})
    with torch.no_grad():
        mine = model.eval().extract(batch, {"decoder", "heads.object"})
    torch.testing.assert_close(told["decoder"], mine["decoder"], rtol=2e-3, atol=5e-3)
    torch.testing.assert_close(told["heads.object"], mine["heads.object"], rtol=2e-3, atol=5e-3)
