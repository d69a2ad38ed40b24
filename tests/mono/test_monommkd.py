"""MonoMMKD through its configs: what is built, switched, trained and exported."""

from __future__ import annotations

import pytest
import torch
import yaml
from mono_inputs import make_batch
from safetensors.torch import save_file

from mmdet3d.config import load_config
from mmdet3d.distill import Distiller
from mmdet3d.engine.optimizer import build_optimizer
from mmdet3d.engine.settings import Settings
from mmdet3d.interop.checkpoints import load_checkpoint
from mmdet3d.models import build_model

CONFIGS = ("configs/kitti/monommkd.yaml", "configs/kitti/synthetic/monommkd.yaml")
NARROW = {"base_channels": 2, "head_channels": 16, "htl": None, "imagenet_weights": "missing"}
SMALL = NARROW | {"depth_bins.count": 12}


def on_meta(name: str = CONFIGS[0], **overrides: object) -> Distiller:
    with torch.device("meta"):
        return build_model(load_config(name, overrides).model)


def size_of(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.fixture
def trainable(tmp_path):
    """Builds the narrow distiller with random teacher and student, ready to train."""
    torch.manual_seed(0)
    paths = {}
    for side, name in (("teacher", "depth_teacher"), ("student", "rgb_baseline")):
        config = load_config(f"configs/kitti/{name}.yaml", NARROW)
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(config.to_dict()))
        save_file(build_model(config.model).state_dict(), tmp_path / f"{side}.safetensors")
        paths[f"model.{side}.config"] = str(tmp_path / f"{name}.yaml")
        paths[f"model.{side}.checkpoint"] = str(tmp_path / f"{side}.safetensors")

    def build(**overrides: object) -> Distiller:
        torch.manual_seed(0)
        distiller = build_model(load_config(CONFIGS[0], SMALL | paths | overrides).model)
        distiller.init_weights()
        distiller.setup_training(lambda model: {})
        distiller.train()
        distiller.start_epoch(0)
        return distiller

    return build


def total(entries: dict[str, torch.Tensor]) -> torch.Tensor:
    return sum(v for k, v in entries.items() if k.startswith("loss/"))


def test_size_of_the_full_system():
    distiller = on_meta()
    assert size_of(distiller.student.depth_branch) == 627_937
    assert size_of(distiller.student) == 21_348_809 + 627_937
    assert size_of(distiller.losses["dual_kl"]) == 861_056
    assert size_of(on_meta("configs/kitti/rgb_baseline.yaml")) == 21_348_809


@pytest.mark.parametrize("name", CONFIGS)
def test_configs_build_and_the_small_one_has_the_same_terms(name):
    config = load_config(name)
    distiller = on_meta(name)
    settings = Settings.from_config(config)
    groups = build_optimizer(distiller, settings.optimizer).param_groups
    assert sum(len(g["params"]) for g in groups) == len([p for p in distiller.parameters() if p.requires_grad])
    with torch.device("meta"):
        teacher = build_model(load_config(config.model.teacher.config).model)
    assert teacher.input == "depth" and distiller.student.input == "rgb"
    assert distiller.student.feat_up.out_channels == teacher.feat_up.out_channels
    assert set(distiller.losses) == {"mimic", "dual_kl"}
    full, small = (dict(load_config(c).model.losses.dual_kl) for c in CONFIGS)
    assert {k: v for k, v in full.items() if k not in ("channels", "epochs")} == {
        k: v for k, v in small.items() if k not in ("channels", "epochs")
    }


@pytest.mark.parametrize("name", CONFIGS)
def test_terms_are_switched_by_one_override(name):
    assert set(on_meta(name, **{"model.losses.dual_kl": None}).losses) == {"mimic"}
    assert set(on_meta(name, **{"model.losses.mimic": None}).losses) == {"dual_kl"}
    with_responses = on_meta(name, **{"model.losses.responses": "${head_responses}"})
    assert set(with_responses.losses) == {"mimic", "dual_kl", "responses"}
    control = on_meta(name, **{"model.losses": {}, "model.teacher": None})
    assert not control.losses


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("mode", ["RPD", "UD", "SID", "LID"])
def test_bins_are_switched_by_one_override(name, mode):
    bins = on_meta(name, **{"depth_bins.mode": mode}).student.depth_branch.bins
    assert bins.mode == mode
    assert (bins.near, bins.far) == (5.0, 80.0)


