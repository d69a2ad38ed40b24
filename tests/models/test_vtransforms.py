"""View transforms: geometry and layouts as published, drawing of points, depth supervision."""

from __future__ import annotations

import ast
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmdet3d.models.vtransforms import AwareBEVDepth, AwareDBEVDepth, DepthLSSTransform, LSSTransform
from mmdet3d.models.vtransforms.depth_map import DepthMap
from mmdet3d.models.vtransforms.depth_net import DepthNet, FrustumRefinement, camera_vector
from mmdet3d.models.vtransforms.depth_supervision import depth_loss, depth_targets
from mmdet3d.registry import MODELS
from mmdet3d.structures import Batch, BEVGrid, Calibration

TEACHER = {
    "type": "DepthLSSTransform",
    "in_channels": 256,
    "out_channels": 80,
    "image_size": [256, 704],
    "feature_size": [32, 88],
    "xbound": [-54.0, 54.0, 0.3],
    "ybound": [-54.0, 54.0, 0.3],
    "zbound": [-10.0, 10.0, 20.0],
    "dbound": [1.0, 60.0, 0.5],
    "downsample": 2,
}
STUDENT = TEACHER | {
    "type": "LSSTransform",
    "in_channels": 512,
    "xbound": [-54.0, 54.0, 0.6],
    "ybound": [-54.0, 54.0, 0.6],
    "dbound": [1.0, 60.0, 1.0],
    "downsample": 1,
}
TINY = {
    "in_channels": 6,
    "out_channels": 5,
    "image_size": [32, 64],
    "feature_size": [4, 8],
    "xbound": [-12.0, 12.0, 1.0],
    "ybound": [-12.0, 12.0, 1.0],
    "zbound": [-10.0, 10.0, 20.0],
    "dbound": [1.0, 13.0, 1.0],
}
RADAR = {"use_points": "radar", "depth_input": "one-hot", "height_expand": True, "add_depth_features": True}


def fixture_calibration(crkd_values: dict) -> Calibration:
    """One sample, one camera, with image and LiDAR augmentation."""
    m = {k: torch.tensor(v) for k, v in crkd_values["geometry inputs"].items()}
    eye = torch.eye(4)
    return Calibration(
        lidar2ego=eye[None],
        ego2global=eye[None],
        camera2lidar=m["camera2lidar"][None, None],
        camera2ego=eye[None, None],
        intrinsics=m["K"][None, None],
        image_aug=m["ida"][None, None],
        lidar_aug=m["bda"][None],
    )


def pose(yaw: float, translation: tuple[float, float, float]) -> Tensor:
    """A camera that looks along `yaw` on the ground plane: its z is forward, its y down."""
    c, s = np.cos(yaw), np.sin(yaw)
    matrix = torch.eye(4)
    matrix[:3, :3] = torch.tensor([[s, 0, c], [-c, 0, s], [0, -1, 0]])
    matrix[:3, 3] = torch.tensor(translation)
    return matrix


def tiny_calibration(samples: int = 2, cameras: int = 2) -> Calibration:
    k = torch.eye(4)
    k[:2, :3] = torch.tensor([[40.0, 0, 32], [0, 40, 16]])
    image_aug = torch.eye(4)
    image_aug[:2, :2] *= 0.9
    image_aug[:2, 3] = torch.tensor([3.0, -2.0])
    lidar_aug = torch.eye(4)
    lidar_aug[:3, :3] = 1.05 * torch.tensor([[0.995, 0.0998, 0], [-0.0998, 0.995, 0], [0, 0, 1.0]])
    lidar_aug[:3, 3] = torch.tensor([0.3, -0.2, 0.1])
    poses = torch.stack([pose(2.0 * i, (0.1, 0.2 * i, -0.3)) for i in range(cameras)])
    eye = torch.eye(4)
    return Calibration(
        lidar2ego=eye.expand(samples, 4, 4),
        ego2global=eye.expand(samples, 4, 4),
        camera2lidar=poses.expand(samples, -1, 4, 4),
        camera2ego=poses.expand(samples, -1, 4, 4),
        intrinsics=k.expand(samples, cameras, 4, 4),
        image_aug=image_aug.expand(samples, cameras, 4, 4),
        lidar_aug=lidar_aug.expand(samples, 4, 4),
    )


