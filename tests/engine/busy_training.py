"""A training whose steps compute; prints what computed it: python busy_training.py FOLDER WORKERS"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from engine_toy import EngineToyDataset, EngineToyModel, toy_config

from mmdet3d.engine.logging import log_to_folder
from mmdet3d.engine.trainer import Trainer
from mmdet3d.structures import Batch

import torch  # isort: skip


class BusyModel(EngineToyModel):
    def loss(self, batch: Batch) -> dict[str, torch.Tensor]:
        matrix = torch.ones(700, 700)
        for _ in range(60):
            matrix = matrix @ matrix / 700
        return super().loss(batch)


def cpu_seconds() -> list[float]:
    """Of each thread of this process."""
    fields = [f.read_text().rpartition(")")[2].split() for f in Path("/proc/self/task").glob("*/stat")]
    return [(int(f[11]) + int(f[12])) / os.sysconf("SC_CLK_TCK") for f in fields]


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    log_to_folder(folder)
    config = toy_config(data={"samples_per_gpu": 3, "workers_per_gpu": int(sys.argv[2])})
    trainer = Trainer(BusyModel(), EngineToyDataset(12), None, config, folder)
    trainer.fit()
    found = {"threads": torch.get_num_threads(), "loaders": trainer._loader.num_workers, "seconds": cpu_seconds()}
    print(json.dumps(found))
