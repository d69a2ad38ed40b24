"""Order, simultaneity, failures and signals of processes that build on each other, with small scripts for trainings."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from mmdet3d.engine import executor as module
from mmdet3d.engine.executor import Executor, Spent, Task
from mmdet3d.engine.interrupt import Interrupted

HEAD = """
import os, signal, sys, time
from pathlib import Path
here = Path.cwd()
name = sys.argv[1]
def log(what):
    with open(here / "log", "a") as file:
        file.write(f"{what} {name}\\n")
def wait_for(path):
    end = time.monotonic() + 30
    while not path.exists():
        if time.monotonic() > end: sys.exit("waited in vain")
        time.sleep(0.01)
def save_at_signal(*_):
    log("saved")
    sys.exit(143)
signal.signal(signal.SIGTERM, save_at_signal)
log("start")
"""
WORK = "log('end')"
SLEEP = "(here / name / 'up').touch(); time.sleep(60)"


@pytest.fixture(autouse=True)
def quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(module, "_POLL", 0.02)


def task(name: str, *needs: str, step_seconds: float | None = None) -> Task:
    folder = Path(name)
    folder.mkdir(exist_ok=True)
    return Task(name, name, folder, needs, steps=10, epochs=1, step_seconds=step_seconds)


def execute(
    tasks: dict[str, str],
    needs: dict[str, tuple[str, ...]] | None = None,
    jobs: int = 2,
    cores: int = 2,
    seconds: dict[str, float] | None = None,
    finished: Callable[[Task, Spent], None] = lambda *_: None,
    on_failure: module.OnFailure = "continue",
) -> dict[str, int]:
    """Run the scripts of tasks; returns the cores that each got."""
    given: dict[str, int] = {}

    def command(task: Task, share: int) -> list[str]:
        given[task.name] = share
        return [sys.executable, "-S", "-E", "-c", HEAD + tasks[task.name], task.name]

    made = [task(n, *(needs or {}).get(n, ()), step_seconds=(seconds or {}).get(n)) for n in tasks]
    Executor(made, jobs, cores, command, finished, on_failure).run()
    return given


def log() -> list[str]:
    return Path("log").read_text().splitlines()


def test_a_task_waits_for_what_it_needs() -> None:
    execute({"a": WORK, "b": WORK, "c": WORK, "d": WORK}, {"c": ("a", "b"), "d": ("c", "gone")}, jobs=4)
    order = log()
    assert order.index("start c") > max(order.index("end a"), order.index("end b"))
    assert order.index("start d") > order.index("end c") and len(order) == 8


def test_the_longest_path_goes_first() -> None:
    seconds = {"quick": 1.0, "long": 3.0, "first": 1.0, "then": 4.0}
    execute(dict.fromkeys(seconds, WORK), {"then": ("first",)}, jobs=1, seconds=seconds)
    assert [line for line in log() if "start" in line] == ["start first", "start then", "start long", "start quick"]


def test_independent_tasks_overlap_up_to_the_number_of_places() -> None:
    meet = "(here / name / 'up').touch(); wait_for(here / {'a': 'b', 'b': 'a'}[name] / 'up')"
    execute({"a": meet, "b": meet}, jobs=2)
    alone = "lock = here / 'lock'; lock.touch(exist_ok=False); time.sleep(0.1); lock.unlink()"
    execute({"a": alone, "b": alone, "c": alone}, jobs=1)


def test_cores_are_shared_by_what_may_run_at_once() -> None:
    graph = {"c": ("a",), "d": ("a",), "e": ("c", "d")}
    got = execute(dict.fromkeys("abcde", WORK), graph, jobs=4, cores=4)
    assert got["a"] == 2  # only b may run beside it
    assert got["e"] in (2, 4) and got["c"] in (1, 2)
    assert execute(dict.fromkeys("abc", WORK), {"c": ("a", "b")}, jobs=2, cores=5) == {"a": 2, "b": 2, "c": 5}
    assert execute({"a": WORK, "b": WORK}, jobs=2, cores=1) == {"a": 1, "b": 1}


def test_time_of_children_counts() -> None:
    spent: dict[str, Spent] = {}
    loop = "import time\nwhile time.process_time() < 0.3: pass"
    burn = f"import subprocess; subprocess.run([sys.executable, '-c', {loop!r}])"
    execute({"a": burn, "b": WORK}, finished=lambda task, took: spent.update({task.name: took}))
    assert 0.3 <= spent["a"].cpu_seconds <= 3 and spent["b"].cpu_seconds < spent["a"].cpu_seconds
    assert spent["a"].seconds > 0.3


FAILURES = {
    "print('error: no such file x; make it', file=sys.stderr); sys.exit(2)": "no such file x; make it",
    "print('error: make it\\nleaked semaphores', file=sys.stderr); sys.exit(2)": "make it",
    "raise RuntimeError('a bug')": "RuntimeError: a bug",
    "os.kill(os.getpid(), signal.SIGKILL)": "killed by SIGKILL, which the system sends when memory is short; fewer",
    "sys.exit(3)": "it exited with code 3",
    "os.kill(os.getpid(), signal.SIGRTMIN + 6)": f"killed by signal {signal.SIGRTMIN + 6}",
    # It waits, so that the script beside has seen the file.
    "time.sleep(1); (here / name / 'console.log').unlink(); sys.exit(3)": "it exited with code 3",
}


@pytest.mark.parametrize("script", FAILURES)
def test_a_failure_spares_what_does_not_need_it(script: str) -> None:
    tasks = {"bad": script, "beside": "wait_for(here / 'bad' / 'console.log'); time.sleep(0.2); " + WORK}
    with pytest.raises(ValueError, match=re.escape(f"run bad failed: {FAILURES[script]}")) as error:
        execute(
            {**tasks, "child": WORK, "later": WORK, "grandchild": WORK}, {"child": ("bad",), "grandchild": ("child",)}
        )
    log_of_it = " (log: bad/console.log)" if Path("bad/console.log").exists() else ""
    assert f"{log_of_it}; not finished therefore: child, grandchild; the same command" in str(error.value)
    assert {"end beside", "end later"} <= set(log()) and not {"start child", "start grandchild"} & set(log())


def test_the_cause_is_that_of_the_last_try() -> None:
    for script, cause in (
        ("print('error: of then'); sys.exit(2)", "of then"),
        ("raise OSError('of now')", "OSError: of now"),
    ):
        with pytest.raises(ValueError, match=f"run a failed: {cause}"):
            execute({"a": script})


def test_a_failure_stops_all_if_asked_to() -> None:
    bad = "wait_for(here / 'beside' / 'up'); sys.exit('error: broken')"
    with pytest.raises(ValueError, match=r"run bad failed: broken .*; not finished therefore: beside, later"):
        execute({"bad": bad, "beside": SLEEP, "later": WORK}, on_failure="stop")
    assert "saved beside" in log() and "start later" not in log()


def test_what_cannot_be_finished_is_a_failure() -> None:
    def finished(task: Task, spent: Spent) -> None:
        raise ValueError("no checkpoint")

    with pytest.raises(ValueError, match="run a failed: no checkpoint"):
        execute({"a": WORK}, finished=finished)


def test_a_bug_after_a_task_spares_the_others() -> None:
    def finished(task: Task, spent: Spent) -> None:
        if task.name == "a":
            raise KeyError("metrics")

    with pytest.raises(
        ValueError, match=r"run a failed: KeyError: 'metrics' \(log: a/console\.log\); the same command"
    ):
        execute({"a": WORK, "b": "time.sleep(0.5); " + WORK}, finished=finished)
    assert "end b" in log() and "Traceback" in Path("a/console.log").read_text()


def test_a_task_that_cannot_be_started_spares_the_others() -> None:
    """Also where nothing runs beside it that would keep the loop going."""
    made = [task("a"), task("b"), task("c", "b"), task("d")]
    Path("b").rmdir()
    Path("b").touch()

    def command(task: Task, cores: int) -> list[str]:
        task.folder.mkdir(exist_ok=True)
        return [sys.executable, "-S", "-E", "-c", HEAD + "time.sleep(0.3); " + WORK, task.name]

    for jobs in (1, 2):
        with pytest.raises(
            ValueError, match=r"^run b failed: b: a file lies where a folder is needed; .* or move it"
        ) as e:
            Executor(made, jobs, 2, command, lambda *_: None).run()
        assert "away; not finished therefore: c; the same command continues" in str(e.value)
        assert {"end a", "end d"} <= set(log())
        Path("log").unlink()


def test_what_nobody_has_foreseen_lets_every_process_save(monkeypatch: pytest.MonkeyPatch) -> None:
    def show(self: Executor) -> None:
        if all((Path(name) / "up").exists() for name in "ab"):
            raise RuntimeError("a bug")

    monkeypatch.setattr(Executor, "_show", show)
    with pytest.raises(RuntimeError, match="a bug"):
        execute({"a": SLEEP, "b": SLEEP})
    assert {"saved a", "saved b"} <= set(log())


def test_who_could_not_save_after_a_signal_is_named() -> None:
    full = "signal.signal(signal.SIGTERM, lambda *_: sys.exit('error: no space is left')); "
    killer = "wait_for(here / 'b' / 'up'); os.kill(os.getppid(), signal.SIGTERM); " + SLEEP
    with pytest.raises(
        Interrupted,
        match=r"^b is not finished; run a failed: no space is left \(log: a/console\.log\); the same command",
    ):
        execute({"a": full + killer, "b": SLEEP})
    with pytest.raises(ValueError, match=r"^run a failed: no space is left \(log"):
        execute({"a": full + "os.kill(os.getppid(), signal.SIGTERM); " + SLEEP})


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_lets_every_process_save(number: signal.Signals) -> None:
    killer = f"wait_for(here / 'b' / 'up'); os.kill(os.getppid(), {int(number)}); " + SLEEP
    with pytest.raises(Interrupted, match=r"[ab] and 2 more are not finished; the same command continues") as stop:
        execute({"a": killer, "b": SLEEP, "c": WORK})
    assert stop.value.number == number
    assert {"saved a", "saved b"} <= set(log()) and "start c" not in log()


def test_a_second_signal_ends_at_once() -> None:
    """Although the process does not."""
    again = "signal.signal(signal.SIGTERM, lambda *_: os.kill(os.getppid(), signal.SIGINT))\n"
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        execute(
            {
                "a": again
                + "os.kill(os.getppid(), signal.SIGINT)\nend = time.time() + 60\nwhile time.time() < end: time.sleep(1)"
            }
        )
    assert time.monotonic() - began < 50
    assert log() == ["start a"]


def test_a_child_dies_with_its_parent() -> None:
    """However the parent ends; the pipe closes with the last of them."""
    child = (
        "import os, sys, time; from mmdet3d.machine import die_with_parent; die_with_parent(os.getppid());"
        "print('ready', flush=True); time.sleep(600)"
    )
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    process = subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    process.kill()
    assert process.communicate(timeout=60)[0] == ""


def test_a_child_ends_if_its_parent_ended_before() -> None:
    program = "from mmdet3d.machine import die_with_parent; die_with_parent(1); print('alive')"
    done = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, check=False)
    assert (done.returncode, done.stdout) == (1, b"")


def test_lines_for_a_file(capsys: pytest.CaptureFixture) -> None:
    execute({"a": WORK})
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "a: started, 10 steps"
    assert re.fullmatch(r"a: finished in \d+ s \(\d+ s of CPU time\)", lines[1]) and len(lines) == 2


def test_many_tasks_leave_nothing_open() -> None:
    """Ten hours of a recipe are some hundred runs; those that simulate them end at once."""
    files: list[int] = []

    def finished(task: Task, spent: Spent) -> None:
        files.append(len(list(Path("/proc/self/fd").iterdir())))

    execute({f"t{k}": "" for k in range(100)}, finished=finished)
    assert len(files) == 100 and max(files[50:]) <= max(files[:50])
