"""How far edits stay out of each other's way: the disentanglement error xi, and how linear an edit is.

Both come from logits that the search has cached, so they cost no evaluation. xi follows Ortiz-Jimenez et al.
(NeurIPS 2023): the share of a task's inputs whose predicted class changes when another task's delta joins its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from talos_ray.core.surrogate import Surrogate, sampled_rows

INPUTS = 200  # of each task that xi looks at, evenly spaced


def disentanglement(surrogate: Surrogate, targets: Sequence[str], coefficients: Mapping[str, float]) -> dict:
    """xi between all pairs of tasks, by first-order logits.

    Args:
        surrogate: through the base; its slopes are in the order of `targets`.
        coefficients: those of the version, one a task.

    Returns:
        "pairs": [T][T], share of row's inputs whose prediction the column's delta changes, both at their `coefficients`;
        "together": task -> the same for all others at once; "points" [B] and "grid" [B][B]: xi(a1, a2), which is the mean
        over the inputs of both tasks and over all pairs, at every pair of coefficients between 0 and the upper bound.
    """
    points = [surrogate.high * i / 4 for i in range(1, 5)]
    a = torch.tensor([float(coefficients.get(t, 0.0)) for t in targets])
    pairs, together, grid = [], {}, torch.zeros(len(points), len(points), dtype=torch.float64)
    for i, task in enumerate(targets):
        rows = sampled_rows(len(surrogate.labels[task]), INPUTS)
        base, slopes = surrogate.constant[task][rows], surrogate.slopes[task][:, rows]  # [n, C], [T, n, C]
        others = [u for u in range(len(targets)) if u != i]

        def changed(alone: torch.Tensor, more: torch.Tensor) -> float:
            return float(((alone + more).argmax(-1) != alone.argmax(-1)).double().mean())

        own = base + a[i] * slopes[i]
        pairs.append([0.0 if u == i else changed(own, a[u] * slopes[u]) for u in range(len(targets))])
        together[task] = changed(own, torch.tensordot(a[others], slopes[others], 1)) if others else 0.0
        for x, first in enumerate(points):
            own = base + first * slopes[i]
            for y, second in enumerate(points):
                grid[x, y] += sum(changed(own, second * slopes[u]) for u in others)
    count = max(1, len(targets) * (len(targets) - 1))
    symmetric = (grid + grid.T) / (2 * count)
    return {"tasks": list(targets), "pairs": pairs, "together": together, "points": points, "grid": symmetric.tolist()}


def nonlinearity(surrogate: Surrogate, a: torch.Tensor, logits: Mapping[str, torch.Tensor]) -> float:
    """Distance of the true `logits` under coefficients a [T] from their first-order prediction, in units of how far the edit
    moves them: 0 for a model that is linear in its weights, about 1 where the prediction is worth nothing."""
    away = moved = 0.0
    for task, true in logits.items():
        predicted = surrogate.constant[task] + torch.tensordot(a, surrogate.slopes[task], 1)
        away += float((true - predicted).double().square().sum())
        moved += float((true - surrogate.constant[task]).double().square().sum())
    return (away / moved) ** 0.5 if moved else 0.0
