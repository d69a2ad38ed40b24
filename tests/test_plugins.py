"""Parts of other packages: modules of a config's `imports`, entry points, full names."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from mmdet3d import plugins
from mmdet3d.config import load_config
from mmdet3d.engine.command import read_overrides
from mmdet3d.registry import MODELS, Registry

PART = """
from mmdet3d.registry import MODELS

@MODELS.register
class {name}:
    def __init__(self, weight=1.0):
        self.weight = weight
"""


@pytest.fixture()
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty current folder, and a world that forgets what was imported from it."""
    MODELS.names()
    monkeypatch.setattr(MODELS, "_classes", dict(MODELS._classes))
    monkeypatch.setattr(plugins, "_imported", {})
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p])
    monkeypatch.chdir(tmp_path)
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


def test_imports_of_a_config_register_parts_of_the_current_folder(folder: Path) -> None:
    (folder / "plug_one.py").write_text(PART.format(name="PlugOne"))
    (folder / "plug_two.py").write_text(PART.format(name="PlugTwo"))
    (folder / "a.yaml").write_text("imports: [plug_one]\nmodel: {type: PlugOne}\n")
    config = load_config("a.yaml", {"imports": "plug_two"})
    assert MODELS.build(config.model).weight == 1.0
    assert MODELS.build({"type": "PlugTwo", "weight": 3}).weight == 3
    # What a run writes, and what test and --resume read, names them again.
    (folder / "configs.yaml").write_text(config.dump())
    assert load_config("configs.yaml").imports == config.imports == ["plug_one", "plug_two"]
    assert plugins.imported() == ("plug_one", "plug_two")


def test_the_command_line_adds_to_imports() -> None:
    assert read_overrides(["--seed", "1"], None, "a, b.c") == {"seed": 1, "imports": ["a", "b.c"]}
    assert read_overrides(["imports=[x]"], None, "a") == {"imports": ["x", "a"]}
    assert read_overrides([]) == {}


def test_every_command_that_takes_overrides_takes_imports() -> None:
    commands = Path(__file__).resolve().parents[1] / "mmdet3d" / "commands"
    texts = {file.stem: file.read_text() for file in commands.glob("*.py")}
    takers = {name for name, text in texts.items() if "add_override_options(parser)" in text}
    assert {"train", "test", "train_val", "run_recipe"} <= takers
    call = "read_overrides(rest, args.overrides_file, args.imports)"
    assert [name for name in takers if call not in texts[name]] == []


def test_a_config_without_imports_stays_as_it_is(folder: Path) -> None:
    (folder / "a.yaml").write_text("model: {type: X}\n")
    assert "imports" not in load_config("a.yaml")


def test_a_run_may_go_on_with_other_imports(tmp_path: Path) -> None:
    from mmdet3d.engine.resuming import refuse_changes

    (tmp_path / "configs.yaml").write_text("imports: [a]\nseed: 1\n")
    refuse_changes(tmp_path, {"imports": ["a", "b"], "seed": 1}, "x.yaml")


def test_a_module_is_named_without_its_suffix(folder: Path) -> None:
    (folder / "plug_here.py").write_text("")
    with pytest.raises(ValueError, match=r"no module 'plug_here.py', name modules without .py \('plug_here'\); it"):
        plugins.import_modules(["plug_here.py"], "--imports")


def test_what_cannot_be_imported_is_one_sentence(folder: Path) -> None:
    (folder / "a.yaml").write_text("imports: [plug_absent]\n")
    with pytest.raises(
        ValueError, match=r"imports of .*a\.yaml: there is no module .plug_absent.* looked for in"
    ) as caught:
        load_config("a.yaml")
    assert str(folder) in str(caught.value) and sys.prefix in str(caught.value)
    (folder / "plug_broken.py").write_text("import plug_nowhere\n")
    with pytest.raises(
        ValueError, match=r"plug_broken \(.*plug_broken.py\) cannot be imported: ModuleNotFoundError.*no"
    ):
        plugins.import_modules(["plug_broken"])
    (folder / "plug_syntax.py").write_text("class\n")
    with pytest.raises(ValueError, match=r"cannot be imported: SyntaxError: .*line 1"):
        plugins.import_modules(["plug_syntax"])


@pytest.mark.parametrize(("given", "message"), [(3, "must be a list"), (["my pkg"], "'my pkg' is no name of a module")])
def test_imports_that_are_none(given: object, message: str, folder: Path) -> None:
    (folder / "a.yaml").write_text(yaml.dump({"imports": given}))
    with pytest.raises(ValueError, match=message):
        load_config("a.yaml")


