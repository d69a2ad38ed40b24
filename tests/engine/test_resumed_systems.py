"""Every system, stopped within an epoch as by kill -9, ends as if it had never stopped: to the bit, whatever is kept.

The worlds are synthetic and small, and everything else is real: the pipelines with their augmentation, the networks of
`configs/synthetic` and `configs/kitti/synthetic`, their losses, the average, accumulation, loader processes.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch.utils._pytree import tree_flatten_with_path

from mmdet3d.config import Config, load_config
from mmdet3d.datasets import build_split
from mmdet3d.datasets.nuscenes.create import create_nuscenes
from mmdet3d.datasets.synthetic import VERSION, WorldSettings, generate
from mmdet3d.datasets.synthetic.kitti import KittiSettings, generate_kitti
from mmdet3d.distill.teacher import build_detector
from mmdet3d.engine.checkpoint import RunCheckpoints, read_training_state
from mmdet3d.engine.trainer import Trainer
from mmdet3d.io.weights import read_weights
from mmdet3d.models import build_model

STREET = WorldSettings(
    scenes=4, keyframes=2, lidar_sweeps=1, radar_sweeps=1, image_size=(160, 90), val_fraction=0, cameras=1
)
ROAD = KittiSettings(frames=8, test_frames=1, image_size=(320, 96), val_fraction=0.5)

BEV = {"augment2d.resize": [[1.15, 1.3], [1.2, 1.2]], "data.train.part": [0, 0.5]}
PAIRS = {"data.samples_per_gpu": 2, "data.train.part": [0, 1]}
NARROW = {"base_channels": 1, "head_channels": 4, "image_size": [32, 96]}
MONO = NARROW | {"htl": {"epochs": 5, "window": 3}}
TAUGHT = {"model.teacher.overrides": NARROW}
BY_EPOCH = {"model.losses.dual_kl.balance": "epoch", "model.losses.dual_kl.epochs": 5}
UNLABELLED = PAIRS | {"data.train.part": [0, 0.75], "data.unlabelled": {"part": [0.75, 1], "share": 0.5}}
SYSTEMS: dict[str, tuple[str, int, dict[str, Any]]] = {
    "CRKD": ("synthetic/crkd/small.yaml", 2, {}),
    "balanced": ("synthetic/crkd/demo.yaml", 2, {"model.balance": {"every": 2}}),
    "SimDistill": ("synthetic/simdistill/small.yaml", 2, {}),
    "LabelDistill": ("synthetic/labeldistill/small.yaml", 2, PAIRS),
    "map distillation": ("synthetic/seg/distill.yaml", 2, {}),
    "boxes and map": ("synthetic/seg/both.yaml", 2, {}),
    "without labels": ("synthetic/camera+radar/demo.yaml", 2, UNLABELLED),
    "MonoSKD": ("kitti/synthetic/monoskd.yaml", 5, TAUGHT),
    "MonoMMKD": ("kitti/synthetic/monommkd.yaml", 5, TAUGHT | BY_EPOCH),
    "monocular": ("kitti/synthetic/rgb_baseline.yaml", 5, {}),
}


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("worlds")
    street = generate(folder / "street", STREET, progress=False)
    create_nuscenes(street, street, "synthetic", VERSION, workers=1, database=False)
    return {"synthetic": street, "kitti": generate_kitti(folder / "road", ROAD, progress=False)}


def configured(name: str, epochs: int, changes: Mapping[str, Any], world: Path, folder: Path) -> Config:
    """The config on that world, 3 or 4 steps an epoch; teacher and student are weights that were never trained."""
    small = {
        "dataset_root": f"{world}/",
        "max_epochs": epochs,
        "data.cache": "none",
        "data.val": None,
        "data.samples_per_gpu": 1,
        "ema": {"decay": 0.9},
        "optimizer_config.cumulative_iters": 2,
        "checkpoint_config": {"interval": 1, "interval_iters": 2, "max_keep_ckpts": 1},
    }
    cfg = load_config(name, small | (MONO if "kitti" in name else BEV) | changes)
    torch.manual_seed(0)
    for role in ("teacher", "student"):
        side = cfg.model.get(role) or {}
        if side.get("checkpoint"):
            state, new = build_detector(side.model).state_dict(), tuple(side.get("new_modules") or ())
            side["checkpoint"] = str(folder / f"{role}.safetensors")
            save_file({k: v for k, v in state.items() if not (new and k.startswith(new))}, side["checkpoint"])
        side.pop("min_score", None)
    return cfg


def trainer(cfg: Config, run: Path, workers: int) -> Trainer:
    run.mkdir(exist_ok=True)
    cfg.data["workers_per_gpu"] = workers
    model = build_model(cfg.model)
    return Trainer(model, build_split(cfg.data, "train", 0, model.training_inputs), None, cfg, run, torch.device("cpu"))


def kept(path: Path) -> dict[str, Any]:
    """All that a checkpoint holds, by where it stands."""
    leaves, _ = tree_flatten_with_path({"state": read_training_state(path)[0], "weights": read_weights(path)[0]})
    return {"".join(map(str, key)): leaf for key, leaf in leaves}


@pytest.mark.parametrize("system", SYSTEMS)
def test_a_killed_training_ends_as_one_that_never_stopped(
    system: str, worlds: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first loads its samples itself; the one that goes on with its folder of then has two loader processes."""
    monkeypatch.setenv("DISTILL3D_CPUS", "3")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    name, epochs, changes = SYSTEMS[system]
    cfg = configured(name, epochs, changes, worlds[name.partition("/")[0]], tmp_path)
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    first = trainer(cfg, straight, 0)
    assert first.epoch_iters > 2
    save = first._save

    def saved(name: str) -> Path:
        path = save(name)
        if (first.epoch, first.batch) == (epochs - 1, 2):
            shutil.copytree(straight, killed, symlinks=True)  # all that a process leaves that is killed now
        return path

    first._save = saved
    first.fit()

    stopped = RunCheckpoints(killed).newest_intact()
    before = kept(stopped)
    cfg["resume_from"] = str(stopped)
    torch.manual_seed(1)
    second = trainer(cfg, killed, 2)
    assert second._loader.num_workers == 2
    second.fit()
    wanted, found = (kept(folder / f"epoch_{epochs}.safetensors") for folder in (straight, killed))
    assert wanted.keys() == found.keys()
    unequal = [key for key, value in wanted.items() if not same(value, found[key])]
    assert not unequal
    assert sum(not same(value, before.get(key)) for key, value in wanted.items()) > 100


def same(one: Any, other: Any) -> bool:
    """Equal, but for the last bit of a sum: in which order a convolution adds up depends on where its arrays lie."""
    if not (isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor)):
        return bool(one == other)
    if not one.is_floating_point() or not one.numel():
        return torch.equal(one, other)
    return one.shape == other.shape and bool((one - other).abs().max() <= 1e-7 * one.abs().max())
