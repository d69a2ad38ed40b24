"""A recipe over seeds as a graph of trainings, and what is there of each."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmdet3d.config import Config, load_config
from mmdet3d.datasets import build_dataset, build_split, require_sensors
from mmdet3d.engine.checkpoint import RunCheckpoints
from mmdet3d.engine.executor import Spent, Task
from mmdet3d.engine.recipe_file import Recipe
from mmdet3d.engine.resuming import config_changes
from mmdet3d.io.files import atomic_write, read_json
from mmdet3d.io.weights import read_metadata
from mmdet3d.models import build_model

__all__ = ["DataRoots", "Node", "build_graph", "data_root"]

_LEAST = 15.0  # CPU seconds of the shortest run on the reference machine: its start and its evaluation

DataRoots = str | Path | Mapping[int, Path | None] | None


@dataclass(frozen=True)
class Node:
    """The training of one run of a recipe with one seed.

    Args:
        run, seed: of the recipe.
        source: the config file; `config` is that, resolved.
        folder: `<run>-seed<seed>` in the recipe's folder.
        needs: names of the nodes whose checkpoints it starts from.
        cost: CPU seconds per step on the reference machine, if known.
        starts: the final checkpoints of `needs`.
    """

    run: str
    seed: int
    source: str
    config: Config
    folder: Path
    needs: tuple[str, ...]
    cost: float | None
    starts: tuple[Path, ...] = ()

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def weights(self) -> Path:
        """The final checkpoint."""
        return self.folder / f"epoch_{self.config.max_epochs}.safetensors"

    @property
    def checkpoint(self) -> str:
        """The final checkpoint, relative to the recipe's folder."""
        return f"{self.name}/{self.weights.name}"

    def task(self, samples: int | None, factor: float | None) -> Task:
        """The node for the executor.

        Args:
            samples: of the whole training split; None to ask the data set.
            factor: how much longer this machine takes than the reference machine; None if not measured.
        """
        if samples is None:
            samples = len(build_dataset(self.config.data.train, self.config.seed))
        elif part := self.config.data.train.get("part"):
            samples = round(samples * (part[1] - part[0]))
        steps = self.config.max_epochs * -(-samples // self.config.data.samples_per_gpu)
        seconds = None if factor is None or self.cost is None else max(self.cost, _LEAST / max(steps, 1)) * factor
        return Task(self.name, self.run, self.folder, self.needs, steps, self.config.max_epochs, seconds)

    def steps(self) -> int:
        """Of the whole training; counted in its data set, which must be there, unless it is finished."""
        if (result := self.result()) is not None:
            return int(result["iterations"])
        read = build_model(self.config.model).training_inputs
        data = {**self.config.data, "unlabelled": None}  # with which an epoch has as many steps as without
        samples = len(build_split(data, "train", self.config.seed, read))
        return int(self.config.max_epochs * -(-samples // self.config.data.samples_per_gpu))

    # -- what is there ----------------------------------------------------------------------------------------------

    def check_folder(self, checkpoints: Collection[str]) -> None:
        """Compare what the folder holds with what is to be trained; `checkpoints` are those of the recipe.

        Raises:
            ValueError: a run of another config, or of config files with another content; names what differs.
        """
        settings = self.folder / "configs.yaml"
        if not settings.is_file():
            return
        configs = load_config(settings), self.config
        found, wanted = (_portable(config.to_dict(), checkpoints) for config in configs)
        if changed := config_changes(found, wanted):
            raise ValueError(
                f"{self.folder} holds a run of another config ({changed}); remove that folder to train it anew, or "
                "choose another --run-dir"
            )
        recorded = self._starts() or {}
        for name, digest in self._digests().items() if recorded else ():
            if recorded.get(name) != digest:
                raise ValueError(
                    f"{self.folder} was {'trained' if self._metadata() else 'begun'} from weights of {name} that are "
                    f"not those of its folder now; remove the folder {self.folder} to train it anew, or choose another "
                    "--run-dir"
                )

    def prepare(self) -> None:
        """Make the folder, with the config that the process reads, and note which weights it starts from."""
        self.folder.mkdir(parents=True, exist_ok=True)
        earlier = {"seconds": None, "cpu_seconds": None} if RunCheckpoints(self.folder).resumable() else {}
        self._write_note({**earlier, "starts": self._starts() or self._digests()})
        with atomic_write(self.folder / "configs.yaml") as file:
            file.write(self.config.dump())

    def note(self, spent: Spent) -> None:
        """Keep what the training took, if that was one stretch.

        Raises:
            ValueError: the training has not ended with an evaluated checkpoint.
        """
        if self._metadata() is None:
            raise ValueError(f"{self.folder} has no evaluated final checkpoint; remove that folder to train it anew")
        self._write_note({**vars(spent), **self._noted()})

    def result(self) -> dict[str, Any] | None:
        """The entry of `results.json`; None if the training is not finished."""
        metadata = self._metadata()
        if metadata is None:
            return None
        spent = self._noted()
        return {
            "config": self.source,
            "seconds": spent.get("seconds"),
            "cpu_seconds": spent.get("cpu_seconds"),
            "iterations": metadata["iteration"],
            "metrics": metadata["metrics"],
            "checkpoint": self.checkpoint,
        }

    def finished(self) -> dict[str, Any]:
        """The `result` of what was trained."""
        result = self.result()
        assert result is not None, f"{self.folder} is not finished"
        return result

    @property
    def _note(self) -> Path:
        return self.folder / "done.json"

    def _write_note(self, content: Mapping[str, Any]) -> None:
        with atomic_write(self._note) as file:
            file.write(json.dumps(content) + "\n")

    def _noted(self) -> dict[str, Any]:
        return read_json(self._note, "note") if self._note.is_file() else {}

    def _starts(self) -> dict[str, str | None] | None:
        """The `_digests` that what is there was begun with; None if nothing is there, or it was not noted."""
        begun = self._metadata() is not None or RunCheckpoints(self.folder).resumable()
        return self._noted().get("starts") if begun else None

    def _digests(self) -> dict[str, str | None]:
        """SHA-256 of the checkpoints that it starts from, by node; None where there is none yet."""
        return {path.parent.name: read_metadata(path).get("sha256") for path in self.starts}

    def _metadata(self) -> dict[str, Any] | None:
        """Of the final weights, once they were evaluated."""
        metadata = read_metadata(self.weights) if self.weights.is_file() else {}
        return metadata if metadata.get("metrics") else None


def data_root(roots: DataRoots, seed: int) -> Path | None:
    """Folder of the data of a seed, of `roots` as `build_graph` takes them."""
    root = roots[seed] if isinstance(roots, Mapping) else roots
    return None if root is None else Path(root)


def build_graph(
    recipe: Recipe, run_dir: Path, seeds: Sequence[int], overrides: Mapping[str, Any], roots: DataRoots = None
) -> dict[tuple[str, int], Node]:
    """Every run with every seed, each after those it needs; a shared run is one node for all seeds on the same data.

    Args:
        overrides: of the user, for every config.
        roots: of the data that the recipe makes: one folder, or one per seed.

    Returns:
        Per run and seed; a shared run has the node of the first seed on these data.

    Raises:
        ValueError: a folder holds a run of another config.
    """
    graph: dict[tuple[str, int], Node] = {}
    # A world that the recipe makes has all files; of another data set a run without teacher could use more frames.
    sensors = recipe.compared_sensors(overrides) if recipe.data is None else []
    shared: dict[tuple[str, Path | None], Node] = {}
    for seed in seeds:
        root = data_root(roots, seed)
        given = overrides if root is None else {**overrides, "dataset_root": f"{root}/"}
        for name, run in recipe.runs.items():
            if run.shared and (name, root) in shared:
                graph[name, seed] = shared[name, root]
                continue
            earlier = {other: graph[other, seed] for other in run.references.values()}
            checkpoints = {other: str(node.weights) for other, node in earlier.items()}
            config = load_config(run.config, {**run.overrides_with(given, checkpoints), "seed": seed})
            if name in recipe.compared:
                require_sensors(config.data.train, sensors)
            needs = tuple(dict.fromkeys(node.name for node in earlier.values()))
            starts = tuple(node.weights for node in earlier.values())
            node = Node(name, seed, run.config, config, run_dir / f"{name}-seed{seed}", needs, run.cost, starts)
            graph[name, seed] = node
            if run.shared:
                shared[name, root] = node
    made = {node.checkpoint for node in graph.values()}
    for node in graph.values():
        node.check_folder(made)
    return graph


def _portable(value: Any, checkpoints: Collection[str]) -> Any:
    """A config in which checkpoints of the recipe are relative to its run folder, however that one was written.

    Without digests of config files, which change with settings that no part of the run uses.
    """
    if isinstance(value, Mapping):
        return {key: _portable(item, checkpoints) for key, item in value.items() if key != "config_digest"}
    if isinstance(value, list):
        return [_portable(item, checkpoints) for item in value]
    if isinstance(value, str):
        return next((c for c in checkpoints if value.endswith(f"/{c}")), value)
    return value
