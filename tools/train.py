"""Train what a config describes.

python tools/train.py CONFIG [--run-dir DIR] [--a.b.c VALUE ...]
torchpack dist-run -np 8 python tools/train.py CONFIG ...
torchrun --nproc-per-node 8 tools/train.py CONFIG ...
"""

from __future__ import annotations

import argparse

from mmdet3d.config import load_config
from mmdet3d.datasets import build_dataset
from mmdet3d.engine import distributed
from mmdet3d.engine.command import add_override_options, read_overrides, run
from mmdet3d.engine.logging import get_logger, log_to_folder
from mmdet3d.engine.run_dir import open_run_dir
from mmdet3d.engine.settings import Settings
from mmdet3d.engine.trainer import Trainer, seed_everything
from mmdet3d.models import build_model


def main(words: list[str]) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("config", help="YAML file; also looked for below configs/")
    parser.add_argument("--run-dir", help="where everything is written (default: runs/CONFIG-TIME)")
    add_override_options(parser)
    args, rest = parser.parse_known_args(words)

    cfg = load_config(args.config, read_overrides(rest, args.overrides_file))
    Settings.from_config(cfg)
    device = distributed.init()
    run_dir = open_run_dir(args.run_dir, args.config, cfg)
    log_to_folder(run_dir)
    log = get_logger()
    log.info("run folder %s, device %s, %s", run_dir, device, distributed.describe())
    log.info("config\n%s", cfg.dump())

    seed = cfg.get("seed") or 0
    seed_everything(seed, cfg.get("deterministic", False))
    train_dataset = build_dataset(cfg.data.train, seed)
    val_dataset = build_dataset(cfg.data.val, test_mode=True) if cfg.data.get("val") else None
    model = build_model(cfg.model)
    log.info("%d training samples, %d parameters", len(train_dataset), sum(p.numel() for p in model.parameters()))
    Trainer(model, train_dataset, val_dataset, cfg, run_dir, device).fit()


if __name__ == "__main__":
    run(main)
