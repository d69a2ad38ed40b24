"""Depth of view transforms: points drawn into images, the depth network, its supervision."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from vtransform_inputs import (
    KINDS,
    RADAR,
    STUDENT,
    TINY,
    pose,
    tiny,
    tiny_batch,
    tiny_calibration,
    tiny_features,
)

from mmdet3d.models.vtransforms import AwareBEVDepth, AwareDBEVDepth
from mmdet3d.models.vtransforms.depth_map import DepthMap
from mmdet3d.models.vtransforms.depth_net import DepthNet, FrustumRefinement, camera_vector
from mmdet3d.models.vtransforms.depth_supervision import depth_loss, depth_targets
from mmdet3d.registry import MODELS
from mmdet3d.structures import Batch, Calibration, project

# -- drawing points ---------------------------------------------------------------------------------


def straight_ahead() -> Calibration:
    """One camera at the origin that looks along +x, no augmentation: (x, 0, 0) falls on pixel (16, 32) at depth x."""
    calibration = tiny_calibration(1, 1)
    eye = torch.eye(4)
    return replace(
        calibration, camera2lidar=pose(0.0, (0, 0, 0))[None, None], image_aug=eye[None, None], lidar_aug=eye[None]
    )


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 1, 0], [1, 2, 0]])
def test_the_nearest_point_wins(order: list[int]) -> None:
    points = torch.tensor([[9.0, 0, 0, 1], [4.0, 0, 0, 2], [6.0, 0, 0, 3]])[order]
    canvas = DepthMap((32, 64), point_channels=4)([points], straight_ahead())
    assert canvas.shape == (1, 5, 32, 64)
    assert canvas[0, :, 16, 32].tolist() == [4.0, 4.0, 0.0, 0.0, 2.0]
    assert canvas[0, 0].count_nonzero() == 1


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 1, 0], [1, 2, 0]])
@pytest.mark.parametrize("values", [0, 4])
def test_the_last_point_wins_as_in_published_depth_maps(order: list[int], values: int) -> None:
    points = torch.tensor([[9.0, 0, 0, 1], [4.0, 0, 0, 2], [6.0, 0, 0, 3], [5.0, 2.0, 0, 4]])
    points = points[[*order, 3]]
    canvas = DepthMap((32, 64), point_channels=values, pixel_depth="last")([points], straight_ahead())
    assert canvas[0, 0, 16, 32] == points[2, 0] and canvas[0, 0].count_nonzero() <= 2
    if values:
        assert canvas[0, 1:, 16, 32].tolist() == points[2].tolist()


def test_the_rule_of_a_pixel_is_an_option_of_the_view_transforms() -> None:
    for name in ("DepthLSSTransform", "AwareDBEVDepth"):
        cfg = {"type": name, **TINY}
        assert MODELS.build(cfg).depth_map.pixel_depth == "nearest"
        assert MODELS.build(cfg | {"pixel_depth": "last"}).depth_map.pixel_depth == "last"
        with pytest.raises(ValueError, match="pixel_depth of a view transform must be nearest or last, got 'lst'"):
            MODELS.build(cfg | {"pixel_depth": "lst"})


def test_points_behind_the_camera_are_not_drawn() -> None:
    points = torch.tensor([[-5.0, 0, 0], [0.0, 0, 0]])
    assert DepthMap((32, 64))([points], straight_ahead()).count_nonzero() == 0


def test_no_point_of_an_image_is_passed_over() -> None:
    """What is drawn equals projecting every point into every camera: rotated images, points on borders and close by."""
    torch.manual_seed(0)
    calibration = tiny_calibration(1, 3)
    c, s = math.cos(0.3), math.sin(0.3)
    turned = torch.tensor([[0.8 * c, -0.8 * s, 0, 9.0], [0.8 * s, 0.8 * c, 0, -4.0], [0, 0, 1, 0], [0, 0, 0, 1]])
    calibration = replace(calibration, image_aug=turned.expand(1, 3, 4, 4))
    far, near = torch.randn(20000, 3) * 20, torch.randn(20000, 3) * torch.tensor([0.02, 0.02, 0.02])
    one = calibration[0]
    border = torch.linalg.inv(one.lidar2image[0]) @ torch.tensor([[5.0 * 16.0, 5.0 * 8.0, 5.0, 1.0]]).T
    origin = one.camera2lidar[:, :3, 3]
    points = torch.cat([far, *(near + o for o in origin), border.T[:, :3]])
    expected = torch.zeros(3, 32 * 64)
    raw = (points - one.lidar_aug[:3, 3]) @ torch.linalg.inv(one.lidar_aug[:3, :3]).T
    uv, depth = project(raw, one.lidar2image)
    uv = uv @ one.image_aug[:, :2, :2].mT + one.image_aug[:, None, :2, 3]
    inside = (depth > 1e-5) & (uv >= 0).all(-1) & (uv[..., 0] < 64) & (uv[..., 1] < 32)
    assert inside.sum() > 1000
    for camera, point in inside.nonzero().tolist():
        u, v = uv[camera, point].long().tolist()
        old = float(expected[camera, v * 64 + u])
        new = float(depth[camera, point])
        expected[camera, v * 64 + u] = new if old == 0 else min(old, new)
    drawn = DepthMap((32, 64))([points], calibration)
    assert ((drawn[:, 0].flatten(1) - expected).abs() < 1e-4).all()


@pytest.mark.parametrize(
    "options", [{}, {"point_channels": 4}, {"pixel_depth": "last"}, {"dbound": (1.0, 60.0, 1.0)}], ids=str
)
def test_points_are_drawn_in_full_precision_under_autocast(options: dict) -> None:
    spread = torch.tensor([[40.0, 40.0, 4.0, 1.0]]) * (
        torch.rand(500, 4, generator=torch.Generator().manual_seed(0)) - 0.2
    )
    draw, calibration = DepthMap((32, 64), **options), straight_ahead()
    expected = draw([spread], calibration)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(draw([spread], calibration), expected)
    assert expected.count_nonzero() > 20


def test_no_points() -> None:
    canvas = DepthMap((32, 64), dbound=(1.0, 13.0, 1.0), point_channels=3, height_expand=True)(
        [torch.zeros(0, 3)], straight_ahead()
    )
    assert canvas.shape == (1, 15, 32, 64) and canvas.count_nonzero() == 0


def test_one_hot_bins_follow_dbound() -> None:
    points = torch.tensor([[2.2, 0, 0], [3.9, 0, 0], [0.5, 0, 0], [50.0, 0, 0]])
    canvas = DepthMap((32, 64), dbound=(1.0, 5.0, 0.5))([points], straight_ahead())
    assert canvas.shape == (1, 8, 32, 64)
    assert canvas[0, :, 16, 32].nonzero().flatten().tolist() == [0, 2, 5, 7]


def test_height_expand_draws_columns() -> None:
    points = torch.tensor([[10.0, 0, -3.0, 7.0]])
    canvas = DepthMap((32, 64), point_channels=4, height_expand=True)([points], straight_ahead())
    rows = canvas[0, 0, :, 32].nonzero().flatten().tolist()
    assert rows == sorted({int(16 - 40 * 0.25 * k / 10) for k in range(1, 9)})
    assert set(canvas[0, 3, rows, 32].tolist()) <= {0.25 * k for k in range(1, 9)}
    assert set(canvas[0, 4, rows, 32].tolist()) == {7.0}


def test_points_of_another_width_are_named() -> None:
    with pytest.raises(ValueError, match="points of 45 values and is given 5"):
        DepthMap((32, 64), point_channels=45)([torch.zeros(1, 5)], straight_ahead())


# -- depth network and supervision ------------------------------------------------------------------


def test_camera_vector() -> None:
    calibration = tiny_calibration()
    vectors = camera_vector(calibration)
    assert vectors.shape == (4, 27)
    k, ida, bda = calibration.intrinsics[1, 1], calibration.image_aug[1, 1], calibration.lidar_aug[1]
    expected = [
        *(k[0, 0], k[1, 1], k[0, 2], k[1, 2]),
        *(ida[0, 0], ida[0, 1], ida[0, 3], ida[1, 0], ida[1, 1], ida[1, 3]),
        *(bda[0, 0], bda[0, 1], bda[1, 0], bda[1, 1], bda[2, 2]),
        *calibration.camera2ego[1, 1, :3].flatten(),
    ]
    assert vectors[3].tolist() == [v.item() for v in expected]


def test_depth_net_names() -> None:
    names = set(DepthNet(6, 4, 5, 12).state_dict())
    stems = [
        "reduce_conv.0.bias",
        "reduce_conv.1.weight",
        "context_conv.bias",
        "bn.running_var",
        "depth_mlp.fc1.weight",
        "depth_mlp.fc2.bias",
        "depth_se.conv_reduce.bias",
        "depth_se.conv_expand.weight",
        "context_mlp.fc1.weight",
        "context_se.conv_expand.bias",
        "depth_conv_1.2.conv2.weight",
        "depth_conv_1.0.bn1.bias",
        "depth_conv_2.0.aspp1.atrous_conv.weight",
        "depth_conv_2.0.aspp4.bn.weight",
        "depth_conv_2.0.global_avg_pool.1.weight",
        "depth_conv_2.0.global_avg_pool.2.bias",
        "depth_conv_2.0.conv1.weight",
        "depth_conv_2.0.bn1.weight",
        "depth_conv_2.1.bias",
        "depth_conv_2.2.weight",
        "depth_conv_3.0.bias",
        "depth_conv_3.1.weight",
    ]
    assert set(stems) <= names
    assert not {"depth_conv_2.0.conv1.bias", "depth_conv_2.0.aspp1.atrous_conv.bias"} & names


def test_depth_net_is_camera_aware() -> None:
    torch.manual_seed(0)
    net, x = DepthNet(6, 4, 5, 12).eval(), torch.randn(1, 6, 4, 8)
    vector = torch.randn(1, 27)
    a, b = net(x, vector), net(x, vector + 1)
    assert a.shape == (1, 17, 4, 8)
    assert not torch.allclose(a[:, :12], b[:, :12]) and not torch.allclose(a[:, 12:], b[:, 12:])


def test_dtransform_channels() -> None:
    one_hot = tiny("AwareDBEVDepth", **RADAR)
    assert [m.in_channels for m in one_hot.dtransform if isinstance(m, nn.Conv2d)] == [12 + 45, 32, 32, 64]
    assert [m.stride[0] for m in one_hot.dtransform if isinstance(m, nn.Conv2d)] == [1, 2, 2, 2]
    scalar = tiny("AwareDBEVDepth", add_depth_features=True)
    assert [m.in_channels for m in scalar.dtransform if isinstance(m, nn.Conv2d)] == [1 + 5, 8, 32, 64]
    assert one_hot.depthnet.reduce_conv[0].in_channels == 6 + 64


def test_refinement_works_on_each_image_row_alone() -> None:
    torch.manual_seed(0)
    refine, x = FrustumRefinement(3).eval(), torch.randn(2, 3, 5, 4, 6)
    y = refine(x)
    assert y.shape == x.shape
    changed = x.clone()
    changed[:, :, :, 1] += 1
    rows = (refine(changed) - y).abs().amax(dim=(0, 1, 2, 4)) > 1e-6
    assert rows.tolist() == [False, True, False, False]


def test_refined_pooling_equals_plain_pooling_for_identity() -> None:
    transform, batch = tiny("AwareBEVDepth", mid_channels=4).eval(), tiny_batch()
    transform.refinement = nn.Identity()
    refined, _ = transform(tiny_features(), batch)
    transform.refinement = None
    torch.testing.assert_close(refined, transform(tiny_features(), batch)[0], rtol=1e-4, atol=1e-5)


def reference_targets(depths: Tensor, stride: int, d0: float, step: float, bins: int) -> list[list[list[int]]]:
    """Bin of each block, -1 without a measurement: the published steps, one block at a time."""
    images = []
    for image in depths:
        rows = []
        for r in range(0, image.shape[0], stride):
            row = []
            for c in range(0, image.shape[1], stride):
                block = image[r : r + stride, c : c + stride]
                nearest = block[block != 0].min().item() if (block != 0).any() else 1e5
                t = (nearest - (d0 - step)) / step
                row.append(int(t if 0 <= t < bins + 1 else 0) - 1)
            rows.append(row)
        images.append(rows)
    return images


def test_depth_targets_take_the_nearest_measurement_of_a_block() -> None:
    depths = tiny_batch().depths.flatten(0, 1)
    bins, valid = depth_targets(depths, 8, (1.0, 13.0, 1.0))
    expected = torch.tensor(reference_targets(depths, 8, 1.0, 1.0, 12))
    assert torch.equal(valid, expected >= 0) and 0 < valid.sum() < valid.numel()
    assert torch.equal(bins[valid], expected[valid])


def test_depth_loss_and_its_gradient_by_hand() -> None:
    transform, batch = tiny("AwareBEVDepth", mid_channels=4, depth_loss_factor=2.0), tiny_batch()
    torch.manual_seed(3)
    depth = torch.randn(4, 12, 4, 8).softmax(1).requires_grad_()
    loss = transform.depth_loss(depth, batch)
    loss.backward()
    bins = torch.tensor(reference_targets(batch.depths.flatten(0, 1), 8, 1.0, 1.0, 12))
    known = bins >= 0
    p = depth.detach().double().permute(0, 2, 3, 1)
    y = (torch.arange(12) == bins[..., None]).double()
    entropy = -(y * p.log() + (1 - y) * (1 - p).log()).sum(-1)
    assert loss.item() == pytest.approx((2.0 * entropy[known].sum() / known.sum()).item(), rel=1e-5)
    gradient = 2.0 * (p - y) / (p * (1 - p)) / known.sum() * known[..., None]
    torch.testing.assert_close(depth.grad.permute(0, 2, 3, 1).double(), gradient, rtol=1e-4, atol=1e-6)


def test_depth_loss_stays_finite() -> None:
    transform, batch = tiny("AwareBEVDepth", mid_channels=4), tiny_batch()
    logits = torch.zeros(4, 12, 4, 8, requires_grad=True)
    certain = (logits + 1e4 * (torch.arange(12) == 11)[:, None, None]).softmax(1)
    loss = transform.depth_loss(certain, batch)
    loss.backward()
    assert loss.isfinite() and loss > 0 and logits.grad.isfinite().all()


def test_depth_loss_without_measurements_is_zero() -> None:
    transform, batch = tiny("AwareBEVDepth", mid_channels=4), tiny_batch()
    depth = torch.full((4, 12, 4, 8), 1 / 12, requires_grad=True)
    loss = transform.depth_loss(depth, replace(batch, depths=torch.zeros_like(batch.depths)))
    loss.backward()
    assert loss.item() == 0 and depth.grad.count_nonzero() == 0


def published_depths() -> Tensor:
    """(2, 16, 24): the input of SimDistill's published depth labels."""
    k = torch.arange(2 * 16 * 24)
    return torch.where(k % 5 == 0, (k % 97) * 0.7, 0.0).view(2, 16, 24)


