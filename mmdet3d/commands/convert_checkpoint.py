"""Convert weights between .pth and .safetensors, and published layouts to that of this project.

    distill3d convert IN.pth OUT.safetensors
    distill3d convert IN.pth OUT.safetensors --config CONFIG [--a.b.c VALUE ...]

Without --config only the container changes. With it the file is loaded into the config's model, which brings published
layouts into ours and accounts for every tensor; what is written then is exactly that model.
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
    parser.add_argument("source", type=Path, help="published or own file, .pth or .safetensors")
    parser.add_argument("target", type=Path, help=".safetensors (with a JSON beside it) or .pth")
    parser.add_argument("--config", help="check and convert for this config's model")
    parser.add_argument("--prefix", help="take only what lies below this name, and remove the name")
    parser.add_argument("--part", choices=["student", "teacher"], help="which network of a published distillation")
    add_override_options(parser)
    args, rest = parser.parse_known_args(words)
    if args.config is None and (rest or args.imports):
        raise ValueError(f"{rest[0] if rest else '--imports'} is about a config, so it needs --config")
    if args.config is None and args.part:
        raise ValueError("--part needs --config, whose model says how the network is built")
    if args.target.exists():
        raise ValueError(f"{args.target} exists already; remove it or choose another name")
    return args, rest


def main(words: list[str]) -> None:
    args, rest = parse(words)
    from mmdet3d.interop.checkpoints import load_checkpoint
    from mmdet3d.io.weights import read_weights, save_weights
    from mmdet3d.models import build_model

    if args.config:
        model = build_model(configured(args.config, read_overrides(rest, args.overrides_file, args.imports)).model)
        metadata = load_checkpoint(model, args.source, args.prefix, part=args.part).metadata
        state = model.state_dict()
    else:
        state, metadata = read_weights(args.source)
        start = f"{args.prefix.rstrip('.')}." if args.prefix else ""
        state = {k.removeprefix(start): v for k, v in state.items() if k.startswith(start)}
        if not state:
            raise ValueError(f"{args.source} holds nothing below {args.prefix!r}")
    args.target.parent.mkdir(parents=True, exist_ok=True)
    save_weights(state, args.target, {k: v for k, v in metadata.items() if _plain(v)} | {"source": str(args.source)})
    print(f"{len(state)} tensors: {args.target}")


def _plain(value: object) -> bool:
    """Whether JSON can hold it; published files keep whole configs and hook messages in their metadata."""
    if isinstance(value, dict):
        return all(isinstance(k, str) and _plain(v) for k, v in value.items())
    return isinstance(value, (str, int, float, bool, type(None))) or (
        isinstance(value, (list, tuple)) and all(map(_plain, value))
    )
