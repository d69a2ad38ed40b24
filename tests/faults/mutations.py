"""Files with damage, and what a reader may do with them: read them, or say what is wrong in a sentence that names them.

A reader runs in a process of its own with bounded memory and time, where starting a program or opening a connection is
noticed.
"""

from __future__ import annotations

import json
import logging
import os
import random
import resource
import signal
import sys
import tracemalloc
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

# Of the reader's process, above what it holds when it starts.
ROOM = 1 << 30
SECONDS = 60
# What Python itself needs to read any file.
SPARE = 1 << 20
_LONGEST = 2000  # characters of a sentence
_ACTS = ("os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "subprocess.Popen", "socket.connect")
_ACTS += ("os.remove", "os.rename", "shutil.rmtree", "ctypes.dlopen")
_WORDS = (b"-1", b"0", b"99999999999999999999", b"1e999", b"nan", b"null", b"{}", b"[]", b'""', b"true", b"\xff")


def mutated(content: bytes, draw: random.Random) -> bytes:
    """The content after one to three changes of a kind that disks, copies and strangers make."""
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        content = draw.choice(_CHANGES)(content, draw)
    return content


def _flip(content: bytes, draw: random.Random) -> bytes:
    if not content:
        return content
    changed = bytearray(content)
    changed[draw.randrange(len(changed))] ^= 1 << draw.randrange(8)
    return bytes(changed)


def _cut(content: bytes, draw: random.Random) -> bytes:
    return content[: draw.randrange(len(content) + 1)]


def _remove(content: bytes, draw: random.Random) -> bytes:
    first, last = _slice(content, draw)
    return content[:first] + content[last:]


def _repeat(content: bytes, draw: random.Random) -> bytes:
    first, last = _slice(content, draw)
    return content[:last] + content[first:]


def _overwrite(content: bytes, draw: random.Random) -> bytes:
    """Eight bytes that may be a length become a very large or another number."""
    place = draw.randrange(min(len(content), 256) + 1)
    return content[:place] + draw.choice((b"\xff" * 8, b"\xff" * 7 + b"\x00", draw.randbytes(8))) + content[place + 8 :]


def _word(content: bytes, draw: random.Random) -> bytes:
    """A word of a text becomes another one."""
    words = content.split(b" ")
    words[draw.randrange(len(words))] = draw.choice(_WORDS)
    return b" ".join(words)


def _value(content: bytes, draw: random.Random) -> bytes:
    """What lies between two marks of JSON or YAML becomes another value."""
    marks = [k for k, byte in enumerate(content) if byte in b":,[]{}\n"]
    if len(marks) < 2:
        return _flip(content, draw)
    k = draw.randrange(len(marks) - 1)
    return content[: marks[k] + 1] + draw.choice(_WORDS) + content[marks[k + 1] :]


def _slice(content: bytes, draw: random.Random) -> tuple[int, int]:
    first = draw.randrange(len(content) + 1)
    return first, min(len(content), first + draw.choice((1, 4, 16, 64, 512)))


_CHANGES = (_flip, _flip, _cut, _remove, _repeat, _overwrite, _word, _value)


def faults(path: Path, read: Callable[[], object], count: int, seed: int = 0) -> list[str]:
    """What goes wrong when `read` meets mutations of the intact file `path`: by number of the mutation, in words.

    Args:
        path: rewritten for each mutation, and restored.
        read: reads it.
        count: mutations.
    """
    honest = path.read_bytes()
    inlet, outlet = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(inlet)
        with os.fdopen(outlet, "w", buffering=1) as report:
            for line in _watched(path, honest, read, count, seed):
                report.write(json.dumps(line) + "\n")
        os._exit(0)
    os.close(outlet)
    with os.fdopen(inlet) as report:
        lines = [json.loads(line) for line in report]
    _, status = os.waitpid(child, 0)
    path.write_bytes(honest)
    found = [line for line in lines if isinstance(line, str)]
    if status:
        how = signal.Signals(os.WTERMSIG(status)).name if os.WIFSIGNALED(status) else f"code {os.WEXITSTATUS(status)}"
        found.append(f"mutation {max((line for line in lines if isinstance(line, int)), default=0)} ended it by {how}")
    return found


def _watched(path: Path, honest: bytes, read: Callable[[], object], count: int, seed: int) -> Iterator[str | int]:
    """In the reader's process: the number of a mutation before it is read, and what goes wrong with it."""
    acts: list[str] = []
    warnings.simplefilter("ignore")
    logging.disable()
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + ROOM, used + ROOM))
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(SECONDS)
    read()
    tracemalloc.start()
    read()
    most = 4 * tracemalloc.get_traced_memory()[1] + SPARE
    sys.addaudithook(lambda event, _: acts.append(event) if event in _ACTS else None)
    for k in range(count):
        yield k
        path.write_bytes(mutated(honest, random.Random(f"{path.suffix} {seed} {k}")))
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        wrong = _outcome(read, path)
        if (peak := tracemalloc.get_traced_memory()[1] - before) > most:
            wrong = f"it takes {peak} bytes, the intact file {(most - SPARE) // 4}"
        if acts:
            wrong = f"it does {', '.join(acts)}"
            acts.clear()
        if wrong:
            yield f"mutation {k}: {wrong}"


def _outcome(read: Callable[[], object], path: Path) -> str:
    try:
        read()
    except (ValueError, FileNotFoundError) as error:
        if path.name not in str(error):
            return f"{type(error).__name__} does not name the file: {str(error)[:200]}"
        return f"no sentence, {len(str(error))} characters" if len(str(error)) > _LONGEST else ""
    except BaseException as error:
        return f"{type(error).__name__}: {str(error)[:200]}"
    return ""