def test_published_depth_labels_and_loss() -> None:
    dbound = (1.0, 60.0, 0.5)
    bins, valid = depth_targets(published_depths(), 8, dbound)
    assert bins.where(valid, -1).flatten().tolist() == [2, 9, 23, -1, 6, 17, 0, 5, 14, 23, -1, 13]
    predicted = torch.sin(0.017 * torch.arange(2 * 118 * 2 * 3).double()).view(2, 118, 2, 3).softmax(1)
    assert 3 * depth_loss(predicted, published_depths(), 8, dbound).item() == pytest.approx(16.47163963, rel=1e-5)


@pytest.mark.parametrize("kind", ["LSSTransform", "DepthLSSTransform"])
def test_any_view_transform_can_supervise_its_depth(kind: str) -> None:
    assert not tiny(kind, **KINDS[kind]).supervises_depth
    transform, batch = tiny(kind, **KINDS[kind], depth_loss_factor=3.0), tiny_batch()
    assert transform.supervises_depth and transform.stride == 8
    _, depth = transform(tiny_features(), batch)
    loss = transform.depth_loss(depth, batch)
    assert loss.item() == pytest.approx(3 * depth_loss(depth, batch.depths.flatten(0, 1), 8, (1, 13, 1)).item())
    loss.backward()
    assert next(transform.depthnet.parameters()).grad.any()
    with pytest.raises(ValueError, match=f"depth loss of {kind} needs `depths`"):
        transform.depth_loss(depth, batch.without("depths"))


