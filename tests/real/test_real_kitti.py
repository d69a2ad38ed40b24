"""Real KITTI frames: through teacher, student and MonoSKD at full size, and four of them learned by heart."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from mmdet3d.config import load_config
from mmdet3d.datasets import KittiDataset, build_dataset
from mmdet3d.engine.trainer import Trainer, seed_everything
from mmdet3d.models import build_model
from mmdet3d.structures import Batch, Sample

pytestmark = pytest.mark.slow

TRAIN_FRAMES = ["000000", "000003", "000007", "000009"]


def on_real_frames(shared: Path, name: str, ids: list[str], **overrides: object):
    """A config of `configs/kitti` that trains and tests on these frames of the training split."""
    frames = {"data.train.ids": ids, "data.val.ids": ids, "data.val.split": "train"}
    return load_config(f"kitti/{name}.yaml", {"dataset_root": f"{shared}/data/kitti/", **frames, **overrides})


@pytest.mark.parametrize("name", ["rgb_baseline", "depth_teacher", "monoskd", "monodistill"])
def test_full_size(name: str, shared: Path, tmp_path: Path) -> None:
    """384 x 1280, DLA-34, published augmentation: loss, backward, prediction; the student predicts without depth."""
    torch.manual_seed(0)
    cfg = on_real_frames(shared, name, ["000007"], imagenet_weights="absent", htl=None)
    train_batch = Batch.collate([build_dataset(cfg.data.train)[0]])
    test_batch = Batch.collate([build_dataset(cfg.data.val, test_mode=True)[0]])
    assert train_batch.images.shape == test_batch.images.shape == (1, 1, 3, 384, 1280)
    if cfg.model.type == "Distiller":
        for role in ("teacher", "student"):
            cfg.model[role]["checkpoint"] = str(tmp_path / f"{role}.safetensors")
            detector = build_model(load_config(cfg.model[role]["config"]).model)
            save_file(detector.state_dict(), cfg.model[role]["checkpoint"])
    model = build_model(cfg.model)
    if cfg.model.type == "Distiller":
        model.init_weights()
        model.setup_training(lambda teacher: {})
    model.train().start_epoch(140)
    terms = model.loss(train_batch)
    total = sum(v for k, v in terms.items() if k.startswith("loss/"))
    assert total.isfinite() and all(v.isfinite().all() for v in terms.values())
    if cfg.model.type == "Distiller":
        assert {k.split("/")[2] for k in terms if k.startswith("loss/kd/")} == set(cfg.model.losses)
    total.backward()
    assert not [k for k, p in model.named_parameters() if p.requires_grad and p.grad is None]
    bare = test_batch.without("objects") if name == "depth_teacher" else test_batch.without("objects", "depths")
    model.eval()
    with torch.no_grad():
        (found,), (again,) = model.predict(test_batch), model.predict(bare)
    assert torch.equal(found.boxes.tensor, again.boxes.tensor)


class Kept:
    """The samples of a data set without augmentation, loaded once and given `times` times."""

    def __init__(self, dataset: KittiDataset, times: int) -> None:
        self._samples = list(dataset)
        self._times = times

    def set_epoch(self, epoch: int) -> None:
        """They are the same in all epochs."""

    def __len__(self) -> int:
        return self._times * len(self._samples)

    def __getitem__(self, index: int) -> Sample:
        return self._samples[index % len(self._samples)]


def test_a_network_that_learned_four_frames_finds_their_objects(shared: Path, tmp_path: Path) -> None:
    """A narrow network and small images, the four frames of the training split, scored by the official evaluation.

    Three cars, one pedestrian and one cyclist count. With n objects, all of them found, AP_R40 is 100 (n - 1) / 40 and
    AP_R11 is 100 / 11 for n up to four.
    """
    still = {
        "augment.random_flip": 0.0,
        "augment.random_crop": 0.0,
        "augment.color_jitter": 0.0,
        "augment.lighting": 0.0,
    }
    schedule = {"max_epochs": 36, "data.samples_per_gpu": 4, "data.workers_per_gpu": 0, "optimizer.lr": 4.0e-3}
    cfg = on_real_frames(shared, "synthetic/rgb_baseline", TRAIN_FRAMES, **still, **schedule)
    seed_everything(0)
    train, val = Kept(build_dataset(cfg.data.train), 25), build_dataset(cfg.data.val, test_mode=True)
    trainer = Trainer(build_model(cfg.model), train, val, cfg, tmp_path)
    trainer.fit()
    for metric in ("3d", "bev", "bbox"):
        assert trainer.metrics[f"Car/{metric}/R40/moderate"] == pytest.approx(5.0)
        for name in ("Pedestrian", "Cyclist"):
            assert trainer.metrics[f"{name}/{metric}/R11/moderate"] == pytest.approx(100 / 11)
