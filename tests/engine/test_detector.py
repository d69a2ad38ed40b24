"""A detector in a few lines, and what docs/export.md says to type."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
import torch

from mmdet3d import Detector, load_config
from mmdet3d.commands import detect, export
from mmdet3d.datasets.synthetic.worlds import make_scene
from mmdet3d.engine.shipped import first_scores, load_shipped
from mmdet3d.zoo import read_card, weight_path, zoo_file, zoo_files

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "export.md").read_text()
NAME = "crkd-demo-distilled"
WITHOUT_ONNX = [n for n in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(n) is None]


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("first-scene")
    make_scene(root)
    return root


@pytest.fixture
def place(scene: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the data and the run that the page speaks of."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "nuscenes").symlink_to(scene)
    run = tmp_path / "runs" / "demo" / "distilled"
    run.mkdir(parents=True)
    card = read_card(NAME)
    (run / "configs.yaml").write_text(load_config(card["config"]).dump())
    for end in (".safetensors", ".json"):
        shutil.copy(zoo_file(NAME).with_suffix(end), run / f"best{end}")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def python_blocks() -> list[str]:
    return re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


def commands() -> list[list[str]]:
    lines = [line for block in re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()]
    return [shlex.split(line) for line in lines if not line.startswith("pip install")]


def type_command(words: list[str]) -> None:
    tools = {"tools/export.py": export, "tools/detect.py": detect}
    tools[words[1]].main([weight_path(word) for word in words[2:]])


def test_names_of_shipped_models() -> None:
    assert {"crkd-demo-teacher", "crkd-demo-control", NAME} <= zoo_files().keys()
    assert all(f"`{name}`" in PAGE for name in zoo_files() if name.startswith("crkd-demo"))
    with pytest.raises(ValueError, match="no model zoo:crkd-demo-destilled, did you mean 'crkd-demo-distilled'"):
        zoo_file("crkd-demo-destilled")


def test_five_lines_find_what_evaluation_finds(place: Path, scene: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names: dict = {}
    exec(compile(python_blocks()[0], "docs/export.md", "exec"), names)
    assert len(python_blocks()[0].strip().splitlines()) == 6  # with the empty line
    best = names["found"].scores.sort(descending=True).values[:5].tolist()
    assert best == pytest.approx(first_scores(*load_shipped(NAME, scene)), abs=1e-4)
    assert "car" in capsys.readouterr().out
    assert names["detector"].sensors == ("camera", "radar")


def test_frames_of_tables_without_an_info_file(place: Path, scene: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    for part in ("samples", "sweeps", "maps", "v1.0-synthetic"):
        if (scene / part).exists():
            (bare / part).symlink_to(scene / part)
    detector = Detector.from_zoo(NAME)
    listed, read = detector.frames(scene), detector.frames(bare)
    assert list(listed.tokens) == list(read.tokens)
    assert torch.equal(detector(listed[1]).scores, detector(read[1]).scores)
    (bare / "v1.0-other").mkdir()
    with pytest.raises(FileNotFoundError, match="2 versions of nuScenes tables"):
        detector.frames(bare)
    with pytest.raises(FileNotFoundError, match="nowhere is no folder"):
        detector.frames(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="empty has neither the info file of the model's config nor nuScenes"):
        detector.frames(tmp_path / "empty")


def test_a_run_of_a_distillation_is_its_student(place: Path, scene: Path) -> None:
    of_run, of_zoo = Detector.from_file("runs/demo/distilled"), Detector.from_zoo(NAME)
    assert type(of_run.model).__name__ == "BEVFusion" and of_run.facts.weights == of_zoo.facts.weights
    frame = of_zoo.frames(scene)[1]
    assert torch.equal(of_run(frame).scores, of_zoo(frame).scores)


def test_weights_without_a_config_are_refused(tmp_path: Path) -> None:
    shutil.copy(zoo_file("crkd-demo-control"), tmp_path / "mine.safetensors")
    with pytest.raises(ValueError, match=r"neither .*configs.yaml nor .*mine.json says which config"):
        Detector.from_file(tmp_path / "mine.safetensors")
    card = read_card("crkd-demo-control")
    assert Detector.from_file(tmp_path / "mine.safetensors", card["config"]).sensors == ("camera", "radar")
    with pytest.raises(FileNotFoundError, match=f"weight file {NAME} does not exist; the model in pretrained/ is zoo:"):
        Detector.from_file(NAME)
    for named in ({"config": card["config"]}, {"overrides": ["--data.val.ann_file", "other.pkl"]}):
        with pytest.raises(ValueError, match=r"student\.onnx brings its settings along"):
            Detector.from_file("student.onnx", **named)


def test_detecting_with_weights_whose_config_is_named(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copy(zoo_file("crkd-demo-control"), place / "mine.safetensors")
    words = ["mine.safetensors", "--frames", "data/nuscenes", "--limit", "1", "--no-pictures", "--out-dir", "found"]
    with pytest.raises(ValueError, match=r"name it \(--config\)"):
        detect.main(words)
    detect.main([*words, "--config", read_card("crkd-demo-control")["config"]])
    with pytest.raises(ValueError, match=r"imports of the command line: there is no module 'my_sonar'"):
        detect.main([*words, "--imports", "my_sonar"])
    assert "detections in 1 frame: found" in capsys.readouterr().out


def test_an_exported_program_detects_without_models(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    type_command(next(c for c in commands() if ".pt2" in c[4]))
    assert re.search(r"student.pt2: [\d.]+ MB, reads camera, radar", capsys.readouterr().out)
    with monkeypatch.context() as patch:
        patch.setattr("mmdet3d.registry.MODELS.build", lambda *_: pytest.fail("a model is built"))
        token = Detector.from_file("student.pt2").frames("data/nuscenes").tokens[1]
        detect.main(["student.pt2", "--frames", "data/nuscenes", "--tokens", token, "--out-dir", "found"])
    written = json.loads((place / "found" / "detections.json").read_text())
    assert (place / "found" / f"{token}.png").is_file() and list(written["frames"]) == [token]
    detector = Detector.from_zoo(NAME)
    wanted = detector(detector.frames(place / "data" / "nuscenes")[1])
    found = written["frames"][token]
    assert [row["class"] for row in found] == [detector.classes[label] for label in wanted.labels]
    torch.testing.assert_close(torch.tensor([row["box"] for row in found]), wanted.boxes.tensor, atol=1e-3, rtol=0)
    with pytest.raises(ValueError, match="no frame nothing among the 3"):
        detect.main(["student.pt2", "--frames", "data/nuscenes", "--tokens", "nothing"])


@pytest.mark.slow
@pytest.mark.skipif(bool(WITHOUT_ONNX), reason=f"{', '.join(WITHOUT_ONNX)} not installed (extra `export`)")
def test_the_page_from_top_to_bottom(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words in commands():
        type_command(words)
    assert (place / "this_car.int8.onnx").stat().st_size < (place / "this_car.onnx").stat().st_size
    frame = Detector.from_zoo(NAME).frames("data/nuscenes")[0]
    whole, small = (Detector.from_file(f"this_car{end}.onnx")(frame).scores for end in ("", ".int8"))
    assert not torch.equal(whole[:10], small[:10])
    assert small.max().item() == pytest.approx(whole.max().item(), abs=0.1)
    assert (place / "this_car.half.onnx").stat().st_size < 0.75 * (place / "this_car.onnx").stat().st_size
    half = Detector.from_file("this_car.half.onnx")(frame).scores
    assert not torch.equal(whole[:10], half[:10])
    torch.testing.assert_close(half[:5], whole[:5], atol=0.02, rtol=0)
    assert len(list((place / "runs" / "found").glob("*.png"))) == 2
    capsys.readouterr()
    exec(compile(python_blocks()[1], "docs/export.md", "exec"), {})
    assert "encoders.radar.voxels.features" in capsys.readouterr().out
