from __future__ import annotations

import copy
import hashlib
import json

import pytest
import torch
import yaml
from distill_inputs import batch_of, center_head
from safetensors.torch import save_file
from torch import nn

from mmdet3d.config import composed, load_config
from mmdet3d.distill import Distiller
from mmdet3d.distill.losses import DistillLoss
from mmdet3d.engine.ema import EMA
from mmdet3d.engine.optimizer import build_optimizer
from mmdet3d.interop.checkpoints import load_checkpoint
from mmdet3d.models import build_model
from mmdet3d.models.detectors.base import Detector
from mmdet3d.registry import MODELS
from mmdet3d.structures import BEVGrid, Boxes3D, Detections3D

CELLS = 8
BOX = torch.tensor([[0.5, 0.5, 0.0, 2.0, 1.0, 1.5, 0.2, 0.0, 0.0]])


class ToyBackbone(nn.Sequential):
    loaded = False

    def init_weights(self):
        self.loaded = True


@MODELS.register
class ToyDetector(Detector):
    """A detector whose sensor is the first column of `points` or `radar`."""

    loss_taps = ("heads.object",)
    predict_taps = ("heads.object",)
    pretrained_parts = ("encoder",)

    def __init__(self, sensor: str, channels: int = 4, cell: float = 1.0, calibrated: bool = False) -> None:
        super().__init__()
        self.grid = BEVGrid((-4.0, -4.0), (cell, cell), (CELLS, CELLS))
        self.encoder = ToyBackbone(nn.Conv2d(1, channels, 3, padding=1), nn.BatchNorm2d(channels), nn.Dropout(0.5))
        self.heatmap, self.box = nn.Conv2d(channels, 2, 1), nn.Conv2d(channels, 10, 1)
        self.heads = {"object": center_head([["car", "truck"]])}  # what losses compare; not a part of this model
        self.calls = 0
        taps: tuple[str, ...] = (f"encoders.{sensor}",)
        if calibrated:
            self.activation = nn.Conv2d(channels, 1, 1)
            taps += (f"encoders.{sensor}.activation",)
        self.add_stage(taps, lambda batch: self._encode(batch.require(sensor, "ToyDetector"), calibrated))
        self.add_stage("fuser", lambda batch, bev: bev, inputs=taps[:1])
        self.add_stage("heads.object", lambda batch, bev: self._head(bev), inputs=("fuser",))

    def _encode(self, sweeps, calibrated):
        self.calls += 1
        bev = self.encoder(torch.stack([s[: CELLS**2, 0].reshape(1, CELLS, CELLS) for s in sweeps]))
        return (bev, self.activation(bev).relu()) if calibrated else bev

    def _head(self, bev):
        parts = dict(zip(("reg", "height", "dim", "rot", "vel"), self.box(bev).split([2, 1, 3, 2, 2], 1), strict=True))
        return [parts | {"heatmap": self.heatmap(bev)}]

    @property
    def pretrained(self):
        return self.encoder.loaded

    def losses(self, features, batch):
        return {"loss/object/heatmap/task0": features["heads.object"][0]["heatmap"].sigmoid().mean()}

    def predictions(self, features, batch):
        return [
            Detections3D(Boxes3D(v[:1, :1].expand(1, 9)), v.sigmoid().flatten()[:1], torch.zeros(1).long())
            for v in features["heads.object"][0]["heatmap"][:, 0]
        ]


LOSSES = {
    "relation": {
        "type": "AffinityLoss",
        "student": "fuser",
        "teacher": "fuser",
        "sizes": [4, 2],
        "channels": 4,
        "weight": 0.25,
    },
    "feature": {"type": "MaskedFeatureLoss", "student": "fuser", "teacher": "fuser", "weight": 10.0},
    "radar": {
        "type": "RadarActivationLoss",
        "student": "encoders.radar.activation",
        "teacher": "heads.object",
        "weight": 100.0,
    },
    "response": {
        "type": "ResponseLoss",
        "student": "heads.object",
        "teacher": "heads.object",
        "task_weights": [2],
    },
}


def write_config(path, **model):
    path.write_text(yaml.safe_dump({"model": {"type": "ToyDetector", **model}}))
    return str(path)


