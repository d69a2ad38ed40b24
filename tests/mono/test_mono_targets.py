"""Geometry and targets of the monocular heads against published values."""

from __future__ import annotations

import math

import pytest
import torch
from mono_inputs import CLASSES, IMAGE_SIZE, MEAN_SIZES, STREET, make_batch, objects

from mmdet3d.models.heads.gaussian import gaussian_radius
from mmdet3d.models.heads.mono.geometry import ImageGeometry
from mmdet3d.models.heads.mono.targets import (
    decode_heading,
    encode_heading,
    encode_objects,
    heat_maps,
    support_mask,
    visible_depth,
)
from mmdet3d.models.steps import ImageCrops

MEANS = torch.tensor([MEAN_SIZES[name] for name in CLASSES])


def targets_of(batch, size=(96, 320)):
    geometry = ImageGeometry.from_batch(batch, 4, size)
    return encode_objects(batch.objects, geometry, size, MEANS), geometry


@pytest.mark.parametrize("alpha, sector, residual", [(-0.3, 11, 0.2236), (0.27, 1, -0.2536), (3.1, 6, -0.0416)])
def test_published_heading_values(alpha, sector, residual):
    index, rest = encode_heading(torch.tensor([alpha]))
    assert index.item() == sector
    assert rest.item() == pytest.approx(residual, abs=5e-5)


def test_heading_is_decoded_exactly():
    alphas = torch.linspace(-math.pi, math.pi - 1e-6, 1001, dtype=torch.float64)
    index, residual = encode_heading(alphas)
    assert residual.abs().max() <= math.pi / 12 + 1e-9
    assert (index >= 0).all() and (index < 12).all()
    assert torch.allclose(decode_heading(index, residual), alphas, atol=1e-9)


@pytest.mark.parametrize(
    "width, height, radius", [(10, 10, 2.7332), (40, 20, 7.3559), (5, 30, 2.4490), (16, 20, 4.8639)]
)
def test_published_radii(width, height, radius):
    found = gaussian_radius(torch.tensor([float(height)]), torch.tensor([float(width)]), 0.7)
    assert found.item() == pytest.approx(radius, abs=1e-4)


def test_published_affine_values():
    geometry = ImageGeometry.from_batch(make_batch(size=(384, 1280)), 4, (96, 320))
    image = torch.zeros(2, dtype=torch.int64)
    corners = torch.tensor([[0.0, 0.0], [float(IMAGE_SIZE[0]), float(IMAGE_SIZE[1])]])
    cells = geometry.to_cells(corners, image)
    assert torch.allclose(4 * cells, torch.tensor([[0.0, -1.2367], [1280.0, 385.2367]]), atol=1e-3)
    assert torch.allclose(geometry.to_pixels(cells, image), corners, atol=1e-3)
    assert geometry.scale[0, 0].item() / 4 == pytest.approx(0.9703125)
    assert geometry.origin[0, 1].item() == pytest.approx(1.2, abs=1e-4)


def test_the_published_decoding_stretches_the_crop_over_the_map():
    batch = make_batch(size=(384, 1280))
    geometry = ImageGeometry.from_batch(batch, 4, (96, 320), ImageCrops()(batch))
    assert torch.allclose(geometry.scale, torch.tensor([1242 / 320, 375 / 96]))
    assert torch.allclose(geometry.origin, torch.zeros(2), atol=1e-3)


@pytest.mark.parametrize("crop, zoom", [(1.0, 1.0240), (0.7, 1.4629), (1.3, 0.7877)])
def test_published_scale_of_visual_depth(crop, zoom):
    batch = make_batch(size=(384, 1280), crop=crop, shift=(0.1, -0.05))
    geometry = ImageGeometry.from_batch(batch, 4, (96, 320), ImageCrops()(batch))
    assert 4 / geometry.scale[0, 1].item() == pytest.approx(zoom, abs=1e-4)


def test_lifting_inverts_projecting():
    _, geometry = targets_of(make_batch(size=(384, 1280)))
    points = torch.tensor([[3.0, 1.0, 20.0], [-8.0, -1.0, 50.0]])
    image = torch.tensor([0, 1])
    pixels = geometry.project(points, image)
    assert torch.allclose(pixels[0], torch.tensor([(721.5377 * 3 + 44.85728) / 20 + 609.5593, 208.9417]), atol=1e-3)
    assert torch.allclose(geometry.lift(pixels, points[:, 2], image), points, atol=1e-4)


