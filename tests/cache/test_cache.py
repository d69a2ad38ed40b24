"""The data cache: the same samples to the bit, whatever happens to files, processes and space."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mmdet3d.config import load_config
from mmdet3d.datasets import build_split, cache
from mmdet3d.datasets.cache import ReadCache, open_cache
from mmdet3d.datasets.nuscenes.create import create_nuscenes
from mmdet3d.datasets.processes import in_processes
from mmdet3d.datasets.synthetic.generate import generate
from mmdet3d.datasets.synthetic.kitti import KittiSettings, generate_kitti
from mmdet3d.datasets.synthetic.settings import WorldSettings
from mmdet3d.datasets.synthetic.tables import VERSION
from mmdet3d.engine.data import TrainSampler, batches, build_loader
from mmdet3d.engine.settings import Settings

RAM_FOLDER = cache._ram_folder.__wrapped__
WORLD = WorldSettings(scenes=3, keyframes=2, lidar_sweeps=2, radar_sweeps=1, image_size=(128, 72), reach=20)
# History, a random choice among sweeps, a random subset of radar points.
CASES = {
    "nuscenes": {
        "history.key_offsets": [-1],
        "lidar_sweeps": 1,
        "augment2d.resize": [[1.6, 1.8], [1.7, 1.7]],
        "train_pipeline.4.max_num": 20,
    },
    "kitti": {},
}
CONFIGS = {"nuscenes": "synthetic/camera+radar/demo.yaml", "kitti": "kitti/synthetic/monoskd.yaml"}


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    nuscenes = tmp_path_factory.mktemp("nuscenes")
    generate(nuscenes, WORLD, progress=False)
    create_nuscenes(nuscenes, nuscenes, "synthetic", VERSION, workers=1, database=False)
    kitti = tmp_path_factory.mktemp("kitti") / "world"
    settings = KittiSettings(frames=6, test_frames=0, image_size=(320, 96), val_fraction=0.5)
    return {"nuscenes": nuscenes, "kitti": generate_kitti(kitti, settings, progress=False)}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Of the entries, for disk and RAM; nothing is left in the real shared memory."""
    monkeypatch.setenv(cache.VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setattr(cache, "_ram_folder", lambda: tmp_path / "cache")
    return tmp_path / "cache"


def dataset(roots: dict[str, Path], name: str, kind: str, split: str = "train") -> Any:
    words = {**CASES[name], "dataset_root": f"{roots[name]}/", "data.cache": kind}
    return build_split(load_config(CONFIGS[name], words).data, split, 0, test_mode=split != "train")


def content(value: Any) -> Any:
    """Everything in a sample, as something that can be compared."""
    if isinstance(value, torch.Tensor):
        return value.dtype, value.shape, value.stride() if value.numel() else (), value.contiguous().numpy().tobytes()
    if dataclasses.is_dataclass(value):
        return {f.name: content(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {key: content(item) for key, item in value.items()}
    return [content(item) for item in value] if isinstance(value, (list, tuple)) else value


def samples(data: Any, epochs: tuple[int, ...] = (0, 1)) -> list[Any]:
    found = []
    for epoch in epochs:
        data.set_epoch(epoch)
        found += [content(sample) for sample in data]
    return found


@pytest.mark.parametrize("kind", ["ram", "disk"])
@pytest.mark.parametrize("name", CASES)
def test_samples_are_the_same_to_the_bit(
    roots: dict[str, Path], name: str, kind: str, monkeypatch: pytest.MonkeyPatch, folder: Path
):
    for split in ("train", "val"):
        wanted = samples(dataset(roots, name, "none", split))
        assert not folder.exists() or split == "val"
        assert samples(dataset(roots, name, kind, split)) == wanted
        with monkeypatch.context() as patch:  # another process, which reads none of the images again
            patch.setattr("mmdet3d.datasets.transforms.images.read_image", None)
            patch.setattr("mmdet3d.datasets.kitti.files.read_depth", None)
            assert samples(dataset(roots, name, kind, split)) == wanted


def test_workers_fill_and_read_it(roots: dict[str, Path], folder: Path):
    def epochs(kind: str, workers: int) -> list[Any]:
        data = dataset(roots, "nuscenes", kind)
        sampler = TrainSampler(len(data), 2, seed=0)
        loader = build_loader(data, sampler, workers)
        found = []
        for epoch in (0, 1):
            sampler.set_epoch(epoch)
            found += [content(batch) for batch in batches(loader)]
        return found

    assert epochs("disk", 2) == epochs("none", 0)
    assert list(folder.iterdir())


def _images(roots: dict[str, Path], _: int) -> list[bytes]:
    torch.set_num_threads(1)  # a forked process must not wait for threads of its parent
    return [sample.images.numpy().tobytes() for sample in dataset(roots, "kitti", "disk")]


def test_two_processes_fill_it_at_once(roots: dict[str, Path], folder: Path):
    first, second = in_processes(partial(_images, roots), [0, 1], 2, "fork")
    assert first == second == [s.images.numpy().tobytes() for s in dataset(roots, "kitti", "none")]
    assert not [p for p in folder.iterdir() if p.suffix != ".safetensors"]


# -- one entry -------------------------------------------------------------------------------------------------------


def read_numbers(files: list[Path], factor: float = 1.0) -> list[np.ndarray]:
    return [np.fromstring(file.read_text(), sep=" ", dtype=np.float32) * np.float32(factor) for file in files]


def read_all_kinds(files: list[Path]) -> list[np.ndarray | Image.Image]:
    image = Image.fromarray(np.arange(24, dtype=np.uint8).reshape(2, 4, 3))
    plain = [np.zeros((0, 5), np.float32), np.arange(12.0).reshape(3, 4).T, np.arange(12)[::2], np.array(2.5)]
    return [image, *plain, *(value.astype(value.dtype.newbyteorder()) for value in plain)]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "numbers.txt").write_text("1 2 3")
    return tmp_path / "numbers.txt"


def entry(folder: Path) -> Path:
    (path,) = folder.iterdir()
    return path


def test_kinds_of_content(folder: Path, file: Path):
    read = ReadCache(folder, 1)
    for found in (read(read_all_kinds, [file]), read(read_all_kinds, [file])):
        for value, wanted in zip(found, read_all_kinds([file]), strict=True):
            assert type(value) is type(wanted)
            np.testing.assert_array_equal(np.asarray(value), np.asarray(wanted), strict=True)
        assert found[2].flags.f_contiguous and found[6].flags.f_contiguous


def read_text(files: list[Path]) -> list[np.ndarray]:
    return [np.array([file.read_text() for file in files])]


def read_palette(files: list[Path]) -> list[Image.Image]:
    return [Image.new("P", (4, 3))]


def read_nothing(files: list[Path]) -> list[np.ndarray]:
    return []


@pytest.mark.parametrize(("reader", "kind"), [(read_text, "<U5"), (read_palette, "P")])
def test_what_cannot_be_stored_is_refused(reader: Callable, kind: str, folder: Path, file: Path):
    with pytest.raises(ValueError, match=f"a reader returned {kind}, and only arrays of numbers .* data.cache: none"):
        ReadCache(folder, 1)(reader, [file])
    assert [ReadCache(folder, 1)(read_nothing, [file]) for _ in range(2)] == [[], []]


def test_what_a_caller_changes_stays_with_the_caller(folder: Path, file: Path):
    read = ReadCache(folder, 1)
    for _ in range(3):
        (numbers,) = read(read_numbers, [file])
        assert numbers.tolist() == [1, 2, 3]
        numbers[:] = 0


def test_a_changed_file_is_read_anew(folder: Path, file: Path):
    read = ReadCache(folder, 1)
    assert read(read_numbers, [file])[0].tolist() == [1, 2, 3]
    before = file.stat()
    file.write_text("4 5 6")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))  # same size, same time of change
    assert read(read_numbers, [file])[0].tolist() == [4, 5, 6]
    with pytest.raises(FileNotFoundError, match="absent"):
        read(read_numbers, [file.with_name("absent")])


