"""Answers of a teacher that are stored and found again."""

from __future__ import annotations

import json
import multiprocessing
from dataclasses import replace

import pytest
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import load_file
from test_distiller import LOSSES, batch, make, ready, write_config
from torch.testing import assert_close

from mmdet3d.config import load_config
from mmdet3d.distill import LiveTeacher, StoredTeacher, teacher
from mmdet3d.models import build_model

TAPS = {"fuser", "heads.object"}
VIEWS = ["data/first.0.0", "data/second.1.0"]


@pytest.fixture
def files(tmp_path):
    (tmp_path / "configs").mkdir()
    torch.manual_seed(0)
    paths = {"answers": str(tmp_path / "answers")}
    for role, sensor in (("teacher", "points"), ("student", "radar")):
        paths[role] = write_config(tmp_path / "configs" / f"{role}.yaml", sensor=sensor)
        paths[f"{role}_weights"] = str(tmp_path / f"{role}.pth")
        torch.save({"state_dict": build_model(load_config(paths[role]).model).state_dict()}, paths[f"{role}_weights"])
    return paths


def block(files, role="teacher", overrides=()):
    return load_config(files[role], overrides).model


def stored(files) -> StoredTeacher:
    source = LiveTeacher.load(block(files), files["teacher_weights"], files["teacher"], later=True)
    return StoredTeacher(source, files["answers"])


def live(files) -> LiveTeacher:
    return LiveTeacher.load(block(files), files["teacher_weights"])


def named(seed=0, views=VIEWS):
    return replace(batch(seed), views=list(views))


HALF = {"rtol": 1e-3, "atol": 1e-5}
EXACT = {"rtol": 0, "atol": 0}


def forbid_loading(monkeypatch):
    def load(*_):
        raise AssertionError("the teacher's weights were loaded")

    monkeypatch.setattr(teacher, "load_checkpoint", load)


def test_stored_is_live_within_half_precision_and_written_is_read(files, monkeypatch):
    expected = {tap: live(files).extract(named(), TAPS)[tap] for tap in TAPS}
    written = stored(files).extract(named(), TAPS)
    assert_close(written, expected, **HALF)
    forbid_loading(monkeypatch)
    assert_close(stored(files).extract(named(), TAPS), written, **EXACT)


def test_losses_and_gradients_are_those_of_a_live_teacher(files):
    def step(**teacher_options):
        torch.manual_seed(1)
        distiller = ready(files, teacher=teacher_options)
        torch.manual_seed(1)
        terms = distiller.loss(named())
        sum(terms.values()).backward()
        gradient = torch.cat([p.grad.flatten() for p in distiller.parameters()])
        return {name: term.detach() for name, term in terms.items()}, gradient

    (terms, gradient), first, again = step(), *(step(answers=files["answers"]) for _ in range(2))
    assert_close(first[0], terms, rtol=2e-3, atol=1e-5)
    assert (first[1] - gradient).norm() < 2e-3 * gradient.norm()
    assert_close(again, first, **EXACT)


def test_trainings_share_answers_and_need_no_weights(files, monkeypatch):
    answers = stored(files).extract(named(), TAPS)["fuser"]
    forbid_loading(monkeypatch)
    for losses in (LOSSES, {"feature": LOSSES["feature"]}):
        taught = ready(files, teacher={"answers": files["answers"]}, losses=losses).taught
        for k in range(2):
            assert torch.equal(taught(named().alone(k))["fuser"], answers[k : k + 1])


def test_a_recorded_score_is_enough(files, monkeypatch, tmp_path):
    digest = teacher.file_digest(files["teacher_weights"])
    side = {"metrics": {"object/map": 0.5}, "sha256": digest}
    (tmp_path / "teacher.json").write_text(json.dumps(side))
    stored(files).extract(named(), TAPS)
    forbid_loading(monkeypatch)
    ready(files, teacher={"answers": files["answers"], "min_score": 0.4}).loss(named())
    with pytest.raises(ValueError, match=r"scores object/map 0\.5000"):
        ready(files, teacher={"answers": files["answers"], "min_score": 0.6})


def test_an_unrecorded_score_is_measured_on_the_teacher_with_its_weights(files):
    distiller, seen = make(files, teacher={"answers": files["answers"], "min_score": 0.4}), []
    distiller.setup_training(lambda model: seen.append(model) or {"object/map": 0.5})
    state = torch.load(files["teacher_weights"])["state_dict"]
    assert all(torch.equal(v, state[k]) for k, v in seen[0].state_dict().items())


