"""Prepare a data set.

`nuscenes` writes info files and a database of objects, `depth` depth labels as files, `kitti` checks a KITTI folder and
makes dense depth, `truckscenes` and `vod` write info files, `synthetic`, `synthetic-kitti`, `synthetic-truckscenes` and
`synthetic-vod` make a procedural world.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from mmdet3d.io.files import in_words
from mmdet3d.machine import cpus
from mmdet3d.shell import number_of


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line; `--help` of each subcommand explains its options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="dataset", required=True)
    _add_nuscenes(commands)
    _add_depth(commands)
    _add_kitti(commands)
    _add_truckscenes(commands)
    _add_vod(commands)
    _add_synthetic(commands)
    _add_synthetic_kitti(commands)
    _add_synthetic_truckscenes(commands)
    _add_synthetic_vod(commands)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one subcommand; a mistake of the user ends with one sentence and exit status 2."""
    try:
        args = parse_arguments(arguments)
        args.run(args)
    except (ValueError, OSError) as error:
        print(f"error: {in_words(error)}", file=sys.stderr)
        return 2
    return 0


def _subcommand(commands: argparse._SubParsersAction, name: str, what: str) -> argparse.ArgumentParser:
    command: argparse.ArgumentParser = commands.add_parser(
        name, help=what, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    _add_workers(command)
    return command


def _add_workers(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--workers",
        type=count,
        default=cpus(),
        help="processes, no more than cores; the result does not depend on it",
    )


def count(word: str) -> int:
    """A number of processes, lowered to that of the cores."""
    return min(int(word), cpus())


def _add_world(command: argparse.ArgumentParser, out_dir: str, val_fraction: float) -> None:
    command.add_argument("--out-dir", default=out_dir, help="dataset root; finished scenes in it are kept")
    command.add_argument("--seed", type=int, default=0, help="another number is another world")
    command.add_argument("--val-fraction", type=float, default=val_fraction, help="share of the scenes for validation")


def _add_optics(command: argparse.ArgumentParser, image_size: tuple[int, int], real: str) -> None:
    command.add_argument(
        "--image-size", type=int, nargs=2, default=image_size, metavar=("WIDTH", "HEIGHT"), help=f"pixels; {real}"
    )
    command.add_argument("--difficulty", type=float, default=1.0, help="0 clean ... 1 as in life ... 3 hard")
    command.add_argument("--reach", type=float, default=45.0, help="populated road before and behind the car, metres")


def _add_check(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--check",
        action="store_true",
        help="make nothing: read every file once, and list what is wrong (also in check.json of the folder)",
    )


def _add_nuscenes(commands: argparse._SubParsersAction) -> None:
    command = _subcommand(commands, "nuscenes", "info files and ground-truth database of a nuScenes-format data set")
    command.add_argument("--root-path", default="./data/nuscenes", help="dataset root")
    command.add_argument("--out-dir", default=None, help="where info files go; the dataset root if not given")
    command.add_argument("--extra-tag", default="nuscenes", help="prefix of the info files")
    command.add_argument("--version", default="v1.0", help="v1.0 (trainval), v1.0-mini, v1.0-test or v1.0-synthetic")
    command.add_argument("--max-sweeps", type=int, default=10, help="LiDAR sweeps recorded per key frame")
    command.add_argument(
        "--allow-missing",
        action="store_true",
        help="use what exists of an incomplete data set; frames that lack what others have are then left out",
    )
    _add_check(command)
    command.set_defaults(run=_nuscenes)


def _nuscenes(args: argparse.Namespace) -> None:
    from mmdet3d.datasets.nuscenes.check import check_nuscenes
    from mmdet3d.datasets.nuscenes.create import create_nuscenes

    if args.check:
        out_dir = args.out_dir or args.root_path
        return check_nuscenes(args.root_path, out_dir, args.version, args.workers, args.max_sweeps)
    create_nuscenes(
        args.root_path,
        args.out_dir or args.root_path,
        args.extra_tag,
        args.version,
        args.workers,
        args.max_sweeps,
        args.allow_missing,
    )


def _add_depth(commands: argparse._SubParsersAction) -> None:
    command = _subcommand(
        commands, "depth", "depth labels of the key-frame images as files (GTDepth in a pipeline needs none)"
    )
    command.add_argument("--root-path", default="./data/nuscenes", help="dataset root")
    command.add_argument("--out-dir", default=None, help="where depth_gt/ goes; the dataset root if not given")
    command.add_argument("--version", default="v1.0", help="v1.0 (trainval), v1.0-mini or v1.0-synthetic")
    command.add_argument("--allow-missing", action="store_true", help="use what exists of an incomplete data set")
    command.set_defaults(run=_depth)


def _depth(args: argparse.Namespace) -> None:
    from mmdet3d.datasets.nuscenes.depth_files import create_depth

    create_depth(args.root_path, args.version, args.out_dir, args.workers, args.allow_missing)


def _add_kitti(commands: argparse._SubParsersAction) -> None:
    command = _subcommand(
        commands, "kitti", "check a KITTI folder and name what is missing; make dense depth from the LiDAR"
    )
    command.add_argument("--root-path", default="./data/KITTI3D", help="dataset root, with training and testing")
    command.add_argument("--depth", action="store_true", help="make missing maps of training/depth_dense first")
    command.add_argument("--class-map", nargs="+", default=[], metavar="OWN=KITTI", help="what own classes count as")
    _add_check(command)
    command.set_defaults(run=_kitti)


def _kitti(args: argparse.Namespace) -> None:
    from mmdet3d.datasets.kitti.check import check_kitti
    from mmdet3d.datasets.kitti.create import check_tree, make_depth
    from mmdet3d.datasets.kitti.labels import parse_class_map

    class_map = parse_class_map(args.class_map)
    if args.check:
        return check_kitti(args.root_path, class_map, args.workers)
    if args.depth:
        print(f"{make_depth(args.root_path, args.workers)} depth maps made")
    for line in check_tree(args.root_path, class_map):
        print(line)
    print(f"{args.root_path} is complete")


def _add_truckscenes(commands: argparse._SubParsersAction) -> None:
    command = _subcommand(commands, "truckscenes", "info files of MAN TruckScenes")
    command.add_argument("--root-path", default="./data/truckscenes", help="dataset root")
    command.add_argument("--out-dir", default=None, help="where info files go; the dataset root if not given")
    command.add_argument("--extra-tag", default="truckscenes", help="prefix of the info files")
    command.add_argument("--version", default=None, help="folder of the tables; the only one if not given")
    command.add_argument("--max-sweeps", type=int, default=6, help="earlier scans of each LiDAR per key frame")
    command.add_argument(
        "--allow-missing",
        action="store_true",
        help="use what exists of an incomplete data set; frames that lack what others have are then left out",
    )
    _add_check(command)
    command.set_defaults(run=_truckscenes)


def _truckscenes(args: argparse.Namespace) -> None:
    from mmdet3d.datasets.nuscenes.check import check_nuscenes
    from mmdet3d.datasets.nuscenes.create import create_nuscenes
    from mmdet3d.datasets.truckscenes.frames import TRUCKSCENES
    from mmdet3d.datasets.truckscenes.tables import only_version

    version, out_dir = args.version or only_version(args.root_path), args.out_dir or args.root_path
    if args.check:
        return check_nuscenes(args.root_path, out_dir, version, args.workers, args.max_sweeps, TRUCKSCENES)
    create_nuscenes(
        args.root_path,
        out_dir,
        args.extra_tag,
        version,
        args.workers,
        args.max_sweeps,
        args.allow_missing,
        database=False,
        source=TRUCKSCENES,
    )


def _add_vod(commands: argparse._SubParsersAction) -> None:
    command = _subcommand(commands, "vod", "info files of View-of-Delft")
    command.add_argument("--root-path", default="./data/view_of_delft", help="dataset root, with lidar, radar, ...")
    command.add_argument("--out-dir", default=None, help="where info files go; the dataset root if not given")
    command.add_argument("--extra-tag", default="vod", help="prefix of the info files")
    command.add_argument(
        "--radar", default="radar_5_scans", help="folder of the radar points: radar, radar_3_scans or radar_5_scans"
    )
    _add_check(command)
    command.set_defaults(run=_vod)


def _vod(args: argparse.Namespace) -> None:
    from mmdet3d.datasets.vod.create import check_vod, create_vod

    if args.check:
        return check_vod(args.root_path, args.radar, args.workers)
    create_vod(args.root_path, args.out_dir or args.root_path, args.extra_tag, args.radar)


def _add_synthetic(commands: argparse._SubParsersAction) -> None:
    command = _subcommand(commands, "synthetic", "a procedural driving world in the nuScenes format")
    _add_world(command, "data/synthetic", val_fraction=0.2)
    command.add_argument("--scenes", type=int, default=60, help="how many scenes")
    command.add_argument("--keyframes", type=int, default=6, help="per scene, at 2 Hz")
    command.add_argument("--lidar-sweeps", type=int, default=4, help="between two key frames; 9 give the real 20 Hz")
    command.add_argument("--radar-sweeps", type=int, default=5, help="between two key frames")
    _add_optics(command, (400, 225), "nuScenes' is 1600 900")
    command.add_argument("--cameras", type=int, default=6, help="1 ahead, 4 around, nuScenes' 6, or 8 around")
    command.set_defaults(run=_synthetic)


def _synthetic(args: argparse.Namespace) -> None:
    from mmdet3d.datasets.synthetic import VERSION, WorldSettings, generate

    settings = WorldSettings(
        scenes=args.scenes,
        seed=args.seed,
        keyframes=args.keyframes,
        lidar_sweeps=args.lidar_sweeps,
        radar_sweeps=args.radar_sweeps,
        image_size=tuple(args.image_size),
        difficulty=args.difficulty,
        reach=args.reach,
        val_fraction=args.val_fraction,
        cameras=args.cameras,
    )
    root = generate(args.out_dir, settings, args.workers)
    print(f"{root}: version {VERSION}, splits synthetic_train and synthetic_val")


def _add_synthetic_truckscenes(commands: argparse._SubParsersAction) -> None:
    command = _subcommand(
        commands,
        "synthetic-truckscenes",
        "the procedural world through the sensors of a truck, in the layout of MAN TruckScenes",
    )
    _add_world(command, "data/synthetic-truckscenes", val_fraction=0.2)
    command.add_argument("--scenes", type=int, default=30, help="how many scenes")
    command.add_argument("--keyframes", type=int, default=6, help="per scene, at 2 Hz")
    command.add_argument("--lidar-sweeps", type=int, default=1, help="between two key frames; 4 give the real 10 Hz")
    command.add_argument("--radar-sweeps", type=int, default=3, help="between two key frames; 9 give the real 20 Hz")
    command.set_defaults(run=_synthetic_truckscenes)


def _synthetic_truckscenes(args: argparse.Namespace) -> None:
    from mmdet3d.datasets.synthetic import VERSION, WorldSettings
    from mmdet3d.datasets.synthetic.truckscenes import IMAGE_SIZE, generate_truckscenes

    settings = WorldSettings(
        scenes=args.scenes,
        seed=args.seed,
        keyframes=args.keyframes,
        lidar_sweeps=args.lidar_sweeps,
        radar_sweeps=args.radar_sweeps,
        image_size=IMAGE_SIZE,
        val_fraction=args.val_fraction,
    )
    root = generate_truckscenes(args.out_dir, settings, args.workers)
    print(f"{root}: version {VERSION}, splits synthetic_train and synthetic_val")


def _add_synthetic_kitti(commands: argparse._SubParsersAction) -> None:
    command = _subcommand(commands, "synthetic-kitti", "the procedural world through one camera, in KITTI layout")
    _add_world(command, "data/synthetic-kitti", val_fraction=0.25)
    command.add_argument("--frames", type=int, default=400, help="labelled frames, in scenes of four")
    command.add_argument("--test-frames", type=int, default=20, help="frames without labels, in the folder testing")
    _add_optics(command, (640, 192), "KITTI's is 1242 375")
    command.set_defaults(run=_synthetic_kitti)


def _synthetic_kitti(args: argparse.Namespace) -> None:
    from mmdet3d.datasets.synthetic.kitti import KittiSettings, generate_kitti

    settings = KittiSettings(
        frames=args.frames,
        test_frames=args.test_frames,
        seed=args.seed,
        image_size=tuple(args.image_size),
        difficulty=args.difficulty,
        reach=args.reach,
        val_fraction=args.val_fraction,
    )
    root = generate_kitti(args.out_dir, settings, args.workers)
    splits = (f"{number_of(len(ids), 'frame')} {name}" for name, ids in settings.splits().items())
    print(f"{root}: {', '.join(splits)}")


def _add_synthetic_vod(commands: argparse._SubParsersAction) -> None:
    command = _subcommand(
        commands,
        "synthetic-vod",
        "the procedural world through camera, LiDAR and 4-D radar, in the layout of View-of-Delft",
    )
    _add_world(command, "data/synthetic-vod", val_fraction=0.25)
    command.add_argument("--frames", type=int, default=400, help="frames, in scenes of two")
    _add_optics(command, (968, 608), "the real is 1936 1216")
    command.set_defaults(run=_synthetic_vod)


def _synthetic_vod(args: argparse.Namespace) -> None:
    from mmdet3d.datasets.synthetic.vod import VodSettings, generate_vod

    settings = VodSettings(
        frames=args.frames,
        seed=args.seed,
        image_size=tuple(args.image_size),
        difficulty=args.difficulty,
        reach=args.reach,
        val_fraction=args.val_fraction,
    )
    root = generate_vod(args.out_dir, settings, args.workers)
    splits = (f"{number_of(len(ids), 'frame')} {name}" for name, ids in settings.splits().items())
    print(f"{root}: {', '.join(splits)}")