def test_other_arguments_and_readers_have_entries_of_their_own(
    folder: Path, file: Path, monkeypatch: pytest.MonkeyPatch
):
    read = ReadCache(folder, 1)
    assert [read(read_numbers, [file], f)[0][0] for f in (1.0, 2.0, 1, 1.0)] == [1, 2, 1, 1]
    read(read_all_kinds, [file])
    assert len(list(folder.iterdir())) == 4
    monkeypatch.setattr(cache, "_source", lambda module: b"edited since")
    read(read_numbers, [file], 1.0)
    assert len(list(folder.iterdir())) == 5
    with pytest.raises(TypeError, match="object cannot be"):
        read(read_numbers, [file], object())


@pytest.mark.parametrize(
    ("limit", "reserve", "reason"), [(1e-7, 0, "the limit is reached"), (1, 1 << 62, "GB are free there")]
)
def test_it_stops_at_its_limits(
    folder: Path,
    file: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    limit: float,
    reserve: int,
    reason: str,
):
    ReadCache(folder, 1)(read_numbers, [file])
    monkeypatch.setattr(cache, "RESERVE", reserve)
    read = ReadCache(folder, limit)
    for factor in (1.0, 2.0, 3.0, 2.0):
        assert read(read_numbers, [file], factor)[0][0] == factor
    assert len(list(folder.iterdir())) == 1 or not reserve
    assert sum(p.stat().st_size for p in folder.iterdir()) < 1000
    (message,) = caplog.messages
    assert reason in message


