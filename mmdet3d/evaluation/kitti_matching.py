"""How the KITTI evaluator assigns detections to objects and picks score thresholds; for all frames at once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

__all__ = ["SAMPLES", "Candidates", "Counts", "best_by_overlap", "best_by_score", "count", "thresholds"]

SAMPLES = 41  # recall 0, 1/40, ..., 1
_WEAK = np.finfo(np.float64).tiny  # preference for an ignored detection, less than any overlap


@dataclass
class Candidates:
    """Pairs that overlap enough, of objects and detections that matter to one class and difficulty.

    An ignored object or detection takes its partner away from others, and neither counts. Left out are objects and
    detections that do not even do that.

    Args:
        label, result: (P,) indices, ordered by object, then detection.
        overlap: (P,) > 0.
        frames: (G,) frame of each object, ascending.
        label_counts: (G,) bool: to be found, not ignored.
        result_counts: (D,) bool: a detection of the class, not ignored.
        scores: (D,)
        similarity: (P,) of the orientations, 0 to 1.
        excused: (D,) bool: lies in a DontCare region, so it is no false positive.
    """

    label: np.ndarray
    result: np.ndarray
    overlap: np.ndarray
    frames: np.ndarray
    label_counts: np.ndarray
    result_counts: np.ndarray
    scores: np.ndarray
    similarity: np.ndarray
    excused: np.ndarray


@dataclass
class Counts:
    """Per threshold (T,): true and false positives, objects missed, and the sum of the orientation similarities."""

    true: np.ndarray
    false: np.ndarray
    missed: np.ndarray
    similarity: np.ndarray


def best_by_score(candidates: Candidates) -> np.ndarray:
    """Scores of the true positives if each object takes the free detection of highest score."""
    order = np.unique(candidates.scores, return_inverse=True)[1] + 1.0  # scores may be negative
    chosen, _ = _assign(candidates, order[candidates.result][:, None])
    pair = chosen[chosen >= 0]
    return candidates.scores[candidates.result[pair[_both_count(candidates)[pair]]]]


def best_by_overlap(candidates: Candidates, limits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each object takes the free detection of largest overlap among those with scores of at least `limits` (T,).

    An ignored detection is taken only where there is no other, then the first of them.

    Returns:
        (G', T) pair taken by each object that has candidates, -1 for none; (D, T) bool, detections taken.
    """
    wish = np.where(candidates.result_counts[candidates.result], candidates.overlap, _WEAK)[:, None]
    return _assign(candidates, np.where(candidates.scores[candidates.result][:, None] >= limits, wish, 0.0))


def count(candidates: Candidates, limits: np.ndarray) -> Counts:
    """Outcome at the score thresholds `limits` (T,)."""
    chosen, taken = best_by_overlap(candidates, limits)
    found = chosen >= 0
    true = found & _both_count(candidates)[chosen]
    objects = candidates.label_counts[candidates.label[chosen]]
    similarity = np.where(true, candidates.similarity[chosen], 0.0)
    may_be_false = candidates.result_counts & ~candidates.excused
    false = ~taken[may_be_false] & (candidates.scores[may_be_false][:, None] >= limits)
    return Counts(
        true=true.sum(0),
        false=false.sum(0),
        missed=candidates.label_counts.sum() - (found & objects).sum(0),
        similarity=similarity.sum(0),
    )


def thresholds(scores: np.ndarray, objects: int) -> np.ndarray:
    """At most 41 of the scores of true positives, descending: those whose recall is nearest to 0, 1/40, 2/40, ...

    Args:
        scores: (N,) of the true positives.
        objects: how many objects there are to find.
    """
    chosen: list[float] = []
    recall = 0.0
    descending = np.sort(scores)[::-1].tolist()
    for i, score in enumerate(descending):
        here, after = (i + 1) / objects, (i + 2) / objects
        if i < len(descending) - 1 and after - recall < recall - here:
            continue
        chosen.append(score)
        recall += 1 / (SAMPLES - 1)
    return np.array(chosen[:SAMPLES])


def _both_count(candidates: Candidates) -> np.ndarray:
    """(P,) bool: a true positive if taken."""
    return candidates.label_counts[candidates.label] & candidates.result_counts[candidates.result]


def _assign(candidates: Candidates, preference: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Objects of a frame choose one after the other, those of different frames at the same time.

    Args:
        preference: (P, T): each object takes the free detection that it prefers most, the first among equals; 0: never.

    Returns:
        As `best_by_overlap`.
    """
    label, result = candidates.label, candidates.result
    starts = np.flatnonzero(np.diff(label, prepend=-1))
    lengths = np.diff(starts, append=len(label))
    frames = candidates.frames[label[starts]]
    turns = np.arange(len(starts)) - np.searchsorted(frames, frames)
    turn_of_pair = np.repeat(turns, lengths)

    n_trials = preference.shape[1]
    chosen = np.full((len(starts), n_trials), -1)
    taken = np.zeros((len(candidates.scores), n_trials), dtype=bool)
    for turn in range(turns.max(initial=-1) + 1):
        group, rows = np.flatnonzero(turns == turn), np.flatnonzero(turn_of_pair == turn)
        first, wish = _first_maximum(np.where(taken[result[rows]], 0.0, preference[rows]), lengths[group])
        chosen[group] = np.where(wish > 0, rows[first], -1)
        at, trial = np.nonzero(wish > 0)
        taken[result[chosen[group[at], trial]], trial] = True
    return chosen, taken


def _first_maximum(values: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Per run of `lengths` rows and per column of `values`: the first row that holds the maximum, and the maximum."""
    starts = np.cumsum(lengths) - lengths
    largest = np.maximum.reduceat(values, starts, axis=0)
    rows = np.where(values == np.repeat(largest, lengths, axis=0), np.arange(len(values))[:, None], len(values))
    return np.minimum.reduceat(rows, starts, axis=0), largest
