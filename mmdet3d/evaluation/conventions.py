"""Results in another program's convention, told by how found boxes differ from the objects that they lie on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

__all__ = ["Pairs", "conventions_at_fault", "match_entries"]

_NEAR = 2.0  # metres between centres on the ground
_LONG = 1.3  # length over width, from which on the two can be told apart
_FAST = 1.0  # m/s
_ENOUGH = 10  # pairs
_MOST = 0.7  # share of the pairs that must agree
_ABOUT = 0.35  # radians
_SIZE = 1.5  # times as long, wide or high, up to which a box is about as large as its object


class Pairs:
    """Objects, and for each the nearest result of its class.

    Args:
        truth, found: (N, 9) x, y, z of the centre, width, length, height, yaw, vx, vy in one frame, metres, radians.
    """

    def __init__(self, truth: np.ndarray, found: np.ndarray) -> None:
        self.truth, self.found = truth, found

    def __len__(self) -> int:
        return len(self.truth)

    def __getitem__(self, chosen: np.ndarray) -> Pairs:
        return Pairs(self.truth[chosen], self.found[chosen])


def match_entries(
    truth: Mapping[str, Sequence[Any]], results: Mapping[str, Sequence[Mapping[str, Any]]], least_score: float = 0.1
) -> Pairs:
    """Pairs of annotated boxes and entries of a nuScenes submission.

    Args:
        truth: by sample token, boxes of the devkit.
        results: by sample token, entries.
        least_score: entries below are left out, unless that leaves none.
    """
    objects, nearest = [], []
    for token, boxes in truth.items():
        entries = [e for e in results.get(token, ()) if e["detection_score"] >= least_score]
        for box in boxes:
            same = [e for e in entries if e["detection_name"] == box.detection_name]
            if not same:
                continue
            offsets = np.array([e["translation"][:2] for e in same]) - np.asarray(box.translation[:2])
            distances = np.hypot(*offsets.T)
            if distances.min() < _NEAR:
                entry = same[int(distances.argmin())]
                objects.append(_row(box.translation, box.size, box.rotation, box.velocity))
                nearest.append(_row(*(entry[k] for k in ("translation", "size", "rotation", "velocity"))))
    return Pairs(np.array(objects).reshape(-1, 9), np.array(nearest).reshape(-1, 9))


def conventions_at_fault(pairs: Pairs) -> list[str]:
    """A sentence for each convention that most of the pairs suggest was mixed up; empty where all is well.

    Nothing is said of boxes most of which are not about as large as their objects: those of a detector that has learnt
    nothing yet lie near objects by chance.
    """
    alike = _alike(pairs)
    if len(pairs) < _ENOUGH or not _mostly(alike):
        return []
    found, pairs = [], pairs[alike]
    long = pairs[pairs.truth[:, 4] > _LONG * pairs.truth[:, 3]]
    if len(long) >= _ENOUGH:
        swapped, turn = _swapped(long), np.abs(_angle(long.found[:, 6] - long.truth[:, 6]))
        quarter = _mostly(np.abs(turn - np.pi / 2) < _ABOUT)
        if swapped and quarter:
            found.append(
                "width and length are swapped and the yaw is a quarter turn off: boxes of mmdetection3d before 1.0 are "
                "like that; swap the two and turn the yaw by 90 degrees"
            )
        elif swapped:
            found.append("width and length are swapped: nuScenes sizes are width, length, height")
        elif quarter:
            found.append("the yaw is a quarter turn off: it is the angle of the length from the x axis")
        elif _mostly(turn > np.pi - _ABOUT):
            found.append("boxes face backwards: the yaw is half a turn off")
    speed = np.hypot(*pairs.truth[:, 7:9].T)
    moving = pairs[np.nan_to_num(speed) > _FAST]
    if len(moving) >= _ENOUGH:
        along = (moving.truth[:, 7:9] * moving.found[:, 7:9]).sum(1)
        if _mostly(along < -0.5 * np.hypot(*moving.truth[:, 7:9].T) * np.hypot(*moving.found[:, 7:9].T) - 1e-9):
            found.append("velocities point backwards: their sign is reversed")
    if len(pairs) >= _ENOUGH:
        rise = (pairs.found[:, 2] - pairs.truth[:, 2]) / pairs.truth[:, 5]
        for centre, place in ((-0.5, "low: z is that of the bottom face"), (0.5, "high: z is that of the top face")):
            if _mostly(np.abs(rise - centre) < 0.15):
                found.append(f"boxes lie half a height too {place}, where nuScenes wants the centre")
    return found


def _row(translation: Sequence[float], size: Sequence[float], rotation: Sequence[float], velocity: Any) -> list[float]:
    w, x, y, z = rotation
    yaw = np.arctan2(2 * (w * z + x * y), 1 - 2 * (y * y + z * z))
    return [*translation, *size, yaw, *velocity]


def _alike(pairs: Pairs) -> np.ndarray:
    """(N,) bool: about as large, whichever of width and length comes first."""
    truth, found = (np.log(np.hstack([np.sort(box[:, 3:5]), box[:, 5:6]])) for box in (pairs.truth, pairs.found))
    alike: np.ndarray = (np.abs(truth - found) < np.log(_SIZE)).all(1)
    return alike


def _swapped(pairs: Pairs) -> bool:
    truth, found = np.log(pairs.truth[:, 3:5]), np.log(pairs.found[:, 3:5])
    return _mostly(np.abs(truth - found[:, ::-1]).sum(1) < np.abs(truth - found).sum(1))


def _angle(radians: np.ndarray) -> np.ndarray:
    """In [-pi, pi)."""
    return (radians + np.pi) % (2 * np.pi) - np.pi


def _mostly(votes: np.ndarray) -> bool:
    return bool(votes.mean() >= _MOST)
