"""Configs: torchpack's YAML inheritance, `--a.b.c value` overrides, and `${...}` expressions over a whitelist."""

from __future__ import annotations

import ast
import copy
import functools
import operator
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from mmdet3d.blocks import find_key, find_tail, nearest
from mmdet3d.composition import COMPOSED, TRAINING, compose, content_digest, data_part, is_named, stands_in_full
from mmdet3d.io.files import utf8_text
from mmdet3d.io.yaml_text import MOST_VALUES, parse_yaml, yaml_text
from mmdet3d.plugins import import_modules, module_names
from mmdet3d.zoo import with_zoo_files

__all__ = [
    "CONFIG_ROOT",
    "Config",
    "assembled",
    "composed",
    "config_chain",
    "find_config",
    "load_config",
    "parse_overrides",
    "read_mapping",
    "read_with_base",
]

# A wheel holds the configs in the package (setup.py), a checkout beside it.
_INSTALLED = Path(__file__).resolve().parent / "configs"
CONFIG_ROOT = _INSTALLED if _INSTALLED.is_dir() else _INSTALLED.parents[1] / "configs"

_BINARY = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
}

_LARGEST_FILE = 1 << 24  # bytes


class Config(dict):
    """A dict whose keys are attributes too; a missing one is an error that names the nearest."""

    def __getattr__(self, key: str) -> Any:
        try:
            return self[key]
        except KeyError:
            raise AttributeError(f"config has no key {key!r}{nearest(key, map(str, self))}") from None

    def __setattr__(self, key: str, value: Any) -> None:
        self[key] = value

    def to_dict(self) -> dict[str, Any]:
        """Plain dicts and lists all the way down."""
        return _plain(self)

    def dump(self) -> str:
        """As YAML text."""
        return yaml_text(self.to_dict())


def load_config(path: str | Path, overrides: Sequence[str] | Mapping[str, Any] = ()) -> Config:
    """Read a config file with everything it inherits.

    Every `default.yaml` from the `configs` folder down to the file's own is merged first, then what the file names as
    `base` (see `config_chain`), then the file: mappings merge, anything else replaces. Then overrides apply, then every
    string `${expression}` is evaluated, and `zoo:NAME` becomes the path of that model. Modules that any of them names
    as `imports` are imported, so that what they register can be built; the result names them all. Last, models that are
    named by another config get their blocks in full, see `composition`.

    Args:
        path: a YAML file; a path that does not exist is also looked for below the project's `configs`.
        overrides: command-line words `--a.b.c value` / `a.b.c=value`, or a mapping from dotted key to value.

    Raises:
        ValueError: unreadable YAML, an override of a key that no config has, an expression outside the whitelist, a
            module of `imports` that cannot be imported, or a config that names itself as a part of its model.
        FileNotFoundError: no such file, or a config that the model names does not exist.
    """
    return _load(path, overrides)[0]


def _load(
    path: str | Path, overrides: Sequence[str] | Mapping[str, Any], within: tuple[Path, ...] = ()
) -> tuple[Config, str]:
    """`load_config`, and the digest of the files; `within` are the configs that name this one."""
    file = find_config(path)
    if file in within:
        raise ValueError(f"{path} names itself as a part of its model; name another config")
    config, imports, digest = assembled(file, overrides)
    resolved = with_zoo_files(_Expressions(copy.deepcopy(config), file).evaluate(config))
    imports += compose(resolved.get("model"), functools.partial(_load, within=(*within, file)))
    if imports:
        resolved["imports"] = list(dict.fromkeys(imports))
    return resolved, digest


