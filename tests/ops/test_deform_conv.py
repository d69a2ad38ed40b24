from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mmdet3d.ops import deform_conv, native
from mmdet3d.ops.deform_conv import _convolve, _convolve_backward, deform_conv2d

pytestmark = pytest.mark.usefixtures("backend")

# stride, padding, dilation (vertical, horizontal), groups, deformable groups
PLAIN = {"stride": 1, "padding": 1, "dilation": 1, "groups": 1, "deform_groups": 1}
CROOKED = {"stride": (2, 1), "padding": (1, 2), "dilation": (1, 2), "groups": 2, "deform_groups": 3}
NUMBERS = [2, 1, 1, 2, 1, 2, 2, 3]
SETTINGS = [PLAIN, CROOKED]


def inputs(settings: dict, dtype: torch.dtype = torch.float64, reach: float = 2.0, batch: int = 2) -> dict[str, Tensor]:
    """Six channels of 5 x 6 pixels, a 3 x 2 kernel, offsets that leave the image."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(4, 6 // settings["groups"], 3, 2, generator=generator, dtype=dtype)
    image = torch.randn(batch, 6, 5, 6, generator=generator, dtype=dtype)
    regular = {k: v for k, v in settings.items() if k != "deform_groups"}
    size = F.conv2d(image, weight, **regular).shape[2:]
    taps = settings["deform_groups"] * 6
    tensors = {
        "input": image,
        "offset": torch.randn(batch, 2 * taps, *size, generator=generator, dtype=dtype) * reach,
        "weight": weight,
        "bias": torch.randn(4, generator=generator, dtype=dtype),
        "mask": torch.rand(batch, taps, *size, generator=generator, dtype=dtype),
    }
    return {name: t.requires_grad_() for name, t in tensors.items()}


def sample(image: Tensor, y: float, x: float) -> float:
    """What a 1 x 1 kernel of weight 1 reads in an image (h, w); y and x relative to pixel (0, 0)."""
    offset = torch.zeros(1, 2, *image.shape)
    offset[0, :, 0, 0] = torch.tensor([y, x])
    return deform_conv2d(image[None, None], offset, torch.ones(1, 1, 1, 1))[0, 0, 0, 0].item()


def test_points_by_hand():
    image = torch.tensor([[1.0, 2.0, 4.0], [8.0, 16.0, 32.0]])
    assert sample(image, 0, 0) == 1 and sample(image, 1, 2) == 32
    assert sample(image, 0.5, 0.5) == (1 + 2 + 8 + 16) / 4
    assert sample(image, 0.5, 1.25) == (0.75 * (2 + 16) + 0.25 * (4 + 32)) / 2
    assert sample(image, 0, -0.5) == 0.5 and sample(image, 1, 2.75) == 8
    assert sample(image, 1.5, 2.5) == 8 and sample(image, -0.75, -0.75) == 1 / 16
    for outside in ((0, -1), (0, 3), (-1, 0), (2, 0), (1e30, 0), (0, -1e30), (torch.nan, 0), (0, torch.inf)):
        assert sample(image, *outside) == 0


def test_gradients_by_hand():
    image = torch.tensor([[1.0, 2.0], [8.0, 16.0]]).view(1, 1, 2, 2).requires_grad_()
    offset = torch.zeros(1, 2, 2, 2)
    offset[0, :, 0, 0] = torch.tensor([0.25, 0.5])
    offset.requires_grad_()
    mask = torch.zeros(1, 1, 2, 2)
    mask[0, 0, 0, 0] = 2
    weight = torch.full((1, 1, 1, 1), 3.0, requires_grad=True)
    deform_conv2d(image, offset, weight, mask=mask.requires_grad_()).sum().backward()
    value = 0.75 * 1.5 + 0.25 * 12
    torch.testing.assert_close(image.grad.flatten(), 6 * torch.tensor([0.75, 0.75, 0.25, 0.25]) / 2)
    torch.testing.assert_close(weight.grad.flatten(), torch.tensor([2 * value]))
    assert mask.grad[0, 0, 0, 0] == 3 * value
    torch.testing.assert_close(offset.grad[0, :, 0, 0], 6 * torch.tensor([12 - 1.5, 0.75 + 0.25 * 8]))


def test_gradient_of_offsets_at_integers_and_on_the_border():
    image = torch.tensor([[1.0, 2.0, 4.0]])[None, None]
    for x, expected in ((0.0, 1.0), (1.0, 2.0), (2.0, -4.0), (-1.0, 0.0), (3.0, 0.0), (-0.5, 1.0)):
        offset = torch.zeros(1, 2, 1, 3)
        offset[0, 1, 0, 0] = x
        deform_conv2d(image, offset.requires_grad_(), torch.ones(1, 1, 1, 1))[..., 0].sum().backward()
        assert offset.grad[0, 1, 0, 0] == expected


@pytest.mark.parametrize("settings", SETTINGS)
def test_without_offsets_it_is_a_convolution(settings):
    t = inputs(settings)
    regular = {k: v for k, v in settings.items() if k != "deform_groups"}
    expected = F.conv2d(t["input"], t["weight"], t["bias"], **regular)
    got = deform_conv2d(t["input"], t["offset"] * 0, t["weight"], t["bias"], **settings)
    torch.testing.assert_close(got, expected)
    halved = deform_conv2d(t["input"], t["offset"] * 0, t["weight"], None, t["mask"] * 0 + 0.5, **settings)
    torch.testing.assert_close(halved, (expected - t["bias"][:, None, None]) / 2)


def test_whole_offsets_shift_the_convolution():
    t = inputs(PLAIN)
    offset = torch.zeros_like(t["offset"])
    offset[:, ::2], offset[:, 1::2] = 1, -2  # one row lower, two columns to the left
    got = deform_conv2d(t["input"], offset, t["weight"], **PLAIN)
    moved = F.pad(t["input"], (3, 0, 1, 2))[:, :, 1:]
    torch.testing.assert_close(got, F.conv2d(moved, t["weight"])[:, :, :, : got.shape[3]])


def test_every_group_and_tap_has_its_offset_and_mask():
    """Against one tap at a time: a convolution is a sum over taps and groups of channels."""
    t = {k: v.detach() for k, v in inputs(CROOKED).items()}
    got = deform_conv2d(**t, **CROOKED)
    expected = t["bias"][:, None, None].expand_as(got).clone()
    for group in range(3):
        for tap in range(6):
            only = torch.zeros(2, 3, 6, *got.shape[2:], dtype=got.dtype)
            only[:, group, tap] = t["mask"].view_as(only)[:, group, tap]
            expected += deform_conv2d(**{**t, "bias": None, "mask": only.flatten(1, 2)}, **CROOKED)
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("modulated", [True, False])
@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_values_and_gradients_equal_the_twins(dtype, settings, modulated):
    t = inputs(settings, dtype, batch=3)
    if not modulated:
        del t["mask"]
    results = []
    for setting in (native.setting(), "reference"):
        with native.forced(setting):
            out = deform_conv2d(**t, **settings)
            upstream = torch.randn(out.shape, generator=torch.Generator().manual_seed(1), dtype=dtype)
            results.append((out, *torch.autograd.grad(out, list(t.values()), upstream)))
    tolerance = {"rtol": 1e-4, "atol": 2e-5} if dtype == torch.float32 else {"rtol": 1e-10, "atol": 1e-11}
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, **tolerance)


@pytest.mark.parametrize("settings", SETTINGS)
def test_chunks_do_not_show(settings, monkeypatch):
    t = inputs(settings)
    results = []
    for most in (1 << 22, 36 * 4, 1):
        monkeypatch.setitem(deform_conv._CHUNK, "cpu", most)
        out = deform_conv2d(**t, **settings)
        results.append((out, *torch.autograd.grad(out.square().sum(), list(t.values()))))
    for whole, *parts in zip(*results, strict=True):
        for part in parts:
            torch.testing.assert_close(part, whole)


@pytest.mark.parametrize("modulated", [True, False])
def test_gradcheck(modulated):
    t = inputs(CROOKED, batch=1)
    names = [n for n in t if modulated or n != "mask"]
    small = {"fast_mode": True, "atol": 1e-4}
    assert torch.autograd.gradcheck(
        lambda *v: deform_conv2d(**dict(zip(names, v, strict=True)), **CROOKED), [t[n] for n in names], **small
    )


def test_half_precision_is_computed_in_single():
    t = {k: v.detach() for k, v in inputs(CROOKED, torch.float32).items()}
    for dtype in (torch.float16, torch.bfloat16):
        low = {**t, "input": t["input"].to(dtype).requires_grad_()}
        got = deform_conv2d(**low, **CROOKED)
        assert got.dtype == dtype
        exact = deform_conv2d(**{**low, "input": low["input"].float()}, **CROOKED)
        torch.testing.assert_close(got, exact.to(dtype))
        with torch.autocast("cpu", torch.bfloat16):
            torch.testing.assert_close(deform_conv2d(**low, **CROOKED), got)
        got.sum().backward()
        assert low["input"].grad.dtype == dtype and low["input"].grad.isfinite().all()
        all_low = deform_conv2d(**{k: v.to(dtype) for k, v in t.items()}, **CROOKED)
        assert all_low.dtype == dtype
        torch.testing.assert_close(all_low.float(), exact, rtol=0.1, atol=0.3)


def test_empty_single_and_strided():
    t = inputs(CROOKED)
    none = {k: v if k in ("weight", "bias") else v[:0] for k, v in t.items()}
    out = deform_conv2d(**none, **CROOKED)
    assert out.shape == (0, 4, 3, 8)
    out.sum().backward()
    assert not t["weight"].grad.any()
    one = deform_conv2d(torch.full((1, 1, 1, 1), 3.0), torch.zeros(1, 2, 1, 1), torch.full((1, 1, 1, 1), 2.0))
    assert one.item() == 6
    strided = {k: v.detach().transpose(0, -1).contiguous().transpose(0, -1) for k, v in t.items()}
    assert not strided["offset"].is_contiguous()
    got = deform_conv2d(**strided, **CROOKED)
    torch.testing.assert_close(got, deform_conv2d(**t, **CROOKED))


def test_places_that_are_none():
    t = {k: v.detach() for k, v in inputs(CROOKED).items()}
    less = t["mask"].clone()
    less[1, 4, 1, 1] = 0
    expected = deform_conv2d(**{**t, "mask": less}, **CROOKED)
    for wrong in (torch.nan, torch.inf, -torch.inf, 1e30, -1e300):
        offset = t["offset"].clone()
        offset[1, 8, 1, 1] = wrong
        offset.requires_grad_()
        got = deform_conv2d(**{**t, "offset": offset}, **CROOKED)
        torch.testing.assert_close(got, expected)
        got.sum().backward()
        assert not offset.grad[1, 8:10, 1, 1].any() and offset.grad.isfinite().all()


def test_nan_reaches_whom_it_concerns():
    t = {k: v.detach() for k, v in inputs(PLAIN).items()}
    offset, mask, image = torch.zeros_like(t["offset"]), t["mask"].clone(), t["input"].clone()
    image[0, 3, 0, 0] = torch.nan
    got = deform_conv2d(image, offset, t["weight"], **PLAIN)
    assert torch.equal(got.isnan(), F.conv2d(image, t["weight"], padding=1).isnan())
    mask[1, 0, 0, 0] = torch.nan  # of a tap that reads outside
    got = deform_conv2d(t["input"], offset, t["weight"], mask=mask, **PLAIN)
    assert got[1, :, 0, 0].isnan().all() and got.isnan().sum() == 4


@pytest.mark.parametrize(("channels", "groups", "size"), [(32, 4, (12, 14)), (24, 1, (32, 88))])
def test_number_of_threads_does_not_matter(channels, groups, size, backend, same_bits):
    """At the second size MKL's products have other bits with 3 threads than with 1 or 2."""
    if backend != "native":
        pytest.skip("products by a matrix library, which may split sums")
    generator = torch.Generator().manual_seed(0)
    image, offset = (torch.randn(6, c, *size, generator=generator) for c in (channels, 18))
    weight = torch.randn(24, channels // groups, 3, 3, generator=generator)
    mask = torch.rand(6, 9, *size, generator=generator)
    tensors = [t.requires_grad_() for t in (image, offset, weight, mask)]

    def convolve():
        out = deform_conv2d(image, offset, weight, None, mask, padding=1, groups=groups)
        return out, *torch.autograd.grad(out.square().sum(), tensors)

    same_bits(convolve)


def test_library_checks(backend):
    if backend != "native":
        pytest.skip("the registration does not depend on the kernels")
    t = inputs(CROOKED)
    tensors = [t["input"], t["offset"], t["weight"]]
    for mask in (t["mask"], None):
        torch.library.opcheck(_convolve, (*tensors, mask, NUMBERS))
    grad = torch.ones(2, 4, 3, 8, dtype=torch.float64)
    torch.library.opcheck(_convolve_backward, (grad, *(v.detach() for v in (*tensors, t["mask"])), NUMBERS))


def test_compiles_in_one_graph():
    t = inputs(CROOKED)

    def loss(**tensors: Tensor) -> Tensor:
        return deform_conv2d(**tensors, **CROOKED).square().sum()

    compiled = torch.compile(loss, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(**t), loss(**t))


def test_wrong_arguments():
    t = inputs(CROOKED)
    cases = [
        ({"input": t["input"][0]}, r"input must have shape \(B, C, H, W\), got \(6, 5, 6\)"),
        ({"offset": t["offset"][:, 1:]}, r"offset must have shape \(B, 36, 3, 8\) with B = 2, got \(2, 35, 3, 8\)"),
        ({"mask": t["mask"][..., 1:]}, r"mask must have shape \(B, 18, 3, 8\) with B = 2, got \(2, 18, 3, 7\)"),
        ({"bias": t["bias"][1:]}, r"bias must have shape \(4\), got \(3,\)"),
        ({"weight": t["weight"][:, :2]}, r"weight must have shape \(O, 3, kh, kw\), got \(4, 2, 3, 2\)"),
        ({"weight": t["weight"][..., :0]}, r"weight must not be empty, got shape \(4, 3, 3, 0\)"),
        ({"groups": 4}, r"C = 6 channels must be divisible by groups = 4 and deform_groups = 3, and O = 4 by groups"),
        ({"deform_groups": 0}, "deform_groups = 0"),
        ({"stride": 0}, "stride must be an integer of at least 1 or two of them, got 0"),
        ({"stride": 1.5}, "stride must be an integer of at least 1 or two of them, got 1.5"),
        ({"padding": (1, -1)}, r"padding must be an integer of at least 0 or two of them, got \(1, -1\)"),
        ({"dilation": (1, 1, 1)}, "dilation must be an integer of at least 1 or two of them"),
        ({"dilation": 9}, r"input of 5 x 6 pixels is smaller than the kernel: the output would be \(-5, 1\)"),
        ({"offset": t["offset"].long()}, "offset must be floating, got torch.int64"),
        ({"mask": t["mask"].to("meta")}, "mask must lie on cpu as input does, got meta"),
    ]
    for wrong, message in cases:
        with pytest.raises(ValueError, match=message):
            deform_conv2d(**{**t, **CROOKED, **wrong})
