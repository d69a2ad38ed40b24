"""`unshare -Urn python machines.py FOLDER SCENARIO`: two machines, as namespaces with a link between them, train.

The last line is JSON: what the launchers printed and their exit codes, and for `cut` the seconds from the cut of the
link to their ends, and the same of the training that then goes on.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ADDRESSES = ("10.77.0.1", "10.77.0.2")
TOOL = str(Path(__file__).with_name("toy_tool.py"))
DEADLINE = 150  # seconds


class Machines:
    """Two processes that hold a network and a host name each; `folder` gets what stands in for ssh."""

    def __init__(self, folder: Path) -> None:
        self.holders = [
            subprocess.Popen(["unshare", "-n", "-u", "sh", "-c", f"hostname machine{k}; echo; sleep {3 * DEADLINE}"],
                             stdout=subprocess.PIPE)
            for k in range(2)
        ]  # fmt: skip
        for holder in self.holders:
            holder.stdout.readline()  # type: ignore[union-attr]
        pids = [str(holder.pid) for holder in self.holders]
        first, second = (["netns", pid, "name", "eth0"] for pid in pids)
        run(["ip", "link", "add", *first, "type", "veth", "peer", *second])
        for k, address in enumerate(ADDRESSES):
            run(self.on(k, "ip", "addr", "add", f"{address}/24", "dev", "eth0"))
            for device in ("lo", "eth0"):
                run(self.on(k, "ip", "link", "set", device, "up"))
        self.ssh = folder / "ssh"
        cases = "\n".join(f"{a}) pid={pid};;" for a, pid in zip(ADDRESSES, pids, strict=True))
        self.ssh.write_text(
            '#!/bin/sh\nwhile [ "${1#-}" != "$1" ]; do shift; done\n'
            f'case "$1" in\n{cases}\nesac\nshift\nexec nsenter -t $pid -n -u sh -c "$*"\n'
        )
        self.ssh.chmod(0o755)

    def on(self, machine: int, *words: str) -> list[str]:
        return ["nsenter", "-t", str(self.holders[machine].pid), "-n", "-u", *words]

    def close(self) -> None:
        for holder in self.holders:
            holder.kill()


def run(words: Sequence[str]) -> None:
    subprocess.run(words, check=True)


def start(words: Sequence[str], **extra: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        words,
        env={**os.environ, "GLOO_SOCKET_IFNAME": "eth0", **extra},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def ended(launchers: Sequence[subprocess.Popen[str]]) -> dict[str, Any]:
    timer = threading.Timer(DEADLINE, lambda: [os.killpg(each.pid, signal.SIGKILL) for each in launchers])
    timer.start()
    output = "".join(launcher.communicate()[0] for launcher in launchers)
    timer.cancel()
    return {"output": output, "codes": [launcher.returncode for launcher in launchers]}


def torchrun(machines: Machines, words: Sequence[str], **extra: str) -> list[subprocess.Popen[str]]:
    """A launcher on each machine."""
    common = ["torchrun", "--nnodes", "2", "--nproc-per-node", "1", "--master-addr", ADDRESSES[0]]
    common += ["--master-port", "29511", "--node-rank"]
    return [start(machines.on(k, *common, str(k), TOOL, *words), **extra) for k in range(2)]


def dist_run(machines: Machines, words: Sequence[str], **extra: str) -> list[subprocess.Popen[str]]:
    """One launcher, which starts a rank on the other machine by what it takes for ssh."""
    hosts = ",".join(f"{address}:1" for address in ADDRESSES)
    launcher = ["torchpack", "dist-run", "-np", "2", "-H", hosts, "python", TOOL, *words]
    return [start(machines.on(0, *launcher), PRTE_MCA_plm_ssh_agent=str(machines.ssh), **extra)]


def cut(machines: Machines, folder: Path, words: list[str]) -> dict[str, Any]:
    launchers = torchrun(machines, words, ENGINE_TOY_DELAY="1", DISTILL3D_TIMEOUT="20")
    end = time.monotonic() + DEADLINE
    while not list((folder / "run").glob("epoch_1_iter_*.json")) and time.monotonic() < end:
        if launchers[0].poll() is not None:
            break
        time.sleep(0.1)
    run(machines.on(0, "ip", "link", "set", "eth0", "down"))
    began = time.monotonic()
    first = ended(launchers) | {"seconds": time.monotonic() - began}
    run(machines.on(0, "ip", "link", "set", "eth0", "up"))
    return first | {"after": ended(torchrun(machines, ["train.py", "--resume", str(folder / "run")]))}


if __name__ == "__main__":
    folder, scenario = Path(sys.argv[1]), sys.argv[2]
    words = ["train.py", str(folder / "toy.yaml"), "--run-dir", str(folder / "run")]
    machines = Machines(folder)
    try:
        print(json.dumps(cut(machines, folder, words) if scenario == "cut" else ended(dist_run(machines, words))))
    finally:
        machines.close()
