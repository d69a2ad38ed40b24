from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from mmdet3d.ops.sparse_conv import SparseConv3d, SparseTensor, SubMConv3d

STRIDED = [
    {"kernel_size": 3, "stride": 2, "padding": 1},
    {"kernel_size": 3, "stride": 2, "padding": (1, 1, 0)},
    {"kernel_size": (1, 1, 3), "stride": (1, 1, 2), "padding": 0},
    {"kernel_size": 2, "stride": 2, "padding": 0},
    {"kernel_size": 3, "stride": 1, "padding": 1},
    {"kernel_size": 3, "stride": 1, "padding": 2, "dilation": 2},
]


def volume(channels=3, fill=0.2, dtype=torch.float32, shape=(6, 7, 5), batch=2):
    generator = torch.Generator().manual_seed(0)
    occupied = torch.rand(batch, 1, *shape, generator=generator) < fill
    return torch.randn(batch, channels, *shape, generator=generator, dtype=dtype) * occupied


def shuffled(tensor: SparseTensor) -> SparseTensor:
    order = torch.randperm(len(tensor.features), generator=torch.Generator().manual_seed(1))
    return SparseTensor(tensor.features[order], tensor.coordinates[order], tensor.shape, tensor.batch_size)


def dense_weight(layer):
    return layer.weight.permute(4, 3, 0, 1, 2)


def occupied(dense):
    return (dense != 0).any(1, keepdim=True)


@pytest.mark.parametrize("arguments", STRIDED)
def test_strided_equals_dense(arguments):
    dense = volume()
    layer = SparseConv3d(3, 4, **arguments)
    out = layer(shuffled(SparseTensor.from_dense(dense)))
    options = {k: v for k, v in arguments.items() if k != "kernel_size"}
    expected = F.conv3d(dense, dense_weight(layer), **options)
    assert out.shape == tuple(expected.shape[2:]) == layer.output_shape(dense.shape[2:])
    torch.testing.assert_close(out.dense(), expected)
    # Active exactly where the kernel meets an occupied site.
    reach = F.conv3d(occupied(dense).float(), torch.ones(1, 1, *layer.kernel_size), **options) > 0
    active = torch.zeros_like(reach)
    sample, x, y, z = out.coordinates.long().unbind(1)
    active[sample, 0, x, y, z] = True
    assert len(out.coordinates) == reach.sum()
    assert torch.equal(active, reach)


