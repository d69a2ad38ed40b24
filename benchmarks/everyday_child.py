"""What `benchmarks.everyday` runs in a tree of the repository, an earlier one too: prints JSON.

    python benchmarks/everyday_child.py parts|wall CONFIG OVERRIDES STEPS    (OVERRIDES: JSON; PYTHONPATH: the tree)

`parts`: CPU seconds of a sample by part of the work, the data read and the step done in this process. `wall`: seconds
of a step of the tree's own training, with as many threads and loader workers as it takes.
"""

from __future__ import annotations

import collections
import contextlib
import itertools
import json
import resource
import statistics
import sys
import tempfile
import time
from typing import Any

from mmdet3d import datasets  # isort: skip (before torch, as it says how threads wait)
import torch

from mmdet3d.config import load_config
from mmdet3d.engine.optimizer import build_optimizer
from mmdet3d.engine.settings import Settings
from mmdet3d.engine.trainer import Trainer, seed_everything
from mmdet3d.models import build_model
from mmdet3d.structures import Batch


def main(mode: str, config: str, overrides: str, steps: str) -> None:
    cfg = load_config(config, json.loads(overrides))
    seed_everything(0)
    model = build_model(cfg.model).train()
    dataset = _First(_train_split(cfg), int(steps) * cfg.data["samples_per_gpu"])
    result = {"parts": _parts, "wall": _wall}[mode](cfg, model, dataset)
    result["peak_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps(result))


def _train_split(cfg: Any) -> Any:
    if hasattr(datasets, "build_split"):
        return datasets.build_split(cfg.data, "train", 0)
    return datasets.build_dataset(cfg.data.train, 0)


class _First:
    """The first `size` samples of a data set."""

    def __init__(self, dataset: Any, size: int) -> None:
        self._dataset, self._size = dataset, min(size, len(dataset))

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, index: int) -> Any:
        return self._dataset[index]

    def set_epoch(self, epoch: int) -> None:
        self._dataset.set_epoch(epoch)


def _parts(cfg: Any, model: Any, dataset: _First) -> dict[str, Any]:
    """Two epochs; the first builds kernels and fills caches and is not counted."""
    settings = Settings.from_config(cfg)
    model.setup_training(lambda _: {})
    optimizer = build_optimizer(model, settings.optimizer)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    seconds: dict[str, float] = collections.defaultdict(float)

    @contextlib.contextmanager
    def part(name: str) -> Any:
        start = time.process_time()
        yield
        seconds[name] += time.process_time() - start

    # One in an attribute before, several by name today.
    for teacher in [t for t in (getattr(model, "_teacher", None), *getattr(model, "_teachers", {}).values()) if t]:
        teacher.extract = _timed(teacher.extract, lambda: part("teacher"))
    size = cfg.data["samples_per_gpu"]
    for epoch in range(2):
        seconds.clear()
        dataset.set_epoch(epoch)
        for first in range(0, len(dataset) - size + 1, size):
            with part("loading"):
                batch = Batch.collate([dataset[i] for i in range(first, first + size)])
            with part("forward"):
                total = sum(v for k, v in model.loss(batch).items() if k.startswith("loss/"))
            with part("backward"):
                total.backward()
            with part("optimiser"):
                torch.nn.utils.clip_grad_norm_(parameters, 35)
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
    seconds["forward"] -= seconds["teacher"]
    return {"cpu_ms": {name: value / len(dataset) * 1e3 for name, value in seconds.items()}}


def _timed(call: Any, clock: Any) -> Any:
    def timed(*arguments: Any) -> Any:
        with clock():
            return call(*arguments)

    return timed


def _wall(cfg: Any, model: Any, dataset: _First) -> dict[str, Any]:
    """Two epochs of training; the steps of the second count."""
    cfg["max_epochs"], began, loss = 2, [], model.loss

    def noted(batch: Any) -> Any:
        began.append(time.perf_counter())
        return loss(batch)

    model.loss = noted
    with tempfile.TemporaryDirectory() as folder:
        Trainer(model, dataset, None, cfg, folder, torch.device("cpu")).fit()
    counted = began[len(began) // 2 :]
    cpu = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return {
        "wall_s": statistics.median(b - a for a, b in itertools.pairwise(counted)),
        "cpu_s": sum(c.ru_utime + c.ru_stime for c in cpu),
    }


if __name__ == "__main__":
    main(*sys.argv[1:])
