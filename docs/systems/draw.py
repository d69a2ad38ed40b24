"""Draws the systems: teacher above, student below, losses between their stages. Writes an SVG per system beside itself.

python docs/systems/draw.py
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

_COLUMN, _ROW, _WIDTH, _HEIGHT, _LEFT, _TOP = 178, 74, 138, 40, 14, 44  # pixels
_TEACHER, _STUDENT, _LOSS, _INK = "#e8edfd", "#fff1da", "#c4320a", "#282828"

Node = tuple[str, float, float]  # text, column, row


@dataclass(frozen=True)
class System:
    """What is drawn.

    Args:
        teacher, student: by name text, column and row.
        edges: pairs of names, data that flows.
        losses: name in the teacher, name in the student, what the loss is called.
    """

    teacher: dict[str, Node]
    student: dict[str, Node]
    edges: Sequence[tuple[str, str]]
    losses: Sequence[tuple[str, str, str]]


def bev(prefix: str, sensors: Sequence[str], row: float, fuser: bool = True) -> tuple[dict[str, Node], list]:
    """Encoders, fuser, decoder and head of a BEV detector, names after `prefix`."""
    middle = row + (len(sensors) - 1) / 2
    nodes: dict[str, Node] = {f"{prefix}{s}": (s, 0, row + i) for i, s in enumerate(sensors)}
    encoders = {f"{prefix}{s} BEV": (f"{s} BEV", 1, row + i) for i, s in enumerate(sensors)}
    chain = [("fuser", 2), ("decoder", 3), ("head", 4)] if fuser else [("decoder", 3), ("head", 4)]
    rest = {f"{prefix}{name}": (name, column, middle) for name, column in chain}
    edges = list(zip(nodes, encoders, strict=True))
    edges += [(encoder, f"{prefix}{chain[0][0]}") for encoder in encoders]
    edges += [(f"{prefix}{a}", f"{prefix}{b}") for (a, _), (b, _) in pairwise(chain)]
    return nodes | encoders | rest, edges


def systems() -> dict[str, System]:
    found = {}
    teacher, a = bev("t:", ["LiDAR", "cameras"], 0)
    student, b = bev("s:", ["cameras", "radar"], 3)
    found["crkd"] = System(
        teacher,
        student,
        a + b,
        [
            ("t:cameras BEV", "s:cameras BEV", "camera features"),
            ("t:fuser", "s:fuser", "fused features, relation"),
            ("t:head", "s:head", "response"),
            ("t:head", "s:radar BEV", "cross-stage"),
        ],
    )
    student, b = bev("s:", ["cameras", "simulated"], 3)
    student["s:simulated"] = ("image features", 0, 4)
    student["s:simulated BEV"] = ("simulated BEV", 1, 4)
    found["simdistill"] = System(
        teacher,
        student,
        [*a, *b, ("s:cameras", "s:simulated")],
        [
            ("t:cameras BEV", "s:cameras BEV", "intra-modal"),
            ("t:LiDAR BEV", "s:simulated BEV", "cross-modal"),
            ("t:fuser", "s:fuser", "fused features"),
            ("t:head", "s:head", "prediction"),
        ],
    )
    teacher = {
        "t:LiDAR": ("LiDAR", 0, 0),
        "t:lidar": ("LiDAR BEV", 1, 0),
        "t:decoder": ("decoder", 3, 0),
        "t:labels": ("labels", 0, 1),
        "t:encoder": ("label encoder", 2, 1),
        "t:head": ("head", 4, 0.5),
    }
    student = {
        "s:cameras": ("cameras, 5 frames", 0, 3.5),
        "s:bev": ("BEV of 5 frames", 1, 3.5),
        "s:first": ("decoder, first third", 2, 3),
        "s:second": ("decoder, second", 3, 4),
        "s:head": ("head", 4, 3.5),
    }
    edges = [("t:LiDAR", "t:lidar"), ("t:lidar", "t:decoder"), ("t:decoder", "t:head"), ("t:labels", "t:encoder")]
    edges += [("t:encoder", "t:head"), ("s:cameras", "s:bev"), ("s:bev", "s:first"), ("s:bev", "s:second")]
    edges += [("s:first", "s:head"), ("s:second", "s:head")]
    losses = [("t:encoder", "s:first", "label features"), ("t:decoder", "s:second", "LiDAR features")]
    found["labeldistill"] = System(teacher, student, edges, [*losses, ("t:head", "s:head", "response")])
    teacher = {
        "t:in": ("depth map", 0, 0),
        "t:net": ("DLA-34", 1, 0),
        "t:neck": ("neck, 4 maps", 2, 0),
        "t:head": ("2-D heads", 3, 0),
        "t:roi": ("heads of objects", 4, 0),
    }
    student = {
        "s:in": ("image", 0, 2),
        "s:net": ("DLA-34", 1, 2),
        "s:neck": ("neck, 4 maps", 2, 2),
        "s:head": ("2-D heads", 3, 2),
        "s:roi": ("heads of objects", 4, 2),
    }
    edges = [
        (f"{p}{a}", f"{p}{b}")
        for p in ("t:", "s:")
        for a, b in (("in", "net"), ("net", "neck"), ("neck", "head"), ("head", "roi"))
    ]
    found["monoskd"] = System(
        teacher,
        student,
        edges,
        [
            ("t:neck", "s:neck", "correlation, affinity"),
            ("t:head", "s:head", "responses"),
            ("t:roi", "s:roi", "responses"),
        ],
    )
    student = {**student, "s:depth": ("depth branch", 3, 3), "t:target": ("depth target", 1, 3)}
    found["monommkd"] = System(
        teacher,
        student,
        [*edges, ("s:neck", "s:depth")],
        [("t:neck", "s:neck", "dual KL, weighed by depth"), ("t:target", "s:depth", "mimicking")],
    )
    return found


def draw(system: System) -> str:
    """SVG."""
    nodes = system.teacher | system.student
    rows = max(row for _, _, row in nodes.values())
    width, height = _LEFT * 2 + _COLUMN * 4 + _WIDTH, _TOP + _ROW * rows + _HEIGHT + 20
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height:.0f}" width="{width}" '
        f'font-family="sans-serif" font-size="13">',
        '<defs><marker id="a" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" markerHeight="7" orient="auto">'
        f'<path d="M0 0L10 5L0 10z" fill="{_INK}"/></marker>'
        '<marker id="l" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="8" markerHeight="8" orient="auto">'
        f'<path d="M0 0L10 5L0 10z" fill="{_LOSS}"/></marker></defs>',
        f'<rect width="{width}" height="{height:.0f}" fill="white"/>',
        _text(_LEFT, 26, "teacher (frozen)", "start", weight="bold"),
    ]
    first = min(row for name, (_, _, row) in system.student.items() if name.startswith("s:"))
    parts.append(_text(_LEFT, _TOP + _ROW * first - 14, "student", "start", weight="bold"))
    for start, end in system.edges:
        (x, y), (u, v) = _right(nodes[start]), _left(nodes[end])
        if nodes[start][1] == nodes[end][1]:  # below each other
            (x, y), (u, v) = _bottom(nodes[start]), _top(nodes[end])
        parts.append(f'<path d="M{x} {y}L{u} {v}" stroke="{_INK}" fill="none" marker-end="url(#a)"/>')
    labels = []
    for start, end, name in system.losses:
        path, place = _curve(nodes[start], nodes[end])
        style = f'stroke="{_LOSS}" stroke-width="2" stroke-dasharray="6 4" fill="none" marker-end="url(#l)"'
        parts.append(f'<path d="{path}" {style}/>')
        labels.append((place, name))
    for name, node in nodes.items():
        x, y = _corner(node)
        color = _TEACHER if name.startswith("t:") else _STUDENT
        box = f'<rect x="{x}" y="{y}" width="{_WIDTH}" height="{_HEIGHT}" rx="5" fill="{color}" stroke="{_INK}"/>'
        parts += [box, _text(x + _WIDTH / 2, y + _HEIGHT / 2 + 5, node[0])]
    for (x, y), name in labels:
        # A halo first: not every viewer knows `paint-order`.
        parts += [
            _text(x, y, name, fill="white", extra=' stroke="white" stroke-width="5"'),
            _text(x, y, name, fill=_LOSS),
        ]
    return "\n".join([*parts, "</svg>"]) + "\n"


def _curve(start: Node, end: Node) -> tuple[str, tuple[float, float]]:
    """From the teacher's box to the student's, and where its label stands."""
    if start[2] == end[2]:
        (x, y), (u, v) = _right(start), _left(end)
        return f"M{x} {y}L{u} {v}", ((x + u) / 2, y - 8)
    (x, y), (u, v) = _bottom(start), _top(end)
    shift = -24 if start[1] > end[1] else 24 if start[1] == end[1] and end[2] - start[2] > 3 else 0
    x, u = x + shift, u + shift
    label = (x + u) / 2 + max(shift, 0), (y + v) / 2 + (14 if shift else 0)
    return f"M{x} {y}C{x} {y + 45} {u} {v - 45} {u} {v}", label


def _corner(node: Node) -> tuple[float, float]:
    return _LEFT + _COLUMN * node[1], _TOP + _ROW * node[2]


def _left(node: Node) -> tuple[float, float]:
    x, y = _corner(node)
    return x, y + _HEIGHT / 2


def _right(node: Node) -> tuple[float, float]:
    x, y = _left(node)
    return x + _WIDTH, y


def _top(node: Node) -> tuple[float, float]:
    x, y = _corner(node)
    return x + _WIDTH / 2, y


def _bottom(node: Node) -> tuple[float, float]:
    x, y = _top(node)
    return x, y + _HEIGHT


def _text(
    x: float, y: float, text: str, anchor: str = "middle", fill: str = _INK, weight: str = "normal", extra: str = ""
) -> str:
    return (
        f'<text x="{x}" y="{y}" text-anchor="{anchor}" fill="{fill}" font-weight="{weight}"{extra}>'
        f"{html.escape(text)}</text>"
    )


if __name__ == "__main__":
    for name, system in systems().items():
        (Path(__file__).parent / f"{name}.svg").write_text(draw(system))
