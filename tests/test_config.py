"""Config inheritance, overrides, and expressions."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from mmdet3d.config import (
    CONFIG_ROOT,
    Config,
    config_chain,
    load_config,
    parse_overrides,
    read_mapping,
)
from mmdet3d.io.yaml_text import parse_yaml
from mmdet3d.models import build_model


@pytest.fixture()
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "configs"
    (root / "a" / "b").mkdir(parents=True)
    (root / "default.yaml").write_text(
        "seed: 0\nlr: 1e-3\ndataset_root: data/x/\nmodel: {lidar: {c: 1}, camera: null}\nrange: [-4, 4, 8]\n"
    )
    (root / "a" / "default.yaml").write_text("model: {lidar: null, camera: {width: 3}}\nsteps: [1, 2]\n")
    (root / "a" / "b" / "leaf.yaml").write_text(
        "model: {lidar: {d: 2}}\nsteps: [3]\nann: ${dataset_root + 'train.pkl'}\n"
        "cells: ${[range[2] // 2, -range[0] * 2]}\n"
        "width: ${model.camera.width}\npipeline: ${inner}\ninner: [{size: '${range[:2]}'}]\n"
    )
    return root / "a" / "b" / "leaf.yaml"


def test_inheritance_merges_mappings_and_replaces_the_rest(tree: Path) -> None:
    config = load_config(tree)
    assert config.model.lidar == {"d": 2}  # null erased the subtree, the leaf made a new one
    assert config.model.camera.width == 3
    assert config.steps == [3]


def test_expressions(tree: Path) -> None:
    config = load_config(tree)
    assert config.ann == "data/x/train.pkl"
    assert config.cells == [4, 8]
    assert config.width == 3
    assert config.pipeline == [{"size": [-4, 4]}]


def test_a_block_may_refer_to_its_own_sibling(tree: Path) -> None:
    path = tree.with_name("sibling.yaml")
    path.write_text(
        "data: {val: {root: '${dataset_root}', sizes: '${range}'}, test: '${data.val}', n: '${data.val.sizes[1]}'}\n"
    )
    data = load_config(path).data
    assert data.test == data.val == {"root": "data/x/", "sizes": [-4, 4, 8]}
    assert data.n == 4


def test_overrides_apply_before_expressions(tree: Path) -> None:
    config = load_config(tree, ["--dataset_root", "data/y/", "--inner.0.size", "7", "model.camera.width=5"])
    assert (config.ann, config.pipeline, config.width) == ("data/y/train.pkl", [{"size": 7}], 5)


def test_an_override_below_a_reference_changes_that_use_alone(tree: Path) -> None:
    path = tree.with_name("uses.yaml")
    path.write_text("part: {width: '${steps[0]}', deep: {a: 1}}\nfirst: '${part}'\nsecond: '${part.deep}'\n")
    config = load_config(path, ["--first.deep.a", "2", "--second.a", "3"])
    assert config.first == {"width": 1, "deep": {"a": 2}}
    assert config.second == {"a": 3}
    assert config.part.deep == {"a": 1}
    with pytest.raises(ValueError, match=r"cannot set a key below first\.width"):
        load_config(path, ["--first.width.x", "2"])


def test_a_choice_among_blocks(tree: Path) -> None:
    path = tree.with_name("choice.yaml")
    path.write_text(
        "term: {width: 1}\nsets: {both: {a: '${term}', b: '${term}'}, one: {a: '${term}'}}\n"
        "choose: both\nlosses: '${sets[choose]}'\n"
    )
    assert load_config(path).losses == {"a": {"width": 1}, "b": {"width": 1}}
    # An override below the choice changes what is chosen, in whichever order the two are given.
    assert load_config(path, ["--losses.a.width", "2", "--choose", "one"]).losses == {"a": {"width": 2}}
    assert load_config(path, ["--losses.b", "null"]).losses == {"a": {"width": 1}, "b": None}
    with pytest.raises(ValueError, match=r"unknown config key 'losses\.b'"):
        load_config(path, ["--choose", "one", "--losses.b.width", "2"])
    with pytest.raises(ValueError, match=r"no key 'onne', did you mean 'one'.*there are both, one"):
        load_config(path, ["--choose", "onne"])


def test_override_values_are_yaml() -> None:
    words = ["--a", "1e-4", "--b", "[1, 'x y']", "--c", "null", "d=true", "--e", "-0.5", "--f", "0123abc"]
    assert parse_overrides(words) == {"a": 1e-4, "b": [1, "x y"], "c": None, "d": True, "e": -0.5, "f": "0123abc"}


@pytest.mark.parametrize("text", ["1e-3", "1E-3", "+1e-3", "0.001", ".001", "1.e-3", "0.1e-2"])
def test_a_number_is_one_wherever_it_is_written(tree: Path, text: str) -> None:
    path = tree.with_name("numbers.yaml")
    path.write_text(f"lr: {text}\nrates: [{text}, 2e-3]\n")
    assert load_config(path).lr == 0.001 and load_config(path).rates == [0.001, 0.002]
    assert parse_overrides(["--a", text, "--b", f"[{text}, 2e-3]"]) == {"a": 0.001, "b": [0.001, 0.002]}


@pytest.mark.parametrize("text", ["0123abc", "e3", "1e", "1e-", "1.2.3", "1e3f", "'12e03'", '"1e-3"', "-", "."])
def test_text_stays_text(text: str) -> None:
    value = text.strip("'\"")
    assert parse_yaml(f"[{text} ]" if text != "-" else "['-']") == [value]
    # The resolved config of a run is read again.
    assert parse_yaml(Config(x=value, y=[1e-3, 1e22, float("inf")]).dump()) == {"x": value, "y": [1e-3, 1e22, math.inf]}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["--sead", "1"], "did you mean 'seed'"),
        (["--modl.lidar", "1"], "did you mean 'model'"),
        (["--camera", "1"], r"'camera', did you mean 'model\.camera'"),
        (["--model.camera.d.x", "1"], r"'model\.camera\.d', did you mean 'model\.lidar\.d'"),
        (["--seed.x", "1"], "it is 0"),
        (["--steps.4", "1"], "no index"),
        (["--seed"], "needs a value"),
    ],
)
def test_wrong_overrides_are_refused(tree: Path, overrides: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_config(tree, overrides)


def test_a_block_of_the_training_that_the_file_leaves_out_may_be_given(tmp_path: Path) -> None:
    """It was unknown, "did you mean" itself."""
    path = tmp_path / "own.yaml"
    path.write_text("model: {type: A, width: 2}\n")
    given = ["--checkpoint_config.interval", "2", "--lr_config.policy", "step", "--max_epochs", "3"]
    config = load_config(path, given)
    assert (config.checkpoint_config, config.lr_config.policy, config.max_epochs) == ({"interval": 2}, "step", 3)
    with pytest.raises(ValueError, match=r"unknown config key 'model\.lr_config', did you mean 'lr_config'\?"):
        load_config(path, ["--model.lr_config.policy", "step"])
    with pytest.raises(ValueError, match=r"unknown config key 'data' \(own\.yaml\)"):
        load_config(path, ["--data.train.part", "[0, 1]"])


@pytest.mark.parametrize(
    "text", ["__import__('os')", "(lambda: 1)()", "range.append(1)", "[x for x in range]", "1 if seed else 2"]
)
def test_expressions_outside_the_whitelist_are_refused(tree: Path, text: str) -> None:
    tree.write_text(f'x: "${{{text}}}"\n')
    with pytest.raises(ValueError, match="only names"):
        load_config(tree)


def test_self_reference_is_refused(tree: Path) -> None:
    tree.write_text("x: ${y}\ny: ${x}\n")
    with pytest.raises(ValueError, match="refers to itself"):
        load_config(tree)


def test_broken_files(tree: Path) -> None:
    with pytest.raises(FileNotFoundError, match="not found"):
        load_config("no/such.yaml")
    tree.write_text("a: [1,\n")
    with pytest.raises(ValueError, match="not valid YAML"):
        load_config(tree)
    tree.write_text("")
    assert load_config(tree).seed == 0


def test_unknown_attribute_names_the_nearest(tree: Path) -> None:
    with pytest.raises(AttributeError, match="did you mean 'dataset_root'"):
        load_config(tree).datasetroot  # noqa: B018


# -- base -----------------------------------------------------------------------------------------------------------


def test_bases_come_between_the_defaults_and_the_file(tree: Path) -> None:
    parts = tree.parents[2] / "_parts"
    parts.mkdir()
    (parts / "one.yaml").write_text("seed: 1\nlr: 1\nsteps: [1]\nonly_one: true\n")
    (parts / "two.yaml").write_text("base: [one.yaml]\nsteps: [2]\nlr: 2\n")
    tree.write_text("base: [_parts/two.yaml, _parts/one.yaml]\nlr: 3\n")
    config = load_config(tree)
    assert (config.seed, config.lr, config.steps, config.only_one) == (1, 3, [2], True)
    assert "base" not in config
    names = [file.name for file in config_chain(tree)]
    assert names == ["default.yaml", "default.yaml", "one.yaml", "two.yaml", "leaf.yaml"], (
        "each once, where it is first"
    )


def test_a_default_may_have_a_base_and_a_part_may_lie_below_it(tree: Path) -> None:
    (tree.parent / "part.yaml").write_text("steps: [7]\nwidth: 7\n")
    (tree.parents[1] / "default.yaml").write_text("base: [b/part.yaml]\nwidth: 8\n")
    tree.write_text("x: 1\n")
    config = load_config(tree)
    assert (config.steps, config.width, config.x) == ([7], 8, 1)


def test_a_users_file_stands_on_shipped_configs(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(
        "base: [nuscenes/det/centerhead/lssfpn/camera/256x704/resnet/default.yaml]\n"
        "max_epochs: 3\nimage_size: [128, 352]\n"
    )
    config = load_config(tmp_path / "mine.yaml")
    shipped = load_config("nuscenes/det/centerhead/lssfpn/camera/256x704/resnet/default.yaml")
    assert config.max_epochs == 3 and config.model.encoders.camera.vtransform.image_size == [128, 352]
    assert config.model.heads == shipped.model.heads and config.keys() == shipped.keys()
    (tmp_path / "default.yaml").write_text("base: [default.yaml]\nmax_epochs: 5\n")  # that of configs/, not itself
    (tmp_path / "other.yaml").write_text("seed: 4\n")
    other = load_config(tmp_path / "other.yaml")
    assert (other.max_epochs, other.seed, other.precision) == (5, 4, "auto")


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("base: part.yaml", ValueError, r"leaf\.yaml: base must be a list of YAML files, got 'part\.yaml'"),
        ("base: [_parts/swin_tt.yaml]", FileNotFoundError, r"swin_tt\.yaml not found.*_parts/swin_t\.yaml"),
        ("base: [other.yaml]", ValueError, r"other\.yaml: base leaf\.yaml leads back to"),
    ],
)
def test_wrong_bases_are_named(tree: Path, text: str, error: type[Exception], message: str) -> None:
    (tree.parent / "other.yaml").write_text("base: [leaf.yaml]\n")
    tree.write_text(text)
    with pytest.raises(error, match=message):
        load_config(tree)


def test_every_part_is_used() -> None:
    configs = [file for file in CONFIG_ROOT.rglob("*.yaml") if file.parent.name != "_parts"]
    used = {part for file in configs for part in _bases(file)}
    assert {file for file in CONFIG_ROOT.glob("_parts/*.yaml")} <= used


def _bases(file: Path) -> list[Path]:
    names = read_mapping(file).get("base", [])
    found = [folder / name for name in names for folder in (CONFIG_ROOT, file.parent) if (folder / name).is_file()]
    return [*found, *(part for base in found for part in _bases(base))]


def test_the_example_of_the_documentation(tmp_path: Path) -> None:
    text = (CONFIG_ROOT.parent / "docs" / "training.md").read_text()
    example = text[text.index("# mine.yaml;") :]
    (tmp_path / "mine.yaml").write_text(example[: example.index("```")])
    config = load_config(tmp_path / "mine.yaml")
    assert config.max_epochs == 5
    with torch.device("meta"):
        model = build_model(config.model)
    assert type(model.encoders["camera"]["backbone"]).__name__ == "SwinTransformer"
