"""Training a label encoder through a frozen detector."""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save_file

from mmdet3d.config import composed, load_config
from mmdet3d.distill import LabelEncoderDetector, LiveTeacher
from mmdet3d.io.files import file_digest
from mmdet3d.models import build_model
from mmdet3d.structures import Batch

sys.path.insert(0, str(Path(__file__).parents[1] / "models"))
from bev_models import TRANSFUSION_HEAD, make_batch, model_config

ENCODER = {"channels": [8, 12], "hidden": 16, "norm": "channel"}


@pytest.fixture(scope="module")
def lidar_state() -> dict[str, torch.Tensor]:
    """A LiDAR detector that knows the batch by heart."""
    torch.manual_seed(0)
    model = build_model(model_config("lidar", fuser=None)).train()
    fit(model, make_batch(), 40)
    return model.state_dict()


@pytest.fixture
def files(tmp_path: Path, lidar_state: dict[str, torch.Tensor]) -> dict[str, str]:
    """Config and checkpoint of that detector."""
    (tmp_path / "configs").mkdir()
    config = tmp_path / "configs" / "lidar.yaml"
    config.write_text(yaml.safe_dump({"model": yaml.safe_load(json.dumps(model_config("lidar", fuser=None)))}))
    save_file(lidar_state, tmp_path / "lidar.safetensors")
    return {"config": str(config), "checkpoint": str(tmp_path / "lidar.safetensors")}


@pytest.fixture
def model(files: dict[str, str]) -> LabelEncoderDetector:
    torch.manual_seed(0)
    model = made(files)
    model.init_weights()
    return model


def made(detector: dict[str, Any], encoder: Mapping[str, Any] = MappingProxyType({})) -> LabelEncoderDetector:
    return LabelEncoderDetector(composed({"detector": detector})["detector"], {**ENCODER, **encoder})


