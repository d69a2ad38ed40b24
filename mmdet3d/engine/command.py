"""What the command-line tools share: overrides that survive launchers, and errors in one sentence.

A tool is a function `parse` that reads the words and a function `main` that imports what it needs after that: `--help`
and a mistaken command line are answered without torch, which takes seconds to import.
"""

from __future__ import annotations

import argparse
import logging
import math
import re
import resource
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import yaml

from mmdet3d.blocks import MOST_SEED
from mmdet3d.config import parse_overrides
from mmdet3d.engine.habits import translate
from mmdet3d.engine.interrupt import Interrupted
from mmdet3d.engine.launchers import environment_rank
from mmdet3d.io.files import in_words, utf8_text
from mmdet3d.io.yaml_text import parse_yaml
from mmdet3d.plugins import module_names
from mmdet3d.zoo import weight_path

__all__ = ["OVERRIDES_HELP", "above_zero", "add_override_options", "natural", "read_overrides", "rejoin", "run", "seed"]

OVERRIDES_HELP = """\
Config keys are overridden by `--a.b.c VALUE` or `a.b.c=VALUE`; a value is YAML and may be several words. `torchpack
dist-run` without -v passes its arguments through a shell a second time, which takes quotes away: lists, numbers and
several words survive that, but a value with quotes, or any of ; & | < > $ * ? # ( ) in it, belongs into a file given by
--overrides-file (YAML, `a.b.c: value`)."""

_PAIR = re.compile(r"(--)?[A-Za-z_][\w-]*(\.[\w-]+)*=")


def add_override_options(parser: argparse.ArgumentParser) -> None:
    parser.epilog = OVERRIDES_HELP
    parser.add_argument("--overrides-file", metavar="FILE", help="YAML of overrides, applied before those given here")
    parser.add_argument(
        "--imports",
        metavar="MODULE[,MODULE]",
        help="modules that register parts of your own, in this folder or installed; added to the config's `imports`",
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")


def natural(word: str) -> int:
    """Type of an option: a whole number of at least 1."""
    if not word.isdecimal() or int(word) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, got {word!r}")
    return int(word)


def seed(word: str) -> int:
    """Type of an option: a number that every generator of random numbers takes."""
    if not word.isdecimal() or len(word) > len(str(MOST_SEED)) or int(word) > MOST_SEED:
        raise argparse.ArgumentTypeError(f"must be a whole number from 0 to {MOST_SEED}, got {word!r}")
    return int(word)


def above_zero(word: str) -> float:
    """Type of an option: a number above 0."""
    try:
        value = float(word)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"must be a number above 0, got {word!r}")
    return value


def rejoin(words: Sequence[str]) -> list[str]:
    """`a.b.c=value` words out of words that a second shell may have split at spaces.

    A value goes on until the next `--key` or `key=`, so `--range "[0, 1]"` that arrives as `--range [0, 1]` is whole
    again.

    Raises:
        ValueError: a word that belongs to no key, or a key without a value.
    """
    pairs: list[list[str]] = []
    for word in words:
        inside = bool(pairs) and _open(" ".join(pairs[-1][1:]))
        if not inside and _PAIR.match(word):
            key, _, value = word.removeprefix("--").partition("=")
            pairs.append([key, value])
        elif not inside and word.startswith("--"):
            pairs.append([word.removeprefix("--")])
        elif pairs:
            pairs[-1].append(word)
        else:
            raise ValueError(f"unexpected argument {word!r}; overrides are written --a.b.c VALUE or a.b.c=VALUE")
    for pair in pairs:
        if pair == ["deterministic"]:  # a switch elsewhere
            pair.append("true")
    for key, *values in pairs:
        if not values:
            raise ValueError(f"override --{key} needs a value: --{key} VALUE or {key}=VALUE")
    return [f"{key}={' '.join(values)}" for key, *values in pairs]


def _open(text: str) -> bool:
    return text.count("[") + text.count("{") > text.count("]") + text.count("}")