def test_a_full_name_needs_no_registration(folder: Path) -> None:
    (folder / "plug_pack").mkdir()
    (folder / "plug_pack" / "__init__.py").touch()
    (folder / "plug_pack" / "parts.py").write_text(
        "class Plain:\n    def __init__(self, size):\n        self.size = size\n"
    )
    assert MODELS.build({"type": "plug_pack.parts.Plain", "size": 4}).size == 4
    with pytest.raises(ValueError, match=r"unknown config key .*sise, did you mean 'size'"):
        MODELS.build({"type": "plug_pack.parts.Plain", "sise": 4})
    with pytest.raises(
        ValueError,
        match=r"type: plug_pack.parts.Plane: plug_pack.parts \(.*parts.py\) has no class or function 'Plane'",
    ):
        MODELS.get("plug_pack.parts.Plane")
    with pytest.raises(ValueError, match=r"type: plug_pack.other.Plain: there is no module 'plug_pack.other'"):
        MODELS.get("plug_pack.other.Plain")


def test_a_name_that_is_taken(folder: Path) -> None:
    (folder / "plug_taken.py").write_text(PART.format(name="GatedFuser"))
    with pytest.raises(
        ValueError, match=r"GatedFuser of plug_taken: mmdet3d.models.fusers.gated has registered that name"
    ):
        plugins.import_modules(["plug_taken"])


def test_a_module_may_be_imported_again(folder: Path) -> None:
    (folder / "plug_again.py").write_text(PART.format(name="PlugAgain"))
    plugins.import_modules(["plug_again"])
    first = MODELS.get("PlugAgain")
    del sys.modules["plug_again"]
    plugins.import_modules(["plug_again"])
    assert MODELS.get("PlugAgain") is not first


@pytest.fixture()
def install(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """As pip would install a package that has one module and an entry point for it."""
    monkeypatch.setattr(plugins, "_entry_points_loaded", False)
    monkeypatch.syspath_prepend(str(folder / "site"))

    def add(module: str, text: str) -> None:
        info = folder / "site" / f"dist_of_{module}-1.0.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: dist-of-{module}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[{plugins.GROUP}]\nparts = {module}\n")
        (folder / "site" / f"{module}.py").write_text(text)

    return add


def test_installed_plugins_need_not_be_named(install: Callable[[str, str], None]) -> None:
    registry = Registry("toy", ())
    install("plug_entry", PART.format(name="PlugEntry"))
    assert registry.names() == []  # the first look-up, of any registry, loads them
    assert MODELS.build({"type": "PlugEntry"}).weight == 1.0


def test_an_installed_plugin_that_is_broken_is_named(install: Callable[[str, str], None]) -> None:
    registry = Registry("toy", ())
    install("plug_bad", "raise RuntimeError('of its own')")
    for _ in range(2):
        with pytest.raises(ValueError, match=r"installed package dist-of-plug_bad brings.*RuntimeError: of its own"):
            registry.names()


def test_recipes_pass_imports_on(folder: Path) -> None:
    from mmdet3d.engine.recipe_file import Recipe

    (folder / "r.yaml").write_text(
        "title: t\nimports: [plug_a]\nruns:\n  one: {config: x.yaml, overrides: {seed: 1, imports: [plug_b]}}\n"
        "  two: {config: x.yaml, overrides: {load_from: '{one}'}}\n"
    )
    one, two = Recipe.load("r.yaml").runs.values()
    assert one.overrides_with({}, {})["imports"] == ["plug_a", "plug_b"]
    assert two.overrides_with({"imports": ["plug_c"]}, {"one": "f"}) == {
        "imports": ["plug_a", "plug_c"],
        "load_from": "f",
    }


class NamesParts:
    """A data set that builds a part by its name where it is asked for a sample."""

    def __len__(self) -> int:
        return 2

    def set_epoch(self, epoch: int) -> None:
        pass

    def __getitem__(self, index: int) -> float:
        raise ValueError(f"weight {MODELS.build({'type': 'PlugWorker', 'weight': index + 5}).weight}")


@pytest.mark.slow
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_loader_workers_know_them_too(method: str, folder: Path) -> None:
    from mmdet3d.engine.data import EvaluationSampler, batches, build_loader

    (folder / "plug_worker.py").write_text(PART.format(name="PlugWorker"))
    plugins.import_modules(["plug_worker"])
    loader = build_loader(NamesParts(), EvaluationSampler(2, 1), workers=1)
    loader.multiprocessing_context = method
    with pytest.raises(ValueError, match="weight 5"):
        next(batches(loader))
