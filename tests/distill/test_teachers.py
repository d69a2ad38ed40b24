"""Who can teach: modules of others, answers on disk, several at once, and teachers unlike their students."""

from __future__ import annotations

import json
import logging
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import save_file
from test_distiller import CELLS, LOSSES, batch, composed, files, make, no_evaluation, ready, write_config  # noqa: F401
from torch import nn
from torch.testing import assert_close

from mmdet3d.config import load_config
from mmdet3d.distill import Distiller, Outline, RecordedTeacher, Teacher
from mmdet3d.distill.providers import DetectorBlock, ModuleBlock, RecordedBlock, read_teachers
from mmdet3d.models import build_model
from mmdet3d.registry import MODELS
from mmdet3d.structures import BEVGrid

EXACT = {"rtol": 0, "atol": 0}
FEATURE = {"type": "FeatureLoss", "student": "fuser", "teacher": "fuser"}
RESPONSE = LOSSES["response"]


def named(seed=0, views=("data/0", "data/1")):
    """Frames that nothing augments: the name of each is its token's."""
    return replace(batch(seed), views=list(views))


def trained(distiller, size=1, steps=4):
    """The weights of a student after a few steps on batches of one sample.

    Of several, convolutions of one and the same sample may differ in the last bit.
    """
    optimizer = torch.optim.SGD(distiller.parameters(), lr=0.1)
    for step in range(steps):
        torch.manual_seed(step)
        optimizer.zero_grad()
        frames = named(step % 2, [f"data{step % 2}/{k}" for k in range(2)])
        terms = distiller.loss(frames.alone(step // 2) if size == 1 else frames)
        sum(value for name, value in terms.items() if name.startswith("loss/")).backward()
        optimizer.step()
    return {name: value.clone() for name, value in distiller.state_dict().items()}


def recorded(folder, **extra):
    """A distiller's block of answers alone."""
    return {"answers": str(folder), **extra}


def taught_by(files, teacher=None, losses=LOSSES, **options):  # noqa: F811
    """A ready distiller whose teacher's block is just this."""
    torch.manual_seed(3)
    student = {"config": files["student"], "checkpoint": files["student_weights"], "new_modules": ["activation"]}
    parts = composed({"student": student | {"overrides": {"model.calibrated": True}}})
    distiller = Distiller(losses=losses, teacher=teacher, **parts, **composed(options))
    distiller.init_weights()
    distiller.setup_training(no_evaluation)
    return distiller.train()


def detector(files, **extra):  # noqa: F811
    return composed({"t": {"config": files["teacher"], "checkpoint": files["teacher_weights"], **extra}})["t"]


# -- stored answers without the model ---------------------------------------------------------------------------------


def test_a_student_of_stored_answers_is_that_of_the_live_teacher_bit_for_bit(files, tmp_path):  # noqa: F811
    live, pairs = trained(taught_by(files, detector(files))), trained(taught_by(files, detector(files)), size=2)
    stored = trained(taught_by(files, detector(files, answers=str(tmp_path / "answers"))))
    trained(taught_by(files, detector(files, answers=str(tmp_path / "answers"))), size=2)
    (tmp_path / "teacher.pth").unlink()
    alone = trained(taught_by(files, recorded(tmp_path / "answers")))
    assert_close(stored, live, **EXACT)
    assert_close(alone, live, **EXACT)
    assert_close(trained(taught_by(files, recorded(tmp_path / "answers")), size=2), pairs, rtol=1e-2, atol=1e-4)
    start = torch.load(files["student_weights"])["state_dict"]
    assert not torch.equal(alone["student.heatmap.weight"], start["heatmap.weight"])


def test_answers_about_views_are_found_by_view_to_half_precision(files, tmp_path):  # noqa: F811
    views = [["data/0.0.0", "data/1.1.0"], ["data/0.0.1", "data/1.1.1"]]
    live = taught_by(files, detector(files))
    kept = taught_by(files, detector(files, answers=str(tmp_path / "answers")))
    for view in range(2):
        kept.taught(named(view, views[view]))
    alone = taught_by(files, recorded(tmp_path / "answers"))
    for view in range(2):
        sample = named(view, views[view])
        expected = live.taught(sample)
        for tap, answer in alone.taught(sample).items():
            assert_close(answer, expected[tap], rtol=1e-3, atol=1e-5)
    with pytest.raises(ValueError, match=r"no answer fuser, heads\.object to sample 0 as data/0\.0\.2, nor to its"):
        alone.taught(named(0, ["data/0.0.2", "data/1.1.2"]))


def test_the_folder_alone_says_what_the_teacher_is(files, tmp_path):  # noqa: F811
    source = taught_by(files, detector(files, answers=str(tmp_path / "answers")))
    source.taught(named())
    told = RecordedTeacher(tmp_path / "answers")
    assert told.grid == source.instructor.grid and told.digest == source.instructor.digest
    assert told.model.heads["object"].tasks == [["car", "truck"]] and set(told.taps) == {"fuser", "heads.object"}
    assert told.loaded() is told.model


def by_another_program(folder: Path, frames: dict, **metadata) -> dict:
    """What a program without this package writes: a file per frame, named by its token."""
    folder.mkdir(parents=True)
    for token, tensors in frames.items():
        save_file({k: v.contiguous() for k, v in tensors.items()}, folder / f"{token}.safetensors")
    about = {"grid": {"lower": [-4.0, -4.0], "cell": [1.0, 1.0], "shape": [CELLS, CELLS]}} | metadata
    (folder / "metadata.json").write_text(json.dumps(about))
    return recorded(folder)


def frames(generator=None):
    return {str(k): {"fuser": torch.rand(1, 4, CELLS, CELLS, generator=generator)} for k in range(2)}


def test_answers_of_another_program_need_no_names_of_views(files, tmp_path):  # noqa: F811
    content = frames()
    distiller = taught_by(files, by_another_program(tmp_path / "told", content), {"f": FEATURE})
    expected = torch.cat([content["0"]["fuser"], content["1"]["fuser"]])
    for views in (["data/0", "data/1"], [None, None]):
        assert torch.equal(distiller.taught(named(0, views))["fuser"], expected)
    assert distiller.loss(named())["loss/kd/f"].requires_grad


def quarter_turn(sample):
    """Of every point, (x, y) to (-y, x)."""
    turn = torch.tensor([[0.0, -1, 0, 0], [1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]).expand(2, 4, 4)
    return replace(sample, calibration=replace(sample.calibration, lidar_aug=turn))


def test_answers_to_a_frame_are_turned_with_an_augmented_sample(files, tmp_path):  # noqa: F811
    content = frames()
    distiller = taught_by(files, by_another_program(tmp_path / "told", content), {"f": FEATURE})
    found = distiller.taught(quarter_turn(named(0, [None, None])))["fuser"]
    # Cell (i, j) comes to (7 - j, i): x' = -y.
    expected = torch.cat([torch.rot90(content[str(k)]["fuser"], 1, (2, 3)) for k in range(2)])
    x, y = torch.meshgrid(torch.arange(CELLS), torch.arange(CELLS), indexing="ij")
    whole = torch.cat([content["0"]["fuser"], content["1"]["fuser"]])
    assert_close(found[:, :, 7 - y, x], whole, rtol=0, atol=1e-5)
    assert_close(found, expected, rtol=0, atol=1e-5)


def head_output():
    """A tap `heads.object` of one task with two classes, as a file has it."""
    channels = {"reg": 2, "height": 1, "dim": 3, "rot": 2, "vel": 2, "heatmap": 2}
    return {f"heads.object/0/{name}": torch.rand(1, n, CELLS, CELLS) for name, n in channels.items()}


def test_boxes_are_turned_in_full_precision(files, tmp_path):  # noqa: F811
    block = by_another_program(tmp_path / "told", dict.fromkeys("01", head_output()), tasks=[["car", "truck"]])
    distiller = taught_by(files, block, {"response": RESPONSE})
    sample = quarter_turn(named(0, [None, None]))
    with torch.autocast("cpu", torch.bfloat16):
        (half,) = distiller.taught(sample)["heads.object"]
    (full,) = distiller.taught(sample)["heads.object"]
    assert_close(half, full, **EXACT)
    turned = full["vel"][:, :, 7 - torch.arange(CELLS)]  # x' = -y, y' = x
    told = distiller.instructor.answers.read_frame("0", ["heads.object"])["heads.object"][0]
    assert_close(turned[:1, 1], told["vel"][:, 0].transpose(1, 2), rtol=0, atol=1e-5)


def test_what_cannot_be_turned_is_refused_by_name(files, tmp_path):  # noqa: F811
    image = {token: {"fuser": torch.rand(1, 4, 5, 11)} for token in "01"}
    distiller = taught_by(files, by_another_program(tmp_path / "image", image), {"f": FEATURE})
    with pytest.raises(ValueError, match=r"answer fuser \(\(1, 4, 5, 11\)\) is no map over its raster .* be turned"):
        distiller.taught(quarter_turn(named(0, [None, None])))
    distiller = taught_by(files, by_another_program(tmp_path / "none", frames(), grid=None), {"f": FEATURE})
    with pytest.raises(ValueError, match=r"sample 0 is augmented, and .*metadata\.json names no grid"):
        distiller.taught(quarter_turn(named(0, [None, None])))


def test_folders_that_hold_no_teacher(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"model\.teacher\.answers: there is no folder"):
        RecordedTeacher(tmp_path / "absent")
    with pytest.raises(ValueError, match=r"holds the answers of 0 teachers"):
        RecordedTeacher(tmp_path)
    by_another_program(tmp_path / "a", {})
    with pytest.raises(ValueError, match=r"holds no answers"):
        RecordedTeacher(tmp_path / "a")
    by_another_program(tmp_path / "b", frames(), grid={"lower": [0, 0], "cell": 1})
    with pytest.raises(ValueError, match=r"holds the answers of 2 teachers .*: a, b"):
        RecordedTeacher(tmp_path)
    with pytest.raises(ValueError, match=r"grid of \S+/metadata\.json must be \{lower: "):
        RecordedTeacher(tmp_path / "b")


def test_a_recorded_score_of_a_folder(files, tmp_path):  # noqa: F811
    block = by_another_program(tmp_path / "told", frames(), metrics={"object/map": 0.5})
    taught_by(files, block | {"min_score": 0.4}, {"f": FEATURE})
    with pytest.raises(
        ValueError, match=r"scores object/map 0\.5000 \(recorded with its answers\), less than model\.t"
    ):
        taught_by(files, block | {"min_score": 0.6}, {"f": FEATURE})
    with pytest.raises(ValueError, match=r"no other of the teacher model\.teacher is recorded"):
        taught_by(files, block | {"min_score": 0.6, "metric": "other"}, {"f": FEATURE})


# -- any module -------------------------------------------------------------------------------------------------------


class Elsewhere(nn.Module):
    """A network of another project: maps are (y, x), its head a tuple over tasks of lists of one dict."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU())
        self.twice = nn.Identity()
        self.head = nn.Conv2d(width, 12, 1)

    def forward(self, image, scale=1.0):
        bev = self.body(image) * scale
        return self.head(self.twice(self.twice(bev)))


def to_inputs(batch):
    maps = [points[: CELLS**2, 0].reshape(1, CELLS, CELLS).transpose(1, 2) for points in batch.points]
    return {"image": torch.stack(maps)}


def to_answers(values):
    answers = {"fuser": values["fuser"].transpose(2, 3)}
    if "heads.object" in values:
        maps = values["heads.object"].transpose(2, 3).split([2, 1, 3, 2, 2, 2], 1)
        answers["heads.object"] = [dict(zip(("reg", "height", "dim", "rot", "vel", "heatmap"), maps, strict=True))]
    return answers


def module_block(tmp_path, **extra):
    torch.manual_seed(9)
    torch.save(Elsewhere().state_dict(), tmp_path / "elsewhere.pth")
    here = __name__
    return {
        "type": f"{here}.Elsewhere",
        "checkpoint": str(tmp_path / "elsewhere.pth"),
        "taps": {"fuser": "body", "heads.object": "head"},
        "inputs": f"{here}.to_inputs",
        "outputs": f"{here}.to_answers",
        "grid": {"lower": [-4.0, -4.0], "cell": [1.0, 1.0], "shape": [CELLS, CELLS]},
        "tasks": [["car", "truck"]],
    } | extra


TAUGHT = {"f": FEATURE, "response": RESPONSE, "radar": LOSSES["radar"]}


def test_any_module_teaches_by_its_submodules(files, tmp_path):  # noqa: F811
    distiller = taught_by(files, module_block(tmp_path), TAUGHT)
    module = Elsewhere().eval()
    module.load_state_dict(torch.load(tmp_path / "elsewhere.pth"))
    answers = distiller.taught(batch())
    images = to_inputs(batch())["image"]
    assert_close(answers["fuser"], module.body(images).transpose(2, 3), **EXACT)
    assert_close(answers["heads.object"][0]["heatmap"], module(images).transpose(2, 3)[:, 10:], **EXACT)
    terms = distiller.loss(batch())
    assert {"loss/kd/f", "loss/kd/radar", "loss/kd/response/heatmap/task0"} <= set(terms)
    sum(terms.values()).backward()
    teacher = distiller.instructor.module
    assert all(p.grad is None and not p.requires_grad for p in teacher.parameters()) and not teacher.training
    assert not any("teacher" in name or "body" in name for name in distiller.state_dict())
    distiller.double()
    assert next(teacher.parameters()).dtype == torch.float64


def test_answers_of_a_module_are_kept_and_serve_without_it(files, tmp_path):  # noqa: F811
    answers = {"answers": str(tmp_path / "answers")}
    live = trained(taught_by(files, module_block(tmp_path), TAUGHT))
    kept = trained(taught_by(files, module_block(tmp_path, **answers), TAUGHT))
    alone = trained(taught_by(files, answers, TAUGHT))
    assert_close(kept, live, **EXACT)
    assert_close(alone, live, **EXACT)


def test_other_weights_or_taps_are_another_module(files, tmp_path):  # noqa: F811
    def digest(**extra):
        return taught_by(files, module_block(tmp_path, **extra), {"f": FEATURE}).instructor.digest

    first = digest()
    assert first == digest() != digest(taps={"fuser": "twice", "heads.object": "head"} | {"fuser": "body.2"})
    torch.manual_seed(1)
    save_file(Elsewhere().state_dict(), tmp_path / "other.safetensors")
    assert first != digest(checkpoint=str(tmp_path / "other.safetensors"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"taps": {"fuser": "bodi"}},
            r"taps\.fuser of the teacher: Elsewhere has no submodule 'bodi', did you mean 'b",
        ),
        ({"taps": {"fuser": "twice"}, "outputs": None}, r"tap fuser is called 2 times for a batch"),
        ({"inputs": None}, r"model\.teacher needs taps, .* and inputs, a function"),
        ({"inputs": "to_inputs"}, r"model\.teacher\.inputs: 'to_inputs' must name a function with its module"),
        ({"inputs": f"{__name__}.absent"}, r"model\.teacher\.inputs: .* has no class or function 'absent'"),
        ({"type": f"{__name__}.to_inputs", "arguments": {"batch": None}}, r"points"),
        ({"arguments": {"width": 5}}, r"elsewhere\.pth does not fit Elsewhere: \d+ tensors are missing, left over"),
        ({"grid": {"lower": [0, 0]}}, r"grid of model\.teacher must be"),
        ({"min_score": 0.5}, r"only detectors of this project can be evaluated"),
        ({"tap": 1}, r"unknown config key model\.teacher\.tap, did you mean 'taps'"),
    ],
)
def test_wrong_blocks_of_modules(files, tmp_path, change, message):  # noqa: F811
    with pytest.raises((ValueError, AttributeError), match=message):
        taught_by(files, module_block(tmp_path, **change), {"f": FEATURE}).taught(batch())


def test_a_gate_of_classes_needs_a_checkpoint_of_the_teacher(files, tmp_path):  # noqa: F811
    block = {"type": f"{__name__}.Constant", "arguments": {"value": 2.0}}
    with pytest.raises(FileNotFoundError, match=r"model\.class_gate\.student: absent\.pth"):
        taught_by(files, block, {"f": FEATURE}, class_gate={"student": "absent.pth"})
    with pytest.raises(ValueError, match=r"class_gate compares .*, but model\.teacher has none"):
        taught_by(files, block, {"f": FEATURE}, class_gate={"student": files["student_weights"]})
    assert taught_by(files, None, {}, class_gate={"student": "absent.pth"}).predict(batch())


def test_losses_that_run_the_teachers_head_refuse_answers_alone(files, tmp_path):  # noqa: F811
    crossed = {"type": "CrossHeadLoss", "student": "fuser", "teacher": ["fuser", "heads.object"]}
    with pytest.raises(ValueError, match=r"CrossHeadLoss runs the teacher's CenterHead, of which there are only"):
        taught_by(files, module_block(tmp_path), {"c": crossed})
    with pytest.raises(ValueError, match=r"ResponseLoss reads the maps of a CenterHead, but the teacher is a Outline"):
        taught_by(files, module_block(tmp_path, tasks=None), {"r": RESPONSE})


class Constant(Teacher):
    """A teacher of one's own."""

    def __init__(self, value: float) -> None:
        self.model = Outline(("fuser",), BEVGrid((-4.0, -4.0), (1.0, 1.0), (CELLS, CELLS)))
        self.digest, self.value = f"constant {value}", value

    def extract(self, batch, taps):
        return {"fuser": torch.full((len(batch), 4, CELLS, CELLS), self.value)}


def test_whatever_answers_can_teach(files):  # noqa: F811
    block = {"type": f"{__name__}.Constant", "arguments": {"value": 2.0}}
    distiller = taught_by(files, block, {"f": FEATURE}).eval()
    ours = distiller.student.extract(batch(), {"fuser"})["fuser"]
    assert distiller.loss(batch())["loss/kd/f"].item() == pytest.approx((ours - 2).square().mean().item(), rel=1e-5)


# -- several teachers -------------------------------------------------------------------------------------------------


def two(files):  # noqa: F811
    constant = {"type": f"{__name__}.Constant", "arguments": {"value": 2.0}}
    return {"lidar": {"config": files["teacher"], "checkpoint": files["teacher_weights"]}, "labels": constant}


def test_each_loss_reads_its_teacher(files):  # noqa: F811
    losses = {"near": FEATURE | {"teacher": "lidar.fuser"}, "far": FEATURE | {"teacher": "labels.fuser"}}
    losses["response"] = RESPONSE | {"teacher": "lidar.heads.object"}
    distiller = taught_by(files, None, losses, teachers=two(files)).eval()
    lone = {name: taught_by(files, block, {"f": FEATURE}).eval() for name, block in composed(two(files)).items()}
    terms = distiller.loss(batch())
    assert_close(terms["loss/kd/near"], lone["lidar"].loss(batch())["loss/kd/f"], **EXACT)
    assert_close(terms["loss/kd/far"], lone["labels"].loss(batch())["loss/kd/f"], **EXACT)
    assert set(distiller.instructors) == {"lidar", "labels"} and "loss/kd/response/bbox/task0" in terms
    with pytest.raises(ValueError, match=r"several teachers: lidar, labels"):
        distiller.teacher  # noqa: B018


def test_a_teacher_that_nobody_reads_is_not_built(files):  # noqa: F811
    teachers = two(files) | {"absent": {"config": files["teacher"], "checkpoint": "absent.pth"}}
    losses = {"far": FEATURE | {"teacher": "labels.fuser"}}
    assert set(taught_by(files, None, losses, teachers=teachers).instructors) == {"labels"}


def test_students_inherit_from_a_named_teacher(files):  # noqa: F811
    student = {"config": files["student"], "init_from_teacher": {"heatmap": "lidar.heatmap"}}
    losses = {"far": FEATURE | {"teacher": "labels.fuser"}}
    distiller = Distiller(losses=losses, **composed({"student": student, "teachers": two(files)}))
    distiller.init_weights()
    state = torch.load(files["teacher_weights"])["state_dict"]
    assert torch.equal(distiller.student.heatmap.weight, state["heatmap.weight"])
    for source, message in (("heatmap", "must begin with the name of a teacher"), ("labels.x", "has no checkpoint")):
        student["init_from_teacher"] = {"heatmap": source}
        with pytest.raises(ValueError, match=message):
            Distiller(losses=losses, **composed({"student": student, "teachers": two(files)})).init_weights()


def test_each_teacher_must_be_good_enough_and_may_keep_answers(files, tmp_path):  # noqa: F811
    teachers = two(files)
    teachers["lidar"] |= {"min_score": 0.5, "answers": str(tmp_path / "answers")}
    losses = {"near": FEATURE | {"teacher": "lidar.fuser"}}
    parts = composed({"student": {"config": files["student"]}, "teachers": teachers})
    with pytest.raises(ValueError, match=r"less than model\.teachers\.lidar\.min_score 0\.5"):
        Distiller(losses=losses, **parts).setup_training(lambda _: {"object/map": 0.4})
    distiller = Distiller(losses=losses, **parts)
    distiller.setup_training(None)
    distiller.taught(named())
    assert len(list((tmp_path / "answers").rglob("*.safetensors"))) == 2


@pytest.mark.parametrize(
    ("taps", "message"),
    [
        ("fuser", r"model\.losses\.f\.teacher: 'fuser' must begin with the name of a teacher .*lidar, labels"),
        ("lidr.fuser", r"'lidr\.fuser' must begin with the name of a teacher, did you mean 'lidar'"),
        (["lidar.fuser", "labels.fuser"], r"a loss reads one teacher, not lidar and labels"),
        ("lidar.fusers", r"the teacher has no tap 'lidar\.fusers', did you mean 'lidar\.fuser'"),
    ],
)
def test_taps_of_several_teachers_that_are_none(files, taps, message):  # noqa: F811
    with pytest.raises(ValueError, match=message):
        taught_by(files, None, {"f": FEATURE | {"teacher": taps}}, teachers=two(files))


def test_one_form_or_the_other(files):  # noqa: F811
    with pytest.raises(ValueError, match=r"model\.teacher is one teacher, model\.teachers are several"):
        taught_by(files, detector(files), {"f": FEATURE}, teachers=two(files))


def test_the_examples_of_the_documentation_are_blocks():
    text = (Path(__file__).resolve().parents[2] / "docs" / "teachers.md").read_text()
    kinds = []
    for example in re.findall(r"```yaml\n(.*?)```", text, re.DOTALL):
        model = yaml.safe_load(example)["model"]
        teachers = model.get("teachers")
        for block in (teachers or {}).values():
            block |= {"model": {"type": "ToyDetector"}} if "config" in block else {}
        kinds.append([type(block) for block in read_teachers(model.get("teacher"), teachers, needed=True).values()])
    assert kinds == [[ModuleBlock], [RecordedBlock], [DetectorBlock, RecordedBlock]]


# -- other rasters, channels and classes ------------------------------------------------------------------------------


def saved(files, tmp_path, name, **model):  # noqa: F811
    """The block of a teacher like the fixture's but for these arguments."""
    config = write_config(tmp_path / "configs" / f"{name}.yaml", sensor="points", **model)
    torch.manual_seed(0)
    torch.save({"state_dict": build_model(load_config(config).model).state_dict()}, tmp_path / f"{name}.pth")
    return composed({"t": {"config": config, "checkpoint": str(tmp_path / f"{name}.pth")}})["t"]


def test_another_raster_is_brought_to_the_students_and_said(files, tmp_path, caplog):  # noqa: F811
    block = saved(files, tmp_path, "coarse", cell=2.0)
    with caplog.at_level(logging.INFO):
        distiller = taught_by(files, block, {"f": FEATURE, "response": RESPONSE})
    assert "model.teacher: its maps over 8x8 cells of 2x2 m" in caplog.text
    assert "are brought to 8x8 cells of 1x1 m" in caplog.text
    raw = distiller.instructor.teacher.extract(batch(), {"fuser"})["fuser"]
    found = distiller.taught(batch())
    # The student's cell (2, 4) lies at (-1.5, 0.5), between the centres of cells 0, 1 and 1, 2 of the teacher.
    around = raw[:, :, 0:2, 1:3].flatten(2)
    weights = torch.tensor([0.25 * 0.25, 0.25 * 0.75, 0.75 * 0.25, 0.75 * 0.75])
    assert_close(found["fuser"][:, :, 2, 4], (around * weights).sum(2), rtol=0, atol=1e-5)
    assert all(v.isfinite() for v in distiller.loss(batch()).values())


def test_other_channels_take_a_projection(files, tmp_path):  # noqa: F811
    block = saved(files, tmp_path, "wide", channels=6)
    loss = LOSSES["feature"]
    with pytest.raises(ValueError, match=r"cannot compare student fuser: \(2, 4, .*or give the loss a `projection: "):
        taught_by(files, block, {"f": loss}).loss(batch())
    distiller = taught_by(files, block, {"f": loss | {"projection": [4, 6]}})
    terms = distiller.loss(batch())
    terms["loss/kd/f"].backward()
    assert distiller.projections["f"].weight.grad.abs().sum() > 0
    assert "projections.f.weight" in distiller.state_dict()
    own = taught_by(files, block, {"f": FEATURE | {"projection": [4, 6]}})
    assert not own.projections and own.loss(batch())["loss/kd/f"].requires_grad
    for wrong, message in (([4], r"\[student's channels, teacher's"), (4, "a list of whole numbers, got 4")):
        with pytest.raises(ValueError, match=rf"losses\.f\.projection must be {message}"):
            taught_by(files, block, {"f": loss | {"projection": wrong}})


def test_classes_are_matched_by_name_and_unknown_ones_are_not_taught(files, tmp_path, caplog):  # noqa: F811
    head = head_output()
    block = by_another_program(tmp_path / "told", {"0": head, "1": head}, tasks=[["bus", "truck"]])
    with caplog.at_level(logging.INFO):
        distiller = taught_by(files, block, {"response": RESPONSE})
    assert "matched to the student's by name; it does not know car" in caplog.text
    assert "model.losses.response teach truck" in caplog.text
    (answer,) = distiller.taught(named())["heads.object"]
    assert torch.equal(answer["heatmap"][:1, 1:], head["heads.object/0/heatmap"][:, 1:])
    assert (answer["heatmap"][:, 0] == -10).all()
    distiller.student.heatmap.bias.data[0] = 3.0
    terms = distiller.loss(named())
    terms["loss/kd/response/heatmap/task0"].backward()
    gradient = distiller.student.heatmap.weight.grad.flatten(1).abs().sum(1)
    assert gradient[0] == 0 < gradient[1]
    with pytest.raises(ValueError, match=r"losses\.radar: model\.teacher does not know car, and RadarActivationL"):
        taught_by(files, block, {"radar": LOSSES["radar"]})


# -- subclasses -------------------------------------------------------------------------------------------------------


@MODELS.register
class PatientDistiller(Distiller):
    """A distiller of one's own."""


def test_a_subclass_is_audited_like_any_other(files, tmp_path, monkeypatch, capsys):  # noqa: F811
    from mmdet3d.commands import audit_distillation

    part = {"config": files["teacher"], "checkpoint": files["teacher_weights"], "min_score": 0.9}
    own = {"type": "PatientDistiller", "teacher": part, "student": {"config": files["student"]}}
    models = {"own": own | {"losses": {"f": FEATURE}}, "plain": {"type": "ToyDetector", "sensor": "radar"}}
    rest = {"data": {"samples_per_gpu": 2}, "max_epochs": 1, "optimizer": {"type": "SGD", "lr": 0.1}}
    for name, model in models.items():
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump({"model": model, **rest}))
    monkeypatch.setattr("mmdet3d.datasets.build_split", lambda *_: Sweeps())
    audit_distillation.main([str(tmp_path / "own.yaml"), "--batches", "1"])
    assert "f " in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"describes no distillation: model\.type is ToyDetector"):
        audit_distillation.main([str(tmp_path / "plain.yaml")])


class Sweeps:
    views = None

    def __len__(self):
        return 2

    def set_epoch(self, epoch):
        pass

    def __getitem__(self, index):
        from mmdet3d.structures import Calibration, Sample

        one = batch().alone(index)
        calibration = Calibration(**{k: v[0] for k, v in vars(one.calibration).items()})
        points = {name: getattr(one, name)[0] for name in ("points", "radar")}
        return Sample(str(index), calibration, clouds=points, boxes=one.boxes[0], labels=torch.zeros(1).long())
