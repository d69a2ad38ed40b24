"""Config inheritance, overrides, and expressions."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from mmdet3d.config import Config, load_config, parse_overrides, parse_yaml


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
        (["--seed.x", "1"], "it is 0"),
        (["--steps.4", "1"], "no index"),
        (["--seed"], "needs a value"),
    ],
)
def test_wrong_overrides_are_refused(tree: Path, overrides: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_config(tree, overrides)


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