def tiny_batch() -> Batch:
    torch.manual_seed(0)
    span = torch.tensor([20.0, 20.0, 2.0])
    points = [torch.cat([(torch.rand(n, 3) - 0.5) * span, torch.rand(n, 2)], 1) for n in (300, 200)]
    radar = [torch.cat([(torch.rand(n, 3) - 0.5) * span, torch.rand(n, 42)], 1) for n in (30, 20)]
    depths = torch.rand(2, 2, 32, 64) * 14 * (torch.rand(2, 2, 32, 64) < 0.05)
    return Batch(["a", "b"], tiny_calibration(), points=points, radar=radar, depths=depths)


def tiny_features() -> Tensor:
    torch.manual_seed(1)
    return torch.randn(2, 2, 6, 4, 8)


def tiny(kind: str, **changes: object) -> nn.Module:
    torch.manual_seed(2)
    return MODELS.build({"type": kind} | TINY | changes)


KINDS = {
    "LSSTransform": {},
    "ConvLSSTransform": {"compensation": {"heads": 2, "points": 3}},
    "DepthLSSTransform": {"downsample": 2},
    "AwareBEVDepth": {"mid_channels": 4},
    "AwareDBEVDepth": {"bevdepth_refine": False, **RADAR},
}


# -- conformance ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "cfg"), [("a_teacher_LC_swint_v0p075_gatedfuser", TEACHER), ("c_student_CR_swint_default", STUDENT)]
)
def test_published_layout(shared: Path, model: str, cfg: dict) -> None:
    """All but the geometry, which follows from the config and is no weight here."""
    derived = ("dx", "bx", "nx", "frustum")
    prefix = "encoders.camera.vtransform."
    rows = [
        line.split("\t") for line in (shared / "fixtures" / "state_dicts" / f"{model}.tsv").read_text().splitlines()
    ]
    table = {r[0].removeprefix(prefix): ast.literal_eval(r[1]) for r in rows if r[0].startswith(prefix)}
    transform = MODELS.build(cfg)
    assert {k: tuple(getattr(transform, k).shape) for k in derived} == {k: table.pop(k) for k in derived}
    assert [(k, tuple(v.shape)) for k, v in transform.state_dict().items()] == list(table.items())


def test_geometry_as_published(crkd_values: dict) -> None:
    expected = crkd_values["geometry (student vtransform)"]
    geometry = LSSTransform(**{k: v for k, v in STUDENT.items() if k != "type"}).geometry(
        fixture_calibration(crkd_values)
    )
    assert list(geometry.shape) == expected["shape"]
    for d, v, u in ((0, 0, 0), (58, 31, 87), (20, 16, 44)):
        assert geometry[0, 0, d, v, u].tolist() == pytest.approx(expected[f"d{d}_h{v}_w{u}"], abs=2e-5)


def test_pooled_cells_as_published(crkd_values: dict) -> None:
    expected = crkd_values["geometry kept cells"]
    student = MODELS.build(STUDENT)
    geometry = student.geometry(fixture_calibration(crkd_values))
    depth = torch.ones(1, 59, 32, 88)
    assert depth.numel() == expected["total"]
    assert student.splat(depth, torch.ones(1, 1, 32, 88), geometry).sum().item() == expected["kept"]
    only = torch.zeros_like(depth)
    only[0, 20, 16, 44] = 1
    bev = student.splat(only, torch.ones(1, 1, 32, 88), geometry)
    x, y, _ = expected["idx_d20_h16_w44"]
    assert bev.nonzero().tolist() == [[0, 0, x, y]]


def test_teacher_raster_as_published(crkd_values: dict) -> None:
    expected = crkd_values["teacher vtransform"]
    teacher = MODELS.build(TEACHER)
    assert teacher.depth_bins == expected["D"]
    assert teacher.dx.tolist() == pytest.approx(expected["dx"])
    assert teacher.bx.tolist() == pytest.approx(expected["bx"], abs=1e-5)
    assert teacher.nx.tolist() == expected["nx"]
    assert list(teacher.frustum.shape) == expected["frustum"]
    assert teacher.frustum[-1, -1, -1].tolist() == [703.0, 255.0, 59.5]


