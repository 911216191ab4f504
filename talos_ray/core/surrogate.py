"""Surrogate search: predict the logits of any coefficients from T + 1 evaluations, and climb on the prediction.

    f(a) ~ f(c) + sum_t (a_t - c_t) * (f(h e_t) - f(0)) / h

The anchor c is the base at first, then the best candidate evaluated so far: its true logits take the place of
the prediction there, so that the linear model is right where the search goes on (ours; when fine-tuned
networks are that linear is studied by Ortiz-Jimenez et al., NeurIPS 2023). Where edits get in each other's way, which
single ones do not show, the slopes are taken again at the anchor. A sample of the inputs is enough, as
the anchor's scores on all inputs are known too. The surrogate only proposes. What is chosen and reported are true
evaluations.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch

from talos_ray.core.metrics import MergeObjective

PRESSURES = (0.0, 0.2, 0.5, 1.0)  # how hard a falling control task pushes back: one climb each
CLIMB_STEPS = 100
STEP_SHARE = 0.02  # of the range between the bounds, moved in one step of a climb
SCALES = (
    0.1,
    0.2,
    0.3,
    0.4,
    0.5,
    0.6,
    0.7,
    0.8,
    0.9,
    1.1,
    1.25,
    1.5,
)  # each climb is also proposed shorter and longer: the linear model errs most in length
APART = 0.03  # of the range, in the largest coefficient: what is closer counts as the same candidate
AT_ONCE = 16  # points that are predicted together
HOLD_OUT = 4  # one input in four judges a climb and does not lead it
SMALL = 1 << 16  # logits of a task in a climb: below, a second thread gains nothing and spins where others work


@dataclass(frozen=True, eq=False)
class Surrogate:
    """A linear model of the logits in the coefficients a [T].

    Args:
        constant: task -> logits at a = 0, float32 [n, C].
        slopes: task -> change of the logits with each coefficient, float32 [T, n, C].
        labels: task -> int64 [n].
        objective: what a candidate's accuracies are worth.
        low, high: bounds of the coefficients, of all or of each [T].
        correction: task -> the anchor's accuracy on all inputs, in units of that on these n.
    """

    constant: Mapping[str, torch.Tensor]
    slopes: Mapping[str, torch.Tensor]
    labels: Mapping[str, torch.Tensor]
    objective: MergeObjective
    low: float | torch.Tensor
    high: float | torch.Tensor
    correction: Mapping[str, float] = field(default_factory=dict)

    def around(
        self, a: torch.Tensor, logits: Mapping[str, torch.Tensor], scores: Mapping[str, float] | None = None
    ) -> Surrogate:
        """The same slopes through the true logits of one evaluated candidate; `scores`: its accuracies on all inputs, of
        tasks where these are more than the n of the logits."""
        seen = {t: float((logits[t].argmax(-1) == self.labels[t]).float().mean()) for t in scores or ()}
        return replace(
            self,
            constant={t: logits[t] - torch.tensordot(a, s, 1) for t, s in self.slopes.items()},
            correction={t: scores[t] / right for t, right in seen.items() if right},
        )

    def within(self, center: torch.Tensor, reach: float) -> Surrogate:
        """The same, with no coefficient further than `reach` from that of the center [T]."""
        low, high = (torch.as_tensor(bound) for bound in (self.low, self.high))
        return replace(self, low=(center - reach).clamp(min=low), high=(center + reach).clamp(max=high))

    @property
    def range(self) -> float:
        """The widest distance between the bounds."""
        return float(torch.as_tensor(self.high - self.low).max())

    def _bounded(self, a: torch.Tensor) -> torch.Tensor:
        return a.clamp(*(torch.as_tensor(bound) for bound in (self.low, self.high)))

    def _logits(self, task: str, a: torch.Tensor) -> torch.Tensor:
        """Of every input under every point of a [B, T]: float32 [B, n, C]."""
        slopes = self.slopes[task]
        return self.constant[task] + (a @ slopes.flatten(1)).view(-1, *slopes.shape[1:])

    def accuracies(self, a: torch.Tensor) -> list[dict[str, float]]:
        """Predicted accuracy of every task at every point of a [B, T]."""
        found: list[dict[str, float]] = []
        corrected = self.correction
        for points in a.split(AT_ONCE):
            right = {t: (self._logits(t, points).argmax(-1) == y).float().mean(1) for t, y in self.labels.items()}
            found += [{t: float(r[i]) * corrected.get(t, 1.0) for t, r in right.items()} for i in range(len(points))]
        return found

    def predict(self, a: torch.Tensor) -> list[float]:
        """Predicted objective at every point of a [B, T]."""
        return [self.objective(scores) for scores in self.accuracies(a)]

    def climb(self, starts: torch.Tensor, pressures: torch.Tensor) -> torch.Tensor:
        """Gradient ascent from every point of `starts` [B, T] on the mean confidence of the targets, each in units of its
        single-task score (descent, where the objective is to forget), less its `pressures` [B] times what control tasks
        lose. Returns the points [B, T] at which inputs that did not lead were best."""
        target, control = self.objective.single, self.objective.control
        judge = {t: torch.zeros(len(y), dtype=torch.bool) for t, y in self.labels.items()}
        for rows in judge.values():
            rows[sampled_rows(len(rows), -(-len(rows) // HOLD_OUT))] = True

        def confidence(a: torch.Tensor) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
            """Mean probability [B] of the right class, an accuracy that has a gradient: of those that lead and that judge."""
            lead, held = {}, {}
            for t, y in self.labels.items():
                right = self._logits(t, a).softmax(-1).gather(-1, y.expand(len(a), -1)[..., None])[..., 0]
                lead[t], held[t] = right[:, ~judge[t]].mean(1), right[:, judge[t]].detach().mean(1)
            return lead, held

        def worth(c: dict[str, torch.Tensor], floor: dict[str, torch.Tensor]) -> torch.Tensor:
            gain = self.objective.sign * sum(c[t] / max(target[t], 1e-9) for t in target) / len(target)
            return gain - pressures * sum((1 - c[t] / floor[t]).clamp(min=0) for t in control)

        with torch.no_grad():
            floors = confidence(torch.zeros_like(starts[:1]))
        a = starts.clone().requires_grad_()
        adam = torch.optim.Adam([a], lr=STEP_SHARE * self.range)
        best, best_worth = starts.clone(), torch.full((len(starts),), -torch.inf)
        for _ in range(CLIMB_STEPS):
            adam.zero_grad()
            lead, held = confidence(a)
            (-worth(lead, floors[0]).sum()).backward()
            with torch.no_grad():
                judged = worth(held, floors[1])
                better = judged > best_worth
                best[better], best_worth[better] = a[better], judged[better]
                adam.step()
                a.copy_(self._bounded(a))
        return best

    def propose(
        self, starts: Sequence[torch.Tensor], known: Sequence[torch.Tensor], count: int
    ) -> list[tuple[float, torch.Tensor]]:
        """(predicted objective, a [T]) of the `count` most promising candidates that are not `known`, best first."""
        climbs = torch.stack([start for start in starts for _ in PRESSURES])
        threads = torch.get_num_threads()
        if len(climbs) * max(f.numel() for f in self.constant.values()) < SMALL:
            torch.set_num_threads(1)
        try:
            climbed = self.climb(climbs, torch.tensor(PRESSURES * len(starts)))
            scaled = self._bounded((climbed[:, None] * torch.tensor(SCALES)[:, None]).flatten(0, 1))
            found = torch.cat([climbed, scaled])
            predicted = self.predict(found)
        finally:
            torch.set_num_threads(threads)
        ranked = sorted(zip(predicted, found, strict=True), key=lambda p: -p[0])
        chosen: list[tuple[float, torch.Tensor]] = []
        for value, a in ranked:
            others = [*known, *(b for _, b in chosen)]
            if len(chosen) < count and all(float((a - b).abs().max()) > APART * self.range for b in others):
                chosen.append((value, a))
        return chosen


def sampled_rows(n: int, most: int) -> torch.Tensor:
    """At most `most` of n row numbers (int64, ascending), always the same ones. Drawn, because every second row of data whose
    classes take turns has half of the classes."""
    return torch.randperm(n, generator=torch.Generator().manual_seed(n))[:most].sort().values


def rank_correlation(x: Sequence[float], y: Sequence[float]) -> float:
    """Spearman's rank correlation (mean ranks for ties) of predicted and true scores; 0 where one of them is constant."""
    if len(x) < 2:
        return 0.0
    ranks = []
    for values in (x, y):
        v = torch.tensor(values, dtype=torch.float64)
        ranks.append(((v[:, None] > v).sum(1) + (v[:, None] >= v).sum(1)).double())
    a, b = (r - r.mean() for r in ranks)
    return float((a @ b) / (a.norm() * b.norm())) if a.norm() > 0 and b.norm() > 0 else 0.0
