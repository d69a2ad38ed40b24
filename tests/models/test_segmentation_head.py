"""BEVFusion's map head: grid transform, losses and state dict against the golden values of the specification."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mmdet3d.models.heads import BEVGridTransform, BEVSegmentationHead
from mmdet3d.models.losses import sigmoid_focal
from mmdet3d.registry import MODELS
from mmdet3d.structures import Batch, BEVMasks

INPUT = [[-51.2, 51.2, 0.8]] * 2
OUTPUT = [[-50.0, 50.0, 0.5]] * 2
CLASSES = ("drivable_area", "ped_crossing", "walkway", "stop_line", "carpark_area", "divider")
ROW, COLUMN = torch.meshgrid(torch.arange(200.0), torch.arange(200.0), indexing="ij")
LOGITS = torch.stack(
    [torch.sin(0.1 * ROW) + 2 * torch.cos(0.07 * COLUMN) - 0.5, torch.cos(0.05 * ROW) - torch.sin(0.03 * COLUMN) - 1]
)
TARGETS = torch.stack([(ROW + 2 * COLUMN) % 5 < 2, (3 * ROW + COLUMN) % 7 == 0])


def head(loss: str = "focal", classes: tuple[str, ...] = CLASSES, channels: int = 4) -> BEVSegmentationHead:
    block = {"type": "BEVSegmentationHead", "in_channels": channels, "classes": list(classes), "loss": loss}
    return MODELS.build(block | {"grid_transform": {"input_scope": INPUT, "output_scope": OUTPUT}})


def batch(values: Tensor, classes: tuple[str, ...], of: BEVSegmentationHead) -> Batch:
    return Batch(["a"] * len(values), None, masks=[BEVMasks(v, classes, of.map_grid) for v in values])


# -- BEVGridTransform (specification, section 6) ----------------------------------------------------------------------


def ramps() -> Tensor:
    row, column = torch.meshgrid(torch.arange(128.0), torch.arange(128.0), indexing="ij")
    return torch.stack([row, column, torch.sin(0.3 * row) * torch.cos(0.2 * column)])[None]


@pytest.mark.parametrize(
    ("cell", "values"),
    [
        ((0, 0), (1.3125, 1.3125, 0.36505386)),
        ((0, 199), (1.3125, 125.687492, 0.37798715)),
        ((199, 0), (125.687492, 1.3125, 0.00714555)),
        ((100, 100), (63.8125, 63.8125, 0.28200194)),
        ((37, 151), (24.4375, 95.687492, 0.81798625)),
    ],
)
def test_grid_transform_against_golden_values(cell: tuple[int, int], values: tuple[float, ...]) -> None:
    out = BEVGridTransform(INPUT, OUTPUT)(ramps())
    assert out.shape == (1, 3, 200, 200)
    torch.testing.assert_close(out[0, :, cell[0], cell[1]], torch.tensor(values), atol=1e-5, rtol=1e-6)


def test_grid_transform_sums_and_rectangles() -> None:
    sums = BEVGridTransform(INPUT, OUTPUT)(ramps()).double().sum((2, 3))[0]
    torch.testing.assert_close(sums[:2], torch.tensor([2539999.887, 2539999.883]).double(), atol=0.5, rtol=0)
    assert sums[2].item() == pytest.approx(0.220057, abs=1e-2)
    out = BEVGridTransform(INPUT, [[-30, 30, 0.15], [-15, 15, 0.15]])(ramps())
    assert out.shape == (1, 3, 400, 200)
    torch.testing.assert_close(out[0, :, 0, 0], torch.tensor([26.09375, 44.84375, -0.89178938]), atol=2e-5, rtol=1e-6)
    torch.testing.assert_close(out[0, :, -1, -1], torch.tensor([100.90625, 82.15625, 0.67799878]), atol=2e-5, rtol=1e-6)


def test_grid_transform_fills_with_zero_and_enlarges_first() -> None:
    beyond = BEVGridTransform(INPUT, [[-60, 60, 0.5]] * 2)(torch.ones(1, 1, 128, 128))
    assert beyond[0, 0, 0, 0] == 0 and beyond[0, 0, 120, 120] == 1
    larger = BEVGridTransform(INPUT, OUTPUT, prescale_factor=2)(ramps())
    torch.testing.assert_close(larger[0, 0, 100], torch.full((200,), 63.8125), atol=1e-3, rtol=0)


def test_grid_transform_keeps_its_places_in_half_precision() -> None:
    exact = BEVGridTransform(INPUT, OUTPUT)(ramps())
    half = BEVGridTransform(INPUT, OUTPUT)(ramps().half())
    assert half.dtype == torch.float16
    torch.testing.assert_close(half.float(), exact, atol=0.05, rtol=1e-3)


def test_grid_transform_gradient() -> None:
    small = BEVGridTransform([[-2, 2, 1]] * 2, [[-1.5, 1.5, 0.5]] * 2).double()
    torch.manual_seed(0)
    assert torch.autograd.gradcheck(small, torch.randn(1, 2, 4, 4, dtype=torch.float64, requires_grad=True))


# -- losses (section 7.3) ---------------------------------------------------------------------------------------------


def test_focal_cells_against_golden_values() -> None:
    cells = sigmoid_focal(torch.tensor([[2.0, -1], [0, -3]]), torch.tensor([[1.0, 0], [1, 1]]))
    expected = torch.tensor([[0.00180356, 0.02265806], [0.17328680, 2.76628065]])
    torch.testing.assert_close(cells, expected, atol=1e-6, rtol=1e-5)
    assert cells.mean().item() == pytest.approx(0.74100727, abs=1e-6)


@pytest.mark.parametrize(("loss", "values"), [("focal", (0.54748070, 0.21382732)), ("xent", (0.93313076, 0.54622443))])
def test_losses_against_golden_values(loss: str, values: tuple[float, float]) -> None:
    two = head(loss, ("a", "b"))
    terms = two.loss(LOGITS[None], batch(TARGETS[None], ("a", "b"), two))
    assert list(terms) == [f"a/{loss}", f"b/{loss}"]
    assert [t.item() for t in terms.values()] == pytest.approx(values, abs=1e-5)


def test_the_mean_is_over_cells_of_all_samples() -> None:
    two = head("focal", ("a", "b"))
    both = two.loss(torch.stack([LOGITS, -LOGITS]), batch(torch.stack([TARGETS, TARGETS]), ("a", "b"), two))
    alone = [two.loss(z[None], batch(TARGETS[None], ("a", "b"), two)) for z in (LOGITS, -LOGITS)]
    for name, value in both.items():
        assert value.item() == pytest.approx((alone[0][name] + alone[1][name]).item() / 2, rel=1e-5)


@pytest.mark.parametrize("loss", ["focal", "xent"])
def test_loss_gradients(loss: str) -> None:
    from mmdet3d.models.heads.segmentation import LOSSES

    torch.manual_seed(0)
    target = (torch.rand(3, 4) > 0.5).double()
    logits = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda z: LOSSES[loss](z, target), logits)


# -- the head (sections 7.1, 7.2) -------------------------------------------------------------------------------------


def test_state_dict_is_the_published_one() -> None:
    with torch.device("meta"):
        state = head(channels=256).state_dict()
    norms = {"weight": (256,), "bias": (256,), "running_mean": (256,), "running_var": (256,), "num_batches_tracked": ()}
    expected = {f"classifier.{k}.weight": (256, 256, 3, 3) for k in (0, 3)}
    expected |= {f"classifier.{k}.{name}": shape for k in (1, 4) for name, shape in norms.items()}
    expected |= {"classifier.6.weight": (6, 256, 1, 1), "classifier.6.bias": (6,)}
    assert {name: tuple(value.shape) for name, value in state.items()} == expected
    with torch.device("meta"):
        assert sum(p.numel() for p in head(channels=256).parameters()) == 1_182_214
        assert sum(p.numel() for p in head(channels=512).parameters()) == 4_723_718


def test_answers_are_probabilities_on_the_raster_of_the_map() -> None:
    torch.manual_seed(0)
    ours = head().eval()
    raw = ours(torch.randn(2, 4, 128, 128))
    found = ours.decode(raw, Batch(["a", "b"], None))
    assert len(found) == 2 and found[0].classes == CLASSES and found[0].grid.shape == (200, 200)
    torch.testing.assert_close(found[1].values, raw[1].sigmoid())
    assert ours.grid.shape == (128, 128) and ours.grid.cell == pytest.approx((0.8, 0.8))


def test_one_sample_can_be_learnt() -> None:
    torch.manual_seed(0)
    ours = MODELS.build(
        {"type": "BEVSegmentationHead", "in_channels": 8, "classes": ["a"], "loss": "focal"}
        | {"grid_transform": {"input_scope": [[-8, 8, 1]] * 2, "output_scope": [[-7, 7, 0.5]] * 2}}
    )
    truth = torch.zeros(1, 28, 28, dtype=torch.bool)
    truth[:, 5:20, 8:14] = True
    bev, data = torch.randn(1, 8, 16, 16), batch(truth[None], ("a",), ours)
    optimizer = torch.optim.Adam(ours.parameters(), lr=0.02)
    for _ in range(80):
        optimizer.zero_grad()
        sum(ours.loss(ours(bev), data).values()).backward()
        optimizer.step()
    found = ours(bev)[0].sigmoid() > 0.5
    assert (found & truth).sum() / (found | truth).sum() > 0.9


def test_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match="loss must be focal or xent, got 'dice'"):
        head("dice")
    with pytest.raises(ValueError, match=r"grid_transform\.input_scope must be \[\[min, max, cell\]"):
        BEVGridTransform([[-1, 1]], OUTPUT)
    ours = head(classes=("a", "b"))
    with pytest.raises(ValueError, match=r"the map head predicts a, b over 200x200 .* gives b, a over"):
        ours.loss(LOGITS[None], batch(TARGETS[None], ("b", "a"), ours))
    with pytest.raises(ValueError, match=r"BEVSegmentationHead needs `masks`"):
        ours.loss(LOGITS[None], Batch(["a"], None))
