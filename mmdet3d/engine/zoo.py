"""The trained models that lie in `pretrained/`, by name."""

from __future__ import annotations

import json
from pathlib import Path

from mmdet3d.blocks import nearest
from mmdet3d.config import CONFIG_ROOT
from mmdet3d.io.weights import metadata_path

__all__ = ["zoo_file", "zoo_files"]

_FOLDER = CONFIG_ROOT.parent / "pretrained"


def zoo_files() -> dict[str, Path]:
    """Weight file by name, of those with a card that names their config.

    A name is the file's stem; of `demo/`, whose files are called by their role alone, `crkd-demo-ROLE`.
    """
    found = {}
    for path in sorted(_FOLDER.glob("*/*.safetensors")):
        card = metadata_path(path)
        if card.is_file() and "config" in json.loads(card.read_text()):
            found[f"crkd-demo-{path.stem}" if path.parent.name == "demo" else path.stem] = path
    return found


def zoo_file(name: str) -> Path:
    """The weight file of a model.

    Raises:
        ValueError: there is no such model.
    """
    files = zoo_files()
    if name not in files:
        raise ValueError(f"no model {name!r}{nearest(name, files)} (there are: {', '.join(files) or 'none'})")
    return files[name]
