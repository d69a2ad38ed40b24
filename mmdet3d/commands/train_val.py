"""Train what a config describes, or evaluate what was trained: the published command of the KITTI systems.

distill3d train-val --config configs/kitti/monoskd.yaml
distill3d train-val --config configs/kitti/monoskd.yaml -e
distill3d train-val --config configs/kitti/monoskd.yaml -e --split test
torchpack dist-run -np 4 distill3d train-val --config configs/kitti/monoskd.yaml

configs/kitti/NAME.yaml is trained in runs/kitti/NAME, where the configs that build on it look for its weights. A
checkpoint given by --checkpoint is evaluated in its own folder.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmdet3d.config import CONFIG_ROOT, Config, find_config
from mmdet3d.engine.command import add_override_options, read_overrides
from mmdet3d.engine.overrides import configured, options_beside
from mmdet3d.shell import command, number_of

if TYPE_CHECKING:
    from mmdet3d.engine.evaluate import Results
    from mmdet3d.interop.checkpoints import LoadReport


def parse(words: list[str]) -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--config", required=True, help="YAML file; also looked for below configs/")
    parser.add_argument("-e", "--evaluate", action="store_true", help="evaluate a checkpoint instead of training")
    parser.add_argument("--run-dir", help="for all files (default: where --checkpoint is, else by the config's path)")
    parser.add_argument("--checkpoint", help="with -e: .safetensors or .pth (default: best of --run-dir, else latest)")
    parser.add_argument("--split", choices=["val", "test"], help="with -e: val is scored (default), test is submitted")
    add_override_options(parser)
    args, rest = parser.parse_known_args(words)
    for option in ("checkpoint", "split"):
        if getattr(args, option) and not args.evaluate:
            raise ValueError(f"--{option} says what to evaluate; add -e")
    args.run_dir = _folder(args.run_dir, args.checkpoint, args.config)
    return args, rest


def main(words: list[str]) -> None:
    args, rest = parse(words)
    from mmdet3d.datasets import named_split
    from mmdet3d.engine import distributed
    from mmdet3d.engine.jobs import predict_split, train
    from mmdet3d.engine.logging import hold_log, log_to_folder
    from mmdet3d.engine.run_dir import writable_folder
    from mmdet3d.engine.trainer import seed_everything

    overrides = read_overrides(rest, args.overrides_file, args.imports)
    if not args.evaluate:
        train(args.config, configured(args.config, overrides), args.run_dir)
        return
    checkpoint = _checkpoint(args.checkpoint, args.run_dir)
    cfg = configured(args.config, {**options_beside(checkpoint, args.config), **overrides})
    split = args.split or "val"
    device = distributed.init()
    out_dir = args.run_dir / "evaluation" / f"{split}-{checkpoint.stem}"
    hold_log()
    seed_everything(cfg.get("seed") or 0, cfg.get("deterministic", False))
    if "split" not in cfg.data.val and split == "test":
        raise ValueError(f"--split test: the data set of this config has no splits by name; see {command('test')}")
    data = {**cfg.data, split: named_split(cfg.data, split)}
    dataset, results, report = predict_split(
        cfg, data, split, checkpoint, device, begin=lambda: log_to_folder(writable_folder(out_dir))
    )
    distributed.on_main(lambda: write(args.config, cfg, split, dataset, results, report, out_dir))


def write(
    config: str,
    cfg: Config,
    split: str,
    dataset: Any,
    results: Results | None,
    report: LoadReport,
    out_dir: Path,
) -> None:
    """Score the detections of `val`, pack those of `test`, and say which weights they are from."""
    from mmdet3d.datasets import benchmark_of
    from mmdet3d.engine.evaluate import score
    from mmdet3d.engine.logging import finite

    assert results is not None  # the main rank has those of all
    (out_dir / "configs.yaml").write_text(cfg.dump())
    if split == "val":
        metrics = score(dataset, results, out_dir)
        summary = {"config": config, "checkpoint": str(report.path), "frames": len(dataset), "metrics": finite(metrics)}
        (out_dir / "metrics.json").write_text(json.dumps(summary, indent=2) + "\n")
        print(benchmark_of(cfg.data[split]).table(metrics))
        print(f"results: {out_dir}")
    else:
        print(f"submission: {dataset.format(results['object'], out_dir)}")
    epoch = report.metadata.get("epoch")
    said = "" if epoch is None else f" (epoch {epoch})"
    print(f"{number_of(len(dataset), 'frame')}, checkpoint: {report.path}{said}")


def _folder(given: str | None, checkpoint: str | None, config: str) -> Path:
    """The results of a given checkpoint must not pass for those of this config's own run."""
    if given:
        return Path(given)
    return Path(checkpoint).parent if checkpoint else _run_dir(config)


def _run_dir(config: str) -> Path:
    path = find_config(config)
    inside = path.relative_to(CONFIG_ROOT) if path.is_relative_to(CONFIG_ROOT) else Path(path.name)
    return "runs" / inside.with_suffix("")


def _checkpoint(given: str | None, run_dir: Path) -> Path:
    candidates = [Path(given)] if given else [run_dir / f"{name}.safetensors" for name in ("best", "latest")]
    for path in candidates:
        if path.is_file():
            return path
    if given:
        raise FileNotFoundError(f"--checkpoint {given} does not exist")
    raise FileNotFoundError(f"{run_dir} holds no checkpoint; train first (without -e), or give --checkpoint FILE")
