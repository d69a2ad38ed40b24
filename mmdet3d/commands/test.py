"""Evaluate a checkpoint, or write its benchmark submission.

distill3d test CONFIG CHECKPOINT --eval bbox
distill3d test CONFIG CHECKPOINT --eval bbox map
distill3d test CONFIG CHECKPOINT --format-only --run-dir DIR
torchpack dist-run -np 8 distill3d test CONFIG CHECKPOINT --eval bbox
"""

from __future__ import annotations

import argparse
import json
import pickle
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmdet3d.config import Config
from mmdet3d.engine.command import add_override_options, read_overrides, seed
from mmdet3d.engine.overrides import configured, options_beside
from mmdet3d.io.files import check_place

if TYPE_CHECKING:
    from mmdet3d.engine.evaluate import Results


def parse(words: list[str]) -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("config", help="the config that the checkpoint was trained with")
    parser.add_argument("checkpoint", help=".safetensors or .pth")
    parser.add_argument("--eval", nargs="+", metavar="TASK", help="print the benchmark's metrics: bbox, map, or both")
    parser.add_argument("--format-only", action="store_true", help="write the submission file without scoring it")
    parser.add_argument("--out", help="also keep the raw detections in this .pkl")
    parser.add_argument("--run-dir", help="where results are written (default: runs/CONFIG-test-TIME)")
    parser.add_argument("--eval-options", nargs="+", default=[], help="jsonfile_prefix=DIR: the same as --run-dir")
    parser.add_argument("--seed", type=seed, default=0, help="of the random generators (default: 0)")
    parser.add_argument("--deterministic", action="store_true", help="the same kernels every time")
    add_override_options(parser)
    args, rest = parser.parse_known_args(words)
    if args.format_only and args.eval:
        raise ValueError("--eval and --format-only exclude each other; --eval writes the submission file too")
    if not (args.eval or args.format_only or args.out):
        raise ValueError("nothing to do: give at least one of --eval bbox, --eval map, --format-only, --out FILE.pkl")
    if args.out and Path(args.out).suffix not in (".pkl", ".pickle"):
        raise ValueError(f"--out {args.out} must end in .pkl or .pickle")
    if args.out:
        check_place(Path(args.out).parent, "--out")
        if Path(args.out).is_dir():
            raise ValueError(f"--out {args.out} is a folder; name a file for the detections")
    options = read_overrides(args.eval_options)
    if options.keys() - {"jsonfile_prefix"}:
        raise ValueError(f"--eval-options knows jsonfile_prefix only, got {', '.join(options)}")
    args.run_dir = args.run_dir or options.get("jsonfile_prefix")
    return args, rest


def main(words: list[str]) -> None:
    args, rest = parse(words)
    from mmdet3d.engine import distributed
    from mmdet3d.engine.jobs import predict_split
    from mmdet3d.engine.logging import hold_log, log_to_folder
    from mmdet3d.engine.run_dir import default_run_dir, writable_folder
    from mmdet3d.engine.trainer import seed_everything
    from mmdet3d.evaluation.tasks import Detection

    if not Path(args.checkpoint).is_file():
        raise FileNotFoundError(f"checkpoint {args.checkpoint} does not exist")
    needed = options_beside(args.checkpoint, args.config)
    cfg = configured(args.config, {**needed, **read_overrides(rest, args.overrides_file, args.imports)})
    device = distributed.init()
    out_dir = Path(args.run_dir or default_run_dir(args.config, "-test"))
    hold_log()

    def begin() -> None:
        for folder in [out_dir, *([Path(args.out).parent] if args.out else [])]:
            writable_folder(folder)
        log_to_folder(out_dir)

    seed_everything(args.seed, args.deterministic)
    split = "test" if cfg.data.get("test") else "val"
    words = [*(args.eval or ()), *([Detection.word] if args.format_only or args.out else ())]
    dataset, results, _ = predict_split(cfg, cfg.data, split, args.checkpoint, device, begin, words)
    distributed.on_main(lambda: write(args, cfg, split, dataset, results, out_dir))


def write(
    args: argparse.Namespace,
    cfg: Config,
    split: str,
    dataset: Any,
    results: Results | None,
    out_dir: Path,
) -> None:
    from mmdet3d.datasets import benchmark_of
    from mmdet3d.engine.evaluate import as_records, score
    from mmdet3d.engine.logging import finite

    assert results is not None  # the main rank has those of all
    # Not configs.yaml, which in the folder of a training says what was trained.
    (out_dir / "test_configs.yaml").write_text(cfg.dump())
    if args.out:
        with Path(args.out).open("wb") as file:
            pickle.dump(as_records(results["object"], dataset.tokens), file)
        print(f"detections: {args.out}")
    if args.format_only:
        print(f"submission: {dataset.format(results['object'], out_dir)}")
    if args.eval:
        metrics = score(dataset, results, out_dir, args.eval)
        print(benchmark_of(cfg.data[split]).table(metrics))
        summary = {"config": args.config, "checkpoint": args.checkpoint, "metrics": finite(metrics)}
        (out_dir / "metrics.json").write_text(json.dumps(summary, indent=2) + "\n")
        print(f"results: {out_dir}")
