"""Store what the teacher of a distillation answers, so that its trainings need not ask.

distill3d teacher-answers CONFIG --model.teacher.answers FOLDER --views 4 [--a.b.c VALUE ...]
torchrun --nproc-per-node 8 -m distill3d teacher-answers CONFIG ...

Trainings of CONFIG with the same --model.teacher.answers and --views read the folder, whatever their seed and losses;
what is missing in it they add themselves. The command can be interrupted and repeated. Of several teachers,
--model.teachers.NAME.answers FOLDER names one.
"""

from __future__ import annotations

import argparse

from mmdet3d.engine.command import add_override_options, read_overrides
from mmdet3d.engine.overrides import configured


def parse(words: list[str]) -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("config", help="YAML file of a distillation; also looked for below configs/")
    add_override_options(parser)
    return parser.parse_known_args(words)


def main(words: list[str]) -> None:
    args, rest = parse(words)
    from mmdet3d.engine.answers import store_answers

    overrides = read_overrides(rest, args.overrides_file, args.imports)
    for folder in store_answers(configured(args.config, overrides)):
        print(folder)
