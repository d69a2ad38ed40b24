"""The small synthetic world that the tests share, and a network as narrow as it goes."""

from __future__ import annotations

from pathlib import Path

from mmdet3d.datasets.synthetic.kitti import KittiSettings

SMALL = KittiSettings(frames=8, test_frames=1, image_size=(320, 96), val_fraction=0.5)
NARROW = {"base_channels": 1, "head_channels": 4, "image_size": "[32, 96]", "max_epochs": 1}


def narrow_words(world: Path) -> list[str]:
    """Command-line words that train and test a config of `configs/kitti/synthetic` on `world` in a second."""
    loading = {"data.workers_per_gpu": 0, "data.samples_per_gpu": 4, "dataset_root": f"{world}/"}
    return [word for key, value in (NARROW | loading).items() for word in (f"--{key}", str(value))]
