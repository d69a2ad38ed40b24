"""Examples of docs/howto.md and docs/data.md, as they stand there."""

from __future__ import annotations

import re
import runpy
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from mmdet3d import build_model, load_config, plugins
from mmdet3d.commands import create_data, test, train, visualize
from mmdet3d.datasets import build_split
from mmdet3d.datasets.nuscenes.create import create_nuscenes
from mmdet3d.datasets.nuscenes.infos import read_infos
from mmdet3d.datasets.synthetic import VERSION, WorldSettings, generate
from mmdet3d.datasets.synthetic.worlds import PREFIX, make_scene
from mmdet3d.engine.agreement import disagreements
from mmdet3d.engine.command import read_overrides
from mmdet3d.engine.pictures import draw_sample
from mmdet3d.models.detectors.base import Trainable
from mmdet3d.registry import MODELS, TRANSFORMS
from mmdet3d.structures import Batch, sensor_of, sensors
from mmdet3d.zoo import weight_path

ROOT = Path(__file__).resolve().parents[1]
HOWTO, DATA = ((ROOT / "docs" / name).read_text() for name in ("howto.md", "data.md"))


def section(page: str, heading: str) -> dict[str, list[str]]:
    """Code blocks of a section by language."""
    text = re.split(r"(?m)^## ", page.split(f"## {heading}\n")[1])[0]
    found: dict[str, list[str]] = {}
    for language, block in re.findall(r"```(\w+)\n(.*?)```", text, re.DOTALL):
        found.setdefault(language, []).append(block)
    return found


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("scene")
    make_scene(root, keyframes=1)
    return root


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Of a user's own; what is imported from it is forgotten afterwards."""
    MODELS.names()  # filled before it is copied
    TRANSFORMS.names()
    for registry in (MODELS, TRANSFORMS):
        monkeypatch.setattr(registry, "_classes", dict(registry._classes))
    monkeypatch.setattr(sensors, "_known", dict(sensors._known))
    monkeypatch.setattr(plugins, "_imported", {})
    monkeypatch.setattr(sys, "path", [*sys.path])
    for name in ("my_backbone", "my_sonar", "my_teacher"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def trained(heading: str, scene: Path) -> tuple[Trainable, dict[str, torch.Tensor], Batch]:
    """The model of a section's command, its loss terms on a frame, whose gradient exists, and that frame."""
    blocks = section(HOWTO, heading)
    for block in [*blocks.get("python", []), *blocks.get("yaml", [])]:
        Path(block.split()[1]).write_text(block)
    (command,) = blocks["bash"]
    args, rest = train.parse(shlex.split(command)[2:])
    overrides = {"dataset_root": f"{scene}/"} | read_overrides(rest, None, args.imports)
    config = load_config(args.config, overrides)
    torch.manual_seed(0)
    model = build_model(config.model)
    model.init_weights()
    model.setup_training(lambda _: {})
    frames = build_split(config.data, "val", 0, model.training_inputs, test_mode=True)
    batch = Batch.collate([frames[0]])
    terms = model.train().loss(batch)
    sum(v for k, v in terms.items() if k.startswith("loss/")).backward()
    assert all(value.isfinite().all() for value in terms.values())
    return model, terms, batch


def test_a_backbone(folder: Path, scene: Path) -> None:
    model, _, batch = trained("A camera backbone", scene)
    backbone = model.encoders["camera"]["backbone"]
    assert type(backbone).__name__ == "PlainBackbone" and backbone.levels[0][0].weight.grad.abs().sum() > 0
    height, width = batch.images.shape[-2:]
    shapes = [level.shape[1:] for level in backbone(batch.images[0])]
    assert shapes == [(32, height // 8, width // 8), (64, height // 16, width // 16)]


def test_a_sensor(folder: Path, scene: Path) -> None:
    model, _, batch = trained("A sensor", scene)
    values = model.eval().extract(batch, {"encoders.ahead", "fuser"})
    assert values["encoders.ahead"].shape == values["fuser"].shape and values["encoders.ahead"].abs().sum() > 0
    assert "encoders.ahead" not in model.extract(batch.without("radar"), {"encoders.lidar"})


def test_a_sensor_of_another_kind(folder: Path, scene: Path) -> None:
    """Loaded, augmented, batched, encoded, trained and drawn, by one file that is none of ours."""
    (record,) = read_infos(scene / f"{PREFIX}_infos_val.pkl")[0]
    echoes = np.random.RandomState(0).uniform(-20, 20, (40, 6)).astype(np.float32)
    echoes[:, 2] = 0
    echoes[30:, 2] = 99  # higher than the range, but a sonar measures no height
    (scene / "sonar").mkdir()
    echoes.tofile(scene / "sonar" / f"{record.token}.bin")
    model, _, batch = trained("A sensor of another kind", scene)
    assert model.inputs == ("lidar", "sonar")
    file = scene / "sonar" / f"{record.token}.bin"
    file.unlink()
    Path("data").mkdir(exist_ok=True)
    Path("data/synthetic").symlink_to(scene)
    runpy.run_path("make_echoes.py")
    assert file.stat().st_size == 40 * 6 * 4
    echoes.tofile(file)
    assert len(batch.alone(0).to("cpu").clouds["sonar"][0]) == 40 and "sonar" not in batch.without("sonar").clouds

    before = model.eval().extract(batch, {"encoders.sonar", "fuser"})
    assert before["encoders.sonar"].abs().sum() > 0
    with pytest.raises(ValueError, match="the sonar encoder needs `sonar`"):
        model.extract(batch.without("sonar"), {"encoders.sonar"})
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.encoders["sonar"].parameters())
    torch.optim.SGD(model.parameters(), lr=0.01).step()
    assert not torch.equal(model.extract(batch, {"encoders.sonar"})["encoders.sonar"], before["encoders.sonar"])

    config = load_config("lidar_sonar.yaml", {"dataset_root": f"{scene}/"})
    assert not disagreements(config)
    config.data.train.ann_file = config.data.val.ann_file
    frames = build_split(config.data, "train", 0, model.training_inputs)
    sample, found = frames[0], frames[0].clouds["sonar"].double()
    moved = sample.calibration.lidar_aug.double() @ torch.linalg.inv(torch.from_numpy(frames.frame(0).lidar2ego))
    raw = torch.from_numpy(echoes).double()
    assert not torch.equal(sample.calibration.lidar_aug, torch.eye(4))
    assert found[:, :3] == pytest.approx((raw[:, :3] @ moved[:3, :3].T + moved[:3, 3]).numpy(), abs=1e-4)
    assert torch.equal(found[:, 3], raw[:, 3])
    assert found[:, 4:] == pytest.approx((raw[:, 4:] @ moved[:2, :2].T).numpy(), abs=1e-4)

    sonar = sensor_of("sonar")
    picture, without = (np.asarray(draw_sample(sample, frames, sensors=seen)) for seen in (model.inputs, ("lidar",)))
    # Around the car and in the legend below, but not where the model does not read it.
    ground, legend = np.split(picture, [round(0.7 * len(picture))])
    assert all((part == sonar.color).all(-1).any() for part in (ground, legend))
    assert not (without == sonar.color).all(-1).any()


def test_a_teacher(folder: Path, scene: Path) -> None:
    distiller, terms, batch = trained("A teacher", scene)
    assert terms["loss/kd/density"] > 0
    answer = distiller.taught(batch)["fuser"]
    assert answer.shape[2:] == (64, 64) and answer.expm1().sum() == pytest.approx(32 * len(batch.points[0]), rel=1e-3)


@pytest.mark.parametrize("cameras", [1, 4, 8])
def test_own_recordings_with_any_number_of_cameras(cameras: int, folder: Path, capsys: pytest.CaptureFixture) -> None:
    """Every annotated object lies on its picture, and a model learns from frames of this rig."""
    example = runpy.run_path(str(ROOT / "examples" / "own_data.py"))
    example["write"](folder / "own", scenes=2, frames=2, cameras=cameras)
    create_nuscenes(folder / "own", folder / "own", "own", "v1.0-own", database=False)
    assert "all 14 annotated objects in 2 frames" in capsys.readouterr().out
    config = load_config("synthetic/camera+lidar/demo.yaml", {"dataset_root": f"{folder}/own/", "info_prefix": "own"})
    model = build_model(config.model)
    frames = build_split(config.data, "val", 0, model.training_inputs, test_mode=True)
    sample = frames[1]
    assert sample.images.shape[0] == cameras
    scene = frames.scene(sample)
    drawn = 0
    for i, picture in enumerate(scene.images):
        centers = torch.nn.functional.pad(scene.boxes.tensor[:, :3], (0, 1), value=1.0)
        u, v, d, _ = (centers @ scene.calibration.lidar2image[i].T).unbind(1)
        seen = (d > 3) & (u / d > 5) & (u / d < picture.width - 5)
        for x, y in zip((u / d)[seen].tolist(), (v / d)[seen].tolist(), strict=True):
            red, green, _ = picture.convert("RGB").getpixel((round(x), round(y)))
            assert red > 100 > green + 20
            drawn += 1
    assert drawn >= (5 if cameras > 1 else 2)
    assert sample.boxes.tensor[:, 7:].norm(dim=1).max() == pytest.approx(5.0, abs=0.01)  # the one that drives ahead
    sum(v for k, v in model.train().loss(Batch.collate([sample])).items() if k.startswith("loss/")).backward()


@pytest.mark.filterwarnings("ignore:no scene of split")
@pytest.mark.parametrize("cameras", [1, 4, 8])
def test_rigs_of_the_synthetic_world(cameras: int, tmp_path: Path) -> None:
    """Their cameras look where they should, and LiDAR points fall on what they show."""
    settings = WorldSettings(
        scenes=1, keyframes=1, lidar_sweeps=0, radar_sweeps=0, image_size=(160, 90), cameras=cameras
    )
    generate(tmp_path / "world", settings, progress=False)
    create_nuscenes(tmp_path / "world", tmp_path / "world", "rig", VERSION, database=False)
    steps = [{"type": "LoadMultiViewImageFromFiles"}, {"type": "LoadPointsFromFile"}]
    block = {"type": "NuScenesDataset", "dataset_root": str(tmp_path / "world"), "ann_file": "rig_infos_train.pkl"}
    sample = build_split({"val": block | {"pipeline": steps}}, "val", 0, test_mode=True)[0]
    assert len(sample.images) == cameras
    ahead = sample.calibration.camera2ego[:, :3, 2]
    yaw = torch.rad2deg(torch.atan2(ahead[:, 1], ahead[:, 0])) % 360
    gaps = (yaw.sort().values.diff() if cameras > 1 else torch.tensor([360.0 / cameras])).tolist()
    assert gaps == pytest.approx([360 / cameras] * len(gaps), abs=0.1) and ahead[:, 2].abs().max() < 0.02
    homogeneous = torch.nn.functional.pad(sample.points[:, :3], (0, 1), value=1.0)
    for projection in sample.calibration.lidar2image:
        u, v, d, _ = (homogeneous @ projection.T).unbind(1)
        inside = (d > 1) & (u > 0) & (u < 160 * d) & (v > 0) & (v < 90 * d)
        assert inside.sum() > 100


def test_worlds_of_six_cameras_are_those_that_were_always_made() -> None:
    assert "cameras" not in WorldSettings().to_dict() and WorldSettings(cameras=4).to_dict()["cameras"] == 4
    with pytest.raises(ValueError, match=r"cameras must be one of 1, 4, 6, 8, got 5"):
        WorldSettings(cameras=5)


@pytest.mark.slow
@pytest.mark.parametrize("heading", ["Own recordings, from nothing to a score", "Rigs of the synthetic world"])
def test_the_page_on_data_from_top_to_bottom(heading: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tools = {"create_data": create_data, "train": train, "test": test, "visualize": visualize}
    for command in [c for block in section(DATA, heading)["bash"] for c in block.splitlines()]:
        _, file, *words = map(weight_path, shlex.split(command))
        if file.startswith("examples/"):
            monkeypatch.setattr(sys, "argv", [file, *words])
            runpy.run_path(str(ROOT / file), run_name="__main__")
        else:
            assert not tools[Path(file).stem].main(words), command
    assert len(list((folder / "runs").rglob("*.png"))) == 1
