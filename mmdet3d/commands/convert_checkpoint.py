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
from mmdet3d.shell import number_of

if TYPE_CHECKING:
    from torch import Tensor

    from mmdet3d.interop.account import Entry

_WITH_GEOMETRY = ("bevfusion", "crkd")  # we can compute what their files hold besides weights
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
    if args.to and (args.part or args.prefix):
        raise ValueError("--to writes all of our own weights; leave out --part and --prefix")
    if args.to and args.config and args.to not in _WITH_GEOMETRY:
        raise ValueError(f"--config with --to is for {' and '.join(_WITH_GEOMETRY)}, whose files hold geometry")
    if args.to and args.target.suffix != ".pth":
        raise ValueError(f"--to {args.to} writes a file for another program, a .pth, got {args.target.name}")
    if args.target.suffix not in (".safetensors", ".pth"):
        raise ValueError(f"weights are written as .safetensors or .pth, not as {args.target.name}")
    if args.part and args.prefix and not args.config:
        raise ValueError("--prefix says already what is taken; leave out --part, or name the --config that it is for")
    beside = [args.target.with_suffix(".json")] if args.target.suffix == ".safetensors" else []
    for path in (args.target, *beside):
        if path.exists() or path.is_symlink():
            raise ValueError(f"{path} exists already, and would be overwritten; remove it or choose another name")
    return args, rest


def main(words: list[str]) -> None:
    args, rest = parse(words)
    from mmdet3d.io.weights import read_weights, save_weights

    state, metadata = read_weights(args.source)
    if args.prefix:
        start = f"{args.prefix.rstrip('.')}."
        state = {k.removeprefix(start): v for k, v in state.items() if k.startswith(start)}
        if not state:
            raise ValueError(f"{args.source} holds nothing below {args.prefix!r}")
    if args.part:
        _check_part(args, state, metadata)
    args.target.parent.mkdir(parents=True, exist_ok=True)
    overrides = read_overrides(rest, args.overrides_file, args.imports)
    if args.to:
        _go_back(args, state, metadata, overrides)
        return
    said = {"source": str(args.source)}
    if args.config:
        converted, facts = _for_config(args, state, metadata, overrides)
    elif args.prefix or _is_ours(metadata):
        converted, facts = state, {}
    else:
        converted, facts = _recognised(args, state)
    save_weights(converted, args.target, {k: v for k, v in metadata.items() if _plain(v)} | said | facts)
    print(f"{number_of(len(converted), 'tensor')}: {args.target}")


def _check_part(args: argparse.Namespace, state: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
    """Raises ValueError if there are no two networks in the file of which `--part` could mean one."""
    from mmdet3d.interop.sources import published_networks

    if _is_ours(metadata):
        raise ValueError(
            f"--part is about published distillations, and {args.source} is a file of this project; what lies below a "
            "name in it is taken by --prefix student"
        )
    if published_networks(state, "student") == published_networks(state, "teacher"):
        raise ValueError(f"--part is about published distillations, and {args.source} is not recognised as one")


def _is_ours(metadata: Mapping[str, Any]) -> bool:
    return "mmdet3d" in (metadata.get("versions") or {})


def _go_back(
    args: argparse.Namespace, state: Mapping[str, Tensor], metadata: Mapping[str, Any], overrides: Mapping[str, Any]
) -> None:
    """Write our weights as the program `args.to` keeps them."""
    from mmdet3d.interop.sources import GEOMETRY, PROGRAMS, geometry, to_published
    from mmdet3d.io.weights import save_state

    published, entries = to_published(state, args.to, str(args.source))
    block = _model_block(args.config, metadata, overrides) if args.to in _WITH_GEOMETRY else None
    computed = {} if block is None else geometry(published, block, str(args.source))
    _print(entries)
    save_state({PROGRAMS[args.to][0]: published | computed, "epoch": metadata.get("epoch", 0)}, args.target)
    of_them = f", {len(computed)} of them geometry that the config determines" if computed else ""
    print(f"{number_of(len(published | computed), 'tensor')} by the names of {args.to}{of_them}: {args.target}")
    lifts = any("encoders.camera." in key for key in state)
    if block is None and args.to in GEOMETRY and lifts:
        remedy = "name the --config, and they are written" if args.to in _WITH_GEOMETRY else "load with strict=False"
        print(f"not in it: {GEOMETRY[args.to]}, which {args.to} computes from its config; for a strict load {remedy}")


def _model_block(
    config: str | None, metadata: Mapping[str, Any], overrides: Mapping[str, Any]
) -> Mapping[str, Any] | None:
    """`model` of the config that is named, or else of the one that the weights were trained or converted with."""
    if config is None and "model_config" in metadata:
        block: Mapping[str, Any] = metadata["model_config"]
        return block["student"]["model"] if "student" in block else block
    if config is None:
        config, overrides = metadata.get("config"), metadata.get("options") or {}
    return None if config is None else configured(config, overrides).model


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
    print(f"{number_of(len(entries), 'tensor')} in the file: {counts}")


def _plain(value: object) -> bool:
    """Whether JSON can hold it; published files keep whole configs and hook messages in their metadata."""
    if isinstance(value, dict):
        return all(isinstance(k, str) and _plain(v) for k, v in value.items())
    return isinstance(value, (str, int, float, bool, type(None))) or (
        isinstance(value, (list, tuple)) and all(map(_plain, value))
    )
