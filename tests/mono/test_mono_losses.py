"""Losses and decoding of the monocular heads."""

from __future__ import annotations

import math

import pytest
import torch
from mono_inputs import make_batch, perfect_regions

from mmdet3d.datasets.kitti.dataset import KittiDataset
from mmdet3d.models.heads.mono.decode import decode_regions, merge_depth
from mmdet3d.models.heads.mono.losses import TASKS, detection_losses, laplacian, residual_at
from mmdet3d.models.heads.mono.regions import find_peaks, predict_regions, region_features
from mmdet3d.models.heads.mono.targets import MonoTargets, heat_maps
from mmdet3d.models.losses import GaussianFocalLoss
from mmdet3d.structures import Batch
from mmdet3d.structures.camera_boxes import boxes_to_kitti


def double_case(objects: int = 2):
    """Random maps, regions and targets in float64."""
    generator = torch.Generator().manual_seed(0)

    def rand(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    targets = MonoTargets(
        image=torch.zeros(objects, dtype=torch.int64),
        labels=torch.ones(objects, dtype=torch.int64),
        cells=torch.tensor([[2, 1], [4, 3]])[:objects],
        boxes=torch.tensor([[1.0, 0, 4, 3], [3, 2, 6, 5]], dtype=torch.float64)[:objects],
        offset_2d=rand(objects, 2),
        size_2d=torch.full((objects, 2), 3.0, dtype=torch.float64),
        offset_3d=rand(objects, 2),
        size_3d=rand(objects, 3),
        depth=rand(objects) + 20,
        heading_bin=torch.tensor([3, 7])[:objects],
        heading_residual=rand(objects) / 10,
        regressed=torch.ones(objects, dtype=torch.bool),
    )
    dense = {name: rand(1, n, 6, 8) for name, n in (("heatmap", 3), ("offset_2d", 2), ("size_2d", 2))}
    regions = {"offset_3d": rand(objects, 2), "size_3d": rand(objects, 3), "heading": rand(objects, 24)}
    for name in ("visual", "attribute", "depth"):
        regions[name] = rand(objects, 7, 7)
        regions[f"{name}_uncertainty"] = rand(objects, 7, 7)
    visible = targets.depth[:, None, None] + rand(objects, 7, 7)
    belongs = rand(objects, 7, 7) > 0
    return dense, regions, heat_maps(targets, (1, 3, 6, 8)).double(), targets, visible, belongs


def test_published_laplacian():
    ten, mask = torch.tensor([10.0]), torch.tensor([True])
    assert laplacian(ten, ten + 2, torch.ones(1), mask).item() == pytest.approx(2.21551, abs=1e-5)
    assert laplacian(ten, ten + 2, torch.ones(1), ~mask) == 0


def test_published_focal_loss():
    p = torch.tensor([[0.9, 0.2], [0.1, 0.6]], dtype=torch.float64)
    t = torch.tensor([[1, 0.5], [0, 0.8]], dtype=torch.float64)
    assert GaussianFocalLoss(2.0, 4.0)(p, t, avg_factor=1).item() == pytest.approx(0.003192853, abs=1e-9)


def test_terms_by_hand():
    dense, regions, heat, targets, visible, belongs = double_case(1)
    found = detection_losses(dense, regions, heat, targets, visible, belongs)
    assert tuple(found) == TASKS
    assert found["offset_2d"].item() == pytest.approx(
        (dense["offset_2d"][0, :, 1, 2].float() - targets.offset_2d[0]).abs().mean().item(), abs=1e-6
    )
    assert found["size_3d"].item() == pytest.approx((regions["size_3d"] - targets.size_3d).abs().mean().item())
    scores = regions["heading"][0]
    entropy = scores[:12].logsumexp(0) - scores[3]
    assert found["heading"].item() == pytest.approx((entropy + (scores[15] - targets.heading_residual[0]).abs()).item())
    assert residual_at(regions["heading"], targets.heading_bin)[0] == scores[15]


def test_gradients_in_double_precision():
    dense, regions, heat, targets, visible, belongs = double_case()
    values = [*dense.values(), *regions.values()]
    names = [*dense, *regions]

    def total(*tensors):
        given = dict(zip(names, tensors, strict=True))
        maps = {name: given[name] for name in dense}
        # Maps are cast to float32 by the losses; regions are compared here.
        terms = detection_losses(maps, {n: given[n] for n in regions}, heat, targets, visible, belongs)
        return sum(terms[n] for n in ("depth", "offset_3d", "size_3d", "heading"))

    for name, value in zip(names, values, strict=True):
        value.requires_grad_(name in regions)
    torch.autograd.gradcheck(total, values)
    logits = dense["heatmap"].clone().requires_grad_()
    focal = GaussianFocalLoss(2.0, 4.0)
    torch.autograd.gradcheck(lambda x: focal(x.sigmoid(), heat, avg_factor=2), logits)


def test_inputs_are_not_changed():
    dense, regions, *rest = double_case()
    before = {k: v.clone() for k, v in (dense | regions).items()}
    detection_losses(dense, regions, *rest)
    assert all(torch.equal(v, before[k]) for k, v in (dense | regions).items())


@pytest.mark.parametrize("objects", [0, 1])
def test_empty_selections_are_finite(objects):
    dense, regions, heat, targets, visible, belongs = double_case(objects)
    for value in (*dense.values(), *regions.values()):
        value.requires_grad_()
    terms = detection_losses(dense, regions, heat, targets, visible, torch.zeros_like(belongs))
    assert all(v.isfinite() for v in terms.values())
    sum(terms.values()).backward()
    assert all(v.grad is None or v.grad.isfinite().all() for v in (*dense.values(), *regions.values()))


@pytest.mark.parametrize("crop, shift", [(1.0, (0.0, 0.0)), (0.8, (0.02, -0.01))])
def test_decoding_the_targets_gives_the_ground_truth(crop, shift):
    batch = make_batch(size=(384, 1280), crop=crop, shift=shift)
    regions, geometry, means = perfect_regions(batch)
    for found, wanted in zip(decode_regions(regions, geometry, means, 0.2, 2), batch.objects, strict=True):
        level = found.boxes
        assert torch.equal(found.labels, wanted.labels)
        assert torch.allclose(found.boxes2d, wanted.boxes2d, atol=1e-3)
        assert torch.allclose(found.alphas, wanted.alphas, atol=1e-5)
        camera = torch.stack([-level.centers[:, 1], -level.centers[:, 2], level.centers[:, 0]], dim=1)
        assert torch.allclose(camera, wanted.centers, atol=1e-3)
        assert torch.allclose(level.dims[:, [2, 1, 0]], wanted.sizes, atol=1e-5)
        turned = torch.remainder(-level.yaw - torch.pi / 2 - wanted.yaws + torch.pi, 2 * torch.pi) - torch.pi
        assert torch.allclose(turned, torch.zeros_like(turned), atol=1e-5)


def test_the_score_is_peak_times_confidence_and_the_threshold_is_on_the_peak():
    batch = make_batch(size=(384, 1280))
    regions, geometry, means = perfect_regions(batch)
    regions["scores"] = torch.tensor([0.21, 0.19, 0.9, 0.5])
    regions["size_3d"] = regions["size_3d"].clone()
    regions["size_3d"][2, 0] = -5.0
    first, second = decode_regions(regions, geometry, means, 0.2, 2)
    confidence = math.exp(-math.exp(-2))
    assert first.scores.tolist() == pytest.approx([0.21 * confidence])
    assert second.scores.tolist() == pytest.approx([0.5 * confidence])


def test_depths_are_weighted_by_their_certainty():
    depth = torch.stack([torch.full((7, 7), 10.0), torch.full((7, 7), 30.0)])
    depth[0, 0, 0] = 110.0
    unsure = torch.zeros(2, 7, 7)
    unsure[0, 0, 0] = 500.0
    unsure[1] = 80.0
    merged, confidence = merge_depth(depth, unsure)
    assert merged.tolist() == pytest.approx([10.0, 30.0])
    assert confidence.tolist() == pytest.approx([math.exp(-1), 0.0])
    unsure[0, 0, 0] = 1.0
    weights = torch.exp(-torch.exp(unsure[0] / 2))
    assert merge_depth(depth, unsure)[0][0].item() == pytest.approx((weights * depth[0]).sum() / weights.sum())


def test_peaks_come_in_falling_order_and_neighbours_do_not():
    heat = torch.full((2, 3, 6, 8), -5.0)
    heat[0, 1, 2, 3], heat[0, 1, 2, 4], heat[0, 0, 5, 7] = 2.0, 1.5, 3.0
    image, labels, cells, scores = find_peaks(heat, 2)
    assert image.tolist() == [0, 0, 1, 1]
    assert labels[:2].tolist() == [0, 1]
    assert cells[:2].tolist() == [[7, 5], [3, 2]]
    assert scores[:2].tolist() == pytest.approx(torch.tensor([3.0, 2.0]).sigmoid().tolist())
    assert len(find_peaks(heat, 1000)[0]) == 2 * 3 * 6 * 8


def test_regions_hold_features_directions_and_class():
    regions, geometry, _ = perfect_regions(make_batch(size=(384, 1280)))
    boxes = regions["boxes"].requires_grad_()
    features = torch.rand(2, 5, 96, 320)
    found = region_features(features, boxes, regions["image"], regions["labels"], 3, geometry)
    assert found.shape == (4, 5 + 2 + 3, 7, 7)
    x, y = found[0, 5], found[0, 6]
    assert torch.equal(x, x[:1].expand(7, 7)) and torch.equal(y, y[:, :1].expand(7, 7))
    pixels = geometry.to_pixels(boxes[:1, :2], regions["image"][:1])
    assert torch.allclose(x[0, 0], (pixels[0, 0] - 609.5593 - 44.85728) / 721.5377, atol=1e-5)
    assert torch.equal(found[0, 7:, 0, 0], torch.tensor([0.0, 1.0, 0.0]))
    found[:, 5:7].sum().backward()
    assert boxes.grad.abs().sum() > 0


def test_visual_depth_is_scaled_and_attribute_depth_is_not():
    constant = {
        "vis_depth": 0.5, "att_depth": 0.25, "vis_depth_uncer": 1.0, "att_depth_uncer": 2.0,
        "offset_3d": 0.0, "size_3d": 0.0, "heading": 0.0,
    }  # fmt: skip
    layers = {name: (lambda r, v=value: torch.full((len(r), 1, 7, 7), v)) for name, value in constant.items()}
    found = predict_regions(layers, torch.zeros(2, 3, 7, 7), torch.tensor([1.0, 2.0]))
    assert found["visual"][:, 0, 0].tolist() == pytest.approx([math.exp(-0.5), 2 * math.exp(-0.5)])
    assert found["depth"][1, 3, 3].item() == pytest.approx(2 * math.exp(-0.5) + 0.25)
    assert found["depth_uncertainty"][0, 0, 0].item() == pytest.approx(math.log(math.exp(1) + math.exp(2)))


def test_real_labels_decode_to_themselves(shared):
    data = KittiDataset(str(shared / "data/kitti"), "train", depth_dir=None, ids=["000003", "000007"], augment={})
    for epoch in range(3):
        data.set_epoch(epoch)
        batch = Batch.collate(list(data))
        regions, geometry, means = perfect_regions(batch)
        assert len(regions["labels"]) > 0
        found = decode_regions(regions, geometry, means, 0.2, len(batch))
        for one, wanted in zip(found, batch.objects, strict=True):
            kitti = boxes_to_kitti(one.boxes)
            bottom = wanted.centers + wanted.sizes[:, :1] * torch.tensor([0, 0.5, 0])
            rows = torch.cat([wanted.sizes, bottom, wanted.yaws[:, None]], dim=1)
            # In a crop, objects whose centre is off the map are not encoded.
            near = torch.cdist(kitti[:, :6], rows[:, :6]).min(dim=1)
            assert near.values.max() < 1e-2 if len(kitti) else True
            turned = kitti[:, 6] - rows[near.indices, 6]
            assert torch.allclose(turned.cos(), torch.ones_like(turned), atol=1e-6)
