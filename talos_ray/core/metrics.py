"""Scores with their uncertainty: accuracy with Wilson's interval, and the means over tasks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch

Z95 = 1.959963984540054  # two-sided 95 % quantile of the normal distribution
BINS = 15  # of the expected calibration error, of equal width


@dataclass(frozen=True)
class Score:
    """Accuracy of one model on one task, on `n` inputs, with a 95 % interval: the share that is predicted right, or the
    mean of that share over the classes (balanced accuracy)."""

    value: float
    n: int
    low: float
    high: float

    def as_dict(self) -> dict[str, float | int]:
        return asdict(self)


def strata_of(labels: torch.Tensor, metric: str) -> torch.Tensor | None:
    """The class that each input counts in, int [n], where classes count alike; None where inputs do.

    Balanced accuracy, the mean recall of the classes, is a mean over strata: so whatever compares two models input by
    input serves it as well, class by class.

    Args:
        labels: int [n]. metric: 'accuracy' or 'balanced_accuracy'.
    """
    return None if metric == "accuracy" else labels


def by_stratum(values: torch.Tensor, strata: torch.Tensor | None) -> list[torch.Tensor]:
    """Values of inputs, [n], apart by the class that they count in, in the order of the classes; all as one, if inputs
    count alike."""
    if strata is None:
        return [values]
    order = strata.argsort(stable=True)
    inputs = strata.unique(return_counts=True)[1].tolist()
    return list(values[order].split(inputs))


def share_right(right: torch.Tensor, strata: torch.Tensor | None = None) -> float:
    """Accuracy, or balanced accuracy. `right`: bool [n]; `strata`: `strata_of`."""
    if strata is None:
        return float(right.float().mean())
    shares = [int(part.sum()) / len(part) for part in by_stratum(right, strata)]
    return sum(shares) / len(shares)


def score(right: torch.Tensor, strata: torch.Tensor | None = None) -> Score:
    """The same with its interval: Wilson's, or that of a mean over classes.

    Raises:
        ValueError: there are no inputs.
    """
    if strata is None or not len(right):
        return accuracy(int(right.sum()), len(right))
    parts = by_stratum(right, strata)
    value = sum(int(part.sum()) / len(part) for part in parts) / len(parts)
    middle = 0.0
    variance = 0.0
    for part in parts:
        # One more right and one more wrong in each class: few inputs that are all right are no certainty (Agresti &
        # Coull, 1998).
        n = len(part) + 2
        p = (int(part.sum()) + 1) / n
        middle += p / len(parts)
        variance += p * (1 - p) / n / len(parts) ** 2
    half = Z95 * math.sqrt(variance)
    # Its middle is drawn towards one half, but the interval holds the value that it is about.
    low = min(value, max(0.0, middle - half))
    return Score(value, len(right), low, max(value, min(1.0, middle + half)))


def accuracy(correct: int, n: int) -> Score:
    """Accuracy with the interval of Wilson (1927), which stays inside [0, 1] and is right for small n.

    Raises:
        ValueError: n is 0.
    """
    if n <= 0:
        raise ValueError("accuracy of 0 inputs is undefined; wanted at least one")
    p = correct / n
    # Drawn towards one half, the more the fewer inputs there are.
    scale = 1 + Z95**2 / n
    middle = (p + Z95**2 / (2 * n)) / scale
    variance = p * (1 - p) / n + Z95**2 / (4 * n * n)
    half = Z95 * math.sqrt(variance) / scale
    # Rounding may lead out of [0, 1].
    return Score(p, n, max(0.0, middle - half), min(1.0, middle + half))


@dataclass(frozen=True, kw_only=True)
class ClassScores:
    """What accuracy does not say of answers on some inputs.

    Args:
        confusion: [classes][classes], how many inputs of a class (row) were answered as which (column).
        precision: a class -> share of its answers that are right; None where it was never answered.
        recall: a class -> share of its inputs that are answered right; None where it has none.
        balanced_accuracy: mean recall of the classes that have inputs.
        macro_f1: mean F1 of the classes that have inputs or were answered.
        calibration_error: see `calibration_error`; None where probabilities were not recorded.
    """

    confusion: list[list[int]]
    precision: list[float | None]
    recall: list[float | None]
    balanced_accuracy: float
    macro_f1: float
    calibration_error: float | None = None

    def as_dict(self) -> dict[str, object]:
        return asdict(self)


def class_scores(
    predicted: torch.Tensor, labels: torch.Tensor, classes: int, probability: torch.Tensor | None = None
) -> ClassScores:
    """From class numbers, int [n] each, and probabilities of the answers, float32 [n], as scikit-learn defines them;
    a number that is none of a class counts for nothing, as there."""
    known = (labels >= 0) & (labels < classes) & (predicted >= 0) & (predicted < classes)
    cells = labels[known].long() * classes + predicted[known].long()
    confusion = cells.bincount(minlength=classes**2).view(classes, classes).numpy()
    right = confusion.diagonal()
    inputs = confusion.sum(1)
    answered = confusion.sum(0)
    # What cannot be told is NaN, and no class that is absent counts in a mean.
    with np.errstate(invalid="ignore"):
        precision = right / answered
        recall = right / inputs
        f1 = 2 * right / (inputs + answered)
    calibration = None
    if probability is not None:
        calibration = calibration_error(probability, predicted == labels)
    return ClassScores(
        confusion=confusion.tolist(),
        precision=_none_for_nan(precision),
        recall=_none_for_nan(recall),
        balanced_accuracy=float(np.nanmean(recall)),
        macro_f1=float(np.nanmean(f1)),
        calibration_error=calibration,
    )


def _none_for_nan(values: np.ndarray) -> list[float | None]:
    """JSON, in which scores are stored, has no NaN."""
    return [None if np.isnan(value) else float(value) for value in values]


def mostly_taken_for(row: Sequence[int], place: int, classes: Sequence[str]) -> str:
    """'dusk (12)': the other class that inputs of a class are answered as most often; nothing, where none are."""
    others = [i for i in range(len(row)) if i != place]
    most = max(others, key=row.__getitem__)  # of equal ones the first
    return f"{classes[most]} ({row[most]})" if row[most] else ""


def calibration_error(probability: torch.Tensor, right: torch.Tensor) -> float:
    """Expected calibration error (Guo et al., 2017): how far the probability of answers is from the share of them that
    is right, in each of `BINS` bins of equal width, (0, 1/15] to (14/15, 1], and on average over the answers.

    Args:
        probability, right: of the answer to each input, float [n] and bool [n].
    """
    bins = (probability.double() * BINS).ceil().clamp(1, BINS).long() - 1  # [n]
    # Of a bin, mean probability - accuracy, times the answers in it: so empty bins divide by nothing.
    gaps = torch.zeros(BINS, dtype=torch.float64)
    gaps.index_add_(0, bins, probability.double() - right.double())
    return float(gaps.abs().sum()) / len(right)


def absolute_accuracy(merged: Mapping[str, float]) -> float:
    """Mean over tasks of the merged model's accuracy."""
    return sum(merged.values()) / len(merged)


