"""The depth branch: its size, what it leaves alone, and the tap of true bins."""

from __future__ import annotations

import pytest
import torch
from mono_inputs import make_batch, small_model

from mmdet3d.interop.checkpoints import load_checkpoint
from mmdet3d.models.heads.mono.depth_bins import IGNORED, DepthBins
from mmdet3d.models.heads.mono.depth_branch import DepthBranch

BRANCH = {"width": 8, "bins": {"mode": "UD", "count": 12}}


def test_size_at_full_width():
    branch = DepthBranch((256, 128, 64), 128, DepthBins())
    assert sum(p.numel() for p in branch.parameters()) == 627_937
    assert not branch.classify.bias.any()
    logits = branch([torch.zeros(1, 256, 1, 2), torch.zeros(1, 128, 2, 4), torch.zeros(1, 64, 4, 8)])
    assert logits.shape == (1, 97, 4, 8)


def test_taps():
    model, batch = small_model(depth_branch=BRANCH), make_batch(crop=1.3)
    assert model.taps[-2:] == ("depth.logits", "depth.bins")
    found = model.extract(batch, ("depth.logits", "depth.bins"))
    assert found["depth.logits"].shape == (2, 13, 24, 80)
    assert "heads.dense" not in found
    found["depth.logits"].sum().backward()
    assert model.backbone.base_layer[0].weight.grad is not None
    far, bins = found["depth.bins"][0, 0, 0], DepthBins("UD", count=12)
    assert far == bins.index(torch.tensor(40 * 1.3)) != bins.index(torch.tensor(40.0))


def test_unknown_depth_is_ignored():
    model, batch = small_model(depth_branch=BRANCH), make_batch()
    batch.depths[1] = 0
    bins = model.extract(batch, ["depth.bins"])["depth.bins"]
    assert (bins[1] == IGNORED).all() and (bins[0] != IGNORED).all()
    with pytest.raises(ValueError, match=r"the depth branch \(for training\) needs `depths`"):
        model.extract(batch.without("depths"), ["depth.bins"])


def test_detection_does_not_use_the_branch(tmp_path):
    """Same losses, same detections, same cost, and a file that a detector without a branch takes."""
    plain, model = small_model(score_threshold=0.01), small_model(score_threshold=0.01, depth_branch=BRANCH)
    model.load_state_dict(plain.state_dict(), strict=False)
    asked = []
    model.depth_branch.register_forward_pre_hook(lambda *_: asked.append(True))
    batch = make_batch()
    assert {k: v.item() for k, v in plain.loss(batch).items()} == {k: v.item() for k, v in model.loss(batch).items()}
    with torch.no_grad():
        ours, theirs = (m.eval().predict(batch)[0] for m in (model, plain))
    assert torch.equal(ours.boxes.tensor, theirs.boxes.tensor) and torch.equal(ours.scores, theirs.scores)
    assert not asked
    torch.save({f"student.{k}": v for k, v in model.state_dict().items()}, tmp_path / "distilled.pth")
    exported = small_model(score_threshold=0.01, input="rgb")
    torch.nn.init.zeros_(exported.heatmap[0].weight)
    load_checkpoint(exported, tmp_path / "distilled.pth")
    assert exported.state_dict().keys() == plain.state_dict().keys()
    with torch.no_grad():
        assert torch.equal(exported.eval().predict(batch)[0].boxes.tensor, theirs.boxes.tensor)


def test_a_branch_needs_its_weights(tmp_path):
    model = small_model(depth_branch=BRANCH)
    torch.save(small_model().state_dict(), tmp_path / "plain.pth")
    with pytest.raises(ValueError, match=r"missing \(depth_branch"):
        load_checkpoint(model, tmp_path / "plain.pth")
    load_checkpoint(model, tmp_path / "plain.pth", allow_missing=("depth_branch.",))


@pytest.mark.parametrize(
    ("branch", "message"),
    [
        ({"widht": 8}, "unknown config key model.depth_branch.widht.*width"),
        ({"bins": {"mod": "UD"}}, "unknown config key model.depth_branch.bins.mod.*mode"),
        ({"bins": {"mode": "UDD"}}, "mode must be one of"),
    ],
)
def test_wrong_settings_are_refused(branch, message):
    with pytest.raises(ValueError, match=message):
        small_model(depth_branch=branch)
