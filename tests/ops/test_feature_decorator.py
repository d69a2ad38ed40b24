from __future__ import annotations

import pytest
import torch

from mmdet3d.ops import feature_decorator as op
from mmdet3d.ops.feature_decorator import feature_decorator, reference

pytestmark = pytest.mark.usefixtures("backend")

RANGE = [-54.0, -54.0, -5.0, 54.0, 54.0, 3.0]
SIZE = [0.6, 0.6, 8.0]


def pillars(dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    coordinates = torch.tensor([[90, 91, 0], [0, 0, 0], [179, 3, 0]])
    centers = (coordinates + 0.5) * torch.tensor(SIZE) + torch.tensor(RANGE[:3])
    features = torch.randn(3, 4, 5, generator=generator, dtype=dtype)
    features[..., :3] = centers[:, None].to(dtype) + (torch.rand(3, 4, 3, generator=generator, dtype=dtype) - 0.5) * 0.6
    return features, torch.tensor([4, 1, 2]), coordinates


def test_published_radar_decoration(crkd_values):
    features = torch.tensor(crkd_values["radar decoration in"])
    expected = torch.tensor(crkd_values["radar decoration out (Nx3x8)"])
    cells = ((features[:, 0, :2] + 54) / 0.6).floor().long()
    coordinates = torch.cat([cells, torch.zeros(len(cells), 1, dtype=torch.int64)], dim=1)
    counts = (features != 0).any(-1).sum(1)
    assert counts.tolist() == [2, 1]
    got = feature_decorator(features, counts, coordinates, SIZE, RANGE, normalize=True)
    torch.testing.assert_close(got, expected, rtol=0, atol=4e-6)


def test_all_columns_against_a_loop():
    features, counts, coordinates = pillars()
    got = feature_decorator(features, counts, coordinates, SIZE, RANGE, cluster=True, distance=True)
    assert got.shape == (3, 4, 5 + 3 + 2 + 1)
    for m in range(3):
        points = features[m, : counts[m]]
        center = torch.tensor([c * 0.6 + 0.3 - 54 for c in coordinates[m, :2].tolist()])
        for s in range(4):
            if s >= counts[m]:
                assert not got[m, s].any()
                continue
            p = features[m, s]
            row = torch.cat([p, p[:3] - points[:, :3].mean(0), p[:2] - center, p[:3].norm()[None]])
            torch.testing.assert_close(got[m, s], row, rtol=1e-5, atol=1e-5)


def test_normalisation_leaves_offsets_in_metres():
    features, counts, coordinates = pillars()
    plain = feature_decorator(features, counts, coordinates, SIZE, RANGE, cluster=True)
    scaled = feature_decorator(features, counts, coordinates, SIZE, RANGE, cluster=True, normalize=True)
    torch.testing.assert_close(scaled[..., 3:], plain[..., 3:])
    filled = torch.arange(4) < counts[:, None]
    assert ((scaled[filled][:, :3] >= 0) & (scaled[filled][:, :3] <= 1)).all()


def test_padding_is_zero_whatever_it_holds():
    features, counts, coordinates = pillars()
    expected = feature_decorator(features, counts, coordinates, SIZE, RANGE, cluster=True)
    features[1, 1:] = float("nan")
    features[2, 2:] = float("inf")
    got = feature_decorator(features, counts, coordinates, SIZE, RANGE, cluster=True)
    torch.testing.assert_close(got, expected)


def test_arguments_are_left_alone():
    features, counts, coordinates = pillars()
    before = features.clone()
    feature_decorator(features, counts, coordinates, SIZE, RANGE, normalize=True)
    assert torch.equal(features, before)


def test_gradients():
    features, counts, coordinates = pillars(torch.float64)
    features.requires_grad_()
    flags = {"normalize": True, "cluster": True, "distance": True}
    assert torch.autograd.gradcheck(lambda f: feature_decorator(f, counts, coordinates, SIZE, RANGE, **flags), features)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("flags", [{}, {"normalize": True, "cluster": True, "distance": True}, {"center": False}])
def test_equals_twin(dtype, flags):
    features, counts, coordinates = pillars(dtype)
    ordered = [flags.get(name, name == "center") for name in ("normalize", "cluster", "center", "distance")]
    results = []
    for call in (
        lambda f: feature_decorator(f, counts, coordinates, SIZE, RANGE, **flags),
        lambda f: reference.feature_decorator(f, counts, coordinates, SIZE, RANGE, *ordered),
    ):
        leaf = features.clone().requires_grad_()
        out = call(leaf)
        results.append((out.detach(), *torch.autograd.grad(out.square().sum(), leaf)))
    for got, expected in zip(*results, strict=True):
        assert got.dtype == expected.dtype == dtype
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5 if dtype == torch.float32 else 1e-10)


