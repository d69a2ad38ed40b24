"""Train again what a run trained, from what its folder holds.

distill3d reproduce RUN [--run-dir NEW] [--dataset_root FOLDER] [--model.teacher.checkpoint FILE ...]

Says what differs here from what `run.json` of the folder says (version, packages, machine, files), and refuses what
cannot be the same training: other weights to start from or learn from, other training data, another number of
processes. Files may lie elsewhere; no other key can be given.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from mmdet3d.config import load_config
from mmdet3d.engine.command import add_override_options, read_overrides
from mmdet3d.engine.overrides import configured


def parse(words: list[str]) -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("run", type=Path, help="folder of a run, wherever it lies now")
    parser.add_argument("--run-dir", help="where the new run is written (default: runs/RUN-reproduced-TIME)")
    add_override_options(parser)
    return parser.parse_known_args(words)


def main(words: list[str]) -> None:
    args, rest = parse(words)
    from mmdet3d.engine import distributed
    from mmdet3d.engine.jobs import train
    from mmdet3d.engine.resuming import refuse_another_training
    from mmdet3d.engine.run_record import differences, read_record

    record, saved = read_record(args.run), args.run / "configs.yaml"
    before = load_config(saved)
    config = configured(saved, {"resume_from": None, **read_overrides(rest, args.overrides_file, args.imports)})
    refuse_another_training(before, config, args.run)
    found = differences(record, config, distributed.init())
    prevented = [each.sentence for each in found if each.prevents]
    if prevented:
        raise ValueError("\n- ".join([f"{args.run} cannot be trained again here:", *prevented]))
    said = [f"differs from {args.run}: {each.sentence}" for each in found]
    train(f"{args.run.resolve().name}-reproduced", config, args.run_dir, said)