def assembled(path: Path, overrides: Sequence[str] | Mapping[str, Any]) -> tuple[Config, list[str], str]:
    """A config before its expressions are evaluated, the modules that it imports, and the digest of its files.

    Raises:
        ValueError, FileNotFoundError: see `load_config`.
    """
    imports: list[str] = []
    contents = _layers(path)
    digest = content_digest(contents.values())
    for part, content in contents.items():
        imports += module_names(content.pop("imports", None), str(part))
    pairs = dict(overrides if isinstance(overrides, Mapping) else parse_overrides(overrides))
    imports += module_names(pairs.pop("imports", None), "the overrides")
    import_modules(imports, f"imports of {path}")
    config = _merged(contents.values(), pairs, path)
    if student := _students_file(config, path):
        # Between what both inherit and what this config adds, so that it need not say the student's data again.
        theirs = _layers(student)
        shared = [contents[part] for part in theirs if part in contents]
        own = [content for part, content in contents.items() if part not in theirs]
        data = [data_part(content, own) for part, content in theirs.items() if part not in contents]
        config = _merged([*shared, *data, *own], pairs, path)
    return config, imports, digest


def _merged(contents: Iterable[Mapping[str, Any]], overrides: Mapping[str, Any], file: Path) -> Config:
    config = Config()
    for content in contents:
        _merge(config, content)
    # Top-level choices come first: an override below `${a[choice]}` changes a copy of the block that was chosen.
    for key in sorted(overrides, key=lambda k: "." in k):
        _override(config, key, overrides[key], file)
    return config


def _students_file(config: Config, file: Path) -> Path | None:
    """The config that a distillation names as its student, unless that stands in full."""
    student = config.get("model")
    for key in ("student", "config"):
        if not isinstance(student, Mapping) or stands_in_full(student):
            return None
        student = _Expressions(config, file).evaluate(student.get(key))
    return find_config(student) if student is not None and is_named({"config": student}) else None


def composed(model: Mapping[str, Any]) -> Config:
    """A model block as `load_config` would return it: with the models that it names in full.

    Raises:
        ValueError, FileNotFoundError: see `load_config`.
    """
    block = _to_config(model)
    compose(block, _load)
    return block


def find_config(path: str | Path) -> Path:
    """The file `path`, or `configs/path` of this project, wherever it is installed.

    Raises:
        FileNotFoundError: neither exists.
    """
    for candidate in (Path(path), CONFIG_ROOT / path, CONFIG_ROOT.parent / path):
        if candidate.is_file():
            return candidate.resolve()
    raise FileNotFoundError(f"config {path} not found, neither here nor in {CONFIG_ROOT}{_nearest_config(path)}")


def _nearest_config(path: str | Path) -> str:
    """The hint for a mistyped path: a config of that file name, else the one of the most similar path."""
    wanted = Path(path)
    files = [f for f in sorted(CONFIG_ROOT.rglob("*.yaml")) if "_parts" in wanted.parts or f.parent.name != "_parts"]
    shipped = [f"configs/{file.relative_to(CONFIG_ROOT).as_posix()}" for file in files]
    known = [*map(str, sorted(wanted.parent.glob("*.yaml"))), *shipped]
    named = [file for file in known if Path(file).stem == wanted.stem != "default"]
    if len(named) == 1:
        return f", did you mean {named[0]!r}?"
    inside = [file.removeprefix("configs/") for file in shipped]
    return nearest(str(wanted), [*known, *inside])


def parse_overrides(words: Sequence[str]) -> dict[str, Any]:
    """`["--a.b", "1", "c=x"]` to `{"a.b": 1, "c": "x"}`.

    Values are YAML, so `[1, 2]`, `null`, `true`, `1e-3` and quotes work.

    Raises:
        ValueError: a key without a value.
    """
    pairs: dict[str, Any] = {}
    queue = list(words)
    while queue:
        word = queue.pop(0)
        key, sep, text = word.removeprefix("--").partition("=")
        if not sep:
            if not word.startswith("--") or not queue:
                raise ValueError(f"override {word!r} needs a value: --{key} VALUE or {key}=VALUE")
            text = queue.pop(0)
        pairs[key] = _value(text)
    return pairs


def _value(text: str) -> Any:
    try:
        return parse_yaml(text)
    except yaml.YAMLError:
        return text


