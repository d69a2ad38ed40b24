"""MonoSKD's distillation terms against published values, and through the distiller."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import yaml
from mono_inputs import STREET, make_batch, small_model
from safetensors.torch import save_file

from mmdet3d.config import load_config
from mmdet3d.distill.losses import CorrelationLoss, ObjectResponseLoss
from mmdet3d.models import build_model
from mmdet3d.models.detectors import MonoDetector

SHAPES = ((2, 4, 8, 16), (2, 8, 4, 8))
NARROW = {"base_channels": 2, "head_channels": 16, "htl": None, "imagenet_weights": "missing"}


def waves(function, frequency):
    return [function(frequency * torch.arange(torch.Size(s).numel(), dtype=torch.float64)).reshape(s) for s in SHAPES]


STUDENT, TEACHER = waves(torch.sin, 0.1), waves(torch.cos, 0.07)


def golden(ranks="teacher_shift", factor=1.0):
    loss = CorrelationLoss((4, 8), ranks=ranks, adapt=False)
    return loss(STUDENT, [factor * t for t in TEACHER], make_batch())


def test_published_correlation():
    assert golden()["correlation"].item() == pytest.approx(1.8218752140, abs=1e-9)
    single = CorrelationLoss((4, 8), adapt=False)(
        [s.float() for s in STUDENT], [t.float() for t in TEACHER], make_batch()
    )
    assert single["correlation"].item() == pytest.approx(1.82187557, abs=2e-6)


def test_published_affinity_but_for_the_second_division_by_the_batch():
    assert golden()["affinity"].item() / 2 == pytest.approx(1.58691987, abs=1e-8)


def test_true_ranks_are_near_the_published_hard_ranks_and_have_no_scale():
    assert golden("both")["correlation"].item() == pytest.approx(1.85243504, abs=1e-3)
    assert golden("both", 1000.0)["correlation"].item() == pytest.approx(golden("both")["correlation"].item())


def test_terms_have_gradients_for_student_and_adapters():
    for ranks in ("teacher_shift", "both"):
        loss = CorrelationLoss((4, 8), ranks=ranks)
        students = [s.float().requires_grad_() for s in STUDENT]
        sum(loss(students, [t.float() for t in TEACHER], make_batch()).values()).backward()
        assert all(s.grad.abs().sum() > 0 for s in students)
        assert all(p.grad is not None for p in loss.parameters())


def test_correlation_gradient_in_double_precision():
    loss = CorrelationLoss((2,), adapt=False)
    student = torch.randn(2, 2, 3, 4, dtype=torch.float64, requires_grad=True)
    teacher, batch = torch.randn(2, 2, 3, 4, dtype=torch.float64), make_batch([[]])
    torch.autograd.gradcheck(lambda s: sum(loss([s], [teacher], batch).values()), student)


def test_published_size_of_the_adapters():
    assert sum(p.numel() for p in CorrelationLoss().parameters()) == 3_483_520


def test_terms_are_switched_off_by_their_factor():
    batch = make_batch([[]])
    assert set(CorrelationLoss((4, 8), affinity=0, adapt=False)(STUDENT, TEACHER, batch)) == {"correlation"}
    assert set(CorrelationLoss((4, 8), correlation=0, adapt=False)(STUDENT, TEACHER, batch)) == {"affinity"}
    with pytest.raises(ValueError, match="switch the loss off with null"):
        CorrelationLoss(affinity=0, correlation=0)


def test_other_maps_are_refused():
    with pytest.raises(ValueError, match="as many maps of the same shapes"):
        CorrelationLoss((4, 8), adapt=False)(STUDENT, TEACHER[:1], make_batch([[]]))
    with pytest.raises(ValueError, match="ranks must be"):
        CorrelationLoss(ranks="student")


# -- responses ------------------------------------------------------------------------------------------------------


def responses(rows):
    batch = make_batch(rows)
    student, teacher = small_model(), small_model(input="depth")  # untrained: statistics of the batch
    ours = student.extract(batch, student.loss_taps)
    with torch.no_grad():
        theirs = teacher.extract(batch, ("heads.dense", "heads.roi"))
    loss = ObjectResponseLoss()
    loss.bind(teacher, student)
    mine = [ours[t] for t in ("heads.dense", "heads.roi", "targets")]
    return loss, mine, [theirs["heads.dense"], theirs["heads.roi"]], batch


def test_responses_by_hand():
    loss, mine, theirs, batch = responses([STREET, STREET[:1]])
    terms = loss(mine, theirs, batch)
    assert set(terms) == {"offset_2d", "size_2d", "offset_3d", "size_3d", "visual", "attribute", "depth", "heading"}
    assert terms["depth"].item() == pytest.approx((mine[1]["depth"] - theirs[1]["depth"]).abs().mean().item())
    p, q = (side[1]["heading"][:, :12].softmax(1) for side in (theirs, mine))
    divergence = (p * (p / q).log()).sum() / p.numel()
    rows = torch.arange(len(p))
    residual = [side[1]["heading"][rows, 12 + mine[2].heading_bin] for side in (mine, theirs)]
    wanted = divergence + (residual[0] - residual[1]).abs().mean()
    assert terms["heading"].item() == pytest.approx(wanted.item(), rel=1e-4)
    sum(terms.values()).backward()


def test_equal_sides_cost_nothing():
    loss, mine, _, batch = responses([STREET, STREET[:1]])
    assert all(v.abs() < 1e-6 for v in loss(mine, mine[:2], batch).values())


def test_responses_without_objects_are_zero():
    loss, mine, theirs, batch = responses([[], []])
    assert all(v == 0 for v in loss(mine, theirs, batch).values())


def test_detectors_that_do_not_suit_are_refused():
    with pytest.raises(ValueError, match="the teacher is a SimpleNamespace"):
        ObjectResponseLoss().bind(SimpleNamespace(), small_model())
    other = small_model()
    other.mean_size.data[0, 0] += 1
    with pytest.raises(ValueError, match="same classes and mean_sizes"):
        ObjectResponseLoss().bind(other, small_model())


# -- through the configs --------------------------------------------------------------------------------------------


def narrow(name, folder):
    """A config of this size as a file of its own."""
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(load_config(f"configs/kitti/{name}.yaml", NARROW).to_dict()))
    return str(path)


def test_configs_describe_the_published_networks():
    for name, source in (("rgb_baseline", "rgb"), ("depth_teacher", "depth")):
        model = build_model(load_config(f"configs/kitti/{name}.yaml").model)
        assert isinstance(model, MonoDetector) and model.input == source
        assert sum(p.numel() for p in model.parameters()) == 21_348_809
    config = load_config("configs/kitti/monoskd.yaml")
    distiller = build_model(config.model)
    assert sum(p.numel() for p in distiller.parameters()) == 21_348_809 + 3_483_520
    assert config.max_epochs == 150 and config.data.val.depth_dir is None
    assert load_config("configs/kitti/depth_teacher.yaml").data.val.depth_dir == "training/depth_dense"


@pytest.mark.parametrize("name", ["kitti/monoskd.yaml", "kitti/synthetic/monoskd.yaml"])
def test_every_term_is_switched_off_by_one_override(name):
    def terms(*words):
        with torch.device("meta"):
            losses = build_model(load_config(name, words).model).losses
        features = [t for t in ("correlation", "affinity") if "features" in losses and getattr(losses.features, t)]
        return {*features, *(n for n in losses if n != "features")}

    assert terms() == {"correlation", "affinity", "responses"}
    assert terms("--model.losses.features.correlation", "0") == {"affinity", "responses"}
    assert terms("--model.losses.features.affinity", "0") == {"correlation", "responses"}
    assert terms("--model.losses.responses", "null") == {"correlation", "affinity"}
    assert terms("--model.losses.features", "null") == {"responses"}


SMALL = ("synthetic/monoskd", "synthetic/monodistill", "synthetic/monommkd")


@pytest.mark.parametrize("name", ["monoskd", "monodistill", "monommkd", "methods/monodistill", *SMALL])
def test_options_of_the_network_reach_the_student(name):
    """Those of default.yaml that a distillation inherits."""
    changes = {**NARROW, "score_threshold": 0.05, "htl": {"epochs": 9, "window": 4}, "detector.exact_affine": False}
    student = build_model(load_config(f"configs/kitti/{name}.yaml", changes).model).student
    assert (student.score_threshold, student.exact_affine, student._schedule.epochs) == (0.05, False, 9)
    assert ("depth.logits" in student.taps) == ("monommkd" in name)


def test_published_learning_rates():
    from mmdet3d.engine.schedule import LearningRate

    config = load_config("configs/kitti/monoskd.yaml")
    rate = LearningRate(config.lr_config, 150, 232)
    history = [rate.at(1e-3, epoch, epoch * 232) for epoch in range(150)]
    assert history[:5] == pytest.approx([1e-5, 1.045e-4, 3.52e-4, 6.58e-4, 9.055e-4], rel=1e-3)
    assert history[5:] == pytest.approx([1e-3] * 90 + [1e-4] * 30 + [1e-5] * 25)


def test_monoskd_trains_the_student_and_leaves_the_teacher_alone(tmp_path):
    torch.manual_seed(0)
    teacher = build_model(load_config(narrow("depth_teacher", tmp_path)).model)
    student = build_model(load_config(narrow("rgb_baseline", tmp_path)).model)
    for name, model in (("teacher", teacher), ("student", student)):
        save_file(model.state_dict(), tmp_path / f"{name}.safetensors")
    paths = {
        f"model.{side}.{key}": str(tmp_path / file)
        for side, config in (("teacher", "depth_teacher"), ("student", "rgb_baseline"))
        for key, file in (("config", f"{config}.yaml"), ("checkpoint", f"{side}.safetensors"))
    }
    distiller = build_model(load_config("configs/kitti/monoskd.yaml", NARROW | paths).model)
    distiller.init_weights()
    distiller.setup_training(lambda model: {})
    distiller.train()
    distiller.start_epoch(0)
    losses = distiller.loss(make_batch())
    kd = {name for name in losses if name.startswith("loss/kd/")}
    assert {"loss/kd/features/correlation", "loss/kd/features/affinity", "loss/kd/responses/depth"} <= kd
    sum(v for k, v in losses.items() if k.startswith("loss/")).backward()
    assert all(p.grad is None for p in distiller.teacher.parameters())
    after = distiller.teacher.state_dict()
    assert all(torch.equal(v, after[k]) for k, v in teacher.state_dict().items())
    trained = [p.grad is not None for p in distiller.student.parameters() if p.requires_grad]
    assert all(trained)
    assert not any(name.startswith("teacher") for name in distiller.state_dict())
    with torch.no_grad():
        assert len(distiller.eval().predict(make_batch().without("objects", "depths"))) == 2