@pytest.mark.parametrize(
    ("key", "value", "attribute"),
    [
        ("mimic.loss", "ce", "loss"),
        ("mimic.object_weight", 1.0, "object_weight"),
        ("dual_kl.balance", "gap", "balance"),
        ("dual_kl.softmax", "channel_per_pixel", "softmax"),
        ("dual_kl.uncertainty", "entropy", "uncertainty"),
        ("dual_kl.weight_mode", "map", "weight_mode"),
        ("dual_kl.temperature", 0.5, "temperature"),
        ("dual_kl.standardise", True, "standardise"),
    ],
)
def test_choices_are_switched_by_one_override(key, value, attribute):
    loss = on_meta(**{f"model.losses.{key}": value}).losses[key.partition(".")[0]]
    assert getattr(loss, attribute) == value


def test_wrong_bins_are_refused_in_the_words_of_the_config():
    with pytest.raises(ValueError, match="mode must be one of RPD, UD, SID, LID, got 'RDP'"):
        on_meta(**{"depth_bins.mode": "RDP"})
    with pytest.raises(ValueError, match=r"depth_branch.bins.coun.*count"):
        on_meta(**{"depth_bins.coun": 3})


def test_a_step_trains_student_branch_and_adapters_and_leaves_the_teacher_alone(trainable):
    distiller = trainable()
    before = {k: v.clone() for k, v in distiller.teacher.state_dict().items()}
    entries = distiller.loss(make_batch())
    kd = {k for k in entries if "/kd/" in k}
    assert kd == {
        "loss/kd/mimic/depth", "stats/kd/mimic/accuracy", "stats/kd/mimic/accuracy_objects",
        "loss/kd/dual_kl/stride_16", "loss/kd/dual_kl/stride_8", "loss/kd/dual_kl/stride_4",
        "stats/kd/dual_kl/forward_share", "stats/kd/dual_kl/uncertainty", "stats/kd/dual_kl/uncertainty_objects",
    }  # fmt: skip
    total(entries).backward()
    assert all(p.grad is None for p in distiller.teacher.parameters())
    assert all(torch.equal(v, before[k]) for k, v in distiller.teacher.state_dict().items())
    assert all(p.grad is not None for p in distiller.parameters() if p.requires_grad)


def test_weights_scale_losses_and_not_what_is_only_reported(trainable):
    batch = make_batch()
    plain = trainable().loss(batch)
    tripled = trainable(**{"model.losses.dual_kl.weight": 3.0}).loss(batch)
    assert tripled["loss/kd/dual_kl/stride_4"].item() == pytest.approx(3 * plain["loss/kd/dual_kl/stride_4"].item())
    key = "stats/kd/dual_kl/uncertainty"
    assert tripled[key].item() == pytest.approx(plain[key].item())


def test_a_batch_without_known_depth_has_only_the_students_own_losses(trainable):
    distiller, batch = trainable(), make_batch()
    batch.depths[:] = 0
    entries = distiller.loss(batch)
    assert all(v.item() == pytest.approx(0, abs=1e-6) for k, v in entries.items() if k.startswith("loss/kd/"))
    total(entries).backward()
    assert all(p.grad.isfinite().all() for p in distiller.parameters() if p.grad is not None)


def test_the_exported_student_is_the_baseline(trainable, tmp_path):
    distiller, batch = trainable(), make_batch()
    optimizer = torch.optim.SGD(distiller.parameters(), 1e-4)
    total(distiller.loss(batch)).backward()
    optimizer.step()
    save_file(distiller.state_dict(), tmp_path / "distilled.safetensors")
    assert not any(k.startswith("teacher") for k in distiller.state_dict())
    baseline = build_model(load_config("configs/kitti/rgb_baseline.yaml", NARROW).model)
    load_checkpoint(baseline, tmp_path / "distilled.safetensors")
    assert size_of(baseline) == size_of(distiller.student) - size_of(distiller.student.depth_branch)
    bare, tap = batch.without("objects", "depths"), "heads.candidates"
    with torch.no_grad():
        ours, theirs = (d.eval().extract(bare, [tap])[tap] for d in (distiller.student, baseline))
        assert len(distiller.eval().predict(bare)) == 2
    assert len(ours["scores"]) == 100
    assert all(torch.equal(v, theirs[k]) for k, v in ours.items())


def test_the_epoch_reaches_losses_that_change_with_it(trainable):
    distiller = trainable(**{"model.losses.dual_kl.balance": "epoch"})
    distiller.start_epoch(149)
    assert distiller.loss(make_batch())["stats/kd/dual_kl/forward_share"].item() == pytest.approx(0.5)
    assert distiller.state_dict()["losses.dual_kl.progress"] == 1
