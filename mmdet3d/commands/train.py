"""Train what a config describes.

distill3d train CONFIG [--run-dir DIR] [--a.b.c VALUE ...]
distill3d train --resume DIR              # go on with a run as it was begun, from its latest checkpoint
torchpack dist-run -np 8 distill3d train CONFIG ...
torchrun --nproc-per-node 8 -m distill3d train CONFIG ...
"""

from __future__ import annotations

import argparse
from pathlib import Path

from mmdet3d.engine.command import add_override_options, read_overrides
from mmdet3d.engine.overrides import configured


def parse(words: list[str]) -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    resumes = any(word == "--resume" or word.startswith("--resume=") for word in words)
    if not resumes:  # otherwise it would take the value of the first override for a config
        parser.add_argument("config", nargs="?", help="YAML file; also looked for below configs/")
    parser.add_argument("--run-dir", help="where everything is written (default: runs/CONFIG-TIME)")
    parser.add_argument("--resume", metavar="DIR", type=Path, help="folder of a run; its own config holds")
    add_override_options(parser)
    args, rest = parser.parse_known_args(words)
    if args.resume is None and args.config is None:
        raise ValueError("nothing to train: give CONFIG, or --resume DIR to go on with a run")
    if args.resume is not None:
        config_given = bool(rest) and not rest[0].startswith("--") and "=" not in rest[0]
        if config_given or args.run_dir is not None:
            raise ValueError(f"--resume {args.resume} goes on in that folder with its own config; give neither another")
        args.config, args.run_dir = args.resume / "configs.yaml", args.resume
        if not args.config.is_file():
            raise FileNotFoundError(f"--resume {args.resume}: there is no {args.config}, so no run to go on with")
    return args, rest


def main(words: list[str]) -> None:
    args, rest = parse(words)
    from mmdet3d.engine.jobs import train

    overrides = read_overrides(rest, args.overrides_file, args.imports)
    if args.resume is not None:
        overrides["resume_from"] = "auto"
    train(args.config, configured(args.config, overrides), args.run_dir)