@pytest.mark.parametrize(("kernel", "dilation"), [(3, 1), ((1, 3, 5), 1), (3, 2), (1, 1)])
def test_submanifold_equals_masked_dense(kernel, dilation):
    dense = volume()
    layer = SubMConv3d(3, 4, kernel, dilation)
    sparse = shuffled(SparseTensor.from_dense(dense))
    out = layer(sparse)
    padding = [k // 2 * dilation for k in layer.kernel_size]
    expected = F.conv3d(dense, dense_weight(layer), padding=padding, dilation=dilation) * occupied(dense)
    torch.testing.assert_close(out.dense(), expected)
    assert torch.equal(out.coordinates, sparse.coordinates)


def test_full_grid_does_not_wrap_between_rows_or_samples():
    dense = torch.randn(3, 2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    layer = SubMConv3d(2, 2, 3)
    expected = F.conv3d(dense, dense_weight(layer), padding=1)
    torch.testing.assert_close(layer(SparseTensor.from_dense(dense)).dense(), expected)


def test_bias_is_added_at_occupied_sites():
    dense = volume()
    layer = SubMConv3d(3, 4, 3, bias=True)
    torch.nn.init.normal_(layer.bias)
    expected = F.conv3d(dense, dense_weight(layer), layer.bias, padding=1) * occupied(dense)
    torch.testing.assert_close(layer(SparseTensor.from_dense(dense)).dense(), expected)


@pytest.mark.parametrize(
    "layer", [SubMConv3d(2, 3, 3, bias=True).double(), SparseConv3d(2, 3, 3, 2, (1, 1, 0)).double()]
)
def test_gradients(layer):
    sparse = SparseTensor.from_dense(volume(2, dtype=torch.float64, shape=(3, 3, 3)))
    parameters = dict(layer.named_parameters())

    def run(features, *values):
        named = dict(zip(parameters, values, strict=True))
        return torch.func.functional_call(layer, named, (sparse.with_features(features),)).features

    assert torch.autograd.gradcheck(run, (sparse.features.clone().requires_grad_(), *parameters.values()))


def test_gradients_equal_dense():
    dense = volume().requires_grad_()
    layer = SparseConv3d(3, 4, 3, 2, 1)
    expected = torch.autograd.grad(
        F.conv3d(dense, dense_weight(layer), stride=2, padding=1).square().sum(), [dense, layer.weight]
    )
    sparse = SparseTensor.from_dense(dense)
    got = torch.autograd.grad(layer(sparse).features.square().sum(), [dense, layer.weight])
    torch.testing.assert_close(got[0], expected[0] * occupied(dense))
    torch.testing.assert_close(got[1], expected[1])


def test_table_is_built_once_per_set_of_sites(monkeypatch):
    from mmdet3d.ops.sparse_conv import modules

    calls = []
    build = modules.submanifold_table
    monkeypatch.setattr(modules, "submanifold_table", lambda *a: calls.append(1) or build(*a))
    first, second = SubMConv3d(3, 3), SubMConv3d(3, 3)
    sparse = SparseTensor.from_dense(volume())
    second(first(sparse))
    assert len(calls) == 1
    second(SparseTensor.from_dense(volume()))
    assert len(calls) == 2


@pytest.mark.parametrize("layer", [SubMConv3d(3, 4), SparseConv3d(3, 4, 3, 2, 1)])
@pytest.mark.parametrize("count", [0, 1])
def test_no_site_and_one_site(layer, count):
    features = torch.randn(count, 3, requires_grad=True)
    coordinates = torch.tensor([[1, 2, 2, 2]], dtype=torch.int32)[:count]
    out = layer(SparseTensor(features, coordinates, (5, 5, 5), 2))
    dense = torch.zeros(2, 3, 5, 5, 5)
    if count:
        dense[1, :, 2, 2, 2] = features[0].detach()
    stride, padding = (1, 1) if isinstance(layer, SubMConv3d) else (2, 1)
    expected = F.conv3d(dense, dense_weight(layer), stride=stride, padding=padding)
    if isinstance(layer, SubMConv3d):
        expected = expected * occupied(dense)
    torch.testing.assert_close(out.dense(), expected)
    out.features.sum().backward()
    assert features.grad.shape == (count, 3)
    assert layer.weight.grad is not None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype):
    sparse = SparseTensor.from_dense(volume(8))
    layer = SubMConv3d(8, 8)
    exact = layer(sparse).features
    with torch.autocast("cpu", dtype=dtype):
        out = layer(sparse).features
    assert out.dtype == dtype
    torch.testing.assert_close(out.float(), exact, rtol=3e-2, atol=3e-2)
    out.float().square().sum().backward()
    assert layer.weight.grad.dtype == torch.float32
    assert layer.weight.grad.isfinite().all()


def test_published_initialisation_bound():
    bound = (9 * 16 * 32) ** -0.5
    weight = SubMConv3d(16, 32, 3).weight
    assert 0.98 * bound < weight.abs().max() <= bound


def test_wrong_arguments():
    features, coordinates = torch.zeros(4, 3), torch.zeros(4, 4, dtype=torch.int32)
    with pytest.raises(ValueError, match=r"coordinates must have shape \(N, 4\) with N = 4, got \(4, 3\)"):
        SparseTensor(features, coordinates[:, :3], (5, 5, 5), 1)
    with pytest.raises(ValueError, match=r"coordinates must be integers, got torch.float32"):
        SparseTensor(features, coordinates.float(), (5, 5, 5), 1)
    with pytest.raises(ValueError, match=r"takes 2 channels, got features \(4, 3\)"):
        SubMConv3d(2, 2)(SparseTensor(features, coordinates, (5, 5, 5), 1))
    with pytest.raises(ValueError, match="odd kernel sizes"):
        SubMConv3d(2, 2, 2)
    with pytest.raises(ValueError, match="leaves nothing of a grid"):
        SparseConv3d(3, 3, 3)(SparseTensor(features, coordinates, (5, 5, 2), 1))