def test_points_are_drawn_where_the_pinhole_model_puts_them(crkd_values: dict) -> None:
    calibration = fixture_calibration(crkd_values)
    points = torch.tensor(crkd_values["depth raster lidar pts"])
    canvas = DepthMap((256, 704))([points], calibration)[0, 0]
    m = {k: np.array(v) for k, v in crkd_values["geometry inputs"].items()}
    expected = {}
    for p in points[:, :3].double().numpy():
        raw = np.linalg.solve(m["bda"], [*p, 1])
        camera = np.linalg.solve(m["camera2lidar"], raw)
        u, v, _ = (m["K"][:3, :3] @ camera[:3]) / camera[2]
        u, v = (m["ida"] @ [u, v, 0, 1])[:2]
        if camera[2] > 0 and 0 <= u < 704 and 0 <= v < 256:
            expected[int(v), int(u)] = camera[2]
    drawn = {tuple(i): canvas[tuple(i)].item() for i in canvas.nonzero().tolist()}
    assert len(expected) >= 2
    assert drawn.keys() == expected.keys()
    for pixel, depth in expected.items():
        assert drawn[pixel] == pytest.approx(depth, rel=1e-5)


def test_points_are_not_changed(crkd_values: dict) -> None:
    """Upstream shifts them by the translation of the LiDAR augmentation in its float32 mode."""
    points = torch.tensor(crkd_values["depth raster lidar pts"])
    shifted = torch.tensor(crkd_values["lidar points after vtransform in fp32 mode (mutated in place)"])
    calibration = fixture_calibration(crkd_values)
    torch.testing.assert_close(points[:, :3] - calibration.lidar_aug[0, :3, 3], shifted)
    before = points.clone()
    DepthMap((256, 704), point_channels=5, height_expand=True)([points], calibration)
    assert torch.equal(points, before)


# -- geometry ---------------------------------------------------------------------------------------


def test_frustum_points_are_drawn_back_on_their_pixels() -> None:
    """Lifting and drawing are inverse to each other, augmentations included."""
    transform = tiny("LSSTransform")
    transform.frustum[..., :2] += 0.5  # into the pixels, so that rounding does not decide
    calibration = tiny_calibration(samples=1, cameras=1)
    geometry = transform.geometry(calibration)
    for d in range(transform.depth_bins):
        canvas = DepthMap((32, 64))([geometry[0, 0, d].reshape(-1, 3)], calibration)[0, 0]
        columns, rows, depth = transform.frustum[d].reshape(-1, 3).unbind(1)
        torch.testing.assert_close(canvas[rows.long(), columns.long()], depth, rtol=1e-4, atol=0)
        assert canvas.count_nonzero() == len(depth)


def test_geometry_is_float32_under_autocast() -> None:
    transform = tiny("LSSTransform")
    expected = transform.geometry(tiny_calibration())
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(transform.geometry(tiny_calibration()), expected)


def test_pooling_equals_summing_points_by_hand() -> None:
    transform, batch = tiny("LSSTransform"), tiny_batch()
    depth, context = transform.lift(tiny_features().flatten(0, 1), batch)
    geometry = transform.geometry(batch.calibration)
    expected = torch.zeros(2, 5, 24, 24)
    for b, n, d, v, u in np.ndindex(2, 2, 12, 4, 8):
        cell = (
            (geometry[b, n, d, v, u] - torch.tensor([-12.0, -12.0, -10.0])) / torch.tensor([1.0, 1.0, 20.0])
        ).trunc()
        x, y, z = cell.int().tolist()
        if 0 <= x < 24 and 0 <= y < 24 and z == 0:
            expected[b, :, x, y] += depth[2 * b + n, d, v, u] * context[2 * b + n, :, v, u]
    torch.testing.assert_close(transform(tiny_features(), batch)[0], expected, rtol=1e-4, atol=1e-5)


