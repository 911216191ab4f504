"""Two models on the same inputs: what an input that both get right says nothing about, and what the others do."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch

from talos_ray.core.metrics import Z95, Score, by_stratum, score, share_right, strata_of

RESAMPLED = 2000  # draws of the bootstrap
EXACT = (
    4000  # changed answers up to which McNemar's p is the exact one; above, the normal form is as good to three digits
)
POWER80 = 0.8416212335729143  # 80 % quantile of the normal distribution
TINY = 1e-12  # variance that is none
MOST_KEPT = 1000.0  # end of an interval that has none: a score of almost nothing was kept many times


@dataclass(frozen=True, eq=False)
class Answers:
    """What a model predicts on some inputs, and what is right: task -> class numbers int32 [n]; `data`: task ->
    fingerprint of the inputs, in their order; `probability`: task -> that of each answer, float32 [n] (none from
    earlier releases); `metrics`: task -> what its score is, where that is not accuracy."""

    predicted: Mapping[str, torch.Tensor]
    labels: Mapping[str, torch.Tensor]
    data: Mapping[str, str]
    probability: Mapping[str, torch.Tensor] = field(default_factory=dict)
    metrics: Mapping[str, str] = field(default_factory=dict)

    def right(self, task: str) -> torch.Tensor:
        """bool [n]."""
        return self.predicted[task] == self.labels[task]

    def strata(self, task: str) -> torch.Tensor | None:
        """What each input counts in, in the task's score: `strata_of`."""
        return strata_of(self.labels[task], self.metrics.get(task, "accuracy"))

    def score(self, task: str) -> Score:
        return score(self.right(task), self.strata(task))


@dataclass(frozen=True)
class Change:
    """How right answers changed from one model to another, on n inputs: `won` became right, `lost` became wrong; `p`
    is the two-sided p-value of McNemar's test, that as many would change either way: exact, or in its normal form
    where more than `EXACT` changed or inputs do not count alike. `before`, `after`: the scores."""

    n: int
    before: float
    after: float
    won: int
    lost: int
    p: float


def change(before: torch.Tensor, after: torch.Tensor, strata: torch.Tensor | None = None) -> Change:
    """From bool [n] (right or wrong) of the first and of the second model (McNemar, 1947).

    Args:
        strata: `strata_of`.
    """
    n = len(before)
    won = int((after & ~before).sum())
    lost = int((before & ~after).sum())
    p = _mcnemar(min(won, lost), won + lost) if strata is None else _stratified_signs(before, after, strata)
    return Change(
        n=n,
        before=score(before, strata).value,
        after=score(after, strata).value,
        won=won,
        lost=lost,
        p=p,
    )


def _stratified_signs(before: torch.Tensor, after: torch.Tensor, strata: torch.Tensor) -> float:
    """Two-sided p that changed answers add up to as much either way, each being as likely to be for the better as for
    the worse: McNemar's test where classes count alike, in its normal form."""
    total = 0.0
    variance = 0.0
    for changed in by_stratum(after.double() - before.double(), strata):
        # An answer of a small class counts more, by one over the class's inputs.
        total += float(changed.sum()) / len(changed)
        variance += float(changed.square().sum()) / len(changed) ** 2
    if variance < TINY:  # nothing changed
        return 1.0
    return math.erfc(abs(total) / math.sqrt(2 * variance))


def _mcnemar(fewer: int, changed: int) -> float:
    """Two-sided p that of `changed` answers as few as `fewer` change the one way, if either way is as likely."""
    if changed > EXACT:
        z = max(0.0, changed - 2 * fewer - 1) / math.sqrt(changed)  # less 1: Edwards' correction for continuity
        return math.erfc(z / math.sqrt(2))
    # In whole numbers, which Python has of any size: a binomial coefficient of thousands fits no float.
    ways = 1  # of choosing none; each next number of ways comes from the one before
    tail = 1
    for i in range(fewer):
        ways = ways * (changed - i) // (i + 1)
        tail += ways
    return min(1.0, 2 * tail / (1 << changed))


def kept_z(both: Any, lost: Any, won: Any, n: Any, share: float) -> np.ndarray:
    """How many standard errors accuracy after lies above share x accuracy before: the score test of a ratio of paired
    shares (Nam & Blackwelder, 2002). Its variance is the one that holds where the two are equal, so it keeps its
    promise for few inputs and for scores near 1, where Wald's does not. Counts, or arrays of them: right in both,
    became wrong, became right, of `n`.
    """
    both, lost, won = (np.asarray(count, dtype=np.float64) for count in (both, lost, won))
    over, variance = _over(both, lost, won, n, share)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(variance > TINY, over / np.sqrt(variance), 0.0)


def _over(both: Any, lost: Any, won: Any, n: Any, share: float) -> tuple[Any, Any]:
    """After - share x before as a count, and its variance: the most likely one among those for which it is 0 in
    truth."""
    before = both + lost
    after = both + won
    square = share * share
    # The likelihood is largest where a quadratic equation in the share that became right has its upper root.
    root = ((after - square * before) ** 2 + 4 * square * won * lost) ** 0.5
    numerator = root - after + square * (before + 2 * won)
    became_right = numerator / (2 * n * share * (share + 1))
    became_wrong = share * became_right + (1 - share) * (both + lost + won) / n
    over = after - share * before
    return over, n * share * (became_right + became_wrong)


