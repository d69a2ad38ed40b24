"""Train what a config describes.

python tools/train.py CONFIG [--run-dir DIR] [--a.b.c VALUE ...]
torchpack dist-run -np 8 python tools/train.py CONFIG ...
torchrun --nproc-per-node 8 tools/train.py CONFIG ...
"""

from __future__ import annotations

import argparse

from mmdet3d.config import load_config
from mmdet3d.engine.command import add_override_options, read_overrides, run


def parse(words: list[str]) -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("config", help="YAML file; also looked for below configs/")
    parser.add_argument("--run-dir", help="where everything is written (default: runs/CONFIG-TIME)")
    add_override_options(parser)
    return parser.parse_known_args(words)


def main(words: list[str]) -> None:
    args, rest = parse(words)
    from mmdet3d.engine.jobs import train

    train(args.config, load_config(args.config, read_overrides(rest, args.overrides_file)), args.run_dir)


if __name__ == "__main__":
    run(main)
