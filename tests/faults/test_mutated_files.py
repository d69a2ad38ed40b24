"""Damaged and hostile files, reader by reader: a sentence or an answer, and nothing else. What once failed has a test
of its own below."""

from __future__ import annotations

import json
import pickle
import resource
from collections.abc import Callable
from pathlib import Path

import frames
import numpy as np
import pytest
import torch
from mutations import faults
from PIL import Image

from mmdet3d.config import load_config
from mmdet3d.datasets.kitti.files import read_calibration, read_depth, read_ids, read_scan, write_depth
from mmdet3d.datasets.kitti.labels import read_labels, read_results
from mmdet3d.datasets.nuscenes.infos import read_infos, write_infos
from mmdet3d.datasets.nuscenes.submission import read_submission
from mmdet3d.datasets.transforms import read_radar_pcd
from mmdet3d.datasets.transforms.images import read_image
from mmdet3d.datasets.transforms.lidar import read_points
from mmdet3d.distill.answers import Answers
from mmdet3d.distill.teacher import recorded_metrics
from mmdet3d.engine.checkpoint import RunCheckpoints, read_training_state
from mmdet3d.io.pickles import dump_pickle, load_pickle
from mmdet3d.io.weights import metadata_path, read_weights, save_weights

FEW, MANY = 50, 1000
Reader = tuple[Path, Callable[[], object]]
KITTI_LINE = "Car 0.00 0 1.57 614.24 181.78 727.31 284.77 1.57 1.73 4.15 1.00 1.75 13.22 1.62"
MATRIX = " ".join(f"{k:.6e}" for k in range(12))
CALIBRATION = f"P2: {MATRIX}\nR0_rect: {' '.join(['1.0'] * 9)}\nTr_velo_to_cam: {MATRIX}\n"
CONFIG = """max_epochs: 3
sizes: &sizes [1, 2, 3.5]
data: {samples_per_gpu: 2, train: {type: A, root: "data/a", sizes: *sizes}}
model:
  type: B
  width: ${max_epochs * 2}
  losses:
    - {name: a, weight: 1e-3}
"""