def read_overrides(words: Sequence[str], file: str | None = None, imports: str | None = None) -> dict[str, Any]:
    """Overrides by dotted key: those of `file`, then those of the command line.

    Args:
        imports: of the option `--imports`; beside those of `file`.

    Raises:
        ValueError: see `rejoin`, or `file` holds no mapping.
        FileNotFoundError: no such file.
    """
    overrides: dict[str, Any] = {}
    if file is not None:
        if not Path(file).is_file():
            raise FileNotFoundError(f"--overrides-file {file} does not exist")
        try:
            content = parse_yaml(utf8_text(file))
        except yaml.YAMLError as error:
            raise ValueError(f"--overrides-file {file} is not valid YAML: {error}") from error
        if not isinstance(content, dict):
            raise ValueError(f"--overrides-file {file} must hold lines `a.b.c: value`")
        overrides |= content
    overrides |= parse_overrides(rejoin(words))
    if imports is not None:
        names = [name.strip() for name in imports.split(",") if name.strip()]
        overrides["imports"] = [*module_names(overrides.get("imports"), "the overrides"), *names]
    return overrides


def run(main: Callable[[list[str]], int | None]) -> NoReturn:
    """Run a tool to its exit code: a user's mistake becomes `error: ...` and exit code 2, a signal 128 + its number."""
    words = sys.argv[1:]
    _raise_file_limit()
    try:
        code = main([weight_path(word) for word in translate(words)])
    except Interrupted as stop:
        print(f"interrupted: {stop}", file=sys.stderr)
        _leave(128 + (stop.number or 2))
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        _leave(130)
    except Exception as error:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler would raise a worker's death amid the report
        sentence = _sentence(error)
        if sentence is None or "--debug" in words:
            traceback.print_exc()
        _report(sentence or f"{type(error).__name__}: {error}", words, bug=sentence is None)
        _leave(1 if sentence is None else 2)
    _leave(code or 0)


def _sentence(error: Exception) -> str | None:
    """What a user can do something about; None for a bug."""
    if isinstance(error, (ValueError, OSError)):
        return in_words(error)
    first = (str(error) or type(error).__name__).splitlines()[0].rstrip(". ")
    torch, ranks = sys.modules.get("torch"), _ranks()
    if torch is not None and isinstance(error, torch.OutOfMemoryError):
        return (
            f"out of GPU memory ({first}); lower data.samples_per_gpu (and raise optimizer_config.cumulative_iters to "
            "keep the effective batch), or from fp32 set precision to bf16"
        )
    if isinstance(error, MemoryError) or "can't allocate memory" in first:
        return f"out of memory ({first}); lower data.samples_per_gpu or data.workers_per_gpu"
    if isinstance(error, RuntimeError) and first.startswith("DataLoader worker"):
        return f"{first}; if that was for lack of memory, lower data.workers_per_gpu; --resume goes on"
    if ranks is not None and ranks.lost_contact(error):
        what = re.sub(r"^\[.*?\] ", "", first).partition(". ")[0]  # without a place in gloo's source
        return (
            f"another rank has ended or cannot be reached ({what}); the launcher's lines say which ended, and --resume "
            "goes on from the newest checkpoint"
        )
    return None


def _ranks() -> Any:
    """`engine.distributed`; None before torch is loaded, when there can be no other ranks."""
    if "torch" not in sys.modules:
        return None
    from mmdet3d.engine import distributed

    return distributed


def _leave(code: int) -> NoReturn:
    if ranks := _ranks():
        ranks.leave(code)
    sys.exit(code)


def _report(message: str, words: Sequence[str], bug: bool) -> None:
    """Why all ranks end, said once and by rank 0, whoever met it; the others also write it to their log files."""
    logger, ranks = logging.getLogger("mmdet3d"), _ranks()
    if environment_rank() == 0:
        if (ranks is None or ranks.may_say_why()) and not bug:  # whose traceback says it
            hint = "" if "--debug" in words else " (--debug shows where)"
            print(f"error: {message}{hint}", file=sys.stderr)
        return
    if logger.handlers:
        logger.error(message, exc_info=bug)
    if ranks is not None:
        ranks.tell(message)


def _raise_file_limit(wanted: int = 4096) -> None:
    """Loader processes hand tensors over as open files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    target = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft < target:
        resource.setrlimit(resource.RLIMIT_NOFILE, (target, hard))