@pytest.fixture
def files(tmp_path):
    """Configs and checkpoints of a LiDAR teacher and a radar student whose calibration head is new."""
    (tmp_path / "configs").mkdir()
    torch.manual_seed(0)
    paths = {}
    for role, sensor in (("teacher", "points"), ("student", "radar")):
        paths[role] = write_config(tmp_path / "configs" / f"{role}.yaml", sensor=sensor)
        paths[f"{role}_weights"] = str(tmp_path / f"{role}.pth")
        state = build_model(load_config(paths[role]).model).state_dict()
        torch.save({"state_dict": state, "meta": {}}, paths[f"{role}_weights"])
    return paths


def make(files, losses=LOSSES, teacher=(), student=()):
    student = {
        "config": files["student"],
        "checkpoint": files["student_weights"],
        "overrides": {"model.calibrated": True},
        "new_modules": ["activation"],
        **dict(student),
    }
    teacher = {"config": files["teacher"], "checkpoint": files["teacher_weights"], **dict(teacher)}
    return Distiller(losses=losses, **composed({"teacher": teacher, "student": student}))


def no_evaluation(model):
    raise AssertionError("nothing asked for a score")


def ready(files, **kwargs):
    distiller = make(files, **kwargs)
    distiller.init_weights()
    distiller.setup_training(no_evaluation)
    return distiller.train()


def batch(seed=0):
    generator = torch.Generator().manual_seed(seed)
    sweeps = {name: [torch.rand(CELLS**2, 5, generator=generator) for _ in range(2)] for name in ("points", "radar")}
    return batch_of([Boxes3D(BOX), Boxes3D(BOX)], clouds=sweeps)


def test_loss_names_and_weights(files):
    distiller = ready(files)
    terms = distiller.loss(batch())
    assert set(terms) == {
        "loss/object/heatmap/task0",
        "loss/kd/relation",
        "loss/kd/feature",
        "loss/kd/radar",
        "loss/kd/response/heatmap/task0",
        "loss/kd/response/bbox/task0",
    }
    assert all(v.ndim == 0 and v.isfinite() and v.requires_grad for v in terms.values())
    lighter = copy.deepcopy(LOSSES)
    lighter["feature"]["weight"] = 1.0
    heavy = ready(files).eval().loss(batch())["loss/kd/feature"]
    light = ready(files, losses=lighter).eval().loss(batch())["loss/kd/feature"]
    assert heavy.item() == pytest.approx(10 * light.item(), rel=1e-5)


def test_a_null_loss_is_off(files):
    terms = ready(files, losses=LOSSES | {"relation": None, "response": None}).loss(batch())
    assert set(terms) == {"loss/object/heatmap/task0", "loss/kd/feature", "loss/kd/radar"}


def test_without_losses_it_is_the_control_and_needs_no_teacher(files):
    control = Distiller(losses={}, **composed({"student": {"config": files["student"]}})).eval()
    control.setup_training(no_evaluation)
    terms = control.loss(batch())
    assert set(terms) == {"loss/object/heatmap/task0"}
    plain = control.student.loss(batch())
    assert all(torch.equal(terms[k], plain[k]) for k in plain)


def test_several_taps_arrive_as_a_list(files):
    distiller = ready(files)

    class Both(DistillLoss):
        def forward(self, student, teacher, batch):
            assert [s.shape for s in student] == [(2, 4, CELLS, CELLS), (2, 1, CELLS, CELLS)]
            assert isinstance(teacher, torch.Tensor)
            return student[0].mean()

    two = {"student": ["fuser", "encoders.radar.activation"], "teacher": "fuser"}
    distiller = ready(files, losses={"feature": LOSSES["feature"] | two})
    distiller.losses["feature"] = Both()
    assert "loss/kd/feature" in distiller.loss(batch())


def test_student_features_are_extracted_once(files):
    distiller = ready(files)
    distiller.loss(batch())  # of the teacher the first batch also shows which batch norms can be folded
    first = distiller.teacher.calls
    distiller.loss(batch())
    assert distiller.student.calls == 2 and distiller.teacher.calls == first + 1


def test_teacher_holds_what_its_file_holds(files):
    state = torch.load(files["teacher_weights"])["state_dict"]
    distiller = make(files)
    distiller.setup_training(no_evaluation)
    distiller.init_weights()
    assert all(torch.equal(v, state[k]) for k, v in distiller.teacher.state_dict().items())
    assert not distiller.teacher.pretrained


