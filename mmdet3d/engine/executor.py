"""Runs that build on each other, each a process of its own with one compute thread, as many at once as have a place."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import subprocess
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from mmdet3d.engine.estimate import longest_paths, makespan
from mmdet3d.engine.interrupt import Interrupt, Interrupted
from mmdet3d.engine.run_display import RunDisplay, RunState
from mmdet3d.io.files import in_words
from mmdet3d.machine import single_threaded
from mmdet3d.progress import read_report
from mmdet3d.shell import number_of

__all__ = ["Executor", "OnFailure", "Spent", "Task"]

OnFailure = Literal["continue", "stop"]
_POLL = 0.2  # seconds


@dataclass(frozen=True)
class Task:
    """A process to run.

    Args:
        name: of the task; its `kind` is the same for tasks of the same speed (seeds of one run).
        folder: holds `console.log`, what the process prints, and `progress.json`, see `mmdet3d.progress`.
        needs: names of the tasks that must end well before.
        steps, epochs: of the whole.
        step_seconds: expected, on one core of this machine; None if nothing is known.
    """

    name: str
    kind: str
    folder: Path
    needs: tuple[str, ...]
    steps: int
    epochs: int
    step_seconds: float | None = None

    @property
    def log(self) -> Path:
        return self.folder / "console.log"

    @property
    def progress(self) -> Path:
        return self.folder / "progress.json"


@dataclass(frozen=True)
class Spent:
    """Wall time of a process, and CPU time (user and system) of it and its children, seconds."""

    seconds: float
    cpu_seconds: float


@dataclass
class _Active:
    task: Task
    process: subprocess.Popen[Any]
    logged: int  # bytes of the log that were there before
    began: float = field(default_factory=time.monotonic)
    training: Mapping[str, Any] | None = None  # the last report of training
    report: Mapping[str, Any] | None = None

    def look(self) -> None:
        self.report = read_report(self.task.progress)
        if self.report and self.report["desc"] == "train":
            self.training = self.report

    @property
    def step_seconds(self) -> float | None:
        """Measured; None before there is enough to measure."""
        if self.training is None:
            return None
        steps = self.training["done"] - self.training["initial"]
        return self.training["seconds"] / steps if steps >= 3 else None

    @property
    def left(self) -> int:
        """Steps."""
        return self.task.steps if self.training is None else self.training["total"] - self.training["done"]


class Executor:
    """Runs tasks; those whose needs are met start as soon as a place is free, the longest remaining path first.

    Args:
        tasks: the unfinished ones, each after those that it needs. A need that is not among them has been met.
        jobs: places.
        cores: that all processes together may keep busy.
        command: prepares the folder of a task and returns the command of its process, which may keep that many cores
            busy. The process saves its work and ends at SIGTERM, ends when this process does, and exits with 0 if it
            did all, or 2 after a line `error: ...`.
        finished: called when a task has ended well. An error of it, or of `command`, is a failure of the task.
        on_failure: after the failure of a task those that need it are not started; with `continue` all others are, with
            `stop` nothing is started and what runs is stopped as by a signal.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        jobs: int,
        cores: int,
        command: Callable[[Task, int], Sequence[str]],
        finished: Callable[[Task, Spent], None],
        on_failure: OnFailure = "continue",
    ) -> None:
        self._waiting = {task.name: task for task in tasks}
        self._needs = {task.name: [n for n in task.needs if n in self._waiting] for task in tasks}
        self._jobs, self._cores = jobs, cores
        self._command, self._finished, self._on_failure = command, finished, on_failure
        self._active: dict[str, _Active] = {}
        self._failures: dict[str, str] = {}
        self._unfinished: list[str] = []
        self._measured: dict[str, list[tuple[float, float | None]]] = {}
        self._display = RunDisplay(len(tasks))
        self._stopping = False

    def run(self) -> None:
        """Run everything that can be run.

        Raises:
            Interrupted: by SIGINT or SIGTERM, after every process has saved its work and ended. A second signal kills
                them, and is a KeyboardInterrupt.
            ValueError: some tasks failed; names each, its cause and its log.

        Any other error is raised after every process has saved its work and ended, too.
        """
        with Interrupt() as interrupt, self._display:
            try:
                self._start_ready()
                while self._active:
                    time.sleep(_POLL)
                    if interrupt.number and not self._stopping:
                        self._stop()
                    for active in list(self._active.values()):
                        self._look_after(active)
                    if not self._stopping:
                        self._start_ready()
                    self._show()
            except Exception:
                self._end_all()
                raise
            finally:
                self._kill_all()
        unfinished = [*self._unfinished, *self._waiting]
        if interrupt.number and unfinished:
            more = f" and {len(unfinished) - 1} more" if len(unfinished) > 1 else ""
            verb = "are" if more else "is"
            failed = f"; {self._causes()}" if self._failures else ""
            message = f"{unfinished[0]}{more} {verb} not finished{failed}; the same command continues"
            raise Interrupted(message, interrupt.number)
        if self._failures:
            rest = f"; not finished therefore: {', '.join(unfinished)}" if unfinished else ""
            raise ValueError(f"{self._causes()}{rest}; the same command continues with what is not finished")

    def _causes(self) -> str:
        return "; ".join(f"run {name} failed: {cause}" for name, cause in self._failures.items())

    # -- starting and ending processes ------------------------------------------------------------------------------

    def _start_ready(self) -> None:
        blocking = {*self._waiting, *self._active}
        paths = longest_paths(self._seconds_left(), self._needs)
        ready = [name for name in self._waiting if blocking.isdisjoint(self._needs[name])]
        ready.sort(key=lambda name: -paths[name])
        for name in ready:
            if self._stopping or len(self._active) >= self._jobs:
                break
            self._start(self._waiting.pop(name))

    def _start(self, task: Task) -> None:
        cores = self._share(task)
        try:
            command = self._command(task, cores)
            task.progress.unlink(missing_ok=True)
            with task.log.open("ab") as log:
                logged = log.tell()
                process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env={**os.environ, **single_threaded(cores)},
                    # A terminal's Ctrl-C and a launcher's SIGTERM go to a whole group. This process alone passes them
                    # on, or its children would get two, and the second ends them at once.
                    start_new_session=True,
                )
        except Exception as error:
            self._fail(task, _told(error, task.log))
            return
        self._active[task.name] = _Active(task, process, logged)
        self._display.event(f"{task.name}: started, {number_of(task.steps, 'step')}")

    def _share(self, task: Task) -> int:
        """Cores for a task: what all that may run beside it leave it.

        Whatever runs together was counted by each of them, so that the sum never exceeds the cores.
        """
        beside = len(self._active) + len(self._waiting) + 1 - len(self._dependants(task.name))
        return max(1, self._cores // min(self._jobs, beside))

    def _dependants(self, name: str) -> list[str]:
        """Waiting tasks that need this one, at first or second hand."""
        found = {name}
        for later, needs in self._needs.items():
            if not found.isdisjoint(needs):
                found.add(later)
        return [later for later in self._waiting if later in found]

    def _look_after(self, active: _Active) -> None:
        """Read a process's report; take it off the list if it has ended."""
        before = _children_cpu()
        code = active.process.poll()
        cpu_seconds = _children_cpu() - before
        # Its folder may be gone or out of reach for a while; how far a process is has no part in the result.
        with contextlib.suppress(OSError, ValueError, LookupError, TypeError):
            active.look()
        if code is None:
            return
        task = active.task
        del self._active[task.name]
        with contextlib.suppress(OSError):
            task.progress.unlink(missing_ok=True)
        if code == 0:
            self._succeed(active, Spent(time.monotonic() - active.began, cpu_seconds))
        elif self._stopping and code in (-signal.SIGTERM, 128 + signal.SIGTERM):
            self._unfinished.append(task.name)
        else:
            self._fail(task, _cause(code, task.log, active.logged))

    def _succeed(self, active: _Active, spent: Spent) -> None:
        task = active.task
        try:
            self._finished(task, spent)
        except Exception as error:
            self._fail(task, _told(error, task.log))
            return
        if active.step_seconds is not None:
            self._measured.setdefault(task.kind, []).append((active.step_seconds, task.step_seconds))
        self._display.done += 1
        text = f"{task.name}: finished in {spent.seconds:.0f} s ({spent.cpu_seconds:.0f} s of CPU time)"
        self._display.event(text)

    def _fail(self, task: Task, cause: str) -> None:
        self._failures[task.name] = f"{cause} (log: {task.log})" if task.log.is_file() else cause
        for name in self._dependants(task.name):
            del self._waiting[name]
            self._unfinished.append(name)
        self._display.event(f"{task.name}: failed, {cause}")
        if self._on_failure == "stop" and not self._stopping:
            self._stop()

    def _stop(self) -> None:
        """Ask every process to save its work and end."""
        self._stopping = True
        for active in self._active.values():
            active.process.terminate()
        self._display.event("stopping: every run saves a checkpoint first")

    def _end_all(self) -> None:
        """Let every process save its work and end, without a word: the display may be what has failed."""
        for active in self._active.values():
            active.process.terminate()
        for active in self._active.values():
            active.process.wait()

    def _kill_all(self) -> None:
        for active in self._active.values():
            active.process.kill()
        for active in self._active.values():
            active.process.wait()

    # -- progress ---------------------------------------------------------------------------------------------------

    def _show(self) -> None:
        states = [RunState(a.task.name, a.task.epochs, a.report, a.step_seconds) for a in self._active.values()]
        self._display.show(states, None if self._stopping else self._time_left())

    def _time_left(self) -> float | None:
        seconds = self._seconds_left()
        return makespan(seconds, self._needs, self._jobs, self._active) if self._known() else None

    def _known(self) -> bool:
        """Whether there is any ground for a statement about time."""
        return bool(self._rates()) or all(task.step_seconds for task in self._waiting.values())

    def _seconds_left(self) -> dict[str, float]:
        """Of all unfinished tasks, in their order; of relative use alone while nothing is known."""
        left = {}
        rates = self._rates()
        for name in self._needs:
            if name in self._active:
                active = self._active[name]
                left[name] = active.left * (active.step_seconds or _expected(active.task, rates))
            elif name in self._waiting:
                left[name] = self._waiting[name].steps * _expected(self._waiting[name], rates)
        return left

    def _rates(self) -> dict[str, list[tuple[float, float | None]]]:
        """Per kind of task, measured and expected seconds per step."""
        rates = {kind: list(pairs) for kind, pairs in self._measured.items()}
        for active in self._active.values():
            if active.step_seconds is not None:
                rates.setdefault(active.task.kind, []).append((active.step_seconds, active.task.step_seconds))
        return rates


def _expected(task: Task, rates: Mapping[str, list[tuple[float, float | None]]]) -> float:
    """Seconds per step: measured on tasks of the same kind, or expected and corrected by how others kept to it."""
    if task.kind in rates:
        return _mean([measured for measured, _ in rates[task.kind]])
    pairs = [pair for kind in rates.values() for pair in kind]
    if task.step_seconds is None:
        return _mean([measured for measured, _ in pairs]) if pairs else 1.0
    ratios = [measured / expected for measured, expected in pairs if expected]
    return task.step_seconds * (_mean(ratios) if ratios else 1.0)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _children_cpu() -> float:
    """User and system time of all children that were waited for, and of theirs."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _cause(code: int, log: Path, logged: int) -> str:
    """Why a process ended: the signal, or what it says in its log after `logged` bytes.

    That is its last line `error: ...`, whatever libraries print on their way out, or else the last line of all.
    """
    if code < 0:
        names = {int(number): number.name for number in signal.Signals}  # a real-time signal has none
        hint = (
            ", which the system sends when memory is short; fewer --jobs need less" if -code == signal.SIGKILL else ""
        )
        return f"killed by {names.get(-code, f'signal {-code}')}{hint}"
    try:
        lines = [line for line in log.read_bytes()[logged:].decode(errors="replace").splitlines() if line.strip()]
    except OSError:
        lines = []
    lines = [line for line in lines if line.startswith("error: ")] or lines
    return lines[-1].removeprefix("error: ").removeprefix("interrupted: ") if lines else f"it exited with code {code}"


def _told(error: Exception, log: Path) -> str:
    """What stopped a task outside of its process; of a bug the log gets the traceback."""
    if isinstance(error, (ValueError, OSError)):
        return in_words(error)
    with contextlib.suppress(OSError), log.open("a") as file:
        file.writelines(traceback.format_exception(error))
    return f"{type(error).__name__}: {error}"
