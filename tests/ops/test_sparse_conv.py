from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from mmdet3d.ops import native
from mmdet3d.ops.sparse_conv import (
    SparseConv3d,
    SparseTensor,
    SubMConv3d,
    convolution,
    sparse_convolution,
    strided_table,
    submanifold_table,
    tables,
)

pytestmark = pytest.mark.usefixtures("backend")
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
    "layer",
    [SubMConv3d(2, 2, (1, 3, 1), bias=True).double(), SparseConv3d(2, 3, (2, 1, 2), 2, (1, 1, 0)).double()],
    ids=["submanifold", "strided"],
)
def test_gradients(layer):
    sparse = SparseTensor.from_dense(volume(2, fill=0.3, dtype=torch.float64, shape=(3, 3, 2), batch=1))
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


def example(count=400, channels=5, dtype=torch.float32, shape=(30, 20, 9)):
    """Sites in random order with their features."""
    generator = torch.Generator().manual_seed(count)
    cells = torch.randperm(2 * shape[0] * shape[1] * shape[2], generator=generator)[:count]
    coordinates = torch.stack(torch.unravel_index(cells, (2, *shape)), dim=1).int()
    return SparseTensor(torch.randn(count, channels, generator=generator, dtype=dtype), coordinates, shape, 2)


def run(layer, sparse):
    """Output and gradients of features and weight."""
    features = sparse.features.detach().requires_grad_()
    out = layer(sparse.with_features(features))
    seed = torch.randn(out.features.shape, generator=torch.Generator().manual_seed(0)).to(out.features.dtype)
    return [out.features.detach(), *torch.autograd.grad(out.features, [features, layer.weight], seed)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("inputs", "outputs"), [(5, 16), (16, 48), (64, 64), (7, 130), (1, 1)])
def test_equals_twin(inputs, outputs, dtype):
    for layer in (SubMConv3d(inputs, outputs), SparseConv3d(inputs, outputs, 3, 2, 1)):
        layer.to(dtype)
        got = run(layer, example(channels=inputs, dtype=dtype))
        with native.forced("reference"):
            expected = run(layer, example(channels=inputs, dtype=dtype))
        for a, b in zip(got, expected, strict=True):
            assert a.dtype == b.dtype
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5) if dtype == torch.float32 else (
                torch.testing.assert_close(a, b)
            )


@pytest.mark.parametrize("arguments", STRIDED)
@pytest.mark.parametrize("count", [0, 1, 700])
def test_tables_equal_those_of_the_twin(arguments, count):
    layer = SparseConv3d(1, 1, **arguments)
    strided = (layer.kernel_size, layer.stride, layer.padding, layer.dilation)
    odd = (3, 5, 1), layer.dilation
    got = strided_table(example(count), *strided), submanifold_table(example(count), *odd)
    with native.forced("reference"):
        expected = strided_table(example(count), *strided), submanifold_table(example(count), *odd)
    for table, twin in zip(got, expected, strict=True):
        assert torch.equal(table.coordinates, twin.coordinates)
        assert torch.equal(table.neighbors, twin.neighbors)
        assert torch.equal(table.inverse, twin.inverse)
        assert torch.equal(table.counts, twin.counts)
        assert table.neighbors.dtype == table.inverse.dtype == torch.int32


def test_output_sites_are_in_lexicographic_order():
    table = strided_table(example(300), (3, 3, 3), (2, 2, 2), (1, 1, 1), (1, 1, 1))
    sites = table.coordinates.tolist()
    assert sites == sorted(sites)