def test_teacher_is_unchanged_to_the_bit_after_training(files):
    distiller = ready(files)
    before = {k: v.clone() for k, v in distiller.teacher.state_dict().items()}
    student_before = {k: v.clone() for k, v in distiller.student.state_dict().items()}
    optimizer = torch.optim.AdamW(distiller.parameters(), lr=0.1, weight_decay=0.1)
    for step in range(3):
        distiller.train()
        distiller.requires_grad_(True)
        optimizer.zero_grad()
        sum(distiller.loss(batch(step)).values()).backward()
        optimizer.step()
    after = distiller.teacher.state_dict()
    assert all(torch.equal(before[k], after[k]) for k in before)
    assert all(p.grad is None and not p.requires_grad for p in distiller.teacher.parameters())
    assert not torch.equal(student_before["encoder.0.weight"], distiller.student.encoder[0].weight)


def test_teacher_stays_in_eval_mode(files):
    distiller = ready(files)
    distiller.train()
    assert not any(m.training for m in distiller.teacher.modules())
    distiller.teacher.train()
    distiller.loss(batch())
    assert not any(m.training for m in distiller.teacher.modules())
    expected = distiller.taught(batch())
    distiller.teacher.train()
    torch.testing.assert_close(distiller.taught(batch()), expected, rtol=0, atol=0)


def test_teacher_is_not_part_of_the_model_but_moves_with_it(files):
    distiller = ready(files)
    teacher = {id(p) for p in distiller.teacher.parameters()}
    assert not teacher & {id(p) for p in distiller.parameters()}
    assert all(k.startswith(("student.", "losses.")) for k in distiller.state_dict())
    distiller.to(torch.float64)
    assert next(distiller.teacher.parameters()).dtype == torch.float64
    distiller.to("meta")
    assert next(distiller.teacher.parameters()).device.type == "meta"


def test_training_reads_what_the_teacher_reads(files, monkeypatch):
    sensors = {"encoders.points": ("lidar",), "encoders.radar": ("radar",)}
    monkeypatch.setattr(ToyDetector, "inputs", property(lambda self: sensors[self.taps[0]]))
    distiller = make(files)
    assert distiller.inputs == ("radar",) and distiller.training_inputs == ("radar", "lidar")
    assert make(files, losses={}).training_inputs == ("radar",)


def test_the_average_and_the_learning_rates_are_the_students(files):
    """What a run keeps, averages and tunes by name is the student with the losses' adapters."""
    distiller = ready(files)
    ema = EMA(distiller, decay=0.999)
    start = distiller.student.encoder[0].weight.detach().clone()
    taught = {k: v.clone() for k, v in distiller.teacher.state_dict().items()}
    assert set(ema.state) == set(distiller.state_dict()) and "student.encoder.1.running_mean" in ema.state
    keys = {"custom_keys": {"encoder": {"lr_mult": 0.5}}}
    optimizer = build_optimizer(distiller, {"type": "SGD", "lr": 1.0, "paramwise_cfg": keys})
    rates = {id(p): g["lr"] for g in optimizer.param_groups for p in g["params"]}
    assert rates[id(distiller.student.encoder[0].weight)] == 0.5 and rates[id(distiller.student.box.weight)] == 1.0
    assert len(rates) == len(list(distiller.parameters()))
    sum(distiller.loss(batch()).values()).backward()
    optimizer.step()
    ema.update()
    weight = distiller.student.encoder[0].weight.detach()
    assert not torch.equal(weight, start)
    torch.testing.assert_close(ema.state["student.encoder.0.weight"], 0.999 * start + 0.001 * weight)
    with ema.applied():
        assert all(torch.equal(v, taught[k]) for k, v in distiller.teacher.state_dict().items())


def test_a_copy_shares_the_teacher(files):
    distiller = ready(files)
    assert copy.deepcopy(distiller).teacher is distiller.teacher


# -- testing without the teacher --------------------------------------------------------------------------------------


def test_prediction_needs_no_teacher_file_and_no_lidar(files):
    trained = ready(files)
    weights = trained.state_dict()
    gone = make(
        files,
        teacher={"checkpoint": "nowhere.pth"},
        student={"checkpoint": "nowhere.pth"},
    )
    gone.load_state_dict(weights)
    full = gone.eval().predict(batch())
    bare = gone.predict(batch().without("points", "boxes"))
    for a, b in zip(full, bare, strict=True):
        assert torch.equal(a.scores, b.scores) and torch.equal(a.boxes.tensor, b.boxes.tensor)
    with pytest.raises(ValueError, match="setup_training"):
        gone.loss(batch())