def standard_error(merged: Mapping[str, float], n: Mapping[str, int]) -> float:
    """Of `absolute_accuracy`, where task t's accuracy is a share of n[t] independent inputs."""
    variances = [accuracy * (1 - accuracy) / n[task] for task, accuracy in merged.items()]
    return math.sqrt(sum(variances)) / len(merged)


def normalized_accuracy(merged: Mapping[str, float], single: Mapping[str, float]) -> float:
    """Mean over tasks of merged / single-task accuracy (Ilharco et al., 2023). A single-task score of 0 counts as
    1/inf."""
    return sum(merged[task] / max(single[task], 1e-9) for task in merged) / len(merged)


def worst_kept(scores: Mapping[str, float], before: Mapping[str, float]) -> tuple[float, str]:
    """(share of the score before, task) of the task that kept least; (1, "") where there is none."""
    shares = [(scores[task] / max(score, 1e-9), task) for task, score in before.items()]
    return min(shares, default=(1.0, ""))


@dataclass(frozen=True)
class MergeObjective:
    """What a candidate is worth: mean normalized accuracy of the targets, if every control task holds.

    A candidate whose control falls below `keep` of the base's is worth less than 0, the less the further it falls:
    it never beats one that holds, and a search is led back. Where tasks are to be forgotten (task negation: Ilharco et
    al., 2023), it is worth the share of their inputs that are wrong.

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
        share, _ = worst_kept(scores, self.control)
        if share < self.keep:
            return share - self.keep - 1.0
        worth = []
        for task, single in self.single.items():
            # A task that is to be forgotten has no single-task score to reach: the fewer right answers the better.
            forgotten = task in self.forgotten
            worth.append(1.0 - scores[task] if forgotten else scores[task] / max(single, 1e-9))
        return sum(worth) / max(1, len(worth))