def test_targets_of_an_object_by_hand():
    batch = make_batch([STREET[:1]], size=(384, 1280))
    targets, geometry = targets_of(batch)
    found = batch.objects[0]
    center = geometry.to_cells(geometry.project(found.centers, targets.image), targets.image)
    assert torch.equal(targets.cells, center.floor().long())
    assert torch.allclose(targets.cells + targets.offset_3d, center)
    middle = (found.boxes2d[:, :2] + found.boxes2d[:, 2:]) / 2
    assert torch.allclose(targets.cells + targets.offset_2d, geometry.to_cells(middle, targets.image), atol=1e-4)
    zoom = 1280 / 1242 / 4
    assert torch.allclose(targets.size_2d, (found.boxes2d[:, 2:] - found.boxes2d[:, :2]) * zoom, atol=1e-4)
    assert torch.allclose(targets.size_3d, MEANS[[1]] * 0.05, atol=1e-5)
    assert targets.depth.item() == 14.0


def test_depth_targets_do_not_follow_the_crop_but_the_visible_surface_does_not_either():
    """Published: metres stay metres in a crop; the network's visual depth is scaled instead."""
    for crop in (0.7, 1.3):
        batch = make_batch([STREET[:1]], size=(384, 1280), crop=crop)
        targets, _ = targets_of(batch)
        visible, belongs = visible_depth(batch.depths[:, 0], targets, (96, 320))
        assert targets.depth.item() == 14.0
        assert visible[belongs].median().item() == pytest.approx(13.5, abs=0.01)


def test_objects_off_the_map_are_left_out():
    rows = [(1, -3.0, 0.9, 14.0, 0.3), (1, -30.0, 0.9, 14.0, 0.3), (1, 0.0, 30.0, 14.0, 0.3)]
    targets, _ = targets_of(make_batch([rows, [], rows[1:]]))
    assert targets.image.tolist() == [0]


def test_heat_maps_peak_at_the_cells_of_their_class():
    targets, _ = targets_of(make_batch(size=(384, 1280)))
    heat = heat_maps(targets, (2, 3, 96, 320))
    assert (heat == 1).sum() == len(targets) == 4
    assert (heat[targets.image, targets.labels, targets.cells[:, 1], targets.cells[:, 0]] == 1).all()
    x, y = targets.cells[0].tolist()
    radius = int(targets.radii[0])
    sigma = (2 * radius + 1) / 6
    assert heat[0, 1, y, x + 1].item() == pytest.approx(math.exp(-1 / (2 * sigma**2)))
    assert heat[0, 1, y, x + radius + 1] == 0


def test_a_box_marks_the_published_square():
    """A box (40, 24, 120, 88) in network pixels marks rows 10 to 18 and columns 16 to 24; unused slots mark nothing."""
    targets, _ = targets_of(make_batch([STREET[:1], []]))
    targets.boxes = torch.tensor([[40.0, 24, 120, 88]]) / 4
    targets.size_2d = targets.boxes[:, 2:] - targets.boxes[:, :2]
    mask = support_mask(targets, (2, 96, 320))
    assert mask.sum() == 81
    assert mask[0, 10:19, 16:25].all()


def test_visible_depth_ignores_what_is_not_measured():
    """Pixels without depth (outside of the image, sky) do not thin the depth of their neighbours."""
    batch = make_batch([STREET[:1]], size=(384, 1280))
    targets, _ = targets_of(batch)
    depths = batch.depths[:, 0]
    full, _ = visible_depth(depths, targets, (96, 320))
    holes = depths.clone()
    holes[:, ::2] = 0
    some, belongs = visible_depth(holes, targets, (96, 320))
    assert belongs[:, 1:-1, 1:-1].all()
    assert torch.allclose(some[:, 1:-1, 1:-1], full[:, 1:-1, 1:-1])
    nothing, belongs = visible_depth(torch.zeros_like(depths), targets, (96, 320))
    assert not belongs.any() and (nothing == 0).all()


def test_visible_depth_of_another_object_does_not_count():
    batch = make_batch([STREET[:1]], size=(384, 1280))
    targets, _ = targets_of(batch)
    far = torch.full_like(batch.depths[:, 0], 17.0)
    assert not visible_depth(far, targets, (96, 320))[1].any()
    near = torch.full_like(far, 16.9)
    assert visible_depth(near, targets, (96, 320))[1].all()


def test_no_objects():
    targets, _ = targets_of(make_batch([[], []]))
    assert len(targets) == 0
    assert heat_maps(targets, (2, 3, 96, 320)).sum() == 0
    assert support_mask(targets, (2, 96, 320)).sum() == 0
    assert visible_depth(torch.ones(2, 384, 1280), targets, (96, 320))[0].shape == (0, 7, 7)
    assert len(objects([])) == 0