def written(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def radar(folder: Path) -> Reader:
    frames.write_radar(folder / "radar.pcd", [{"x": 5.0 + k, "y": -2.0, "rcs": 3.0} for k in range(12)])
    return folder / "radar.pcd", lambda: read_radar_pcd(folder / "radar.pcd")


def lidar(folder: Path) -> Reader:
    points = np.random.RandomState(0).randn(200, 5).astype("<f4")
    path = written(folder / "lidar.bin", points.tobytes())
    return path, lambda: read_points(path)


def kitti_lidar(folder: Path) -> Reader:
    points = np.random.RandomState(0).randn(200, 4).astype("<f4")
    path = written(folder / "000000.bin", points.tobytes())
    return path, lambda: read_scan(path)


def infos(folder: Path) -> Reader:
    write_infos([frames.small_frame(folder)], {"version": "v1.0-mini"}, folder / "infos.pkl")
    return folder / "infos.pkl", lambda: read_infos(folder / "infos.pkl")


def plain_infos(folder: Path) -> Reader:
    """Of another program, without the digest that ours begin with."""
    write_infos([frames.small_frame(folder)], {"version": "v1.0-mini"}, folder / "infos.pkl")
    path = written(folder / "others.pkl", pickle.dumps(load_pickle(folder / "infos.pkl"), protocol=2))
    return path, lambda: read_infos(path)


def kitti_label(folder: Path) -> Reader:
    path = written(folder / "000001.txt", f"{KITTI_LINE}\nDontCare{KITTI_LINE[3:]}\n")
    return path, lambda: read_labels(path)


def kitti_results(folder: Path) -> Reader:
    path = written(folder / "000002.txt", f"{KITTI_LINE} 0.9\n" * 3)
    return path, lambda: read_results(path)


def kitti_calibration(folder: Path) -> Reader:
    path = written(folder / "000003.txt", CALIBRATION)
    return path, lambda: read_calibration(path)


def kitti_ids(folder: Path) -> Reader:
    path = written(folder / "train.txt", "\n".join(f"{k:06d}" for k in range(30)))
    return path, lambda: read_ids(path)


def depth(folder: Path) -> Reader:
    Image.init()  # looking for a format imports all of them
    write_depth(folder / "depth.png", np.random.RandomState(0).rand(24, 60) * 80)
    return folder / "depth.png", lambda: read_depth(folder / "depth.png", (30, 60))


def image(folder: Path, name: str) -> Reader:
    Image.init()
    pixels = np.random.RandomState(0).randint(0, 255, (24, 60, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / name)
    return folder / name, lambda: read_image(folder / name)


def submission(folder: Path) -> Reader:
    entry = {"sample_token": "a", "translation": [1.0, 2, 3], "size": [1, 2, 3], "detection_name": "car"}
    path = written(folder / "results.json", json.dumps({"meta": {"use_lidar": True}, "results": {"a": [entry] * 3}}))
    return path, lambda: read_submission(path)


def config(folder: Path) -> Reader:
    path = written(folder / "config.yaml", CONFIG)
    return path, lambda: load_config(path)


def checkpoint(folder: Path, name: str) -> Reader:
    path = folder / name
    save_weights({"a.weight": torch.randn(8, 8), "a.bias": torch.zeros(8)}, path, {"epoch": 1})
    return path, lambda: read_weights(path)


def training_state(folder: Path) -> Reader:
    weights = {"a": torch.randn(8)}
    path = RunCheckpoints(folder).save(
        "epoch_1", weights, {"batch": 0, "optimizer": {"a": [weights["a"]]}}, {"iteration": 1}
    )
    return path.with_suffix(".state.pt"), lambda: read_training_state(path)


def sidecar(folder: Path) -> Reader:
    path = folder / "weights.safetensors"
    save_weights({"a": torch.zeros(2)}, path, {"epoch": 1, "metrics": {"object/map": 0.5}, "model_config": None})
    return metadata_path(path), lambda: (read_weights(path), recorded_metrics(path))


def answers(folder: Path) -> Reader:
    from safetensors.torch import save_file

    path = folder / "token.safetensors"
    save_file({"fuser": torch.randn(1, 4, 4), "heads/0": torch.randn(1, 2)}, path)
    return path, lambda: Answers(folder, {}).read_frame("token", ["fuser", "heads"])


READERS: dict[str, Callable[[Path], Reader]] = {
    "radar pcd": radar,
    "LiDAR bin": lidar,
    "KITTI LiDAR bin": kitti_lidar,
    "info file": infos,
    "plain info file": plain_infos,
    "KITTI label": kitti_label,
    "KITTI results": kitti_results,
    "KITTI calib": kitti_calibration,
    "KITTI ids": kitti_ids,
    "depth png": depth,
    "image png": lambda folder: image(folder, "image.png"),
    "image jpg": lambda folder: image(folder, "image.jpg"),
    "submission JSON": submission,
    "YAML": config,
    "checkpoint safetensors": lambda folder: checkpoint(folder, "weights.safetensors"),
    "checkpoint pth": lambda folder: checkpoint(folder, "weights.pth"),
    "training state": training_state,
    "sidecar JSON": sidecar,
    "stored answers": answers,
}


@pytest.mark.parametrize("kind", READERS)
def test_mutated_files_are_read_or_named(kind: str, tmp_path: Path) -> None:
    assert faults(*READERS[kind](tmp_path), FEW) == []


@pytest.mark.slow
@pytest.mark.parametrize("kind", READERS)
def test_a_thousand_mutated_files_are_read_or_named(kind: str, tmp_path: Path) -> None:
    assert faults(*READERS[kind](tmp_path), MANY, seed=1) == []


# -- what once failed --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("config.yaml", load_config),
        ("results.json", read_submission),
        ("weights.pth", read_weights),
        ("infos.pkl", read_infos),
    ],
)
@pytest.mark.parametrize(
    "content", [b"", b"\xff\xfe\x80", b"\x80\x02}q\x00(X\x05\x00", b"PK\x03\x04\xff\xff", b"\x00" * 99]
)
def test_bytes_that_are_no_such_file_name_it(name: str, read: Callable[[Path], object], content: bytes, tmp_path: Path):
    if (name, content) == ("config.yaml", b""):
        return  # an empty config is one
    with pytest.raises(ValueError, match=name):
        read(written(tmp_path / name, content))


