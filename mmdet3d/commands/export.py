"""Write the network of a trained detector as ONNX, a torch.export program or machine code, without the training code.

distill3d export RUN --to student.onnx --dataset_root DATA
distill3d export WEIGHTS.safetensors --config CONFIG --to student.pt2 --dataset_root DATA
distill3d export zoo:crkd-demo-distilled --to student.onnx --frames DATA --fixed-calibration
distill3d export RUN --to student.pt2 --compile

Of a distillation the student alone is written. One frame of the data is read: it decides how many cameras there are,
and what the file answers to it is compared with what PyTorch answers.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from mmdet3d.engine.command import add_override_options, read_overrides

TOLERANCE = 1e-3


def parse(words: list[str]) -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("weights", help="folder of a run, .safetensors or .pth, or zoo:NAME of a model in pretrained/")
    parser.add_argument("--to", required=True, metavar="FILE", help=".onnx (extra `export`) or .pt2")
    parser.add_argument("--config", help="of the weights (default: configs.yaml beside them, or what their card names)")
    parser.add_argument("--frames", metavar="ROOT", help="data folder to take the frame from (default: the config's)")
    parser.add_argument("--info", metavar="FILE", help="info file in it, or split of KITTI (default: the config's)")
    parser.add_argument("--frame", metavar="TOKEN", help="which frame (default: the first)")
    parser.add_argument(
        "--fixed-calibration",
        action="store_true",
        help="build the calibration of that frame in: faster, and for one vehicle alone",
    )
    parser.add_argument(
        "--int8", type=int, metavar="N", help="also write FILE.int8.onnx, with ranges from the first N frames"
    )
    parser.add_argument(
        "--compile",
        action="store_true",
        help="compile a .pt2 to machine code for this kind of processor (AOTInductor): needs g++ and a minute or more",
    )
    parser.add_argument("--half", action="store_true", help="also write FILE.half.onnx, convolutions in float16")
    add_override_options(parser)
    args, rest = parser.parse_known_args(words)
    if args.int8 is not None and (args.int8 < 1 or not args.to.endswith(".onnx")):
        raise ValueError(f"--int8 {args.int8} --to {args.to}: it needs at least one frame and a file .onnx")
    if args.half and not args.to.endswith(".onnx"):
        raise ValueError(f"--half --to {args.to}: it needs a file .onnx")
    return args, rest


def main(words: list[str]) -> None:
    args, rest = parse(words)
    from mmdet3d.engine.detector import Detector
    from mmdet3d.engine.export import check_suffix
    from mmdet3d.io.files import check_place

    path = Path(args.to)
    check_suffix(path, args.compile)
    check_place(path.parent, "--to")
    detector = Detector.from_file(args.weights, args.config, read_overrides(rest, args.overrides_file, args.imports))
    frames = detector.frames(args.frames or detector.data["dataset_root"], args.info)
    index = 0 if args.frame is None else place_of(frames.tokens, args.frame)
    differences = detector.export(path, frames[index], args.fixed_calibration, args.compile)
    kind = " of machine code" if args.compile else ""
    print(f"{path}: {path.stat().st_size / 1e6:.1f} MB{kind}, reads {', '.join(detector.sensors)}")
    name, worst = max(differences.items(), key=lambda item: item[1])
    print(f"outputs for frame {frames.tokens[index]} differ from PyTorch's by at most {worst:.1e} ({name})")
    if worst > TOLERANCE:
        raise ValueError(f"{path} does not compute what the model does (more than {TOLERANCE:g} apart); do not use it")
    if args.int8 is not None:
        from mmdet3d.engine.quantization import quantize

        small = path.with_suffix(".int8.onnx")
        quantize(path, small, (frames[k] for k in range(len(frames))[: args.int8]))
        print(f"{small}: {small.stat().st_size / 1e6:.1f} MB; score both before you ship it")
    if args.half:
        from mmdet3d.engine.quantization import halve

        small = path.with_suffix(".half.onnx")
        halve(path, small)
        print(f"{small}: {small.stat().st_size / 1e6:.1f} MB; score both before you ship it")


def place_of(tokens: list[str], token: str) -> int:
    """Raises ValueError if there is no such frame."""
    if token not in tokens:
        raise ValueError(f"no frame {token} among the {len(tokens)} that are read (the first: {', '.join(tokens[:3])})")
    return list(tokens).index(token)