@pytest.mark.parametrize("layer", [SubMConv3d(2, 3), SparseConv3d(2, 3, 3, 2, 1)], ids=["submanifold", "strided"])
def test_huge_coordinates(layer):
    near = SparseTensor.from_dense(volume(2, shape=(4, 4, 4)))
    far = 2**20 - 4
    shifted = near.coordinates + torch.tensor([0, far, far, far], dtype=torch.int32)
    out = layer(SparseTensor(near.features, shifted, (2**20,) * 3, 2))
    expected = layer(near)
    assert torch.equal(out.features, expected.features)
    moved = torch.tensor([0, *(3 * [far // (2 if isinstance(layer, SparseConv3d) else 1)])])
    assert torch.equal(out.coordinates.long(), expected.coordinates + moved)


def test_dtypes_and_layouts_of_coordinates():
    sparse = example()
    layer = SubMConv3d(5, 4)
    expected = layer(sparse).features
    for coordinates in (
        sparse.coordinates.long(),
        sparse.coordinates.to(torch.uint8),
        sparse.coordinates.T.contiguous().T,
    ):
        features = sparse.features.T.contiguous().T
        assert torch.equal(layer(SparseTensor(features, coordinates, sparse.shape, 2)).features, expected)
    weight = layer.weight.detach().transpose(3, 4).contiguous().transpose(3, 4)
    table = submanifold_table(sparse, (3, 3, 3), (1, 1, 1))
    torch.testing.assert_close(sparse_convolution(sparse.features, weight, table), expected)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_reach_their_neighbours_only(value):
    sparse = example()
    sparse.features[7] = value
    out = SubMConv3d(5, 4)(sparse).features
    site = sparse.coordinates.long()
    near = ((site - site[7]).abs() <= torch.tensor([0, 1, 1, 1])).all(1)
    assert torch.equal(~out.isfinite().all(1), near)


@pytest.mark.parametrize("layer", [SubMConv3d(5, 33), SparseConv3d(5, 33, 3, 2, 1)], ids=["submanifold", "strided"])
def test_same_bits_with_any_number_of_threads(layer, backend, same_bits):
    if backend != "native":
        pytest.skip("products by a matrix library, which may split sums")
    sparse = example(2000)
    same_bits(lambda: run(layer, SparseTensor(sparse.features, sparse.coordinates, sparse.shape, 2)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_features_and_weights(dtype):
    layer, sparse = SubMConv3d(16, 16), example(channels=16)
    exact = run(layer, sparse)
    half = run(layer.to(dtype), sparse.with_features(sparse.features.to(dtype)))
    for a, b in zip(half, exact, strict=True):
        assert a.dtype == dtype
        torch.testing.assert_close(a.float(), b, rtol=3e-2, atol=3e-2 * b.abs().max().item())


def test_gradients_that_nobody_wants_are_not_made():
    layer, sparse = SubMConv3d(5, 4), example()
    layer(sparse).features.sum().backward()
    assert sparse.features.grad is None
    layer.weight.requires_grad_(False)
    features = sparse.features.clone().requires_grad_()
    layer(sparse.with_features(features)).features.sum().backward()
    assert features.grad.isfinite().all()


def test_rows_are_gathered_in_groups_of_offsets(monkeypatch):
    layer, sparse = SubMConv3d(5, 4), example()
    expected = run(layer, sparse)
    monkeypatch.setattr(convolution, "_GROUP_BYTES", 4096)
    for got, one in zip(run(layer, sparse), expected, strict=True):
        torch.testing.assert_close(got, one)


def test_custom_ops(backend):
    if backend == "reference":
        pytest.skip("the twin is no custom op")
    sparse = example(20, dtype=torch.float64, shape=(4, 4, 4))
    grid, three, one = [2, *sparse.shape], [3, 3, 3], [1, 1, 1]
    torch.library.opcheck(tables._submanifold, (sparse.coordinates, grid, three, one))
    strided = (sparse.coordinates, grid, [2, 2, 2], three, [2, 2, 2], one, one)
    torch.library.opcheck(tables._strided, strided)
    table = strided_table(sparse, *(tuple(v) for v in strided[3:]))
    weight = torch.randn(27, 5, 3, dtype=torch.float64, requires_grad=True)
    pairs = (table.neighbors, table.inverse, table.counts)
    features = sparse.features.requires_grad_()
    torch.library.opcheck(convolution._convolve, (features, weight, *pairs))
    grad = torch.randn(len(table.coordinates), 3, dtype=torch.float64)
    torch.library.opcheck(convolution._weight_gradient, (features.detach(), grad, table.neighbors, table.counts))


def test_compiled_graph_is_whole(backend):
    if backend == "reference":
        pytest.skip("the twin looks at its data")
    layers = torch.nn.ModuleList([SubMConv3d(5, 4), SubMConv3d(4, 4), SparseConv3d(4, 3, 3, 2, 1)])

    def network(features, coordinates):
        x = SparseTensor(features, coordinates, (30, 20, 9), 2)
        for layer in layers:
            x = layer(x)
        return x.features, x.coordinates

    sparse = example()
    compiled = torch.compile(network, fullgraph=True, backend="eager")
    for got, expected in zip(
        compiled(sparse.features, sparse.coordinates), network(sparse.features, sparse.coordinates), strict=True
    ):
        assert torch.equal(got, expected)


def test_sites_must_lie_in_the_grid_and_be_different():
    features, coordinates = torch.zeros(3, 2), torch.tensor([[0, 1, 1, 1], [1, 2, 0, 3], [0, 4, 4, 4]])
    for layer in (SubMConv3d(2, 2), SparseConv3d(2, 2, 3, 2, 1)):
        for row, axis, value in ((1, 0, 2), (2, 3, 5), (0, 1, -1), (1, 2, 2**40)):
            wrong = coordinates.clone()
            wrong[row, axis] = value
            with pytest.raises(ValueError, match=r"must lie inside \(samples, X, Y, Z\) = \(2, 5, 5, 5\), got \["):
                layer(SparseTensor(features, wrong, (5, 5, 5), 2))
        with pytest.raises(ValueError, match="a site occurs twice"):
            layer(SparseTensor(features, coordinates[[0, 1, 0]], (5, 5, 5), 2))
        with pytest.raises(ValueError, match="more sites than int64 can number"):
            layer(SparseTensor(features, coordinates, (2**22, 2**22, 2**22), 2))


def test_operands_must_fit():
    sparse = example()
    table = submanifold_table(sparse, (3, 3, 3), (1, 1, 1))
    weight = torch.zeros(3, 3, 3, 5, 2)
    with pytest.raises(ValueError, match=r"one floating-point dtype, got torch.float64 and torch.float32"):
        sparse_convolution(sparse.features.double(), weight, table)
    with pytest.raises(ValueError, match=r"one floating-point dtype, got torch.int64 and torch.int64"):
        sparse_convolution(sparse.features.long(), weight.long(), table)
    with pytest.raises(
        ValueError, match=r"weight must have shape \(kx, ky, kz, Cin, Cout\) with Cin = 5, got \(3, 3, 3, 4"
    ):
        sparse_convolution(sparse.features, weight[..., :4, :], table)
    with pytest.raises(ValueError, match=r"of 27 kernel offsets and 400 input sites, got weight \(3, 3, 1, 5, 2\)"):
        sparse_convolution(sparse.features, weight[:, :, :1], table)
    with pytest.raises(ValueError, match=r"400 input sites, got .* features \(399, 5\)"):
        sparse_convolution(sparse.features[:399], weight, table)


def test_wrong_arguments():
    features, coordinates = torch.zeros(4, 3), torch.arange(4, dtype=torch.int32)[:, None].expand(4, 4)
    with pytest.raises(ValueError, match=r"coordinates must have shape \(N, 4\) with N = 4, got \(4, 3\)"):
        SparseTensor(features, coordinates[:, :3], (5, 5, 5), 1)
    with pytest.raises(ValueError, match=r"coordinates must be integers, got torch.float32"):
        SparseTensor(features, coordinates.float(), (5, 5, 5), 1)
    with pytest.raises(ValueError, match=r"takes 2 channels, got features \(4, 3\)"):
        SubMConv3d(2, 2)(SparseTensor(features, coordinates, (5, 5, 5), 1))
    for dtype in (torch.bool, torch.complex64):
        with pytest.raises(ValueError, match="coordinates must be integers"):
            SparseTensor(features, coordinates.to(dtype), (5, 5, 5), 1)
    with pytest.raises(ValueError, match=r"extents and batch_size must be positive, got \(5, 0, 5\) and 1"):
        SparseTensor(features, coordinates, (5, 0, 5), 1)
    with pytest.raises(ValueError, match="odd kernel sizes"):
        SubMConv3d(2, 2, 2)
    for arguments in ({"stride": 0}, {"dilation": 0}, {"padding": -1}):
        with pytest.raises(ValueError, match="must be positive and padding not negative"):
            SparseConv3d(3, 3, **arguments)(SparseTensor(features, coordinates, (5, 5, 5), 1))
    with pytest.raises(ValueError, match=r"channels and kernel sizes must be positive, got 3, 3 and \(3, 0, 3\)"):
        SparseConv3d(3, 3, (3, 0, 3))
    with pytest.raises(ValueError, match="kernel size and dilation must be positive"):
        SubMConv3d(3, 3, dilation=0)(SparseTensor(features, coordinates, (5, 5, 5), 1))
    with pytest.raises(ValueError, match="leaves nothing of a grid"):
        SparseConv3d(3, 3, 3)(SparseTensor(features, coordinates, (5, 5, 2), 1))