def test_student_weights_leave_the_distiller(files, tmp_path):
    trained = ready(files)
    save_file(trained.state_dict(), tmp_path / "distilled.safetensors")
    student = build_model(load_config(files["student"], {"model.calibrated": True}).model)
    load_checkpoint(student, tmp_path / "distilled.safetensors")
    assert all(torch.equal(v, trained.student.state_dict()[k]) for k, v in student.state_dict().items())


# -- refusals ---------------------------------------------------------------------------------------------------------


def test_incomplete_teacher_is_refused(files):
    state = torch.load(files["teacher_weights"])["state_dict"]
    del state["heatmap.bias"]
    torch.save({"state_dict": state}, files["teacher_weights"])
    with pytest.raises(ValueError, match=r"1 missing \(heatmap\.bias\)"):
        make(files).setup_training(no_evaluation)


@pytest.mark.parametrize("key", ["new_modules", "init_from_teacher"])
def test_one_name_is_no_list_of_names(files, key):
    with pytest.raises(ValueError, match=f"{key} must be a list of texts.*, got 'encoder'"):
        make(files, student={key: "encoder"})


def test_student_checkpoint_may_lack_new_modules_only(files):
    with pytest.raises(ValueError, match=r"2 missing \(activation\.weight, activation\.bias\)"):
        make(files, student={"new_modules": []}).init_weights()
    distiller = ready(files)
    state = torch.load(files["student_weights"])["state_dict"]
    assert torch.equal(distiller.student.encoder[0].weight, state["encoder.0.weight"])


def test_student_without_checkpoint_starts_from_its_pretrained_parts(files):
    distiller = make(files, student={"checkpoint": None})
    distiller.init_weights()
    assert distiller.student.pretrained


def test_student_starts_from_modules_of_the_teacher(files):
    distiller = make(files, student={"checkpoint": None, "init_from_teacher": ["encoder", "heatmap"]})
    box = distiller.student.box.weight.clone()
    distiller.init_weights()
    state = torch.load(files["teacher_weights"])["state_dict"]
    for key in ("encoder.0.weight", "encoder.1.running_mean", "heatmap.bias"):
        assert torch.equal(distiller.student.state_dict()[key], state[key])
    assert torch.equal(distiller.student.box.weight, box) and not distiller.student.pretrained


def test_a_module_may_have_another_name_in_the_teacher(files):
    distiller = make(
        files, student={"checkpoint": None, "init_from_teacher": {"encoder": "encoder", "heatmap": "heatmap"}}
    )
    distiller.init_weights()
    state = torch.load(files["teacher_weights"])["state_dict"]
    assert torch.equal(distiller.student.heatmap.weight, state["heatmap.weight"])
    renamed = {f"inner.{key}": value for key, value in state.items()}
    torch.save({"state_dict": renamed}, files["teacher_weights"])
    distiller = make(files, student={"checkpoint": None, "init_from_teacher": {"heatmap": "inner.heatmap"}})
    distiller.init_weights()
    assert torch.equal(distiller.student.heatmap.weight, state["heatmap.weight"])


def test_what_is_not_inherited_starts_from_its_pretrained_weights(files):
    distiller = make(files, student={"checkpoint": None, "init_from_teacher": ["heatmap"]})
    distiller.init_weights()
    assert distiller.student.pretrained


def test_teachers_modules_replace_those_of_the_students_checkpoint(files):
    distiller = make(files, student={"init_from_teacher": ["heatmap"]})
    distiller.init_weights()
    states = {role: torch.load(files[f"{role}_weights"])["state_dict"] for role in ("teacher", "student")}
    assert torch.equal(distiller.student.heatmap.weight, states["teacher"]["heatmap.weight"])
    assert torch.equal(distiller.student.box.weight, states["student"]["box.weight"])


def test_a_start_from_the_teacher_that_matches_nothing_is_refused(files):
    with pytest.raises(ValueError, match=r"init_from_teacher: the student has no module 'encode', did you mean 'enc"):
        make(files, student={"init_from_teacher": ["encode"]}).init_weights()
    with pytest.raises(ValueError, match=r"teacher\.pth holds nothing below 'activation\.'"):
        make(files, student={"init_from_teacher": ["activation"]}).init_weights()
    with pytest.raises(ValueError, match=r"names 'heatmap', but there is no model\.teacher"):
        student = {"config": files["student"], "init_from_teacher": ["heatmap"]}
        Distiller(**composed({"student": student}), losses={}).init_weights()