def _cut(content: bytes) -> bytes:
    return content[: len(content) - 5]


def _flip(content: bytes) -> bytes:
    return content[:-1] + bytes([content[-1] ^ 1])


def _other(content: bytes) -> bytes:
    return b"something else"


@pytest.mark.parametrize("damage", [_cut, _flip, _other])
def test_damaged_entries_are_mended(
    folder: Path, file: Path, caplog: pytest.LogCaptureFixture, damage: Callable[[bytes], bytes]
):
    ReadCache(folder, 1)(read_numbers, [file])
    whole = entry(folder).read_bytes()
    read = ReadCache(folder, 1)
    for _ in range(2):
        entry(folder).write_bytes(damage(whole))
        read._checked.clear()
        assert read(read_numbers, [file])[0].tolist() == [1, 2, 3]
        assert ReadCache(folder, 1)(read_numbers, [file])[0].tolist() == [1, 2, 3]  # without a warning
    (message,) = caplog.messages
    assert str(entry(folder)) in message
    assert "damaged" in message


def test_a_folder_that_cannot_be_written_to(file: Path, caplog: pytest.LogCaptureFixture):
    read = ReadCache(file / "cache", 1)
    for _ in range(3):
        assert read(read_numbers, [file])[0].tolist() == [1, 2, 3]
    (message,) = caplog.messages
    assert cache.VARIABLE in message


def test_a_removed_folder_is_filled_again(folder: Path, file: Path):
    read = ReadCache(folder, 1)
    read(read_numbers, [file])
    entry(folder).unlink()
    folder.rmdir()
    assert read(read_numbers, [file])[0].tolist() == [1, 2, 3]
    assert entry(folder)


# -- where it is -----------------------------------------------------------------------------------------------------


def test_disk_is_beside_the_data_unless_a_variable_says_otherwise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    assert open_cache("disk", tmp_path, 1).folder == tmp_path / "cache"
    monkeypatch.delenv(cache.VARIABLE)
    assert open_cache("disk", tmp_path, 1).folder == tmp_path / ".cache"


RAM = """
import sys
from pathlib import Path
from mmdet3d.datasets import cache
cache.SHARED_MEMORY = Path(sys.argv[1])
print(cache.open_cache("ram", Path("."), 1).folder, flush=True)
sys.stdin.read()
"""


def test_shared_memory_is_freed_by_the_last_process(tmp_path: Path):
    def start() -> subprocess.Popen:
        return subprocess.Popen(
            [sys.executable, "-c", RAM, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    first, second = start(), start()
    folders = {Path(process.stdout.readline().strip()) for process in (first, second)}
    (shared,) = folders
    first.communicate()
    assert shared.is_dir()
    assert shared.stat().st_mode & 0o777 == 0o700
    second.communicate()
    assert not shared.exists()


@pytest.mark.parametrize("trouble", ["none", "a file", "a link"])
def test_without_shared_memory_all_is_read_anew_with_one_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, trouble: str
):
    monkeypatch.setattr(cache, "SHARED_MEMORY", tmp_path / "nowhere" if trouble == "none" else tmp_path)
    monkeypatch.setattr(cache, "_ram_folder", RAM_FOLDER)
    place = tmp_path / f"distill3d-{os.getuid()}"
    if trouble == "a file":
        place.touch()
    elif trouble == "a link":
        (tmp_path / "other").mkdir()
        place.symlink_to(tmp_path / "other")
    assert open_cache("ram", tmp_path, 1) is cache.read_anew
    (message,) = caplog.messages
    assert message.startswith("nothing is cached: ") and message.endswith("; set data.cache: disk, or none")


@pytest.mark.parametrize(("key", "value"), [("cache", "dusk"), ("cache", None), ("cache_limit", 0)])
def test_unknown_values_are_refused(roots: dict[str, Path], key: str, value: Any):
    words = {"dataset_root": f"{roots['nuscenes']}/", f"data.{key}": value}
    config = load_config(CONFIGS["nuscenes"], words)
    for use in (lambda: Settings.from_config(config), lambda: build_split(config.data, "train")):
        with pytest.raises(ValueError, match=rf"data\.(train\.)?{key} must be"):
            use()


def test_published_configs_read_every_time():
    for path in ("nuscenes/det/centerhead/lssfpn/camera+radar/swint/default.yaml", "kitti/monoskd.yaml"):
        assert load_config(path).data["cache"] == "none"