def test_a_new_tap_is_asked_for_alone(files, monkeypatch):
    first = stored(files).extract(named(), {"fuser"})["fuser"]
    asked, source, extract = [], stored(files), LiveTeacher.extract

    def noted(self, batch, taps):
        asked.append(list(taps))
        return extract(self, batch, taps)

    monkeypatch.setattr(LiveTeacher, "extract", noted)
    both = source.extract(named(), TAPS)
    assert asked == [["heads.object"]] * 2 and torch.equal(both["fuser"], first)
    forbid_loading(monkeypatch)
    assert_close(stored(files).extract(named(), TAPS), both, **EXACT)


def test_the_folder_says_what_it_is(files):
    source = stored(files)
    source.extract(named(), TAPS)
    about = json.loads((source.answers.folder / "metadata.json").read_text())
    assert about["sha256"] == teacher.file_digest(files["teacher_weights"]) and about["config"] == files["teacher"]
    tensors = load_file(source.answers.folder / "data" / "first.0.0.safetensors")
    parts = ("reg", "height", "dim", "rot", "vel", "heatmap")
    assert set(tensors) == {"sample", "fuser", *(f"heads.object/0/{part}" for part in parts)}
    assert all(t.dtype == torch.float16 for name, t in tensors.items() if name != "sample")


def test_other_weights_and_other_configs_are_other_teachers(files, tmp_path):
    same = teacher.teacher_digest(block(files), files["teacher_weights"])
    moved = tmp_path / "elsewhere.pth"
    moved.write_bytes((tmp_path / "teacher.pth").read_bytes())
    assert teacher.teacher_digest(block(files), moved) == same
    assert teacher.teacher_digest(block(files), files["student_weights"]) != same
    assert teacher.teacher_digest(block(files, "student"), files["teacher_weights"]) != same
    outer = tmp_path / "configs" / "outer.yaml"
    outer.write_text(yaml.safe_dump({"model": {"type": "X", "part": {"config": files["teacher"], "checkpoint": "a"}}}))
    before = teacher.teacher_digest(load_config(outer).model, moved)
    config = yaml.safe_load((tmp_path / "configs" / "teacher.yaml").read_text())
    (tmp_path / "configs" / "teacher.yaml").write_text(yaml.safe_dump({"model": config["model"] | {"cell": 2.0}}))
    assert teacher.teacher_digest(load_config(outer).model, moved) != before


def test_an_overridden_teacher_is_another_one(files):
    blocks = [block(files, overrides=o) for o in ({}, {"model.cell": 2.0})]
    plain, changed = (teacher.teacher_digest(each, files["teacher_weights"]) for each in blocks)
    source = StoredTeacher(LiveTeacher.load(blocks[1], files["teacher_weights"]), files["answers"])
    source.extract(named(), TAPS)
    assert source.digest == changed != plain and source.grid.cell == (2.0, 2.0)
    assert json.loads((source.answers.folder / "metadata.json").read_text())["model"]["cell"] == 2.0


def test_a_damaged_file_is_answered_anew_with_one_warning(files, caplog):
    expected = stored(files).extract(named(), TAPS)
    source = stored(files)
    paths = sorted((source.answers.folder / "data").glob("*"))
    for path in paths:
        path.write_bytes(path.read_bytes()[:-7])
    assert_close(source.extract(named(), TAPS), expected, **EXACT)
    assert [r.levelname for r in caplog.records] == ["WARNING"] and "is damaged" in caplog.text
    assert all(safe_open(path, "pt") for path in paths) and len(paths) == 2


def test_damage_is_not_stored_anew_beside_the_answers_of_another_tap(files):
    expected = stored(files).extract(named(), {"fuser"})
    path, _ = sorted((stored(files).answers.folder / "data").glob("*"))
    content = bytearray(path.read_bytes())
    content[-40] ^= 0x55  # of the last tensor
    path.write_bytes(content)
    stored(files).extract(named(), {"heads.object"})
    assert_close(stored(files).extract(named(), {"fuser"}), expected, **EXACT)


