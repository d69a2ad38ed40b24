"""What a run was, in `run.json` of its folder: program, packages, command, processes, and digests of what it reads.

With `configs.yaml` beside it, a training can be repeated elsewhere (`distill3d reproduce`); `differences` says what is
not the same there.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from pathlib import Path
from typing import Any

import torch

from mmdet3d import __version__
from mmdet3d.composition import stands_in_full
from mmdet3d.engine import distributed
from mmdet3d.io.files import atomic_write, file_digest, read_json
from mmdet3d.models.backbones.pretrained import weight_file
from mmdet3d.shell import command, quote

__all__ = [
    "RECORD",
    "Difference",
    "differences",
    "read_record",
    "refuse_other_teachers",
    "run_record",
    "write_record",
]

RECORD = "run.json"
# Of what is no part of a checkpoint and read again whenever a training goes on.
_TEACHERS = ("model.teacher.", "model.teachers.")
_WEIGHTS = (".pth", ".pt", ".safetensors", ".ckpt", ".bin", ".pkl")


def run_record(config: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    """What is known when a training begins. Digests are SHA-256, by config key; a file that is not there has none."""
    return {
        "version": __version__,
        **_revision(),
        "python": platform.python_version(),
        "packages": _packages(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "processes": distributed.world_size(),
        "threads": torch.get_num_threads(),
        "command": sys.orig_argv,
        "folder": os.getcwd(),
        "seed": config.get("seed") or 0,
        "files": {
            key: {"path": str(path), "sha256": file_digest(path) if path.is_file() else None}
            for key, path in input_files(config)
        },
        "time": time.strftime("%Y-%m-%d %H:%M:%S"),
    }


def write_record(folder: Path, config: Mapping[str, Any], device: torch.device) -> None:
    """Write `run.json`; of a run that goes on, `resumed` lists each time that it did. Every rank must call."""

    def write() -> None:
        record, target = run_record(config, device), folder / RECORD
        if config.get("resume_from") and target.is_file():
            begun = read_json(target, "record of the run")
            record = {**begun, "resumed": [*begun.get("resumed", []), record]}
        with atomic_write(target) as file:
            file.write(json.dumps(record, indent=1) + "\n")

    distributed.on_main(write)


def read_record(run: Path) -> dict[str, Any]:
    """
    Raises:
        FileNotFoundError: the folder holds none.
    """
    if not (run / RECORD).is_file():
        raise FileNotFoundError(f"{run} has no {RECORD}, so it is not known what that run was; train its configs.yaml")
    record: dict[str, Any] = read_json(run / RECORD, "record of the run")
    return record


def refuse_other_teachers(run: Path, config: Mapping[str, Any]) -> None:
    """Raises ValueError if a teacher's file is not the one that the training in folder `run` was begun with; nothing is
    said of a file that is not there, or of which no digest was kept.
    """
    begun = read_json(run / RECORD, "record of the run") if (run / RECORD).is_file() else {}
    for key, path in _weights(config.get("model"), "model"):
        then = begun.get("files", {}).get(key, {}).get("sha256")
        if key.startswith(_TEACHERS) and then and path.is_file() and file_digest(path) != then:
            raise ValueError(
                f"{run} was begun with another teacher than {path} is now ({key}, SHA-256 then {then[:16]}); bring "
                f"that file back, say where it lies with --{key} FILE, or train with the new teacher from the weights "
                f"so far: {command('train')} {quote(run / 'configs.yaml')} --load_from "
                f"{quote(run / 'latest.safetensors')}"
            )


def input_files(config: Mapping[str, Any]) -> Iterator[tuple[str, Path]]:
    """Files that decide the result, by config key: weights that are loaded, info files, modules of `imports`."""
    if config.get("load_from"):
        yield "load_from", Path(config["load_from"])
    yield from _weights(config.get("model"), "model")
    for split in ("train", "val", "unlabelled"):
        block = (config.get("data") or {}).get(split)
        yield from _info_files(block, f"data.{split}", None)
    for name in config.get("imports") or ():
        if file := getattr(sys.modules.get(name), "__file__", None):
            yield f"imports.{name}", Path(file)


def _weights(value: Any, key: str) -> Iterator[tuple[str, Path]]:
    if isinstance(value, str) and (value.endswith(_WEIGHTS) or value.startswith("torchvision://")):
        yield key, weight_file(value)
    elif isinstance(value, Mapping):
        for name, part in value.items():
            # What a part would start from does not matter where the whole starts from a checkpoint.
            if not (name == "model" and value.get("checkpoint") and stands_in_full(value)):
                yield from _weights(part, f"{key}.{name}")
    elif isinstance(value, (list, tuple)):
        for place, part in enumerate(value):
            yield from _weights(part, f"{key}.{place}")


def _info_files(value: Any, key: str, root: Path | None) -> Iterator[tuple[str, Path]]:
    """What in the block of a data set is the name of a file in its folder."""
    if isinstance(value, Mapping):
        root = Path(value["dataset_root"]) if isinstance(value.get("dataset_root"), str) else root
        for name, part in value.items():
            yield from _info_files(part, f"{key}.{name}", root)
    elif isinstance(value, (list, tuple)):
        for place, part in enumerate(value):
            yield from _info_files(part, f"{key}.{place}", root)
    elif isinstance(value, str) and root is not None and (root / value).is_file():
        yield key, root / value


def _revision() -> dict[str, Any]:
    """Of the checkout that the package lies in, and whether files in it differ; null where it is an installed one."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return {"revision": None, "dirty": None}
    try:
        found = [
            subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, timeout=20, check=True)
            for words in (["rev-parse", "HEAD"], ["status", "--porcelain"])
        ]
    except (OSError, subprocess.SubprocessError):
        return {"revision": None, "dirty": None}
    return {"revision": found[0].stdout.strip(), "dirty": bool(found[1].stdout.strip())}


