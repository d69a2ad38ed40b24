"""Pictures: clipped box edges against densely sampled ones, pixels at the places where things are."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import frames
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mmdet3d.datasets.transforms import Compose, empty_sample
from mmdet3d.structures import RADAR, BEVGrid, BEVMasks, Boxes3D, Calibration, Detections3D, project
from mmdet3d.visualization import (
    PALETTE,
    Areas,
    Layer,
    Panel,
    box_segments,
    draw_bev,
    draw_cameras,
    draw_frame,
    draw_panels,
    judge,
    verdict_counts,
    verdict_layers,
)
from mmdet3d.visualization.areas import AREA_COLORS
from mmdet3d.visualization.layers import INK, fitting, font
from mmdet3d.visualization.legend import draw_legend

WHITE = (255, 255, 255)
EDGES = [(0, 1), (1, 2), (2, 3), (3, 0), (4, 5), (5, 6), (6, 7), (7, 4), (0, 4), (1, 5), (2, 6), (3, 7)]


@pytest.fixture
def calibration(tmp_path: Path) -> Calibration:
    return augmented(tmp_path)


def augmented(folder: Path) -> Calibration:
    """Two cameras of 160x90 with some augmentation of image and scene."""
    calibration = empty_sample(frames.small_frame(folder)).calibration
    image_aug = calibration.image_aug.clone()
    image_aug[:, :2, :2] = torch.tensor([[-0.9, 0.05], [0.05, 0.9]])
    image_aug[:, :2, 3] = torch.tensor([150.0, 2.0])
    lidar_aug = torch.eye(4)
    lidar_aug[:2, :2] = torch.tensor([[0.0, 1.1], [1.1, 0]])
    lidar_aug[2, 2] = 1.1
    lidar_aug[:3, 3] = torch.tensor([0.3, -0.2, 0.1])
    return replace(calibration, image_aug=image_aug, lidar_aug=lidar_aug)


def sampled_edges(box: Boxes3D, calibration: Calibration, camera: int) -> np.ndarray:
    """(K, 2) pixels in front of the camera and inside the image, out of 150 points on each edge."""
    corners = box.corners()[0].double()
    share = torch.linspace(0, 1, 150, dtype=torch.float64)[:, None]
    points = torch.cat([corners[a] * (1 - share) + corners[b] * share for a, b in EDGES])
    undo = torch.linalg.inv(calibration.lidar_aug.double())
    raw = points @ undo[:3, :3].T + undo[:3, 3]
    matrix = calibration.lidar2image[camera].double()
    projected = raw @ matrix[:3, :3].T + matrix[:3, 3]
    projected = projected[projected[:, 2] > 0.1]
    image_aug = calibration.image_aug[camera].double()
    pixels = projected[:, :2] / projected[:, 2:] @ image_aug[:2, :2].T + image_aug[:2, 3]
    inside = ((pixels >= 0) & (pixels <= torch.tensor([160.0, 90.0]))).all(dim=1)
    return pixels[inside].numpy()


def distance_to_segments(pixels: np.ndarray, segments: np.ndarray) -> np.ndarray:
    start, along = segments[:, 0], segments[:, 1] - segments[:, 0]
    offset = pixels[:, None] - start
    share = np.clip((offset * along).sum(-1) / np.maximum((along**2).sum(-1), 1e-12), 0, 1)
    return np.linalg.norm(offset - share[..., None] * along, axis=-1).min(axis=1)


@pytest.fixture(scope="module")
def shared_calibration(tmp_path_factory: pytest.TempPathFactory) -> Calibration:
    return augmented(tmp_path_factory.mktemp("frame"))


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 100_000))
def test_segments_are_the_visible_part_of_the_edges(seed: int, shared_calibration: Calibration) -> None:
    calibration = shared_calibration
    rng = np.random.RandomState(seed)
    # Close to the cameras, so that many boxes reach behind them.
    tensor = torch.from_numpy(rng.uniform([-5, -5, -1, 1, 1, 1, -3, 0, 0], [5, 5, 1, 6, 4, 3, 3, 0, 0])).float()
    box = Boxes3D(tensor[None])
    for camera in range(2):
        segments, owner, _ = box_segments(box, calibration, camera, (160, 90))
        pixels = sampled_edges(box, calibration, camera)
        assert torch.isfinite(segments).all() and (owner == 0).all()
        flat = segments.reshape(-1, 2).numpy()
        assert (flat >= -1e-3).all() and (flat <= np.array([160, 90]) + 1e-3).all()
        if len(pixels):
            assert distance_to_segments(pixels, segments.numpy()).max() < 1e-2


def test_box_across_the_camera_is_cut_and_box_behind_is_gone(calibration: Calibration) -> None:
    plain = replace(calibration, image_aug=torch.eye(4).repeat(2, 1, 1), lidar_aug=torch.eye(4))
    across, behind, ahead = (torch.tensor([[1.0, y, 0, 8, 1, 1, np.pi / 2, 0, 0]]) for y in (2, -8, 12))
    boxes = Boxes3D(torch.cat([across, behind, ahead]).float())
    segments, owner, depth = box_segments(boxes, plain, 0, (160, 90))
    assert set(owner.tolist()) == {0, 2} and (owner == 2).sum() == 13 and 0 < (owner == 0).sum() < 13
    np.testing.assert_allclose(depth, [1.8, -8.2, 11.8], atol=1e-5)
    # The ends of the box ahead: 7.8 m and 15.8 m away, 0.5 m up and down, camera 0.3 m below the origin.
    rows = segments[owner == 2][..., 1]
    np.testing.assert_allclose([rows.min(), rows.max()], [45 - 120 * 0.8 / 7.8, 45 + 120 * 0.2 / 7.8], atol=1e-3)


def test_no_boxes(calibration: Calibration) -> None:
    segments, owner, depth = box_segments(Boxes3D.empty(), calibration, 0, (160, 90))
    assert segments.shape == (0, 2, 2) and len(owner) == len(depth) == 0


def test_cameras_draw_near_boxes_over_far_ones(calibration: Calibration) -> None:
    plain = replace(calibration, image_aug=torch.eye(4).repeat(2, 1, 1), lidar_aug=torch.eye(4))
    tensor = torch.tensor([[0.0, 10, 0, 4, 4, 2, 0, 0, 0], [0, 30, 0, 12, 12, 6, 0, 0, 0]])
    images = [Image.new("RGB", (160, 90), "white") for _ in range(2)]
    drawn = {}
    for order in ([0, 1], [1, 0]):
        layer = Layer("boxes", Boxes3D(tensor[order]), torch.tensor(order))
        drawn[tuple(order)] = draw_cameras(images, plain, [layer], ["car", "pedestrian"], width=160)
    assert drawn[0, 1].size == (320, 90)
    assert drawn[0, 1].tobytes() == drawn[1, 0].tobytes()
    pixels = np.asarray(drawn[0, 1])
    assert (pixels[:, :160] == PALETTE["car"]).all(-1).sum() > 100
    assert (pixels[40:, 160:] == 255).all()
    with pytest.raises(ValueError, match="got 1 images for 2 cameras"):
        draw_cameras(images[:1], plain, [], ["car"])


def test_six_cameras_look_around_the_car(tmp_path: Path) -> None:
    calibration = empty_sample(frames.small_frame(tmp_path, cameras=6)).calibration
    images = [Image.new("RGB", (160, 90), (40 * i, 0, 0)) for i in range(6)]
    picture = np.asarray(draw_cameras(images, calibration, [], [], frames.CAMERAS, width=160))
    reds = [[picture[row * 90 + 80, column * 160 + 80, 0] for column in range(3)] for row in range(2)]
    assert reds == [[80, 0, 40], [160, 120, 200]]


def test_bev_puts_things_where_they_are() -> None:
    points = torch.tensor([[10.0, 20, 0], [99, 0, 0]])
    picture = np.asarray(draw_bev([], [], {"points": points}, extent=50, size=500))
    assert tuple(picture[150, 300]) != WHITE and tuple(picture[350, 200]) == WHITE
    box = Boxes3D(torch.tensor([[20.0, -10, 0, 10, 4, 2, 0, 0, 5]]))
    picture = np.asarray(draw_bev([Layer("gt", box, torch.tensor([0]))], ["car"], extent=50, size=500))
    rows, columns = np.nonzero((picture == PALETTE["car"]).all(-1))
    assert abs(columns.min() - 325) <= 2 and abs(columns.max() - 375) <= 2
    # Velocity 5 m/s along +y: a line upwards from the centre at row 300, longer than the half width of 10 pixels.
    assert abs(rows.max() - 310) <= 2 and abs(rows.min() - 275) <= 2
    # The heading line covers the front half of the middle row, not the rear half.
    middle = columns[(rows == 300) & (columns > 328) & (columns < 372)]
    assert middle.min() >= 348


def test_bev_draws_radar_with_velocity() -> None:
    radar = torch.zeros(1, 45)
    radar[0, [0, 1, 4]] = torch.tensor([-20.0, 20, 10])
    picture = np.asarray(draw_bev([], [], {"radar": radar}, extent=50, size=500))
    assert (picture[150, 155:200] == RADAR.color).all()
    assert np.asarray(draw_bev([], [], {"radar": radar[:0]})).shape == (800, 800, 3)


# Machado, Oliveira and Fernandes, "A physiologically-based model for simulation of color vision deficiency": severity 1
VISION = {
    "normal": [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}


@pytest.mark.parametrize("vision", VISION)
def test_classes_differ_for_every_kind_of_colour_vision(vision: str) -> None:
    """In CIE L*a*b*, where 2.3 is just noticeable; and no class is too pale for white paper."""
    colors = np.array([PALETTE[name] for name in frames.CLASSES]) / 255
    linear = np.where(colors <= 0.04045, colors / 12.92, ((colors + 0.055) / 1.055) ** 2.4)
    seen = np.clip(linear @ np.array(VISION[vision]).T, 0, 1)
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    x, y, z = np.cbrt(seen @ to_xyz.T / [0.9505, 1, 1.089]).T
    lab = np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=1)
    apart = np.linalg.norm(lab[:, None] - lab, axis=-1) + 1000 * np.eye(len(lab))
    assert apart.min() > 25 and lab[:, 0].max() < 78


def test_layers() -> None:
    boxes = Boxes3D(torch.zeros(3, 9))
    found = Detections3D(boxes, torch.tensor([0.05, 0.1, 0.9]), torch.tensor([0, 1, 2]))
    layer = Layer.from_detections("student", found, with_scores=True)
    assert layer.colors(["a", "car", "bus"])[1:] == [PALETTE["car"], PALETTE["bus"]]
    assert layer.texts() == ["0.05", "0.10", "0.90"]
    assert layer.select([2]).labels.tolist() == [2] and layer.select([2]).texts() == ["0.90"]
    assert Layer.from_detections("student", found).texts() == [""] * 3
    unknown = Layer("gt", boxes, torch.tensor([-1, -1, -1])).colors(["car"])
    assert unknown[0] not in PALETTE.values()


def test_detections_are_judged_as_nuscenes_does() -> None:
    """Best score first, nearest free object of its class, less than 2 m away on the ground."""

    def at(*places: tuple[float, float, float]) -> Boxes3D:
        return Boxes3D(torch.tensor([[*place, 1.0, 1, 1, 0, 0, 0] for place in places]).reshape(-1, 9))

    truth, labels = at((0, 0, 0), (1.5, 0, 0), (10, 0, 0), (20, 0, 0)), torch.tensor([0, 0, 0, 1])
    places = at((1, 0, 9), (1.4, 0, 0), (1.3, 0, 0), (11.9, 0, 0), (20, 0, 0), (20, 1.9, 0))
    found = Detections3D(places, torch.tensor([0.5, 0.9, 0.4, 0.3, 0.8, 0.2]), torch.tensor([0, 0, 0, 0, 0, 1]))
    hit, taken = judge(truth, labels, found)
    assert hit.tolist() == [True, True, False, True, False, True] and taken.all()
    assert [layer.title for layer in verdict_layers(truth, labels, found)] == ["ground truth", "missed", "false", "hit"]
    assert [len(layer.boxes) for layer in verdict_layers(truth[:2], labels[:2], found)] == [2, 0, 4, 2]
    assert [len(layer.boxes) for layer in verdict_layers(truth, labels, found[[]])] == [4, 4, 0, 0]
    assert [len(layer.boxes) for layer in verdict_layers(truth[[]], labels[[]], found)] == [0, 0, 6, 0]


def test_one_guess_is_drawn_for_a_place() -> None:
    """The hit, or where there is none the likeliest; what lies a metre away, or is of the same class, stays."""
    places = torch.tensor([[0.0, 0], [0.5, 0], [10, 0], [10.9, 0], [20, 0], [21.1, 0], [30, 0], [30.5, 0]])
    boxes = Boxes3D(torch.cat([places, torch.tensor([[0.0, 1, 1, 1, 0, 0, 0]]).expand(8, 7)], dim=1))
    scores = torch.tensor([0.9, 0.3, 0.2, 0.4, 0.9, 0.8, 0.9, 0.8])
    found = Detections3D(boxes, scores, torch.tensor([0, 1, 0, 1, 0, 1, 1, 1]))
    truth = Boxes3D(torch.tensor([[0.0, 0, 0, 1, 1, 1, 0, 0, 0]]))
    layers = verdict_layers(truth, torch.tensor([1]), found)
    *_, false, hit = layers
    assert hit.boxes.centers[:, 0].tolist() == [0.5]
    assert false.boxes.centers[:, 0].tolist() == pytest.approx([10.9, 20, 21.1, 30, 30.5])
    assert verdict_counts(layers) == "1 hit, 7 false (2 not drawn), 0 missed"


def test_areas_lie_where_their_cells_are_and_later_classes_hide_earlier_ones() -> None:
    values = torch.zeros(2, 4, 2, dtype=torch.bool)
    values[0, 3] = True  # from x = 20 m on
    values[1, 3, 1] = True  # of that, what lies ahead
    masks = BEVMasks(values, ("drivable_area", "own_class"), BEVGrid((-40.0, -40.0), (20.0, 40.0), (4, 2)))
    picture = Areas("map", masks, torch.eye(4)).ground(50.0, 100)
    colors = {place: picture.getpixel(place) for place in [(80, 20), (80, 80), (60, 50), (95, 50)]}  # x right, y down
    nothing = (240, 240, 240)
    assert list(colors.values()) == [(150, 150, 150), AREA_COLORS["drivable_area"], nothing, nothing]
    mirrored = Areas("map", masks, torch.diag(torch.tensor([-1.0, 1, 1, 1]))).ground(50.0, 100)
    assert mirrored.getpixel((20, 20)) == (150, 150, 150) and mirrored.getpixel((80, 20)) == nothing
    drawn = draw_bev([], (), extent=50.0, size=200, heat=Areas("map", masks, torch.eye(4)))
    assert drawn.getpixel((170, 150)) == AREA_COLORS["drivable_area"]


def test_line_styles_tell_verdicts_apart() -> None:
    box = Boxes3D(torch.tensor([[0.0, 0, 0, 4, 40, 2, 0, 0, 0]]))
    side = {}
    for style in ("solid", "dashed", "dotted", "filled"):
        picture = np.asarray(draw_bev([Layer("x", box, torch.tensor([0]), style)], ["car"], extent=50, size=500))
        side[style] = (picture[155:345, 240] == PALETTE["car"]).all(-1).mean()  # the left long side
        assert ((picture[220, 245] == WHITE).all()) == (style != "filled")
    assert side["solid"] == 1 and 0.3 < side["dashed"] < 0.9 and 0.05 < side["dotted"] < 0.5 and side["filled"] == 0


def test_legend_names_what_occurs() -> None:
    layer = Layer("gt", Boxes3D(torch.zeros(2, 9)), torch.tensor([1, -1]))
    calibration = Calibration(
        *(torch.eye(4) for _ in range(2)), *(torch.zeros(0, 4, 4) for _ in range(4)), torch.eye(4)
    )
    radar = torch.full((1, 45), 99.0)
    seen = []
    for layers, shown in (([layer], {"radar": radar}), ([layer], {}), ([], {"radar": radar})):
        picture = draw_frame(layers, ["car", "bus"], calibration, clouds=shown)
        assert picture.size[0] == 800 and picture.size[1] > 800
        strip = np.asarray(picture)[800:]
        seen.append([bool((strip == c).all(-1).any()) for c in (PALETTE["bus"], PALETTE["car"], RADAR.color)])
    assert seen == [[True, False, True], [True, False, False], [False, False, True]]


@pytest.mark.parametrize("width", [800, 1920, 2800])
def test_the_legend_can_be_read_at_half_the_size_of_a_slide(width: int) -> None:
    """In a picture 960 pixels wide, whatever it was drawn as, capitals are 11 pixels high."""
    layer = Layer("HHHH", Boxes3D(torch.zeros(0, 9)), torch.zeros(0, dtype=torch.int64))
    strip = np.asarray(draw_legend([layer], [], width))
    beside_the_swatch = round(70 * max(width / 1920, 0.7))
    rows = (strip[:, beside_the_swatch:] == INK).all(-1).any(1).nonzero()[0]
    assert (rows[-1] - rows[0] + 1) * 960 / width >= 11


def test_panels_show_the_sensors_of_their_models(calibration: Calibration) -> None:
    plain = replace(calibration, image_aug=torch.eye(4).repeat(2, 1, 1), lidar_aug=torch.eye(4))
    # Only the second camera sees the box.
    boxes = Boxes3D(torch.tensor([[0.0, -10, 0, 4, 4, 2, 0, 0, 0]]))
    layer = Layer("hit", boxes, torch.tensor([0]))
    images = [Image.new("RGB", (160, 90), color) for color in ((250, 0, 0), (0, 250, 0))]
    points, radar = torch.tensor([[20.0, 20, 0]]).repeat(50, 1), torch.zeros(1, 45)
    radar[0, :6] = torch.tensor([-20.0, 20, 0, 0, 10, 0])
    panels = [
        Panel("teacher", "LiDAR", [layer], plain, clouds={"points": points}),
        Panel("student", "cameras + radar", [layer], plain, images, ["a", "b"], clouds={"radar": radar}),
    ]
    picture = draw_panels(panels, ["car"], extent=40)
    assert picture.width == 1920
    pixels = np.asarray(picture)
    views = pixels[78 : 78 + round(90 * 954 / 160)]
    green, red = ((views == c).all(-1) for c in ((0, 250, 0), (250, 0, 0)))
    assert green[:, 966:].mean() > 0.5 and not green[:, :954].any() and not red.any()
    bev = pixels[len(views) + 78 :][:954]
    place = round(954 * (1 - 20 / 40) / 2), round(954 * (1 + 20 / 40) / 2)  # row and column of the points
    around = (slice(place[0] - 1, place[0] + 2), slice(place[1] - 1, place[1] + 2))
    assert (bev[:, :954][around] != 255).any() and (bev[:, 966:][around] == 255).all()
    assert not (bev[:, :954] == RADAR.color).all(-1).any() and (bev[:, 966:] == RADAR.color).all(-1).any()
    with pytest.raises(ValueError, match="at least one panel"):
        draw_panels([], ["car"], extent=40)


def test_real_frame(shared: Path) -> None:
    """Both layers, all views, a legend; each drawn box encloses the pixels that its LiDAR points project to."""
    root = shared / "data" / "nuscenes"
    steps = [{"type": t} for t in ("LoadMultiViewImageFromFiles", "LoadPointsFromFile", "LoadAnnotations3D")]
    sample = Compose(steps).load(frames.context(frames.real_frame(root), root, training=False))
    truth = Layer("ground truth", sample.boxes, sample.labels)
    found = Layer("detections", sample.boxes[:9], sample.labels[:9])
    both = draw_frame(
        [truth, found], frames.CLASSES, sample.calibration, sample.images, sample.meta["cameras"], sample.clouds
    )
    mosaic = draw_cameras(sample.images, sample.calibration, [truth], frames.CLASSES, sample.meta["cameras"])
    assert mosaic.size == (1920, 720) and both.size[0] > 1920 + 700 and both.size[1] > 720
    inside = sample.boxes.contains(sample.points)
    checked = 0
    for camera in range(6):
        segments, owner, depth = box_segments(sample.boxes, sample.calibration, camera, (1600, 900))
        for i in ((inside.sum(dim=1) > 20) & (depth > 0)).nonzero().flatten().tolist():
            ends = segments[owner == i].reshape(-1, 2)
            if len(ends) == 26:
                pixels, _ = project(sample.points[inside[i]], sample.calibration.lidar2image[camera])
                low, high = ends.min(dim=0).values - 1, ends.max(dim=0).values + 1
                assert ((pixels >= low) & (pixels <= high)).all()
                checked += 1
    assert checked > 5


def test_the_legend_names_no_sensor_without_points(calibration: Calibration) -> None:
    layers = [Layer("detections", Boxes3D.empty(), torch.zeros(0, dtype=torch.int64))]
    none, some = torch.zeros(0, 7), torch.tensor([[5.0, 0, 0, 0, 1, 0, 0]])

    def frame(**clouds: torch.Tensor) -> bytes:
        return draw_frame(layers, ["car"], calibration, clouds=clouds).tobytes()

    assert frame(points=none, radar=none) == frame()

    def columns(**clouds: torch.Tensor) -> bytes:
        return draw_panels([Panel("one", "", layers, calibration, clouds=clouds)], ["car"], 40, width=200).tobytes()

    assert columns(radar=none) == columns() != columns(radar=some)


def test_text_above_a_column_is_as_large_as_fits() -> None:
    text = "cameras + radar: 14 hit, 16 false (5 not drawn), 27 missed"
    size = fitting(text, 400, 22)
    assert 10 < size < 22 and font(size).getlength(text) <= 400 < font(size + 1).getlength(text)
    assert fitting("hit", 400, 22) == 22 and fitting(40 * text, 400, 22) == 10