def test_resumed_weights_stay(files):
    """The engine resumes a run without `init_weights`, then sets up the teacher."""
    resumed = ready(files).state_dict()
    resumed["student.encoder.0.weight"] += 1
    distiller = make(files)
    distiller.load_state_dict(resumed)
    distiller.setup_training(no_evaluation)
    assert torch.equal(distiller.student.encoder[0].weight, resumed["student.encoder.0.weight"])


def test_missing_files_name_the_key(files):
    with pytest.raises(FileNotFoundError, match=r"model\.student\.checkpoint.*absent\.pth"):
        make(files, student={"checkpoint": "absent.pth"}).init_weights()
    with pytest.raises(FileNotFoundError, match=r"model\.teacher\.checkpoint.*absent\.pth"):
        make(files, teacher={"checkpoint": "absent.pth"}).setup_training(no_evaluation)


def test_a_teacher_that_sees_less_far_is_refused_with_both_grids(files, tmp_path):
    other = write_config(tmp_path / "configs" / "near.yaml", sensor="points", cell=0.5)
    with pytest.raises(ValueError, match=r"8x8 cells of 0.5x0.5 m.*8x8 cells of 1x1 m"):
        make(files, teacher={"config": other}).setup_training(no_evaluation)


def test_only_detectors_are_taught(files, tmp_path):
    nested = tmp_path / "configs" / "nested.yaml"
    student = {"config": files["student"]}
    nested.write_text(
        yaml.safe_dump(
            {
                "model": {
                    "type": "Distiller",
                    "teacher": None,
                    "student": student,
                    "losses": {},
                }
            }
        )
    )
    with pytest.raises(ValueError, match=r"model\.student describes a Distiller"):
        make(files, student={"config": str(nested), "overrides": None})
    with pytest.raises(ValueError, match=r"model\.student: nuscenes/default\.yaml describes no model"):
        make(files, student={"config": "nuscenes/default.yaml", "overrides": None})


def test_unknown_taps_name_the_nearest(files):
    with pytest.raises(ValueError, match=r"losses\.feature\.student.*'fusers', did you mean 'fuser'"):
        make(files, losses={"feature": LOSSES["feature"] | {"student": "fusers"}})
    distiller = make(files, losses={"feature": LOSSES["feature"] | {"teacher": "head.object"}})
    with pytest.raises(ValueError, match=r"losses\.feature\.teacher.*did you mean 'heads\.object'"):
        distiller.setup_training(no_evaluation)


@pytest.mark.parametrize("tap", ["fuser[0]", "fuser[9]", "heads.object[1]"])
def test_only_items_that_a_list_has_can_be_named(files, tap):
    """A map's first sample is no level, and one that neither side has is not compared."""
    reason = "no list|names an item of a list" if tap.startswith("fuser") else r"has 1 items, the last \[0\]"
    sides = {side: LOSSES["feature"] | {side: tap} for side in ("student", "teacher")}
    for side, loss in {**sides, "student ": LOSSES["feature"] | {"student": tap, "teacher": tap}}.items():
        distiller = make(files, losses={"feature": loss})
        distiller.setup_training(no_evaluation)
        with pytest.raises(ValueError, match=rf"model\.losses\.feature\.{side.strip()}: .*({reason})"):
            distiller.loss(batch())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"teacher": {"min_scor": 1}}, r"unknown config key .*teacher\.min_scor, did you mean 'min_score'"),
        ({"student": {"config": None}}, r"model\.student\.config is missing"),
        ({"losses": {"f": {"type": "MaskedFeatureLoss", "student": "fuser"}}}, r"losses\.f\.teacher is missing"),
        ({"losses": {"f": LOSSES["feature"] | {"scale": 1}}}, r"unknown config key model\.losses\.f\.scale"),
        ({"losses": {"f": LOSSES["feature"] | {"type": "ToyDetector", "sensor": "radar"}}}, "no distillation loss"),
    ],
)
def test_wrong_configs(files, change, message):
    with pytest.raises(ValueError, match=message):
        make(files, **change)


