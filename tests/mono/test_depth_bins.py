"""Discretisations of depth against values worked out by hand, and maps of bins."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mmdet3d.models.heads.mono.depth_bins import IGNORED, DepthBins, bin_map
from mmdet3d.models.heads.mono.targets import pool_depth

MODES = ("RPD", "UD", "SID", "LID")
PUBLISHED_RANGE = {"near": 2.0, "far": 46.8, "count": 80}  # of CaDDN
ONE = torch.ones(1)


def positions(bins, *depths):
    return bins.position(torch.tensor(depths, dtype=torch.float64)).tolist()


def test_edges_of_road_planes():
    edges = DepthBins().edges()
    wanted = {0: 5, 1: 5.0493, 2: 5.0996, 24: 6.5306, 48: 9.4118, 72: 16.8421, 90: 41.2903, 95: 69.1892, 96: 80}
    assert {i: round(edges[i].item(), 4) for i in wanted} == wanted


def test_positions_on_road_planes():
    found = positions(DepthBins(), 6, 10, 20, 30, 40, 60)
    assert found == pytest.approx([17.067, 51.2, 76.8, 85.333, 89.6, 93.867], abs=5e-4)
    assert positions(DepthBins(offset=5.0), 6, 10, 20, 40) == pytest.approx([9.891, 36.267, 65.28, 84.622], abs=5e-4)


def test_positions_of_linearly_increasing_bins():
    bins = DepthBins("LID", **PUBLISHED_RANGE)
    assert bins.edges()[1].item() - 2 == pytest.approx(0.0138272, abs=1e-7)
    assert positions(bins, 10, 20, 40, 46.8) == pytest.approx([33.52, 50.528, 73.64, 80], abs=5e-4)


# First and last width, widths at 10, 20, 30 and 40 m, and how many bins begin below 20 m.
WIDTHS = [
    ("UD", PUBLISHED_RANGE, (0.56, 0.56, 0.56, 0.56, 0.56, 0.56), 33),
    ("SID", PUBLISHED_RANGE, (0.106, 1.63, 0.38, 0.73, 1.07, 1.42), 57),
    ("LID", PUBLISHED_RANGE, (0.014, 1.11, 0.47, 0.71, 0.88, 1.02), 51),
    ("RPD", PUBLISHED_RANGE, (0.024, 10.2, 0.57, 2.58, 4.57, 10.2), 76),
    ("UD", {}, (0.78, 0.78, 0.78, 0.78, 0.78, 0.78), 20),
    ("SID", {}, (0.165, 2.17, 0.30, 0.57, 0.84, 1.10), 47),
    ("LID", {}, (0.016, 1.55, 0.40, 0.69, 0.90, 1.06), 43),
    ("RPD", {}, (0.049, 10.8, 0.20, 0.76, 1.79, 3.08), 77),
    ("RPD", {"offset": 5.0}, (0.093, 6.16, 0.21, 0.58, 1.11, 1.84), 66),
    ("RPD", {"offset": 20.0}, (0.197, 3.03, 0.28, 0.51, 0.77, 1.12), 48),
]


@pytest.mark.parametrize(("mode", "settings", "wanted", "below_20"), WIDTHS)
def test_widths_of_bins(mode, settings, wanted, below_20):
    bins = DepthBins(mode, **settings)
    widths = bins.edges().diff()
    # 30 m is an edge in two of the rows; the value is of the bin before it.
    at = bins.index(torch.tensor([10, 20, 29.999, 40]))
    found = [widths[0].item(), widths[-1].item(), *widths[at].tolist()]
    assert found == pytest.approx(wanted, rel=5e-3, abs=6e-3)
    assert found[0] == pytest.approx(wanted[0], abs=6e-4 if wanted[0] < 0.2 else 6e-3)
    assert int((bins.edges() < 20).sum()) == below_20


@given(
    st.sampled_from(MODES),
    st.floats(0.5, 20),
    st.floats(1, 100),
    st.integers(1, 200),
    st.sampled_from([0, 0.5, 5, 1e3]),
)
def test_positions_rise_and_are_the_inverse_of_depths(mode, near, span, count, offset):
    bins = DepthBins(mode, near, near + span, count, offset if mode == "RPD" else 0)
    edges = bins.edges()
    assert (edges.diff() > 0).all()
    assert torch.allclose(bins.position(edges), torch.arange(count + 1, dtype=torch.float64), atol=1e-9 * count)
    assert edges[[0, -1]].tolist() == pytest.approx([near, near + span])
    assert bins.index(bins.centers()).tolist() == list(range(count))


@pytest.mark.parametrize("mode", MODES)
def test_single_precision_is_enough(mode):
    bins = DepthBins(mode)
    depth = torch.linspace(5, 80, 2000, dtype=torch.float64)
    assert torch.allclose(bins.position(depth.float()).double(), bins.position(depth), atol=1e-3)


def test_a_large_offset_makes_bins_uniform():
    depth = torch.linspace(5, 80, 200, dtype=torch.float64)
    assert torch.allclose(DepthBins(offset=1e6).position(depth), DepthBins("UD").position(depth), atol=1e-2)


@pytest.mark.parametrize(("focal", "height", "pitch"), [(721.5, 1.65, 0.0), (500.0, 1.2, 0.02), (1000.0, 2.1, -0.01)])
def test_bins_of_a_road_plane_have_equal_rows(focal, height, pitch):
    """Project points of the plane y cos(pitch) + z sin(pitch) = height at the edges of the bins."""
    z = DepthBins().edges()
    y = (height - z * math.sin(pitch)) / math.cos(pitch)
    rows = 172.854 + focal * y / z
    assert (rows.diff() < 0).all()
    assert torch.allclose(rows.diff(), rows.diff()[0].expand(96), rtol=0, atol=1e-6)


def test_what_lies_nearer_farther_or_nowhere():
    depth = torch.tensor([0.0, -1.0, math.nan, math.inf, 1e-3, 4.99, 5.0, 79.99, 80.0, 80.01, 500.0])
    assert DepthBins().index(depth).tolist() == [IGNORED] * 4 + [0, 0, 0, 95, 95, 96, 96]
    assert DepthBins().classes == 97


# -- maps --------------------------------------------------------------------------------------------------------------


def road(crop: float, horizon: int, size: tuple[int, int] = (96, 64)) -> torch.Tensor:
    """Depth of a flat road, in pixels of a network image that shows a crop of this scale; 0 above the horizon."""
    below = torch.arange(size[0], dtype=torch.float64) + 0.5 - horizon
    depth = torch.where(below > 0, 721.5 * 1.65 / crop / below, 0)
    return depth[:, None].expand(size).float()[None]


@pytest.mark.parametrize(("crop", "horizon"), [(0.7, 24), (1.3, 24), (1.4, 8), (0.6, 48)])
def test_bins_depend_on_rows_below_the_horizon_whatever_the_crop(crop, horizon):
    def bins_below(crop, horizon, apparent):
        bins = DepthBins(apparent=apparent)
        return bin_map(road(crop, horizon), crop * ONE, (24, 16), bins)[0, horizon // 4 :, 0]

    whole, seen = bins_below(1.0, 24, True), bins_below(crop, horizon, True)
    rows = min(len(whole), len(seen))
    assert rows >= 12 and len(set(whole.tolist())) > 8
    assert torch.equal(whole[:rows], seen[:rows])
    assert not torch.equal(bins_below(1.0, 24, False)[:rows], bins_below(crop, horizon, False)[:rows])


def test_flipped_depth_gives_flipped_bins():
    depth = torch.rand(2, 32, 64, generator=torch.Generator().manual_seed(0)) * 90
    scale = torch.tensor([1.0, 0.8])
    assert torch.equal(
        bin_map(depth.flip(2), scale, (8, 16), DepthBins()), bin_map(depth, scale, (8, 16), DepthBins()).flip(2)
    )


def test_cells_average_what_is_known_and_need_half_of_it():
    depth = torch.zeros(1, 4, 8)
    depth[0, :2, :4] = torch.tensor([10.0, 30.0]).repeat(2)  # half of the first cell
    depth[0, 0, 4:] = 20.0  # a quarter of the second
    assert torch.allclose(pool_depth(depth, (1, 2))[0, :, 0], torch.tensor([[10.0, 5.0], [0.5, 0.25]]))
    bins = DepthBins("UD", 0.0, 80.0, 80)
    assert bin_map(depth, ONE, (1, 2), bins).tolist() == [[[20, IGNORED]]]
    assert bin_map(depth, 1.1 * ONE, (1, 2), bins).tolist() == [[[22, IGNORED]]]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mode": "RDP"}, "mode must be one of RPD, UD, SID, LID, got 'RDP'"),
        ({"near": 80.0}, "0 <= near < far, got near 80.0"),
        ({"count": 0}, "count must be a positive whole number"),
        ({"mode": "UD", "offset": 5.0}, "offset 5.0 has no effect with mode UD"),
        ({"near": 0.0}, "needs offset >= 0 and near \\+ offset > 0"),
    ],
)
def test_wrong_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        DepthBins(**settings)