@pytest.mark.parametrize("shape", [(0, 4, 5), (3, 0, 5), (0, 0, 3)])
def test_empty(shape):
    features = torch.zeros(shape, requires_grad=True)
    counts, coordinates = torch.zeros(shape[0]).long(), torch.zeros(shape[0], 3).long()
    got = feature_decorator(features, counts, coordinates, SIZE, RANGE, cluster=True)
    assert got.shape == (*shape[:2], shape[2] + 5)
    got.sum().backward()
    assert features.grad.shape == shape


def test_pillars_without_points():
    features, _, coordinates = pillars()
    features.requires_grad_()
    got = feature_decorator(features, torch.zeros(3).long(), coordinates, SIZE, RANGE, cluster=True, distance=True)
    assert not got.any()
    got.sum().backward()
    assert not features.grad.any()


@pytest.mark.parametrize("backend", ["native"], indirect=True)
def test_threads_change_nothing(same_bits):
    features, counts, coordinates = pillars()
    many = [features.repeat(200, 1, 1).requires_grad_(), counts.repeat(200), coordinates.repeat(200, 1)]

    def decorate():
        out = feature_decorator(*many, SIZE, RANGE, cluster=True, distance=True)
        return out, *torch.autograd.grad(out.square().sum(), many[0])

    same_bits(decorate)


@pytest.mark.parametrize("backend", ["native"], indirect=True)
def test_registration():
    features, counts, coordinates = pillars()
    box, flags = [*SIZE, *RANGE], [True, True, True, False]
    torch.library.opcheck(op._decorate, (features.requires_grad_(), counts, coordinates, box, flags))
    grad = torch.randn(3, 4, 10)
    torch.library.opcheck(op._decorate_backward, (grad, features.detach(), counts, box, flags))


def test_compiled_graph():
    features, counts, coordinates = pillars()

    def call(features):
        return feature_decorator(features, counts, coordinates, SIZE, RANGE, cluster=True)

    graph = torch.compile(call, fullgraph=True, backend="eager")
    torch.testing.assert_close(graph(features), call(features))


def test_non_contiguous_and_half():
    features, counts, coordinates = pillars()
    expected = feature_decorator(features, counts, coordinates, SIZE, RANGE)
    strided = features.transpose(0, 2).contiguous().transpose(0, 2)
    torch.testing.assert_close(feature_decorator(strided, counts, coordinates, SIZE, RANGE), expected)
    for dtype in (torch.float16, torch.bfloat16):
        half = features.to(dtype)
        got = feature_decorator(half, counts.int(), coordinates.int(), SIZE, RANGE, cluster=True)
        assert got.dtype == torch.float32
        expected = feature_decorator(half.float(), counts, coordinates, SIZE, RANGE, cluster=True)
        torch.testing.assert_close(got, expected)


def test_wrong_shapes():
    features, counts, coordinates = pillars()
    with pytest.raises(ValueError, match=r"counts must have shape \(M\) with M = 3, got \(2,\)"):
        feature_decorator(features, counts[:2], coordinates, SIZE, RANGE)
    with pytest.raises(ValueError, match=r"coordinates must have shape \(M, 3\) with M = 3, got \(3, 2\)"):
        feature_decorator(features, counts, coordinates[:, :2], SIZE, RANGE)
    with pytest.raises(ValueError, match=r"x, y, z in their first columns, got shape \(3, 4, 2\)"):
        feature_decorator(features[..., :2], counts, coordinates, SIZE, RANGE)
