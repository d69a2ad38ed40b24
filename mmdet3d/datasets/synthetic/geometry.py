"""Rigid transforms and the convex six-faced solids that everything in the synthetic world is made of."""

from __future__ import annotations

import numpy as np

__all__ = ["BOTTOM", "FACES", "face_planes", "hexahedron", "invert", "matrix", "quaternion", "rotation", "transform"]

# Corner numbers of each face, anticlockwise from its bottom left as seen from outside: front, back, left, right, top,
# bottom. Corners: 0 front left, 1 rear left, 2 rear right, 3 front right of the lower rectangle, 4-7 of the upper one.
FACES = np.array([[3, 0, 4, 7], [1, 2, 6, 5], [0, 1, 5, 4], [2, 3, 7, 6], [6, 7, 4, 5], [0, 3, 2, 1]])
BOTTOM = 5


def quaternion(yaw: float, pitch: float = 0.0, roll: float = 0.0) -> np.ndarray:
    """(4,) w, x, y, z of the rotation by roll about x, then pitch about y, then yaw about z; radians."""
    cy, sy, cp, sp, cr, sr = (f(a / 2) for a in (yaw, pitch, roll) for f in (np.cos, np.sin))
    return np.array(
        [
            cr * cp * cy + sr * sp * sy,
            sr * cp * cy - cr * sp * sy,
            cr * sp * cy + sr * cp * sy,
            cr * cp * sy - sr * sp * cy,
        ]
    )


def rotation(q: np.ndarray) -> np.ndarray:
    """(3, 3) of a quaternion w, x, y, z, which need not have unit length."""
    w, x, y, z = np.asarray(q, dtype=float) / np.linalg.norm(q)
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    )


def matrix(q: np.ndarray, translation: np.ndarray) -> np.ndarray:
    """(4, 4) of a quaternion and a translation."""
    out = np.eye(4)
    out[:3, :3] = rotation(q)
    out[:3, 3] = translation
    return out


def invert(rigid: np.ndarray) -> np.ndarray:
    """Inverse of a rigid (4, 4)."""
    out = np.eye(4)
    out[:3, :3] = rigid[:3, :3].T
    out[:3, 3] = -rigid[:3, :3].T @ rigid[:3, 3]
    return out


def transform(rigid: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Points (..., 3) through a rigid (4, 4)."""
    return points @ rigid[:3, :3].T + rigid[:3, 3]


def hexahedron(
    lower: tuple[float, float, float, float], upper: tuple[float, float, float, float], z: tuple[float, float]
) -> np.ndarray:
    """(8, 3) corners of a frustum: rectangles (x0, x1, y0, y1) at the two heights `z`."""
    rows = []
    for (x0, x1, y0, y1), height in zip((lower, upper), z, strict=True):
        rows += [[x1, y1, height], [x0, y1, height], [x0, y0, height], [x1, y0, height]]
    return np.array(rows)


def face_planes(corners: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Planes n . x = c with outward unit normals of solids (P, 8, 3): (P, 6, 3) and (P, 6)."""
    faces = corners[:, FACES]
    normals = np.cross(faces[:, :, 1] - faces[:, :, 0], faces[:, :, 3] - faces[:, :, 0])
    normals /= np.linalg.norm(normals, axis=-1, keepdims=True)
    return normals, (normals * faces[:, :, 0]).sum(-1)
