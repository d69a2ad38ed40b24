"""Ask what every distillation term pulls the student towards, before or after training.

distill3d audit CONFIG [--checkpoint FILE] [--batches 8] [--batch FILE] [--a.b.c VALUE ...]

Prints, per part of the student, how large the gradient of each term is beside that of the detection losses, and whether
the two point the same way (cosine). Without --checkpoint the student is as the config starts it. --batch takes a batch
that a training kept because something in it was not finite. Nothing is trained or written.
"""

from __future__ import annotations

import argparse
from itertools import islice

from mmdet3d.engine.command import add_override_options, natural, read_overrides
from mmdet3d.engine.overrides import configured


def parse(words: list[str]) -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("config", help="YAML file of a distillation; also looked for below configs/")
    parser.add_argument("--checkpoint", help="of a distillation run; default: the student as training starts")
    parser.add_argument("--batches", type=natural, default=8, help="training batches to average over (default: 8)")
    parser.add_argument("--batch", help="a batch that a training kept (RUN/not_finite/...), instead of --batches")
    add_override_options(parser)
    return parser.parse_known_args(words)


def main(words: list[str]) -> None:
    args, rest = parse(words)
    from mmdet3d.datasets import build_split
    from mmdet3d.distill import Distiller
    from mmdet3d.distill.audit import audit, audit_table
    from mmdet3d.engine import distributed
    from mmdet3d.engine.agreement import check_agreement
    from mmdet3d.engine.data import TrainSampler, batches, build_loader
    from mmdet3d.engine.kept_batch import read_batch
    from mmdet3d.engine.settings import Settings
    from mmdet3d.engine.trainer import seed_everything
    from mmdet3d.interop.checkpoints import load_checkpoint
    from mmdet3d.models import build_model

    overrides = read_overrides(rest, args.overrides_file, args.imports)
    cfg = configured(args.config, overrides)
    settings = Settings.from_config(cfg)
    check_agreement(cfg)
    device = distributed.init()
    seed_everything(settings.seed)
    model = build_model(cfg.model)
    if not isinstance(model, Distiller):
        raise ValueError(f"{args.config} describes no distillation: model.type is {cfg.model['type']}, no Distiller")
    model.to(device)
    if args.checkpoint:
        load_checkpoint(model, args.checkpoint)
    else:
        model.init_weights()
    model.setup_training(None)  # the teacher's score is training's business; here it is only listened to
    model.start_epoch(settings.max_epochs)  # whatever a schedule holds back at first counts
    model.train()
    if args.batch:
        print(audit_table(audit(model, [read_batch(args.batch).to(device)])))
        return
    dataset = build_split(cfg.data, "train", settings.seed, model.training_inputs)
    sampler = TrainSampler(len(dataset), settings.data.samples_per_gpu, settings.seed)
    loader = build_loader(dataset, sampler, 0, settings.seed)
    first = (batch.to(device) for batch in islice(batches(loader), args.batches))
    print(audit_table(audit(model, first)))