def test_answers_under_autocast_are_kept_apart(files, monkeypatch):
    full = stored(files).extract(named(), {"fuser"})["fuser"]
    with torch.autocast("cpu", torch.bfloat16):
        expected = live(files).extract(named(), {"fuser"})["fuser"].float()
        rounded = stored(files).extract(named(), {"fuser"})["fuser"]
        forbid_loading(monkeypatch)
        assert_close(stored(files).extract(named(), {"fuser"})["fuser"], rounded, **EXACT)
    assert rounded.dtype == torch.float32 and not torch.equal(rounded, full)
    assert_close(rounded, expected, **HALF)
    assert_close(stored(files).extract(named(), {"fuser"})["fuser"], full, **EXACT)
    folder = stored(files).answers.folder
    about = json.loads((folder.with_name(f"{folder.name}-bfloat16") / "metadata.json").read_text())
    assert about["precision"] == "bfloat16"


def test_answers_to_another_sample_are_refused(files):
    stored(files).extract(named(), TAPS)
    turned, shuffled = named(), named()
    turned.calibration = replace(turned.calibration, lidar_aug=1.01 * turned.calibration.lidar_aug)
    first = shuffled.points[0].clone()
    first[:, :3] = first[:, :3].flip(0)  # the same places and the same features, of other points
    shuffled.points = [first, *shuffled.points[1:]]
    for other in (named(seed=3), turned, shuffled):
        with pytest.raises(ValueError, match=r"another sample than 0 .*delete the folder .*answers/[0-9a-f]{16}/data"):
            stored(files).extract(other, TAPS)


def test_no_folder_is_not_the_current_one(files):
    with pytest.raises(ValueError, match=r"model\.teacher\.answers is empty"):
        stored(files | {"answers": ""})


def test_samples_that_do_not_come_back_are_refused(files):
    with pytest.raises(ValueError, match=r"sample 1 is augmented anew in every epoch .* set views to the number"):
        stored(files).extract(named(views=["data/first", None]), TAPS)


def test_what_cannot_be_stored_is_refused_by_name(files):
    source, sample = stored(files), named().alone(0)
    with pytest.raises(ValueError, match=r"answers targets/boxes with a Boxes3D, which cannot be stored"):
        source.answers.write(sample, {"targets": {"boxes": sample.boxes[0]}})
    with pytest.raises(ValueError, match="answers fuser with numbers that are not finite"):
        source.answers.write(sample, {"fuser": torch.tensor([float("nan")])})


def test_integers_and_wide_numbers_are_kept_as_they_are(files):
    source, sample = stored(files), named().alone(0)
    values = {"wide": torch.tensor([1e6, 1e-3]), "index": torch.tensor([70001]), "mask": torch.tensor([True])}
    source.answers.write(sample, {"tap": [values, (values["wide"],)]})
    found = source.answers.read(sample, ["tap"])["tap"]
    assert all(torch.equal(found[0][name], value) for name, value in values.items())
    assert torch.equal(found[1][0], values["wide"])


def test_empty_lists_and_dicts_come_back(files, monkeypatch):
    source, sample = stored(files), named().alone(0)
    values = {"tap": [], "regions": {"boxes": [], "by_class": {}, "scores": torch.ones(2)}}
    assert source.answers.write(sample, values).keys() == values.keys()
    found = source.answers.read(sample, ["tap", "regions"])
    assert found["tap"] == [] and found["regions"]["boxes"] == [] and found["regions"]["by_class"] == {}
    forbid_loading(monkeypatch)
    assert source.extract(named(views=VIEWS[:1] * 2).alone(0), {"tap"}) == {"tap": []}


def _fill(files, seeds):
    torch.set_num_threads(1)
    for seed in seeds:
        stored(files).extract(named(seed, [f"data/{seed}.{k}" for k in range(2)]), TAPS)


def test_two_processes_fill_one_folder(files, monkeypatch):
    fork = multiprocessing.get_context("fork")
    workers = [fork.Process(target=_fill, args=(files, seeds)) for seeds in ((0, 1, 2), (2, 1, 0))]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [w.exitcode for w in workers] == [0, 0]
    assert len(list((stored(files).answers.folder / "data").iterdir())) == 6
    forbid_loading(monkeypatch)
    _fill(files, range(3))


def test_a_batch_apart_and_together(files):
    whole = named()
    parts = [whole.alone(k) for k in range(2)]
    assert [p.tokens for p in parts] == [["0"], ["1"]] and [p.views for p in parts] == [[v] for v in VIEWS]
    assert torch.equal(parts[1].calibration.image_aug, whole.calibration.image_aug[1:])
    assert len(parts[0].points) == 1 and parts[0].points[0] is whole.points[0]
