"""View transforms: geometry and layouts as published, what they take and give."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from published import tensors
from vtransform_inputs import (
    KINDS,
    STUDENT,
    TEACHER,
    fixture_calibration,
    tiny,
    tiny_batch,
    tiny_calibration,
    tiny_features,
)

from mmdet3d.models.vtransforms import DepthLSSTransform, LSSTransform
from mmdet3d.models.vtransforms.depth_map import DepthMap
from mmdet3d.registry import MODELS
from mmdet3d.structures import Batch, BEVGrid

# -- conformance ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "cfg"), [("a_teacher_LC_swint_v0p075_gatedfuser", TEACHER), ("c_student_CR_swint_default", STUDENT)]
)
def test_published_layout(model: str, cfg: dict) -> None:
    """All but the geometry, which follows from the config and is no weight here."""
    derived = ("dx", "bx", "nx", "frustum")
    table = tensors(model, "encoders.camera.vtransform.")
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


def test_geometry_does_not_depend_on_how_a_machine_rounds() -> None:
    """In float32, points of a million fall into other cells where products are summed in another order."""
    transform, calibration = tiny("LSSTransform"), tiny_calibration()
    undo = {name: np.linalg.inv(getattr(calibration, name).double().numpy()) for name in ("image_aug", "intrinsics")}
    pixels = np.concatenate([transform.frustum.double().numpy(), np.ones((12, 4, 8, 1))], axis=-1)
    d = pixels[..., 2:3].copy()
    image = np.einsum("bnij,dvuj->bndvui", undo["image_aug"], np.where([0, 0, 1, 0], 0.0, pixels))
    seen = np.append(image[..., :2] * d, d + 0 * image[..., :1], -1)
    rays = np.einsum("bnij,bndvuj->bndvui", undo["intrinsics"][..., :3, :3], seen)
    points = np.append(rays, np.ones_like(rays[..., :1]), -1)
    matrix = calibration.lidar_aug.double().numpy()[:, None] @ calibration.camera2lidar.double().numpy()
    expected = np.einsum("bnij,bndvuj->bndvui", matrix, points)[..., :3]
    np.testing.assert_allclose(transform.geometry(calibration).numpy(), expected, atol=1e-10, rtol=0)


def test_geometry_is_as_precise_under_autocast() -> None:
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
    moved = replace(batch, clouds={**batch.clouds, field: [p * 0.5 for p in getattr(batch, field)]})
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
        ("LSSTransform", {"dbound": [1.0, 13.0]}, r"dbound must be \[nearest, farthest, bin\], got \[1\.0, 13\.0\]"),
        ("LSSTransform", {"zbound": [-10.0, 10.0]}, r"zbound must be \[lower, upper, cell\]"),
        ("LSSTransform", {"image_size": [32]}, r"config key \S*image_size must be \[height, width\], got \[32\]"),
        ("LSSTransform", {"feature_size": [4, 8, 1]}, r"config key \S*feature_size must be \[height, width\], got"),
        ("LSSTransform", {"xbound": [-12.5, 12.5, 1.0], "downsample": 2}, "even numbers of cells"),
        ("LSSTransform", {"feature_sise": [4, 8]}, "did you mean 'feature_size'"),
        ("DepthLSSTransform", {"feature_size": [2, 4]}, r"feature_size must be \[4, 8\]"),
        ("AwareBEVDepth", {"bevdepth_downsample": 16}, r"bevdepth_downsample 16 contradicts.*set it to 8"),
        ("AwareBEVDepth", {"feature_size": [5, 8]}, "multiple of feature_size"),
        ("AwareDBEVDepth", {"use_points": "sonar"}, "one of lidar, radar, got"),
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
    batch = Batch(["a"], replace(one, **six), clouds={"points": points})
    with torch.no_grad():
        bev, depth = transform(torch.randn(1, 6, cfg["in_channels"], 32, 88), batch)
    assert bev.shape == (1, 80, 180, 180)
    assert depth.shape == (6, bins, 32, 88)
    assert transform.grid == BEVGrid((-54.0, -54.0), (0.6, 0.6), (180, 180))