def test_pool_floor_drops_points_below_the_border() -> None:
    geometry = torch.tensor([[-12.5, 0.5, 0.5], [0.5, 0.5, -25.0], [0.5, 0.5, 0.5]]).view(1, 1, 1, 1, 3, 3)
    ones = torch.ones(1, 1, 1, 3)
    assert tiny("LSSTransform").splat(ones, ones, geometry).sum() == 3
    assert tiny("LSSTransform", pool_floor=True).splat(ones, ones, geometry).sum() == 1


def test_evaluation_keeps_the_plan_of_a_calibration_until_it_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    transform, features = tiny("LSSTransform"), tiny_features()
    made = []
    geometry = transform.geometry
    monkeypatch.setattr(transform, "geometry", lambda calibration: made.append(1) or geometry(calibration))
    with torch.no_grad():
        expected = transform(features, tiny_batch())[0]
        transform(features, tiny_batch())
        assert len(made) == 2  # augmentation changes in training
        transform.eval()
        for _ in range(4):
            torch.testing.assert_close(transform(features, tiny_batch())[0], expected)
        assert len(made) == 4
        for change in ("image_aug", "intrinsics", "camera2lidar", "lidar_aug"):
            batch = tiny_batch()
            matrix = getattr(batch.calibration, change).clone()
            matrix[..., 0, 2 if change == "intrinsics" else 3] += 5
            setattr(batch.calibration, change, matrix)
            moved = transform(features, batch)[0]
            assert not torch.equal(moved, expected)
            torch.testing.assert_close(moved, transform.train()(features, batch)[0])
            transform.eval()
        transform.frustum[..., 2] += 3
        assert not torch.equal(transform(features, tiny_batch())[0], expected)


# -- contract ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_shapes_grid_and_depth_distribution(kind: str) -> None:
    transform = tiny(kind, **KINDS[kind])
    bev, depth = transform(tiny_features(), tiny_batch())
    cell = 2.0 if kind == "DepthLSSTransform" else 1.0
    assert transform.grid == BEVGrid((-12.0, -12.0), (cell, cell), (int(24 / cell), int(24 / cell)))
    assert bev.shape == (2, 5, *transform.grid.shape)
    assert depth.shape == (4, 12, 4, 8)
    torch.testing.assert_close(depth.sum(1), torch.ones(4, 4, 8))
    assert transform.supervises_depth == kind.startswith("Aware")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bf16", [False, True])
