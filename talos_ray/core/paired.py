"""Two models on the same inputs: what an input that both get right says nothing about, and what the others do."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from talos_ray.core.metrics import Z95

RESAMPLED = 2000  # draws of the bootstrap


@dataclass(frozen=True, eq=False)
class Answers:
    """What a model predicts on some inputs, and what is right: task -> class numbers int32 [n]; `data`: task -> fingerprint of
    the inputs, in their order."""

    predicted: Mapping[str, torch.Tensor]
    labels: Mapping[str, torch.Tensor]
    data: Mapping[str, str]

    def right(self, task: str) -> torch.Tensor:
        """bool [n]."""
        return self.predicted[task] == self.labels[task]

    def counts(self, task: str) -> tuple[int, int]:
        """(right predictions, inputs)."""
        return int(self.right(task).sum()), len(self.labels[task])


@dataclass(frozen=True)
class Change:
    """How right answers changed from one model to another, on n inputs: `won` became right, `lost` became wrong; `p` is the
    two-sided p-value of McNemar's exact test, that as many would change either way."""

    n: int
    before: float
    after: float
    won: int
    lost: int
    p: float


def change(before: torch.Tensor, after: torch.Tensor) -> Change:
    """From bool [n] (right or wrong) of the first and of the second model (McNemar, 1947)."""
    won, lost = int((after & ~before).sum()), int((before & ~after).sum())
    n = len(before)
    tail = sum(math.comb(won + lost, i) for i in range(min(won, lost) + 1))
    p = min(1.0, float(2 * tail / 2 ** (won + lost)))
    return Change(n, int(before.sum()) / n, int(after.sum()) / n, won, lost, p)


def margin(before: Sequence[torch.Tensor], after: Sequence[torch.Tensor], share: float) -> tuple[float, float]:
    """Mean over tasks of accuracy after - share x accuracy before, and its standard error, from bool [n] a task.

    An input of each kind of change is added to every task: without them few inputs without a change would look like
    certainty (the adjusted Wald interval of Bonett & Price, 2012, for paired proportions; here with a share).
    """
    means, variances = [], []
    for b, a in zip(before, after, strict=True):
        plain = a.double() - share * b.double()
        seen = torch.cat([plain, torch.tensor([1.0, -share], dtype=torch.float64)])
        means.append(float(plain.mean()))
        variances.append(float(seen.var(correction=0)) / len(seen))
    return sum(means) / len(means), math.sqrt(sum(variances)) / len(means)


def wanted_inputs(value: float, error: float, n: int) -> int | None:
    """How many inputs, of which there are n, would tell on which side of 0 a `margin` lies; None where none would."""
    return None if value == 0 else max(n, math.ceil(n * (Z95 * error / value) ** 2))


def bootstrap(samples: Sequence[torch.Tensor], seed: int = 0) -> tuple[float, float]:
    """95 % interval of the mean over tasks of each task's mean, by the percentile bootstrap (Efron, 1979): inputs are drawn anew within
    every task. `samples`: what each task's inputs score, [n] each, of few different values (0 and 1; or -1, 0 and 1 for a paired
    difference), so that drawing how often each comes up is the same as drawing inputs."""
    dice, total = np.random.default_rng(seed), np.zeros(RESAMPLED)
    for x in samples:
        values, counts = x.double().unique(return_counts=True)
        total += dice.multinomial(len(x), (counts / len(x)).numpy(), size=RESAMPLED) @ values.numpy() / len(x)
    low, high = np.quantile(total / len(samples), (0.025, 0.975))
    return float(low), float(high)