def config_chain(path: str | Path) -> list[Path]:
    """The files that `load_config(path)` merges, in their order.

    Each `default.yaml` from the `configs` folder down to the file's own, then the file. Before any of them come the
    files that it lists as `base`, relative to its folder or below `configs`, in that order and each with everything
    that it inherits itself. A file counts once, where it comes first.

    Raises:
        FileNotFoundError: no such file.
        ValueError: unreadable YAML, or a `base` that is no list or leads back to its file.
    """
    return list(_layers(find_config(path)))


def read_with_base(path: str | Path) -> Config:
    """A file on what it lists as `base`, without any `default.yaml`: a recipe, which is no config itself.

    Raises:
        FileNotFoundError, ValueError: see `config_chain`.
    """
    return _merged(_layers(find_config(path), inherit=False).values(), {}, Path(path))


def _layers(file: Path, inherit: bool = True) -> dict[Path, dict[str, Any]]:
    """Content of the files of `config_chain`, in their order, without `base`."""
    layers: dict[Path, dict[str, Any]] = {}
    _read_layers(file, layers, inherit=inherit)
    return layers


def _read_layers(
    file: Path, layers: dict[Path, dict[str, Any]], users: Sequence[Path] = (), inherit: bool = True
) -> None:
    """Add `file`, behind everything that it is based on and inherits, with its content.

    Args:
        users: name it as their base, the first of all first.
        inherit: any `default.yaml`.
    """
    root = _config_root(file)
    folders = [p for p in reversed(file.parents) if inherit and (p == root or root in p.parents)]
    defaults = [f / "default.yaml" for f in folders]
    for part in [*(d for d in defaults if d.is_file() and d != file and d not in users), file]:
        if part in users:
            raise ValueError(f"{users[-1]}: base {part.name} leads back to {part}")
        if part not in layers:
            content = read_mapping(part)
            base = content.pop("base", None) or []
            if not isinstance(base, list) or not all(isinstance(name, str) for name in base):
                raise ValueError(f"{part}: base must be a list of YAML files, got {base!r}")
            for name in base:
                _read_layers(_find_base(name, part), layers, (*users, part), inherit)
            layers[part] = content


def _config_root(file: Path) -> Path:
    return next((p for p in file.parents if p.name == "configs"), file.parent)


def _find_base(name: str, user: Path) -> Path:
    for folder in (user.parent, _config_root(user), CONFIG_ROOT):
        found = (folder / name).resolve()
        if found.is_file() and found != user:
            return found
    hint = _nearest_config(name)
    raise FileNotFoundError(f"{user}: base {name} not found, neither relative to it nor in {CONFIG_ROOT}{hint}")


def read_mapping(file: Path) -> dict[str, Any]:
    """The content of a YAML file, empty if the file is.

    Raises:
        ValueError: unreadable YAML, no mapping, or larger than any config is.
    """
    if (size := file.stat().st_size) > _LARGEST_FILE:
        raise ValueError(f"{file} has {size} bytes, more than any config ({_LARGEST_FILE})")
    try:
        content = parse_yaml(utf8_text(file))
    except yaml.YAMLError as error:
        raise ValueError(f"{file} is not valid YAML: {error}") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ValueError(f"{file} must hold a mapping, found {type(content).__name__}")
    return content


def _merge(into: Config, new: Mapping[str, Any]) -> None:
    for key, value in new.items():
        if isinstance(value, Mapping):
            if not isinstance(into.get(key), Config):
                into[key] = Config()
            _merge(into[key], value)
        else:
            into[key] = copy.deepcopy(value)


def _override(config: Config, key: str, value: Any, file: Path) -> None:
    node: Any = config
    parts = key.split(".")
    for i, part in enumerate(parts[:-1]):
        node = _child(node, part, ".".join(parts[: i + 1]), file, config, key)
        if i and parts[0] == "model" and is_named(node) and _override_named(node, parts, i + 1, value, file, config):
            return
    last = parts[-1]
    if isinstance(node, list):
        node[_index(node, last, key, file)] = value
        return
    # Below the top level a new key may be an argument that the file leaves at its default; its builder checks it.
    if len(parts) == 1 and last not in (*node, *TRAINING):
        raise ValueError(f"unknown config key {key!r}{_nearest_key(key, node, config, file, key)} ({file.name})")
    node[last] = copy.deepcopy(value)  # a later override may set a key inside


