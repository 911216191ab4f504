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


def normalized_accuracy(merged: Mapping[str, float], single: Mapping[str, float]) -> float:
    """Mean over tasks of merged / single-task accuracy (Ilharco et al., 2023). A single-task score of 0 counts as 1/inf."""
    return sum(merged[t] / max(single[t], 1e-9) for t in merged) / len(merged)
