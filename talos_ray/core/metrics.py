"""Scores with their uncertainty: accuracy with Wilson's interval, and the means over tasks."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass

Z95 = 1.959963984540054  # two-sided 95 % quantile of the normal distribution


@dataclass(frozen=True)
class Score:
    """Accuracy of one model on one task: share of `n` inputs predicted right, with a 95 % interval."""

    value: float
    n: int
    low: float
    high: float

    def as_dict(self) -> dict[str, float | int]:
        return asdict(self)


def accuracy(correct: int, n: int) -> Score:
    """Accuracy with the interval of Wilson (1927), which stays inside [0, 1] and is right for small n.

    Raises:
        ValueError: n is 0.
    """
    if n <= 0:
        raise ValueError("accuracy of 0 inputs is undefined; wanted at least one")
    p = correct / n
    scale = 1 + Z95**2 / n
    middle = (p + Z95**2 / (2 * n)) / scale
    half = Z95 * math.sqrt(p * (1 - p) / n + Z95**2 / (4 * n * n)) / scale
    return Score(p, n, max(0.0, middle - half), min(1.0, middle + half))


def absolute_accuracy(merged: Mapping[str, float]) -> float:
    """Mean over tasks of the merged model's accuracy."""
    return sum(merged.values()) / len(merged)


def standard_error(merged: Mapping[str, float], n: Mapping[str, int]) -> float:
    """Of `absolute_accuracy`, where task t's accuracy is a share of n[t] independent inputs."""
    return math.sqrt(sum(a * (1 - a) / n[t] for t, a in merged.items())) / len(merged)


def normalized_accuracy(merged: Mapping[str, float], single: Mapping[str, float]) -> float:
    """Mean over tasks of merged / single-task accuracy (Ilharco et al., 2023). A single-task score of 0 counts as 1/inf."""
    return sum(merged[t] / max(single[t], 1e-9) for t in merged) / len(merged)


def worst_kept(scores: Mapping[str, float], before: Mapping[str, float]) -> tuple[float, str]:
    """(share of the score before, task) of the task that kept least; (1, "") where there is none."""
    return min(((scores[t] / max(score, 1e-9), t) for t, score in before.items()), default=(1.0, ""))


@dataclass(frozen=True)
class MergeObjective:
    """What a candidate is worth: mean normalized accuracy of the targets, if every control task holds.

    A candidate whose control falls below `keep` of the base's is worth less than 0, the less the further it falls:
    it never beats one that holds, and a search is led back. Where tasks are to be forgotten (task negation: Ilharco et al.,
    2023), it is worth the share of their inputs that are wrong.

    Args:
        single: target task -> single-task accuracy, or the accuracy before.
        control: task that must hold -> accuracy of which it must keep `keep`.
        keep: share of it that must hold.
        forgotten: targets that are to be forgotten.
    """

    single: Mapping[str, float]
    control: Mapping[str, float]
    keep: float
    forgotten: frozenset[str] = frozenset()

    def __call__(self, scores: Mapping[str, float]) -> float:
        kept, _ = worst_kept(scores, self.control)
        if kept < self.keep:
            return kept - self.keep - 1.0
        worth = {t: 1.0 - scores[t] if t in self.forgotten else scores[t] / max(s, 1e-9) for t, s in self.single.items()}
        return sum(worth.values()) / max(1, len(worth))