def _override_named(node: Config, parts: list[str], at: int, value: Any, file: Path, names: Config) -> bool:
    """Override a key of a model that is named by its config; whether that is done."""
    where, (kind, *inside) = ".".join(parts[:at]), parts[at:]
    if not inside:
        if kind in ("config", "overrides"):  # another model, which the file describes
            for key in COMPOSED:
                node.pop(key, None)
        return False
    if kind not in ("model", "overrides") or (kind == "model" and stands_in_full(node)):
        return False
    if stands_in_full(node):
        raise ValueError(
            f"{'.'.join(parts)}: {where} stands in full in {file.name}; set a key of its model, --{where}.model.KEY, "
            f"or take it anew from a file, --{where}.config FILE"
        )
    node.setdefault("overrides", None)
    overrides = _child(node, "overrides", f"{where}.overrides", file, names, ".".join(parts))
    key = ".".join(inside if kind == "overrides" else ["model", *inside])
    overrides.pop(key, None)  # the last word counts
    overrides[key] = value
    return True


def _child(node: Any, part: str, path: str, file: Path, names: Config, key: str) -> Any:
    """What `part` holds, the last of `path` and on the way to `key`, as something that takes keys."""
    place = _index(node, part, path, file) if isinstance(node, list) else part
    if path in TRAINING and part not in node:  # a block that the file leaves at its defaults
        node[part] = None
    if place == part and part not in node:
        raise ValueError(f"unknown config key {path!r}{_nearest_key(path, node, names, file, key)} ({file.name})")
    if isinstance(node[place], str):
        node[place] = _own_copy(node[place], names, file)
    if node[place] is None:
        node[place] = Config()
    if isinstance(node[place], dict) and not isinstance(node[place], Config):
        node[place] = _to_config(node[place])
    if not isinstance(node[place], (Config, list)):
        raise ValueError(f"cannot set a key below {path}: it is {node[place]!r} in {file.name}")
    return node[place]


def _nearest_key(path: str, siblings: Config, config: Config, file: Path, key: str) -> str:
    """The hint for a mistyped `path` on the way to `key`: what ends in that key, one of its very name at another level,
    the nearest beside it, or a similar one.
    """
    name = path.rpartition(".")[2]
    try:
        whole = _Expressions(config, file).evaluate({key: config.get(key) for key in ("data", *TRAINING)})
    except (ValueError, LookupError, TypeError):  # of an expression, whose fault is another one
        whole = Config()
    elsewhere = find_tail(key, whole) or find_key(name, whole, cutoff=1, other_than=path)
    return elsewhere or nearest(name, siblings) or find_key(name, whole, other_than=path)


def _own_copy(value: str, names: Config, file: Path) -> Any:
    """The block that `${a.b}` or `${a[b]}` stands for, as a copy to change in this place alone; other text as it is."""
    if not _is_expression(value):
        return value
    expressions = _Expressions(names, file)
    tree = expressions.parsed(value)
    if not isinstance(tree, (ast.Name, ast.Attribute, ast.Subscript)):
        return value
    block = expressions.look_up(tree, value)
    return copy.deepcopy(block) if isinstance(block, Mapping) else value


def _index(node: list, part: str, path: str, file: Path) -> int:
    if not part.isdigit() or int(part) >= len(node):
        raise ValueError(f"{path}: {part!r} is no index of a list of {len(node)} ({file.name})")
    return int(part)


def _to_config(value: Any) -> Any:
    if isinstance(value, Mapping):
        return Config({k: _to_config(v) for k, v in value.items()})
    return [_to_config(v) for v in value] if isinstance(value, list) else value


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, (list, tuple)) else value


