"""Recipe files: which trainings build on each other, on which data, and the table that they end in."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from mmdet3d.blocks import ConfigKeyError, at_least, check_keys, hints_from, nearest, not_negative, read_block
from mmdet3d.config import Config, find_config, load_config, read_with_base
from mmdet3d.datasets import benchmark_of
from mmdet3d.datasets.synthetic.worlds import World, read_world
from mmdet3d.engine.agreement import check_agreement
from mmdet3d.engine.optimizer import build_optimizer
from mmdet3d.engine.overrides import without_effect
from mmdet3d.engine.schedule import LearningRate, Momentum
from mmdet3d.engine.settings import Settings
from mmdet3d.evaluation.control import Column
from mmdet3d.io.files import check_place
from mmdet3d.models import build_model
from mmdet3d.models.detectors.base import Trainable
from mmdet3d.plugins import module_names

__all__ = ["Recipe", "RecipeRun"]

ROLES = {"teacher": True, "student": False, "control": True, "distilled": True}  # whether a table needs it

# What the command line has an option for, or decides by itself.
_NO_OVERRIDE = {"seed": "give --seeds", "resume_from": "the same command again resumes what was interrupted"}


@dataclass(frozen=True)
class RunBlock:
    """One training of a recipe.

    Args:
        config: a config file.
        overrides: of that config by dotted key; a value `{name}` stands for the checkpoint of the run `name`.
        shared: train once, with the first seed, for all seeds (teachers).
        cost: CPU seconds per step on one core of the reference machine (`mmdet3d.engine.estimate`), start and
            evaluation included: `cpu_seconds / iterations` of `results.json`. None if not known.
    """

    config: str
    overrides: Mapping[str, Any] = field(default_factory=dict)
    shared: bool = False
    cost: float | None = None

    def __post_init__(self) -> None:
        if self.cost is not None:
            not_negative(self.cost, "cost")


@dataclass(frozen=True)
class RecipeRun(RunBlock):
    """A training of a recipe in its place.

    Args:
        name: in its recipe.
        names: of all runs of its recipe.
    """

    name: str = ""
    names: Collection[str] = ()

    @property
    def references(self) -> dict[str, str]:
        """Key of an override to the run whose checkpoint fills it."""
        texts = {key: value for key, value in self.overrides.items() if isinstance(value, str)}
        return {key: value[1:-1] for key, value in texts.items() if value.startswith("{") and value.endswith("}")}

    def overrides_with(self, given: Mapping[str, Any], checkpoints: Mapping[str, str] | None = None) -> dict[str, Any]:
        """Overrides of the config: `given` by the user, and those of this run that the user does not replace.

        What is given as `NAME.a.b.c` is for the run NAME alone and comes last.

        Args:
            checkpoints: of earlier runs, by name; None leaves `{name}` for them.
        """
        addressed = [(*_address(key, self.names), value) for key, value in given.items()]
        common = {key: value for name, key, value in addressed if name is None}
        alone = {key: value for name, key, value in addressed if name is not None and name == self.name}
        replaced = (*common, *alone)
        own = {key: value for key, value in self.overrides.items() if not any(_covers(g, key) for g in replaced)}
        filled = {key: f"{{{n}}}" if checkpoints is None else checkpoints[n] for key, n in self.references.items()}
        both = [name for o in (self.overrides, given) for name in module_names(o.get("imports"), "the recipe")]
        # A later entry has the last word, so those for this run alone must not keep the place of an earlier one.
        first = {key: value for key, value in {**common, **own}.items() if key not in alone}
        return {**first, **alone, **filled, **({"imports": both} if both else {})}

    def importing(self, modules: Sequence[str]) -> RecipeRun:
        """This run with further `imports` of its config."""
        own = module_names(self.overrides.get("imports"), "the recipe")
        return replace(self, overrides={**self.overrides, "imports": [*modules, *own]})


@dataclass(frozen=True)
class PictureSettings:
    """What a recipe draws at its end.

    Args:
        columns: runs that are drawn side by side.
        samples: how many key frames.
        min_score: least score of the detections that are drawn.
        scores: they are written beside them.
    """

    columns: Sequence[str]
    samples: int
    min_score: float = 0.2
    scores: bool = False

    def __post_init__(self) -> None:
        at_least(1, self.samples, "samples")


@dataclass(frozen=True)
class Recipe:
    """A recipe file.

    Args:
        title: heading of the table.
        runs: in order; a run may name the ones before it.
        table: which run plays which role of `ControlTable`; empty for no table.
        variants: further rows of the table, heading to run.
        controls: further controls that the distilled student is compared with, heading to run.
        columns: of the table, heading to metric, of which more is better; without them those of the data set.
        decimals: of the table's numbers.
        data: a synthetic world, see `datasets.synthetic.worlds.read_world`; None if the data set is the user's.
        data_cost: CPU seconds that making them takes on the reference machine; None if not known.
        pictures: what is drawn at the end; null for nothing.
        imports: modules that every run imports, beside those of its config.
    """

    title: str
    runs: Mapping[str, RecipeRun]
    table: Mapping[str, str] = field(default_factory=dict)
    variants: Mapping[str, str] = field(default_factory=dict)
    controls: Mapping[str, str] = field(default_factory=dict)
    columns: Mapping[str, str] | None = None
    decimals: int = 4
    data: Mapping[str, Any] | None = None
    data_cost: float | None = None
    pictures: PictureSettings | None = None
    imports: Sequence[str] = ()

    def __post_init__(self) -> None:
        at_least(0, self.decimals, "decimals")
        if self.data_cost is not None:
            not_negative(self.data_cost, "data_cost")

    @classmethod
    def load(cls, path: str | Path) -> Recipe:
        """Raises ValueError naming the key that is unknown, missing or refers to nothing."""
        file = find_config(path)
        try:
            recipe = read_block(cls, read_with_base(file), "")
            recipe.world()
            names = tuple(recipe.runs)
            blocks = {name: read_block(RunBlock, block, f"runs.{name}") for name, block in recipe.runs.items()}
            runs = {name: RecipeRun(**vars(block), name=name, names=names) for name, block in blocks.items()}
            if imports := module_names(recipe.imports, file.name):
                runs = {name: run.importing(imports) for name, run in runs.items()}
            recipe = replace(recipe, runs=runs)
            recipe._check_references(file.name)
            recipe._check_table(file.name)
            recipe._check_pictures(file.name)
        except ConfigKeyError as error:
            raise ValueError(f"{file.name}: {error}") from None
        return recipe

    def _check_references(self, where: str) -> None:
        earlier: list[str] = []
        for name, run in self.runs.items():
            for key, other in run.references.items():
                if other not in earlier:
                    raise ValueError(
                        f"{where}, runs.{name}: {key} needs the checkpoint of {other!r}, which is no earlier run"
                        f"{nearest(other, earlier)}"
                    )
            earlier.append(name)

    def _check_table(self, where: str) -> None:
        for key, rows in {"table": self.table, "variants": self.variants, "controls": self.controls}.items():
            for heading, name in rows.items():
                if name not in self.runs:
                    raise ValueError(f"{where}, {key}: {heading}: {name} is no run{nearest(name, self.runs)}")
        if self.table or self.variants or self.controls:
            check_keys(self.table, ROLES, "table", [role for role, needed in ROLES.items() if needed])

    def _check_pictures(self, where: str) -> None:
        if self.pictures is None:
            return
        where = f"{where}, pictures"
        if not self.pictures.columns:
            raise ValueError(f"{where}.columns: name at least one run")
        for name in self.pictures.columns:
            if name not in self.runs:
                raise ValueError(f"{where}.columns: {name} is no run{nearest(str(name), self.runs)}")

    def check(self, overrides: Mapping[str, Any]) -> None:
        """Find what would only show after hours of training.

        Args:
            overrides: that the user gives, of every config, or as `NAME.a.b.c` of that of the run NAME.

        Raises:
            ValueError: an override that the recipe decides itself or that does not fit every run it is given to, a
                config that cannot be resolved, contradicts itself or whose model, optimiser or schedule cannot be
                built, or a run that is not evaluated at its end.
            FileNotFoundError: a config that does not exist.
        """
        self._check_overrides(overrides)
        self._check_effect(overrides)
        for name, run in self.runs.items():
            try:
                config, settings, _ = self._built(name, overrides)
            except ValueError as error:
                raise ValueError(self._misfit(name, overrides, str(error))) from error
            check_agreement(config)
            self._check_columns(name, benchmark_of(config.data.get("val")).metrics)
            start, interval = settings.evaluation.start, settings.evaluation.interval
            if start > settings.max_epochs or (settings.max_epochs - start) % interval:
                raise ValueError(
                    f"run {name} has {settings.max_epochs} epochs and is not evaluated after the last one (evaluation: "
                    f"start {start}, interval {interval}); change evaluation.start or evaluation.interval"
                )
            if not config.get("data", {}).get("val"):
                raise ValueError(f"run {name} has no data.val to be evaluated on; add it to {run.config}")

    def _check_columns(self, name: str, known: Sequence[str]) -> None:
        """Raises ValueError if a column of the table is none of the metrics that the run `name` reports, if known."""
        for column in self.table_columns if known and self.table else ():
            if column.key not in known:
                raise ValueError(
                    f"columns: {column.heading} is the metric {column.key}, which run {name} does not report"
                    f"{nearest(column.key, known)}"
                )

    def _check_overrides(self, overrides: Mapping[str, Any]) -> None:
        refused = dict(_NO_OVERRIDE)
        if self.data is not None:
            refused["dataset_root"] = "give --data-dir"
        for key in overrides:
            addressee, inner = _address(key, self.runs)
            handed_on = {
                place: f"run {name} gets the checkpoint of run {other} there"
                for name, run in self.runs.items()
                for place, other in run.references.items()
                if addressee in (None, name)
            }
            for fixed, remedy in (refused | handed_on).items():
                if _covers(inner, fixed):
                    raise ValueError(f"--{key} has no effect in this recipe: {remedy}")

    def _check_effect(self, overrides: Mapping[str, Any]) -> None:
        """Raises ValueError if an override changes nothing in any run that it is given to."""
        for key, value in overrides.items():
            addressee, inner = _address(key, self.runs)
            runs = [addressee] if addressee else list(self.runs)
            idle = []
            for run in (self.runs[name] for name in runs):
                try:
                    idle.append(without_effect(run.config, {inner: value}).get(inner))
                except ValueError:  # it does not fit, which `_misfit` explains
                    idle.append(None)
            if all(idle):
                raise ValueError(idle[0])

    def _built(self, name: str, overrides: Mapping[str, Any]) -> tuple[Config, Settings, Trainable]:
        """Config, settings and model of a run, whose optimiser can make a first step."""
        run = self.runs[name]
        config = load_config(run.config, run.overrides_with(overrides))
        with hints_from(config):
            settings = Settings.from_config(config)
            model = build_model(config.get("model") or {})
            optimizer = build_optimizer(model, settings.optimizer)
            LearningRate(settings.lr_config, settings.max_epochs, 1).apply(optimizer, 0, 0)
            Momentum(settings.momentum_config, settings.max_epochs, 1).apply(optimizer, 0, 0)
        return config, settings, model

    @property
    def compared(self) -> list[str]:
        """Runs whose difference the table shows, so that they must see the same frames."""
        roles = [self.table[role] for role in ("control", "distilled") if role in self.table]
        return list(dict.fromkeys([*roles, *self.variants.values(), *self.controls.values()]))

    def compared_sensors(self, overrides: Mapping[str, Any]) -> list[str]:
        """What the compared runs read together, a teacher's sensors included (`Trainable.training_inputs`)."""
        read = [self._built(name, overrides)[2].training_inputs for name in self.compared]
        return list(dict.fromkeys(sensor for inputs in read for sensor in inputs))

    def _misfit(self, name: str, overrides: Mapping[str, Any], problem: str) -> str:
        """What is wrong with a run, and which runs the override fits that it stumbles over."""
        culprit: str | None = None
        given: dict[str, Any] = {}
        for key, value in overrides.items():  # later ones may build on earlier ones
            given[key] = value
            if not self._resolves(name, given):
                culprit = key
                break
        if culprit is None or not self._resolves(name, {}):
            return f"run {name}: {problem}"
        if _address(culprit, self.runs)[0] is not None:
            return f"--{culprit} does not fit: {problem}"
        fits = [other for other in self.runs if self._resolves(other, given)]
        if not fits:
            head = culprit.partition(".")[0]
            unknown = head not in load_config(self.runs[name].config)
            hint = f"; runs, which may stand before the key: {', '.join(self.runs)}" if unknown else ""
            return f"--{culprit} fits no run: {problem}{hint}"
        return (
            f"--{culprit} fits {' and '.join(fits)}, not {name} ({problem}); give it to one run by that run's name: "
            f"--{fits[-1]}.{culprit} VALUE"
        )

    def _resolves(self, name: str, overrides: Mapping[str, Any]) -> bool:
        try:
            self._built(name, overrides)
        except ValueError:
            return False
        return True

    @cached_property
    def table_columns(self) -> Sequence[Column]:
        """Those that the recipe names, else those of the data set that its first run is evaluated on.

        Raises:
            ValueError: neither names any.
        """
        if self.columns is not None:
            return [Column(key, name) for name, key in self.columns.items()]
        first = next(iter(self.runs.values()))
        data = load_config(first.config, first.overrides_with({})).get("data") or {}
        found = benchmark_of(data.get("val")).columns
        if not found:
            raise ValueError(f"columns is missing in {self.title}: its data set names no metrics for a table")
        return found

    def training_samples(self) -> int | None:
        """Of an epoch on the data that the recipe makes; None if it makes none."""
        return None if self.data is None else self.world().training_samples

    def world(self, seed: int = 0) -> World:
        """The synthetic world that `data` describes.

        Raises:
            ConfigKeyError: an unknown layout or key.
            ValueError: a value outside its range.
        """
        return read_world(self.data or {}, seed, "data")

    def data_seconds(self, root: str | Path | None) -> float:
        """CPU seconds on the reference machine until the world in `root` is there, as far as they are known."""
        made = root is None or self.world().is_made(root)
        return 0.0 if made or self.data_cost is None else self.data_cost

    def check_place(self, root: Path, seed: int) -> None:
        """Raise ValueError if `root` has no world of this recipe and is sure not to take one; nothing is made."""
        if self.data is not None and not self.world(seed).is_made(root):
            check_place(root, "--data-dir")

    def make_data(self, root: Path, seed: int, workers: int) -> None:
        """Make the synthetic world of this recipe, or what is missing of it."""
        self.world(seed).make(root, workers)


def _address(key: str, names: Iterable[str]) -> tuple[str | None, str]:
    """The run that an override `NAME.a.b.c` is for, and the key of its config; None and `key` if it is for all."""
    meant = [name for name in names if key.startswith(f"{name}.")]
    name = max(meant, key=len, default=None)
    return name, key if name is None else key[len(name) + 1 :]


def _covers(key: str, other: str) -> bool:
    """Whether an override of `key` replaces what `other` names."""
    return other == key or other.startswith(f"{key}.")