def test_a_sidecar_that_is_none_is_named(tmp_path: Path) -> None:
    path, read = sidecar(tmp_path)
    for content in (b"", b"\xff", b"[1]", b"{", path.read_bytes().replace(b"0.5", b"0.9")):
        with pytest.raises(ValueError, match=r"weights\.json .*(damaged|cut off)"):
            written(path, content) and read()


@pytest.mark.parametrize("read", [load_config, read_submission])
def test_brackets_without_end_are_a_sentence(read: Callable[[Path], object], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="deep"):
        read(written(tmp_path / "deep.yaml", "{" * 1_200 if read is load_config else "[" * 100_000))


ALIASES = "a0: &a0 [1, 1]\n" + "".join(f"a{k}: &a{k} [{', '.join([f'*a{k - 1}'] * 9)}]\n" for k in range(1, 10))
EXPRESSIONS = "".join(f"a{k}: ${{a{k + 1} + a{k + 1}}}\n" for k in range(18)) + "a18: 1\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (ALIASES, "aliases make .* values of it"),
        ("a: &x [*x]", "an alias stands for something that it lies in"),
        ("a: &x {b: *x}", "an alias stands for something that it lies in"),
        ("a: ${'a' * 999999999}", "only numbers are multiplied"),
        ("a: ${1 / 0}", "cannot be worked out \\(division by zero"),
        ("a: [1]\nb: ${a[5]}", "cannot be worked out \\(list index"),
        (f"a: ${{{'(' * 900}1{')' * 900}}}", "is no expression"),
        ("a: 2001-99-99", "month must be in"),
        (EXPRESSIONS, "make more than 100000 values"),
        (EXPRESSIONS.replace(" + ", ", ").replace("${", "${[").replace("}", "]}"), "make more than 100000 values"),
    ],
)
def test_a_config_cannot_ask_for_all_memory(content: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"(?s)bomb\.yaml.*{message}"):
        load_config(written(tmp_path / "bomb.yaml", content))


def test_a_plain_pickle_cannot_ask_for_all_memory(tmp_path: Path) -> None:
    """Place 2 GiB of the reader's memo, as Python writes no more than it has objects; 16 GiB of an array."""
    path, limit = tmp_path / "infos.pkl", resource.getrlimit(resource.RLIMIT_AS)
    for content in (b"\x80\x02]r\x00\x00\x00\x80.", b"\x80\x02cnumpy\nndarray\n(J\xff\xff\xff\x7ftR."):
        with pytest.raises(ValueError, match=r"infos\.pkl is no readable pickle file .MemoryError"):
            load_pickle(written(path, content))
    assert resource.getrlimit(resource.RLIMIT_AS) == limit


def test_infos_of_another_layout_are_named(tmp_path: Path) -> None:
    path, read = infos(tmp_path)
    content = load_pickle(path)
    for change in ({"timestamq": 1}, {"lidar": None}, {"sweeps": 3}, {"cameras": {"CAM": {"path": "a"}}}):
        dump_pickle({**content, "infos": [{**content["infos"][0], **change}]}, path)
        with pytest.raises(ValueError, match=r"infos\.pkl: an info is of another layout"):
            read()
