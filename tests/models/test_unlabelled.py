"""A frame that nobody annotated takes no part in the detection losses, and no other frame's loss depends on it."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from bev_models import TRANSFUSION_HEAD, make_batch, model_config

from mmdet3d.models import build_model
from mmdet3d.structures import Batch

GROUND_TRUTH = ("boxes", "labels", "objects")


def with_unlabelled(batch: Batch) -> Batch:
    """The labels of the last sample taken away."""
    kept = {name: getattr(batch, name) for name in GROUND_TRUTH}
    return dataclasses.replace(batch, unlabelled=1, **{k: None if v is None else v[:-1] for k, v in kept.items()})


@pytest.mark.parametrize(
    "config",
    [
        model_config("camera", "lidar", "radar"),
        model_config("lidar", fuser=None, head=TRANSFUSION_HEAD),
    ],
    ids=["center head", "transfusion"],
)
def test_losses_of_a_mixed_batch_are_those_of_its_labelled_samples(config):
    torch.manual_seed(0)
    model = build_model(config).eval()
    mixed = with_unlabelled(make_batch(3))
    assert len(mixed.labelled) == 2
    alone, together = model.loss(mixed.labelled), model.loss(mixed)
    assert alone.keys() == together.keys()
    for name, value in alone.items():
        assert torch.allclose(value, together[name], atol=1e-5), name


def test_a_batch_without_any_label_is_refused():
    model = build_model(model_config("lidar", fuser=None))
    batch = dataclasses.replace(make_batch(1), boxes=None, labels=None, unlabelled=1)
    with pytest.raises(ValueError, match=r"no sample of the batch sample0 has labels; lower data\.unlabelled\.share"):
        model.loss(batch)
    assert len(model.eval().predict(batch)) == 1
