"""A config in which models are named by other configs says, once it is loaded, what is built."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml

from mmdet3d.config import CONFIG_ROOT, composed, load_config
from mmdet3d.engine.agreement import check_agreement
from mmdet3d.models import build_model

CRKD = "synthetic/crkd/small.yaml"
STUDENT = "synthetic/camera+radar/small.yaml"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """An outer config whose model names an inner one, which names an innermost one."""
    root = tmp_path / "configs"
    root.mkdir()
    write(root / "inner" / "default.yaml", {"width": 4, "data": {"train": {"type": "A", "frame": "ego"}}})
    write(root / "inner" / "inner.yaml", {"model": {"type": "Inner", "width": "${width}", "deep": {"a": 1}}})
    write(root / "middle.yaml", {"model": {"type": "Middle", "part": {"config": str(root / "inner" / "inner.yaml")}}})
    write(root / "outer.yaml", {"model": {"type": "Outer", "part": {"config": str(root / "middle.yaml"), "weight": 2}}})
    return root


def write(file: Path, content: dict) -> None:
    file.parent.mkdir(exist_ok=True)
    file.write_text(yaml.safe_dump(content))


def inner(config) -> dict:
    return config.model.part.model.part.model.to_dict()


def test_both_sides_of_a_distillation_stand_in_full() -> None:
    model = load_config(CRKD).model
    assert model.teacher.model == load_config(model.teacher.config).model
    assert model.student.model == load_config(STUDENT, model.student.overrides).model != load_config(STUDENT).model
    assert model.teacher.data.train == load_config(model.teacher.config).data.train
    assert model.teacher.config == "synthetic/camera+lidar/small.yaml" and len(model.teacher.config_digest) == 16


def test_named_models_inside_named_models_stand_in_full(tree: Path) -> None:
    config = load_config(tree / "outer.yaml")
    assert inner(config) == {"type": "Inner", "width": 4, "deep": {"a": 1}}
    assert config.model.part.model.part.data == {"train": {"type": "A", "frame": "ego"}}
    assert config.model.part.weight == 2
    label = load_config("synthetic/labeldistill/small.yaml").model.teacher.model.detector
    assert label.model == load_config("synthetic/lidar/small.yaml").model


def test_comments_do_not_change_the_digest_and_inherited_content_does(tree: Path) -> None:
    def digest() -> str:
        return load_config(tree / "middle.yaml").model.part.config_digest

    before, file = digest(), tree / "inner" / "default.yaml"
    text = file.read_text()
    file.write_text(f"# a note\n\n{text}")
    assert digest() == before
    file.write_text(text.replace("ego", "lidar"))
    assert digest() != before


def test_a_runs_config_is_taken_as_it_is_whatever_becomes_of_the_files(tree: Path, tmp_path: Path) -> None:
    config = load_config(tree / "outer.yaml")
    run = tmp_path / "run" / "configs.yaml"
    write(run, config.to_dict())
    shutil.rmtree(tree)
    assert load_config(run) == config


def test_a_run_rebuilds_its_model_after_the_students_defaults_were_edited(tmp_path: Path) -> None:
    folder = tmp_path / "configs"
    shutil.copytree(CONFIG_ROOT / "synthetic", folder / "synthetic")
    shutil.copy(CONFIG_ROOT / "default.yaml", folder)
    names = {f"{role}_config": f"{folder}/{load_config(CRKD)[f'{role}_config']}" for role in ("teacher", "student")}
    config = load_config(folder / CRKD, names)
    run = tmp_path / "configs.yaml"
    run.write_text(config.dump())
    defaults = folder / "synthetic" / "camera+radar" / "default.yaml"
    defaults.write_text(defaults.read_text().replace("GatedFuser", "ConvFuser"))
    assert "ConvFuser" in str(build_model(load_config(folder / CRKD, names).model))
    assert str(build_model(load_config(run).model)) == str(build_model(config.model))


@pytest.mark.parametrize("form", ["model.part.model.part.model", "model.part.overrides.model.part.model"])
def test_keys_of_a_named_model_are_overridden_by_the_name_that_they_have_in_full(tree: Path, form: str) -> None:
    keys = {f"{form}.width": 9, f"{form}.deep.a": 2, f"{form}.new": True}
    assert inner(load_config(tree / "outer.yaml", keys)) == {"type": "Inner", "width": 9, "deep": {"a": 2}, "new": True}


def test_what_a_file_derives_from_a_constant_is_overridden_through_the_constant(tree: Path) -> None:
    config = load_config(tree / "middle.yaml", ["--model.part.overrides.width", "7"])
    assert config.model.part.model.width == 7
    config = load_config(
        tree / "middle.yaml", ["--model.part.overrides", "{width: 7}", "--model.part.model.width", "8"]
    )
    assert config.model.part.model.width == 8


def test_overrides_of_a_run_set_its_model_or_name_another(tree: Path, tmp_path: Path) -> None:
    run = tmp_path / "configs.yaml"
    run.write_text(load_config(tree / "outer.yaml").dump())
    assert inner(load_config(run, {"model.part.model.part.model.width": 9}))["width"] == 9
    other = load_config(run, {"model.part.config": str(tree / "inner" / "inner.yaml")}).model.part
    assert other.model.type == "Inner" and other.config_digest != load_config(run).model.part.config_digest
    with pytest.raises(
        ValueError, match=r"model\.part stands in full in configs\.yaml; set .*--model\.part\.model\.KEY"
    ):
        load_config(run, {"model.part.overrides.model.type": "X"})


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"model.part.model.part.modell.width": 1}, r"unknown config key 'model\.part\.modell'"),
        ({"model.part.overrides.modl.width": 1}, r"model\.part: unknown config key 'modl', did you mean 'model'"),
        ({"model.part.model.part.model.dep.a": 1}, r"unknown config key 'model\.dep', did you mean 'deep'"),
        ({"model.pat.model.width": 1}, r"unknown config key 'model\.pat', did you mean 'part'"),
        ({"model.part.config": "default.yaml"}, r"model\.part: default\.yaml describes no model"),
    ],
)
def test_mistakes_are_named_with_the_place(tree: Path, overrides: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_config(tree / "outer.yaml", overrides)


def test_a_missing_file_and_a_circle_are_named(tree: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"model\.part\.config: config nowhere\.yaml not found"):
        load_config(tree / "outer.yaml", {"model.part.config": "nowhere.yaml"})
    write(tree / "middle.yaml", {"model": {"type": "Middle", "part": {"config": str(tree / "outer.yaml")}}})
    with pytest.raises(
        ValueError, match=r"model\.part: model\.part: .*outer\.yaml names itself as a part of its model"
    ):
        load_config(tree / "outer.yaml")


def test_imports_of_named_configs_are_the_runs_too(tree: Path) -> None:
    write(tree / "inner" / "inner.yaml", {"imports": ["json.tool"], "model": {"type": "Inner"}})
    assert load_config(tree / "outer.yaml", {"imports": ["csv"]}).imports == ["csv", "json.tool"]


def test_a_model_block_is_composed_by_itself(tree: Path) -> None:
    block = composed({"parts": [{"config": str(tree / "inner" / "inner.yaml")}, {"config": "notes.txt"}]})
    assert block.parts[0].model.width == 4 and block.parts[1] == {"config": "notes.txt"}


# -- a distillation's data are its student's ---------------------------------------------------------------------------


@pytest.fixture
def distillation(tmp_path: Path) -> Path:
    root = tmp_path / "configs"
    root.mkdir()
    data = {"train": {"type": "D", "size": "${size}", "turn": "${turn}"}, "samples_per_gpu": 4}
    write(root / "default.yaml", {"size": 1, "turn": 1, "max_epochs": 1, "lr_config": None, "data": data})
    write(root / "student" / "default.yaml", {"size": 2, "turn": 2, "max_epochs": 2, "data": {"samples_per_gpu": 8}})
    write(root / "student" / "small.yaml", {"model": {"type": "S", "size": "${size}"}, "lr_config": {"policy": "step"}})
    student = {"config": str(root / "student" / "small.yaml")}
    write(root / "taught" / "small.yaml", {"turn": 3, "model": {"type": "Distiller", "student": student}})
    return root


def test_data_come_from_the_student_and_the_training_does_not(distillation: Path) -> None:
    config = load_config(distillation / "taught" / "small.yaml")
    assert config.data == {"train": {"type": "D", "size": 2, "turn": 3}, "samples_per_gpu": 4}
    assert config.max_epochs == 1 and config.lr_config is None and set(config.model) == {"type", "student"}
    assert config.model.student.model.size == 2 == config.size
    write(distillation / "other" / "wide.yaml", {"size": 5, "model": {"type": "S"}})
    other = {"model.student.config": str(distillation / "other" / "wide.yaml")}
    assert load_config(distillation / "taught" / "small.yaml", other).data.train["size"] == 5
    run = distillation.parent / "configs.yaml"
    run.write_text(config.dump())
    shutil.rmtree(distillation)
    assert load_config(run) == config


def test_arguments_of_the_students_data_set_are_not_those_of_another_type(distillation: Path, tmp_path: Path) -> None:
    student = {"config": str(distillation / "student" / "small.yaml")}
    own = {"data": {"train": {"type": "Frames"}}, "model": {"type": "Distiller", "student": student}}
    write(tmp_path / "elsewhere" / "own.yaml", own)
    config = load_config(tmp_path / "elsewhere" / "own.yaml")
    assert config.data == {"train": {"type": "Frames"}} and config.size == 2


def test_shipped_distillations_do_not_repeat_their_students_data() -> None:
    config = load_config("nuscenes/distill/simdistill/resnet50/convfuser-512x896.yaml")
    student = load_config(config.model.student.config)
    for key in ("image_size", "augment2d", "augment3d", "point_cloud_range", "voxel_size"):
        assert config[key] == student[key]
    assert config.data.train == student.data.train and config.data.val == student.data.val


def test_a_teacher_of_other_data_is_named_before_training() -> None:
    ego = {"model.teacher.overrides.reference_frame": "ego"}
    message = r"frame of data\.train.* is lidar, but frame of data\.train of synthetic/camera\+lidar/.* is ego"
    with pytest.raises(ValueError, match=message):
        check_agreement(load_config(CRKD, ego))