class _Expressions:
    """Evaluates what stands in a config.

    Args:
        names: the config, whose keys the expressions name.
        file: it was read from.
    """

    def __init__(self, names: Config, file: Path) -> None:
        self._names, self._file = names, file
        self._values = 0

    def evaluate(self, value: Any, depth: int = 0) -> Any:
        """`value` with every expression in it worked out.

        Raises:
            ValueError: an expression cannot be, or together they stand for more values than any config has, as they do
                if each names another one twice.
        """
        if depth > 20:
            raise ValueError(f"an expression in {self._file} refers to itself")
        self._values += 1
        if self._values > MOST_VALUES // 10:
            raise ValueError(f"the expressions in {self._file} make more than {MOST_VALUES // 10} values of it")
        if isinstance(value, Mapping):
            return Config({k: self.evaluate(v, depth) for k, v in value.items()})
        if isinstance(value, list):
            return [self.evaluate(v, depth) for v in value]
        if not _is_expression(value):
            return value
        try:
            block = self.look_up(self.parsed(value), value, depth)
        except (ArithmeticError, LookupError, TypeError) as error:
            used = {n.id for n in ast.walk(self.parsed(value)) if isinstance(n, ast.Name)}
            given = "; ".join(f"{name}: {self._names.get(name)!r}" for name in sorted(used))
            raise ValueError(f"{value} in {self._file} cannot be worked out ({error}) with {given:.200}") from None
        return self.evaluate(copy.deepcopy(block), depth + 1)

    def parsed(self, text: str) -> ast.expr:
        try:
            return ast.parse(text[2:-1].strip(), mode="eval").body
        except (SyntaxError, ValueError, RecursionError, MemoryError):  # the last two of too many brackets
            raise ValueError(f"{text[:200]} in {self._file} is no expression") from None

    def look_up(self, node: ast.expr, text: str, depth: int = 0) -> Any:
        """What a part of the expression `text` stands for; expressions in that are not worked out yet."""

        def visit(child: ast.expr) -> Any:
            return self.evaluate(self.look_up(child, text, depth), depth + 1)

        def container(child: ast.expr) -> Any:
            # Left unevaluated: only the part that is asked for may be, or `${data.val}` inside `data` never ends.
            value = self.look_up(child, text, depth)
            return self.evaluate(value, depth + 1) if isinstance(value, str) else value

        place = f"{text} in {self._file}"
        match node:
            case ast.Constant(value=value):
                return value
            case ast.Name(id=name):
                if name not in self._names:
                    raise ValueError(f"{place}: no key {name!r}{nearest(name, self._names)}")
                return self._names[name]
            case ast.Attribute(value=owner, attr=name):
                base = container(owner)
                if not isinstance(base, Mapping) or name not in base:
                    raise ValueError(f"{place}: no key {name!r}")
                return base[name]
            case ast.Subscript(value=owner, slice=ast.Slice(lower=low, upper=high, step=None)):
                return container(owner)[slice(visit(low) if low else None, visit(high) if high else None)]
            case ast.Subscript(value=owner, slice=index):
                base, key = container(owner), visit(index)
                if isinstance(base, Mapping) and key not in base:
                    known = ", ".join(map(str, base))
                    hint = nearest(str(key), map(str, base))
                    raise ValueError(f"{place}: no key {key!r}{hint}; there are {known}")
                return base[key]
            case ast.BinOp(left=left, op=op, right=right) if type(op) in _BINARY:
                return _combined(op, visit(left), visit(right))
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                return -visit(operand)
            case ast.List(elts=items) | ast.Tuple(elts=items):
                return [visit(i) for i in items]
        raise ValueError(f"{place}: only names, attributes, indexing, arithmetic and lists are allowed")


def _is_expression(value: Any) -> bool:
    return isinstance(value, str) and value.startswith("${") and value.endswith("}")


def _combined(op: ast.operator, left: Any, right: Any) -> Any:
    """Raises TypeError where text or lists would be multiplied, or become too long."""
    sizes = [len(side) if isinstance(side, (str, list)) else 0 for side in (left, right)]
    if isinstance(op, ast.Mult) and any(isinstance(side, (str, list)) for side in (left, right)):
        raise TypeError("only numbers are multiplied")
    if sum(sizes) > MOST_VALUES:
        raise TypeError("its result is too long")
    return _BINARY[type(op)](left, right)
