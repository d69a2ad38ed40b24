"""The folder of a run: where everything a training writes goes. It is chosen first and made last."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import platform
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from mmdet3d.config import Config
from mmdet3d.engine import distributed
from mmdet3d.engine.checkpoint import RunCheckpoints
from mmdet3d.engine.launchers import restarts
from mmdet3d.engine.resuming import refuse_changes
from mmdet3d.engine.run_record import refuse_other_teachers
from mmdet3d.io.files import atomic_write, check_place
from mmdet3d.shell import command, quote

__all__ = ["begin_run", "choose_run_dir", "default_run_dir", "sole_user", "writable_folder"]

_LOCK = ".lock"
# A process that was killed takes a while to go, and what it forked a little longer.
_PATIENCE = 5.0  # seconds
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL, errno.EBADF)
_held: set[Path] = set()


def default_run_dir(config_path: str | Path, suffix: str = "") -> Path:
    """`runs/<config>-<time>`, the same on every rank; a config called default.yaml is named by its folder."""
    path = Path(config_path)
    stem = path.parent.name if path.stem == "default" else path.stem
    return Path(distributed.broadcast_object(f"runs/{stem}{suffix}-{time.strftime('%Y%m%d-%H%M%S')}"))


def writable_folder(folder: str | Path, option: str = "--run-dir") -> Path:
    """Create `folder` and make sure that files can be written there; every rank must call.

    Raises:
        ValueError: it cannot be created or written.
    """
    folder = Path(folder)

    def create() -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            probe = folder / ".writable"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise ValueError(
                f"cannot write into {folder} ({error.strerror}); pass another folder with {option}"
            ) from error

    distributed.on_main(create)
    return folder


@contextlib.contextmanager
def sole_user(folder: Path) -> Iterator[None]:
    """While this context is open no other process trains in `folder`, which is made; every rank must call.

    The kernel gives the lock back however the process ends, so `.lock` may stay. A process may open the context again
    within it. On a network drive without locks it only makes the folder.

    Raises:
        ValueError: another process uses it, or it cannot be created or written.
    """
    writable_folder(folder)
    place = folder.resolve()
    with contextlib.ExitStack() as stack:

        def lock() -> None:
            if place not in _held:
                stack.enter_context(_open_lock(folder))
                _held.add(place)
                stack.callback(_held.discard, place)

        distributed.on_main(lock)
        yield


def _open_lock(folder: Path) -> IO[str]:
    """The locked file `.lock` of a folder."""
    path = folder / _LOCK
    try:
        file = path.open("a+")
    except PermissionError:  # another user's, who need not be training now
        file = path.open()
    end = time.monotonic() + _PATIENCE
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            if time.monotonic() < end:
                time.sleep(0.1)
                continue
            file.seek(0)
            owner = file.read().strip()
            file.close()
            raise ValueError(
                f"{folder} is in use by process {owner.removesuffix(f' on {platform.node()}')}; wait until that ends, "
                "or pass another --run-dir"
            ) from None
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                file.close()
                raise
            break
    if file.writable():
        file.truncate(0)
        file.write(f"{os.getpid()} on {platform.node()}\n")
        file.flush()
    return file


def choose_run_dir(run_dir: str | Path | None, config_path: str | Path, config: Config) -> Path:
    """Decide which folder a training gets and what it resumes; nothing is written.

    `resume_from: auto` in `config` is replaced by the folder's latest intact checkpoint, the only one that is resumed
    there. Without `run_dir`, a resumed training goes on in the folder of its checkpoint and a new one gets
    `default_run_dir`. A training that torchrun starts anew goes on from the folder's latest checkpoint, if any.
    Every rank must call.

    Raises:
        ValueError: the folder cannot be made or written, another process trains in it, it holds a run that is not to be
            resumed, it has nothing to resume, what is resumed was begun with another config (`refuse_changes`) or
            teacher (`refuse_other_teachers`), or a training that may be started anew has no `run_dir`, where it would
            find its checkpoints.
    """
    asked = config.get("resume_from")
    restarted, may_restart = restarts()
    if run_dir is None:
        if may_restart:
            raise ValueError("torchrun --max-restarts needs --run-dir: a training that starts anew goes on from there")
        if asked == "auto":
            raise ValueError("resume_from auto needs --run-dir, the folder whose latest checkpoint is meant")
        run_dir = Path(asked).parent if asked else default_run_dir(config_path)
    folder = Path(run_dir)

    def decide() -> str | None:
        check_place(folder, "--run-dir")
        if (folder / _LOCK).is_file() and folder.resolve() not in _held:
            _open_lock(folder).close()  # now, not after everything was built
        checkpoints = RunCheckpoints(folder)
        there = checkpoints.resumable()
        resume = "auto" if there and restarted else asked
        if there and not resume:
            raise ValueError(
                f"{folder} already holds a run ({there[-1].name}); continue it with {command('train')} --resume "
                f"{quote(folder)}, or pass another --run-dir to start a new one"
            )
        latest = checkpoints.newest_intact()
        if resume == "auto" and latest is None:
            if there:
                raise ValueError(f"resume_from auto: no checkpoint in {folder} is intact; pass another --run-dir")
            raise ValueError(f"resume_from auto: {folder} holds no checkpoint; leave it out to start a training there")
        if latest and resume and resume != "auto" and Path(resume).resolve() != latest.resolve():
            raise ValueError(
                f"{folder} already holds a run up to {latest.name}, which going on from {resume} would overwrite; "
                f"continue it with {command('train')} --resume {quote(folder)}, or pass another --run-dir"
            )
        if source := latest if resume == "auto" else resume:
            refuse_changes(Path(source).parent, config, config_path)
            refuse_other_teachers(Path(source).parent, config)
        return str(latest) if resume == "auto" else resume

    config["resume_from"] = distributed.on_main(decide)
    return folder


def begin_run(folder: Path, config: Config) -> None:
    """Create the folder of a training and write its resolved config there; every rank must call.

    Raises:
        ValueError: it cannot be created or written, or has become another training's since it was chosen.
    """
    writable_folder(folder)

    def write() -> None:
        if not config.get("resume_from") and (there := RunCheckpoints(folder).resumable()):
            raise ValueError(
                f"{folder} holds a run by now ({there[-1].name}), of a process that trained there meanwhile; pass "
                "another --run-dir"
            )
        target = folder / "configs.yaml"
        if target.is_file() and target.read_text() != config.dump():
            target.rename(folder / f"configs-until-{time.strftime('%Y%m%d-%H%M%S')}.yaml")
        with atomic_write(target) as file:
            file.write(config.dump())

    distributed.on_main(write)