def fit(model: torch.nn.Module, batch: Batch, steps: int) -> list[float]:
    """The loss at every step."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=5e-3)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        total = sum(model.loss(batch).values())
        total.backward()
        optimizer.step()
        losses.append(total.item())
    return losses


def labels_only(batch: Batch) -> Batch:
    return batch.without("points", "radar", "images", "depths")


def test_the_detector_block_takes_overrides_of_its_config(files):
    block = files | {"overrides": {"model.heads.object.loss_bbox": {"type": "L1Loss", "loss_weight": 0.5}}}
    assert made(block).heads["object"].loss_bbox.loss_weight == 0.5


def test_the_detector_is_loaded_and_its_taps_are_exposed(model, files):
    alone = LiveTeacher.load(load_config(files["config"]).model, files["checkpoint"])
    assert model.taps == (*alone.model.taps, "label_encoder", "heads.label")
    batch = make_batch()
    levels = model.eval().extract(batch, {"decoder.backbone", "label_encoder"})
    assert [v.shape for v in levels["decoder.backbone"]] == [v.shape for v in levels["label_encoder"]]
    for ours, theirs in zip(
        levels["decoder.backbone"], alone.extract(batch, {"decoder.backbone"})["decoder.backbone"], strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)  # the teacher's batch norms are folded
    assert model.grid == alone.model.grid and model.heads is model.detector.heads


def test_heads_label_is_what_neck_and_head_say_to_the_encoders_levels(model):
    found = model.eval().extract(make_batch(), model.predict_taps)
    bev = model.detector.decoder["neck"](found["label_encoder"])
    for ours, theirs in zip(found["heads.label"], model.heads["object"](bev), strict=True):
        assert all(torch.equal(ours[k], theirs[k]) for k in theirs)


def test_the_detector_stays_frozen_whatever_is_called_on_the_parent(model):
    before = copy.deepcopy(model.detector.state_dict())
    model.requires_grad_(True).eval().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        sum(model.loss(labels_only(make_batch())).values()).backward()
        optimizer.step()
    after = model.detector.state_dict()
    assert all(torch.equal(before[k], after[k]) for k in before)
    assert not any(m.training for m in model.detector.modules()) and model.label_encoder.training
    assert all(p.grad is None and not p.requires_grad for p in model.detector.parameters())
    assert not [k for k, p in model.label_encoder.named_parameters() if p.grad is None or not p.grad.any()]


def test_the_encoder_learns_what_the_head_reads_and_needs_no_sensor(model):
    torch.manual_seed(0)
    batch = labels_only(make_batch())
    terms = model.train().loss(batch)
    assert set(terms) == {f"loss/label/{kind}/task{t}" for kind in ("heatmap", "bbox") for t in range(3)}
    losses = fit(model, batch, 80)
    assert losses[-1] < 0.7 * losses[0]
    with torch.no_grad():
        found = model.eval().predict(batch)[0]
    cars = found[found.labels == 0]
    best = cars.boxes.tensor[cars.scores.argmax()]
    assert (best[:2] - batch.boxes[0].tensor[0, :2]).norm() < 1.6


def test_ground_truth_is_needed_to_predict(model):
    with pytest.raises(ValueError, match="the label encoder needs `boxes`"):
        model.predict(make_batch().without("boxes"))


def test_one_file_holds_encoder_and_detector_and_loads_strictly(model, files, tmp_path):
    block = composed({"type": "LabelEncoderDetector", "detector": files, "label_encoder": ENCODER})
    state = model.state_dict()
    assert {k.partition(".")[0] for k in state} == {"detector", "label_encoder"}
    save_file(state, tmp_path / "label.safetensors")
    Path(files["checkpoint"]).unlink()
    teacher = LiveTeacher.load(block, tmp_path / "label.safetensors")
    assert all(torch.equal(v, state[k]) for k, v in teacher.model.state_dict().items())
    features = teacher.extract(make_batch(), {"decoder.backbone", "label_encoder", "heads.object"})
    assert not any(v.requires_grad for v in features["label_encoder"])
    del state["label_encoder.ln2.weight"]
    save_file(state, tmp_path / "partial.safetensors")
    with pytest.raises(ValueError, match=r"missing.*label_encoder\.ln2\.weight"):
        LiveTeacher.load(block, tmp_path / "partial.safetensors")


def test_a_detector_that_scores_too_low_or_is_not_scored_is_refused(files):
    wanted = made({**files, "min_score": 0.3})
    with pytest.raises(ValueError, match=r"no object/map of .* is recorded.*--model.detector.min_score null"):
        wanted.init_weights()
    side = Path(files["checkpoint"]).with_suffix(".json")
    for score, error in ((0.2, r"scores object/map 0.2000.*less than model.detector.min_score 0.3"), (0.4, None)):
        side.write_text(json.dumps({"metrics": {"object/map": score}, "sha256": file_digest(files["checkpoint"])}))
        if error:
            with pytest.raises(ValueError, match=error):
                wanted.init_weights()
        else:
            wanted.init_weights()


@pytest.mark.parametrize(
    ("detector", "encoder", "message"),
    [
        ({"checkpint": "x"}, {}, "unknown config key .*model.detector.checkpint, did you mean 'checkpoint'"),
        ({}, {"chanels": [1]}, "unknown config key .*model.label_encoder.chanels, did you mean 'channels'"),
        ({}, {"channels": [8, 16]}, r"model.label_encoder.channels \[8, 16\] are not those of the detector's"),
        ({}, {"channels": [8]}, "label_encoder.channels must name one number per level"),
        ({}, {"raster": "round"}, "model.label_encoder.raster must be one of exact, published, got 'round'"),
    ],
)
def test_bad_settings_are_named(files, detector, encoder, message):
    with pytest.raises(ValueError, match=message):
        made({**files, **detector}, encoder)


def test_a_head_that_is_no_center_head_is_named(files, tmp_path):
    config = tmp_path / "configs" / "transfusion.yaml"
    model = model_config("lidar", fuser=None) | {"heads": {"object": TRANSFUSION_HEAD}}
    config.write_text(yaml.safe_dump({"model": yaml.safe_load(json.dumps(model))}))
    with pytest.raises(ValueError, match=r"through a CenterHead, but .*transfusion\.yaml has a TransFusionHead"):
        made({**files, "config": str(config)})


def test_a_missing_checkpoint_is_named(files):
    Path(files["checkpoint"]).unlink()
    with pytest.raises(FileNotFoundError, match=r"model.detector.checkpoint: .* does not exist; train or download it"):
        made(files).init_weights()