@pytest.mark.parametrize("samples", [1, 2])
def test_depth_is_paired_with_the_image_it_belongs_to(samples: int) -> None:
    """Each image of each sample has a depth of its own; whoever swaps samples and cameras is far off."""
    depths = (1.5 + torch.arange(2.0 * samples)).view(samples, 2, 1, 1).expand(samples, 2, 32, 64)
    certain = F.one_hot(torch.arange(2 * samples), 12).float()[:, :, None, None].expand(-1, -1, 4, 8)
    batch = Batch(["a", "b"][:samples], tiny_calibration(samples), depths=depths)
    transform = tiny("LSSTransform", depth_loss_factor=1.0)
    assert transform.depth_loss(certain, batch).item() == 0
    if samples == 2:
        assert transform.depth_loss(certain[[0, 2, 1, 3]], batch).item() > 10


def test_impossible_depth_supervision_is_refused() -> None:
    with pytest.raises(ValueError, match="depth_loss_factor of LSSTransform must not be negative, got -1"):
        tiny("LSSTransform", depth_loss_factor=-1.0)
    uneven = {"image_size": [32, 60], "feature_size": [4, 8]}
    assert not tiny("LSSTransform", **uneven).supervises_depth
    with pytest.raises(ValueError, match=r"LSSTransform needs image_size \[32, 60\] to be a multiple"):
        tiny("LSSTransform", **uneven, depth_loss_factor=1.0)


def test_depth_loss_names_depths_of_another_size() -> None:
    transform, batch = tiny("AwareBEVDepth", mid_channels=4), tiny_batch()
    with pytest.raises(ValueError, match=r"image_size \[32, 64\] and is given depths of size \[16, 64\]"):
        transform.depth_loss(torch.rand(4, 12, 4, 8), replace(batch, depths=torch.zeros(2, 2, 16, 64)))


def test_published_resnet_dlss_names_the_right_stride() -> None:
    """The published config says 16 for features at stride 8."""
    published = STUDENT | {"type": "AwareDBEVDepth", "bevdepth_downsample": 16, "bevdepth_refine": False} | RADAR
    with pytest.raises(ValueError, match="set it to 8"):
        MODELS.build(published | {"mid_channels": 4})
    assert isinstance(MODELS.build(published | {"mid_channels": 4, "bevdepth_downsample": 8}), AwareDBEVDepth)
    assert AwareBEVDepth(**TINY, mid_channels=4).stride == 8