def kept(before: torch.Tensor, after: torch.Tensor, strata: torch.Tensor | None = None) -> tuple[float, float, float]:
    """Accuracy after / accuracy before, and its 95 % interval: the shares that `kept_above` does not reject. From bool
    [n]."""
    over: Callable[[float], tuple[float, float]]
    if strata is None:
        counts = _counts(before, after)
        both, lost, won, _ = counts
        had: float = both + lost
        has: float = both + won
        over = partial(_over, *counts)
    else:
        had = share_right(before, strata)
        has = share_right(after, strata)
        over = partial(_over_by_class, before, after, strata)
    # Of nothing everything was kept; and if something came of it, more than can be said.
    value = MOST_KEPT if has else 1.0
    if had:
        value = min(has / had, MOST_KEPT)
    return value, _share_at(over, Z95), _share_at(over, -Z95)


def _over_by_class(
    before: torch.Tensor, after: torch.Tensor, strata: torch.Tensor, share: float
) -> tuple[float, float]:
    """After - share x before where classes count alike, and its variance."""
    over, error = margin([before], [after], share, [strata])
    return over, error * error


def kept_above(before: torch.Tensor, after: torch.Tensor, share: float, strata: torch.Tensor | None = None) -> float:
    """How many standard errors accuracy after lies above share x accuracy before, from bool [n] each: `kept_z`, or by
    `margin` where classes count alike."""
    if strata is None:
        return float(kept_z(*_counts(before, after), share))
    over, error = margin([before], [after], share, [strata])
    return over / error if error > 0 else 0.0


def _counts(before: torch.Tensor, after: torch.Tensor) -> tuple[int, int, int, int]:
    """Right in both, became wrong, became right, all."""
    both = int((before & after).sum())
    return both, int(before.sum()) - both, int(after.sum()) - both, len(before)


def _share_at(over: Callable[[float], tuple[float, float]], z: float) -> float:
    """The share that lies `z` standard errors below what was kept: these fall as the share grows, so by halving.

    Args:
        over: a share -> after - share x before, and its variance.
    """
    low = 0.0
    high = MOST_KEPT
    for _ in range(60):
        # By ratios while the upper end is far: shares lie near 1, and it begins at a thousand.
        middle = (low + high) / 2 if high < 2 else math.sqrt(max(low, 1e-3) * high)
        above, variance = over(middle)
        if variance > TINY and above / math.sqrt(variance) > z:
            low = middle
        else:
            high = middle
    return high


def holm(p: Sequence[float], level: float) -> list[bool]:
    """Which of several hypotheses are rejected, so that a true one is among them with a probability of at most `level`
    (Holm, 1979)."""
    order = sorted(range(len(p)), key=p.__getitem__)
    rejected = [False] * len(p)
    for rank, i in enumerate(order):
        if p[i] > level / (len(p) - rank):
            break
        rejected[i] = True
    return rejected


def margin(
    before: Sequence[torch.Tensor],
    after: Sequence[torch.Tensor],
    share: float,
    strata: Sequence[torch.Tensor | None] | None = None,
) -> tuple[float, float]:
    """Mean over tasks of accuracy after - share x accuracy before, and its standard error, from bool [n] a task.

    An input of each kind of change is added to every task: without them few inputs without a change would look like
    certainty (the adjusted Wald interval of Bonett & Price, 2012, for paired proportions; here with a share).

    Args:
        strata: of each task's inputs, `strata_of`; the same is done in each of its classes then.
    """
    means = []
    variances = []
    added = torch.tensor([1.0, -share], dtype=torch.float64)
    for task_before, task_after, of_task in zip(before, after, strata or [None] * len(before), strict=True):
        parts = by_stratum(task_after.double() - share * task_before.double(), of_task)
        mean = 0.0
        variance = 0.0
        for differences in parts:
            adjusted = torch.cat([differences, added])
            mean += float(differences.mean()) / len(parts)
            variance += float(adjusted.var(correction=0)) / len(adjusted) / len(parts) ** 2
        means.append(mean)
        variances.append(variance)
    return sum(means) / len(means), math.sqrt(sum(variances)) / len(means)


def wanted_inputs(value: float, error: float, n: int) -> tuple[int, int | None] | None:
    """From how many to how many inputs, of which there are n, would tell on which side of 0 a `margin` lies; None
    where none would.

    The margin is itself uncertain. The lower end holds if it is a standard error larger than it looks; the upper end
    if it is one smaller, and the answer is to come out with a chance of 80 %. There is no upper end where it might
    then be nothing at all.
    """
    if value == 0:
        return None
    size = abs(value)
    # An error falls as the root of the inputs: what it is to be, over what it is, squared, says how many more.
    least = max(n, math.ceil(n * (Z95 * error / (size + error)) ** 2))
    if size <= error:
        return least, None
    most = math.ceil(n * ((Z95 + POWER80) * error / (size - error)) ** 2)
    return least, max(n, most)


def bootstrap(
    samples: Sequence[torch.Tensor], seed: int = 0, strata: Sequence[torch.Tensor | None] | None = None
) -> tuple[float, float]:
    """95 % interval of the mean over tasks of each task's mean, by the percentile bootstrap (Efron, 1979): inputs are
    drawn anew within every task, or within every class of it where classes count alike.

    Args:
        samples: what each task's inputs score, [n] each, of few different values (0 and 1; or -1, 0 and 1 for a paired
            difference), so that drawing how often each comes up is the same as drawing inputs.
        strata: of each task's inputs, `strata_of`.
    """
    generator = np.random.default_rng(seed)
    total = np.zeros(RESAMPLED)
    for scores, of_task in zip(samples, strata or [None] * len(samples), strict=True):
        parts = by_stratum(scores.double(), of_task)
        for part in parts:
            n = len(part)
            values, counts = part.unique(return_counts=True)
            drawn = generator.multinomial(n, (counts / n).numpy(), size=RESAMPLED)  # [RESAMPLED, values]
            total += drawn @ values.numpy() / n / len(parts)
    low, high = np.quantile(total / len(samples), (0.025, 0.975))
    return float(low), float(high)
