"""Settings of the small synthetic world that the tests share."""

from __future__ import annotations

from mmdet3d.datasets.synthetic.kitti import KittiSettings

SMALL = KittiSettings(frames=8, test_frames=1, image_size=(320, 96), val_fraction=0.5)