def test_gradients_reach_every_parameter(kind: str, bf16: bool) -> None:
    transform, batch = tiny(kind, **KINDS[kind]).train(), tiny_batch()
    features = tiny_features().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        bev, depth = transform(features, batch)
        loss = (bev.float() ** 2).mean()
        if transform.supervises_depth:
            loss = loss + transform.depth_loss(depth, batch)
    assert depth.dtype == torch.float32
    loss.backward()
    missing = [n for n, p in transform.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert not missing
    assert features.grad.abs().sum() > 0


def test_z_slices_become_channels() -> None:
    transform = tiny("LSSTransform", zbound=[-10.0, 10.0, 10.0])
    bev, _ = transform(tiny_features(), tiny_batch())
    assert bev.shape == (2, 10, 24, 24)


@pytest.mark.parametrize("kind", ["LSSTransform", "ConvLSSTransform"])
def test_lss_reads_no_points(kind: str) -> None:
    transform, batch = tiny(kind).eval(), tiny_batch()
    bare = batch.without("points", "radar", "depths")
    assert torch.equal(transform(tiny_features(), batch)[0], transform(tiny_features(), bare)[0])


def test_compensation_comes_before_the_lift() -> None:
    transform = tiny("DepthLSSTransform", compensation={"heads": 2, "points": 3}).eval()
    batch, features = tiny_batch(), tiny_features()
    bev, depth = transform(features, batch)
    compensated = transform.compensation(features.flatten(0, 1)).view_as(features)
    transform.compensation = None
    torch.testing.assert_close(transform(compensated, batch), (bev, depth))


@pytest.mark.parametrize(
    ("kind", "field"), [("DepthLSSTransform", "points"), ("AwareDBEVDepth", "radar"), ("AwareBEVDepth", "depths")]
)
def test_missing_sensor_is_named(kind: str, field: str) -> None:
    transform, batch = tiny(kind, **KINDS[kind]), tiny_batch().without(field)
    with pytest.raises(ValueError, match=f"{kind} needs `{field}`"):
        _, depth = transform(tiny_features(), batch)
        transform.depth_loss(depth, batch)


@pytest.mark.parametrize("field", ["points", "radar"])
def test_use_points_chooses_the_sensor(field: str) -> None:
    transform = tiny("AwareDBEVDepth", use_points="lidar" if field == "points" else "radar").eval()
    batch = tiny_batch()
    other = "radar" if field == "points" else "points"
    _, depth = transform(tiny_features(), batch)
    assert torch.equal(transform(tiny_features(), batch.without(other))[1], depth)
    moved = replace(batch, **{field: [p * 0.5 for p in getattr(batch, field)]})
    assert not torch.equal(transform(tiny_features(), moved)[1], depth)


def test_depth_maps_of_images_that_eight_does_not_divide() -> None:
    """The layers that reduce the depth map round up, as those of the backbone do."""
    transform = tiny("DepthLSSTransform", image_size=[36, 64], feature_size=[5, 8]).eval()
    batch = tiny_batch()
    assert transform(torch.randn(2, 2, 6, 5, 8), batch)[0].isfinite().all()


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("LSSTransform", {"downsample": 4}, "downsample .* 1 or 2"),
        ("LSSTransform", {"xbound": [-12.0, 12.0, 0.7]}, "xbound must be"),
        ("LSSTransform", {"dbound": [1.0, 13.0, 0.0]}, "dbound must be"),
        ("LSSTransform", {"xbound": [-12.5, 12.5, 1.0], "downsample": 2}, "even numbers of cells"),
        ("LSSTransform", {"feature_sise": [4, 8]}, "did you mean 'feature_size'"),
        ("DepthLSSTransform", {"feature_size": [2, 4]}, r"feature_size must be \[4, 8\]"),
        ("AwareBEVDepth", {"bevdepth_downsample": 16}, r"bevdepth_downsample 16 contradicts.*set it to 8"),
        ("AwareBEVDepth", {"feature_size": [5, 8]}, "multiple of feature_size"),
        ("AwareDBEVDepth", {"use_points": "sonar"}, "lidar or radar"),
        ("AwareDBEVDepth", {"depth_input": "two-hot"}, "scalar or one-hot"),
        ("AwareDBEVDepth", {"feature_size": [16, 32]}, "stride of 4, 8"),
    ],
)
def test_rejects(kind: str, changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny(kind, **changes)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((2, 2, 6, 8, 16), r"feature_size \[4, 8\] and is given features of size \[8, 16\]"),
        ((2, 2, 7, 4, 8), "in_channels 6 and is given 7"),
        ((2, 3, 6, 4, 8), r"\(2, 3\).*calibration of \(2, 2\)"),
    ],
)
def test_features_that_do_not_fit(shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny("LSSTransform")(torch.zeros(shape), tiny_batch())


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


def test_points_behind_the_camera_are_not_drawn() -> None:
    points = torch.tensor([[-5.0, 0, 0], [0.0, 0, 0]])
    assert DepthMap((32, 64))([points], straight_ahead()).count_nonzero() == 0


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


# -- real size --------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(("cfg", "bins"), [(TEACHER, 118), (STUDENT, 59)], ids=["teacher", "student"])
def test_real_size_shapes(crkd_values: dict, cfg: dict, bins: int) -> None:
    transform = MODELS.build(cfg).eval()
    assert isinstance(transform, DepthLSSTransform | LSSTransform)
    one = fixture_calibration(crkd_values)
    six = {
        name: getattr(one, name).expand(-1, 6, 4, 4)
        for name in ("camera2lidar", "camera2ego", "intrinsics", "image_aug")
    }
    points = [torch.tensor(crkd_values["depth raster lidar pts"])]
    batch = Batch(["a"], replace(one, **six), points=points)
    with torch.no_grad():
        bev, depth = transform(torch.randn(1, 6, cfg["in_channels"], 32, 88), batch)
    assert bev.shape == (1, 80, 180, 180)
    assert depth.shape == (6, bins, 32, 88)
    assert transform.grid == BEVGrid((-54.0, -54.0), (0.6, 0.6), (180, 180))
