"""Weights of published programs into the layout of this project, and back; between .pth and .safetensors.

    distill3d convert PUBLISHED.pth OUT.safetensors
    distill3d convert PUBLISHED.pth OUT.safetensors --part teacher
    distill3d convert IN.pth OUT.safetensors --config CONFIG [--a.b.c VALUE ...]
    distill3d convert OURS.safetensors OUT.pth --to simdistill

A published file is recognised by its keys: detectors of BEVFusion and CRKD, distillations of CRKD, SimDistill and
MonoSKD, the stages of LabelDistill, DID-M3D, mmdetection3d's CenterPoint, image weights of Swin, ResNet, DLA and ViTAE.
What becomes of every tensor is printed; one that nothing accounts for is an error. The JSON beside OUT names the config
and the options that the weights need, which `test`, `train-val -e`, `detect` and `visualize` then take from there.

With --config the file is loaded into that config's model instead. Of a file of this project, of one that is not
recognised, and with --prefix, only the container changes.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmdet3d.engine.command import add_override_options, read_overrides
from mmdet3d.engine.overrides import configured

if TYPE_CHECKING:
    from torch import Tensor

    from mmdet3d.interop.account import Entry

_PROGRAMS = ("bevfusion", "crkd", "simdistill", "labeldistill", "mmdetection3d", "monoskd", "did-m3d")


def parse(words: list[str]) -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("source", type=Path, help="published or own file, .pth or .safetensors")
    parser.add_argument("target", type=Path, help=".safetensors (with a JSON beside it) or .pth")
    parser.add_argument("--config", help="check and convert for this config's model")
    parser.add_argument("--prefix", help="take only what lies below this name, and remove the name")
    parser.add_argument("--part", choices=["student", "teacher"], help="of a published distillation (default: student)")
    parser.add_argument("--to", choices=_PROGRAMS, help="write our weights by the names of this program")
    add_override_options(parser)
    args, rest = parser.parse_known_args(words)
    if args.config is None and (rest or args.imports):
        raise ValueError(f"{rest[0] if rest else '--imports'} is about a config, so it needs --config")
    if args.to and (args.config or args.part or args.prefix):
        raise ValueError("--to writes all of our own weights; leave out --config, --part and --prefix")
    if args.to and args.target.suffix != ".pth":
        raise ValueError(f"--to {args.to} writes a file for another program, a .pth, got {args.target.name}")
    if args.target.exists():
        raise ValueError(f"{args.target} exists already; remove it or choose another name")
    return args, rest


def main(words: list[str]) -> None:
    args, rest = parse(words)
    from mmdet3d.io.weights import read_weights, save_state, save_weights

    state, metadata = read_weights(args.source)
    if args.prefix:
        start = f"{args.prefix.rstrip('.')}."
        state = {k.removeprefix(start): v for k, v in state.items() if k.startswith(start)}
        if not state:
            raise ValueError(f"{args.source} holds nothing below {args.prefix!r}")
    args.target.parent.mkdir(parents=True, exist_ok=True)
    if args.to:
        from mmdet3d.interop.sources import PROGRAMS, to_published

        published, entries = to_published(state, args.to, str(args.source))
        _print(entries)
        save_state({PROGRAMS[args.to][0]: published, "epoch": metadata.get("epoch", 0)}, args.target)
        print(f"{len(published)} tensors by the names of {args.to}: {args.target}")
        return
    said = {"source": str(args.source)}
    if args.config:
        overrides = read_overrides(rest, args.overrides_file, args.imports)
        converted, facts = _for_config(args, state, metadata, overrides)
    elif args.prefix or "mmdet3d" in (metadata.get("versions") or {}):
        converted, facts = state, {}
    else:
        converted, facts = _recognised(args, state)
    save_weights(converted, args.target, {k: v for k, v in metadata.items() if _plain(v)} | said | facts)
    print(f"{len(converted)} tensors: {args.target}")


def _for_config(
    args: argparse.Namespace, state: Mapping[str, Tensor], metadata: Mapping[str, Any], overrides: Mapping[str, Any]
) -> tuple[Mapping[str, Tensor], dict[str, Any]]:
    """For the model of a config that is named."""
    import torch

    from mmdet3d.interop.account import convert
    from mmdet3d.interop.checkpoints import warn_of_options
    from mmdet3d.models import build_model

    with torch.device("meta"):
        model = build_model(configured(args.config, overrides).model)
    converted, entries = convert(state, model.state_dict(), args.part, str(args.source), args.config)
    warn_of_options(model, metadata, args.source)
    _print(entries)
    return converted, {"config": args.config, "options": dict(overrides)}


def _recognised(args: argparse.Namespace, state: Mapping[str, Tensor]) -> tuple[Mapping[str, Tensor], dict[str, Any]]:
    """Of the program that writes such keys."""
    from mmdet3d.interop.image_weights import convert_backbone
    from mmdet3d.interop.sources import convert_published, published_networks
    from mmdet3d.shell import command, quote

    if networks := published_networks(state, args.part):
        converted, entries, network, config, options = convert_published(state, networks, args.part, str(args.source))
        _print(entries)
        print(f"this is the {network.name}{f' ({network.note})' if network.note else ''}")
        print(f"config: {config}" + "".join(f"\n  {key}: {value}" for key, value in options.items()))
        print(f"evaluate it: {command('test')} configs/{config} {quote(args.target)} --eval bbox")
        return converted, {"config": config, "options": options}
    if args.part:
        raise ValueError(f"--part is about published distillations, and {args.source} is not recognised as one")
    if backbone := convert_backbone(state, str(args.source)):
        converted, entries, kind = backbone
        _print(entries)
        print(f"this is an image backbone, {kind}; a config names it as init_cfg: {{checkpoint: {args.target}}}")
        return converted, {}
    print(f"{args.source} is of no program that is known by its keys; names stay as they are")
    return state, {}


def _print(entries: Sequence[Entry]) -> None:
    for entry in entries:
        print(entry)
    kinds = [entry.kind for entry in entries]
    counts = ", ".join(f"{kinds.count(kind)} {kind}" for kind in ("loaded", "renamed", "permuted", "dropped"))
    print(f"{len(entries)} tensors in the file: {counts}")


def _plain(value: object) -> bool:
    """Whether JSON can hold it; published files keep whole configs and hook messages in their metadata."""
    if isinstance(value, dict):
        return all(isinstance(k, str) and _plain(v) for k, v in value.items())
    return isinstance(value, (str, int, float, bool, type(None))) or (
        isinstance(value, (list, tuple)) and all(map(_plain, value))
    )