def _packages() -> dict[str, str]:
    """Versions of the packages that this process has imported."""
    loaded = {name.partition(".")[0] for name in sys.modules}
    names = {each for module, owners in packages_distributions().items() if module in loaded for each in owners}
    return {name: version(name) for name in sorted(names, key=str.lower)}


# -- the same training elsewhere ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Difference:
    """Between a run and its repetition.

    Args:
        sentence: what it is, and where it prevents the repetition, the remedy.
        prevents: whether it cannot be the same training.
    """

    sentence: str
    prevents: bool = False


def differences(record: Mapping[str, Any], config: Mapping[str, Any], device: torch.device) -> list[Difference]:
    """What is not as it was when the run began.

    Args:
        record: of the run.
        config: of the repetition.
    """
    here = run_record(config, device)
    found = []
    if record["processes"] != here["processes"]:
        launcher = f"torchrun --nproc-per-node {record['processes']} -m distill3d reproduce"
        found.append(
            Difference(
                f"it ran on {record['processes']} processes, here are {here['processes']}: batches would be of another "
                f"size; start {launcher if record['processes'] > 1 else 'distill3d reproduce without a launcher'}",
                prevents=True,
            )
        )
    for key in ("version", "revision", "python", "device", "threads"):
        if record[key] != here[key]:
            found.append(Difference(f"{key}: {record[key]} then, {here[key]} here"))
    if record["dirty"]:
        found.append(Difference(f"dirty: files of revision {record['revision']} had been changed, how is not known"))
    if here["dirty"]:
        found.append(Difference(f"dirty: files of revision {here['revision']} are changed here"))
    for name, then in record["packages"].items():
        if (now := _version_here(name)) != then:
            found.append(Difference(f"package {name}: {then} then, {now or 'missing'} here"))
    return found + [each for key, file in record["files"].items() for each in _file_difference(key, file, here)]


def _version_here(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _file_difference(key: str, file: Mapping[str, Any], here: Mapping[str, Any]) -> Iterator[Difference]:
    """Other weights or training data are another training; what is only evaluated on, or imported, is said."""
    now = here["files"].get(key)
    if file["sha256"] is None or (now is not None and now["sha256"] == file["sha256"]):
        return
    path = now["path"] if now else file["path"]
    decides = key == "load_from" or key.startswith(("model.", "data.train.", "data.unlabelled."))
    remedy = "--dataset_root FOLDER" if key.startswith("data.") else f"--{key} FILE"
    what = "does not exist" if now is None or now["sha256"] is None else "is another file"
    yield Difference(
        f"{key}: {path} {what} (SHA-256 then {file['sha256'][:16]}){f'; pass {remedy}' if decides else ''}", decides
    )
