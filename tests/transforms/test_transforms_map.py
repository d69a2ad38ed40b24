"""`LoadBEVSegmentation`: golden counts of the specification, the devkit's own rasters, augmentation, and bad maps."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from map_expansion import BOUND, CLASSES, MapWriter, frame, golden_map, rectangle, turn
from torch import Tensor

from mmdet3d.datasets.cache import ReadCache
from mmdet3d.datasets.transforms import LoadBEVSegmentation, RandomFlip3D
from mmdet3d.datasets.transforms.augment import transform_lidar_frame


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("golden")
    golden_map().write(folder)
    return folder


def load(root: Path, augmentation: np.ndarray | None = None, classes: tuple[str, ...] = CLASSES, **options) -> Tensor:
    sample, context = frame(root, **options)
    if augmentation is not None:
        transform_lidar_frame(sample, torch.from_numpy(augmentation))
    return LoadBEVSegmentation(BOUND, BOUND, classes)(sample, context).masks.values


def ranges(mask: Tensor) -> tuple[int, ...]:
    i, j = mask.nonzero(as_tuple=True)
    return i.min().item(), i.max().item(), j.min().item(), j.max().item()


def similarity(scale: float = 1.0, angle: float = 0.0, shift: tuple[float, ...] = (0, 0, 0)) -> np.ndarray:
    matrix = turn(angle)
    matrix[:3] *= scale
    matrix[:3, 3] = shift
    return matrix


def test_golden_counts_and_places(root: Path) -> None:
    masks = load(root)
    assert masks.dtype == torch.bool and masks.shape == (6, 200, 200)
    assert masks.sum((1, 2)).tolist() == [344, 231, 0, 33, 0, 961]
    assert ranges(masks[0]) == (102, 110, 120, 160)
    assert ranges(masks[1]) == (40, 60, 80, 90)
    assert ranges(masks[3]) == (138, 140, 60, 70)


def test_golden_counts_when_turned(root: Path) -> None:
    # The specification's rotation by 30 degrees turns the patch by -120 degrees in the global frame.
    assert load(root, similarity(angle=30)).sum((1, 2)).tolist() == [339, 212, 0, 35, 0, 821]


def test_a_shift_moves_the_raster(root: Path) -> None:
    masks = load(root, similarity(shift=(0.5, -0.5, 0.1)))
    assert ranges(masks[0]) == (103, 111, 119, 159)


def test_scale_reaches_the_labels(root: Path) -> None:
    masks = load(root, similarity(1.1, shift=(0.55, -0.22, 0.1)))
    assert ranges(masks[0]) == (103, 112, 122, 166)


@pytest.mark.parametrize("angle", [0.0, 17.0, 133.0])
def test_rasters_equal_those_of_the_devkit(root: Path, angle: float) -> None:
    from nuscenes.map_expansion.map_api import NuScenesMap

    layers = ["drivable_area", "ped_crossing", "stop_line", "road_divider", "lane_divider"]
    api = NuScenesMap(str(root), "boston-seaport")
    theirs = api.get_map_mask((200.0, 200.0, 100.0, 100.0), -90.0 - angle, layers, (200, 200)).transpose(0, 2, 1)
    ours = load(root, similarity(angle=angle), tuple(layers))
    different = (ours.numpy() != theirs.astype(bool)).sum((1, 2))
    # Vertices of lines are cut down, so noise of the last digit moves one that lies on a whole number.
    assert different[:3].max() <= 2 and different[3:].max() <= (170 if angle == 0 else 4)


def test_a_turned_view_is_the_view_of_a_turned_world(root: Path, tmp_path: Path) -> None:
    world = MapWriter()
    spin = turn(90)[:2, :2]
    world.polygon("ped_crossing", [tuple(spin @ (np.array(p) - 200) + 200) for p in rectangle(190, 195, 220, 230)])
    world.write(tmp_path)
    assert torch.equal(load(tmp_path)[1], load(root, similarity(angle=90))[1])


@pytest.mark.parametrize(("axis", "signs"), [(1, (-1, 1)), (2, (1, -1))])
def test_a_mirrored_view_is_the_reversed_raster(root: Path, axis: int, signs: tuple[int, int]) -> None:
    plain, mirrored = load(root)[1], load(root, np.diag([*signs, 1.0, 1.0]))[1]
    # Cell k stands for the line k cells above the border, of which there is one more than cells.
    assert torch.equal(mirrored, plain.flip(axis - 1).roll(1, axis - 1)) and mirrored.sum() == 231


def test_moving_a_raster_is_refused(root: Path) -> None:
    sample, context = frame(root)
    sample = LoadBEVSegmentation(BOUND, BOUND, CLASSES)(sample, context)
    context.rng = np.random.RandomState(1)
    with pytest.raises(ValueError, match="put it after GlobalRotScaleTrans and RandomFlip3D"):
        RandomFlip3D()(sample, context)


def test_rectangles_and_composed_classes(root: Path) -> None:
    sample, context = frame(root)
    masks = LoadBEVSegmentation([-20, 20, 0.5], [-50, 50, 1.0], ("lane_divider", "divider"))(sample, context).masks
    assert masks.values.shape == (2, 80, 100) and masks.grid.cell == (0.5, 1.0)
    assert masks.values[1].sum() > masks.values[0].sum() > 0


def test_what_stops_the_devkit_is_drawn(tmp_path: Path) -> None:
    world = MapWriter()
    world.line("lane_divider", [(200, 200), (200, 280), (220, 280), (220, 200)])  # leaves and returns
    world.line("road_divider", [(250, 190), (260, 200), (250, 210)])  # touches the area in two points
    world.polygon("ped_crossing", rectangle(250, 260, 190, 210))  # touches it along an edge
    world.polygon("drivable_area", [(190, 190), (200, 200), (200, 190), (190, 200)])  # crosses itself
    world.polygon("walkway", [(190, 190), (200, 200), (200, 190), (190, 200)])  # the devkit leaves it out
    world.write(tmp_path)
    masks = load(tmp_path)
    assert masks[5, :, 100:].any() and masks[0].any() and not masks[1].any() and not masks[2].any()


def test_a_map_is_read_once_for_all_views(root: Path, tmp_path: Path) -> None:
    sample, context = frame(root)
    context.read = ReadCache(tmp_path, 1)
    loader = LoadBEVSegmentation(BOUND, BOUND, CLASSES)
    first = loader(sample, context).masks.values
    entries = list(tmp_path.iterdir())
    for angle in (0.0, 10.0, 40.0):
        sample, _ = frame(root)
        transform_lidar_frame(sample, torch.from_numpy(similarity(1.05, angle)))
        loader(sample, context)
    assert list(tmp_path.iterdir()) == entries and len(entries) == 1
    sample, _ = frame(root)
    assert torch.equal(loader(sample, context).masks.values, first)


def test_a_frame_without_labels_passes(root: Path) -> None:
    sample, context = frame(root)
    sample.unlabelled = True
    assert LoadBEVSegmentation(BOUND, BOUND, CLASSES)(sample, context).masks is None


def test_mistakes_are_named(root: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="unknown map class 'walkways', did you mean 'walkway'"):
        LoadBEVSegmentation(BOUND, BOUND, ("walkways",))
    with pytest.raises(FileNotFoundError, match=r"maps/expansion/boston-seaport\.json does not exist; unpack the map"):
        load(tmp_path)
    with pytest.raises(ValueError, match="recorded at 'nowhere', of which nuScenes has no map"):
        load(root, location="nowhere")
    with pytest.raises(ValueError, match="needs the location of sample a, which the info file does not say"):
        load(root, location="")
    golden_map().write(tmp_path, "singapore-queenstown", version="1.0")
    with pytest.raises(
        ValueError, match=r"singapore-queenstown\.json cannot be read .*outdated.*; take that of the map"
    ):
        load(tmp_path, location="singapore-queenstown")
    path = golden_map().write(tmp_path, "singapore-onenorth")
    broken = json.loads(path.read_text())
    del broken["node"][0]
    path.write_text(json.dumps(broken))
    with pytest.raises(ValueError, match=r"singapore-onenorth\.json cannot be read \(KeyError"):
        load(tmp_path, location="singapore-onenorth")