# -- the gate ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("score", "passes"), [(0.7, True), (0.6, True), (0.59, False), (float("nan"), False)])
def test_measured_score_must_reach_the_least(files, score, passes):
    distiller = make(files, teacher={"min_score": 0.6})
    seen = []

    def evaluate(model):
        seen.append(model)
        return {"object/map": score, "object/nds": 0.0}

    if passes:
        distiller.setup_training(evaluate)
        assert seen == [distiller.teacher]
    else:
        with pytest.raises(ValueError, match=r"scores object/map .*measured now.*model\.teacher\.min_score null"):
            distiller.setup_training(evaluate)
        with pytest.raises(ValueError, match="no teacher"):
            distiller.loss(batch())


def record(files, metrics, digest=None):
    path = files["teacher_weights"]
    with open(path, "rb") as file:
        digest = digest or hashlib.sha256(file.read()).hexdigest()
    with open(path.replace(".pth", ".json"), "w") as file:
        json.dump({"metrics": metrics, "sha256": digest}, file)


def test_recorded_score_spares_the_evaluation(files):
    record(files, {"object/nds": 0.7})
    make(files, teacher={"min_score": 0.6, "metric": "object/nds"}).setup_training(no_evaluation)
    with pytest.raises(ValueError, match=r"0\.7000 \(recorded in .*teacher\.json\)"):
        make(files, teacher={"min_score": 0.8, "metric": "object/nds"}).setup_training(no_evaluation)


@pytest.mark.parametrize("stale", [{"digest": "0" * 64}, {"metrics": {"object/other": 1.0}}])
def test_record_of_another_file_or_metric_does_not_count(files, stale):
    record(files, **({"metrics": {"object/map": 0.9}} | stale))
    with pytest.raises(ValueError, match=r"0\.1000 \(measured now\)"):
        make(files, teacher={"min_score": 0.6}).setup_training(lambda model: {"object/map": 0.1})


def test_unknown_metric_names_the_nearest(files):
    distiller = make(files, teacher={"min_score": 0.6, "metric": "object/mAP"})
    with pytest.raises(ValueError, match=r"no 'object/mAP', did you mean 'object/map'"):
        distiller.setup_training(lambda model: {"object/map": 0.1})


def test_a_teacher_block_takes_overrides_of_its_config(files, tmp_path):
    """A teacher of other widths than its file says, as a published one may be."""
    overrides = {"model.channels": 6}
    wide = build_model(load_config(files["teacher"], overrides).model)
    torch.save({"state_dict": wide.state_dict()}, tmp_path / "wide.pth")
    block = {"checkpoint": str(tmp_path / "wide.pth"), "overrides": overrides}
    for extra in ({}, {"answers": str(tmp_path / "answers")}):
        teacher = ready(files, losses={"response": LOSSES["response"]}, teacher=block | extra).instructor.loaded()
        assert torch.equal(teacher.encoder[0].weight, wide.encoder[0].weight)
    with pytest.raises(ValueError, match=r"unknown config key 'model.chanels'"):
        ready(files, teacher={"overrides": {"model.chanels.x": 6}})


def test_where_a_loss_pulls_the_student(files):
    @MODELS.register
    class HalfSquares(DistillLoss):
        def forward(self, student, teacher, batch):
            return {"a": (student[0] - teacher).square().sum() / 2, "stats/b": student[1][0]["heatmap"].detach().sum()}

    taps = {"student": ["fuser", "heads.object"], "teacher": "fuser"}
    distiller = ready(files, losses={"own": {"type": "HalfSquares", **taps, "weight": 7.0}}).eval()
    state = copy.deepcopy(distiller.state_dict())
    pull, *others = distiller.pulls(batch(), "own")
    with torch.no_grad():
        seen, answer = distiller.student.extract(batch(), ["fuser"]), distiller.taught(batch())
    torch.testing.assert_close(pull, seen["fuser"] - answer["fuser"])
    assert len(others) == 6 and not any(other.any() for other in others)
    assert all(torch.equal(a, b) for a, b in zip(state.values(), distiller.state_dict().values(), strict=True))
    assert all(p.grad is None for p in distiller.parameters())
    with pytest.raises(ValueError, match=r"no loss 'onw', did you mean 'own'\? \(losses: own\)"):
        distiller.pulls(batch(), "onw")
