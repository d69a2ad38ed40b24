"""A training whose steps compute; prints what computed it: python busy_training.py FOLDER WORKERS"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from engine_toy import EngineToyDataset, EngineToyModel, toy_config

from mmdet3d.engine.logging import log_to_folder
from mmdet3d.engine.trainer import Trainer
from mmdet3d.structures import Batch

import torch  # isort: skip


class BusyModel(EngineToyModel):
    def loss(self, batch: Batch) -> dict[str, torch.Tensor]:
        matrix = torch.ones(600, 600)
        for _ in range(16):
            matrix = matrix @ matrix / 600
        return super().loss(batch)


def cpu_ticks() -> dict[str, int]:
    """Of each thread of this process."""
    stats = {f.parent.name: f.read_text().rpartition(")")[2].split() for f in Path("/proc/self/task").glob("*/stat")}
    return {thread: int(fields[11]) + int(fields[12]) for thread, fields in stats.items()}


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    log_to_folder(folder)
    config = toy_config(data={"samples_per_gpu": 3, "workers_per_gpu": int(sys.argv[2])})
    trainer = Trainer(BusyModel(), EngineToyDataset(12), None, config, folder)
    before = cpu_ticks()
    trainer.fit()
    ticks = [after - before.get(thread, 0) for thread, after in cpu_ticks().items()]
    print(json.dumps({"threads": torch.get_num_threads(), "loaders": trainer._loader.num_workers, "ticks": ticks}))
