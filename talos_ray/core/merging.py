"""Merge methods: what is done to the T task vectors before they are added up.

A method turns the matrix of task vectors [T, k] into another of the same shape. What is composed stays a linear
combination of its rows, base + sum of coefficient x row, so searching, the surrogate, composing in place and exact
rollback work alike for all of them. Coefficients of 0 always give the base. With one task and a coefficient of 1, those
that only resolve conflicts (`linear`, `consensus`, `normalized`) give base + delta; those that thin out do not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch

from talos_ray.core.delta import Delta
from talos_ray.core.finetune import derive_seed
from talos_ray.core.mask import Mask, smallest

Method = Callable[..., torch.Tensor]


def merged(deltas: Mapping[str, Delta], mask: Mask, method: str = "linear", **settings: float) -> dict[str, Delta]:
    """The deltas as a method leaves them (float32), in the order of their names. `linear` gives those that came in.
    `settings`: those of the spec's `search.merge`."""
    if method == "linear":
        return dict(sorted(deltas.items()))
    names = sorted(deltas)
    values = torch.stack([deltas[t].values.float() for t in names])
    sizes = [int(f.sum()) for f in mask.layout.split(mask.flags).values()]
    rows = METHODS[method](values, sizes=sizes, names=names, **settings)
    return {
        t: Delta(t, row, deltas[t].base, deltas[t].mask, deltas[t].info) for t, row in zip(names, rows, strict=True)
    }


def _linear(values: torch.Tensor, **_) -> torch.Tensor:
    """Task arithmetic (Ilharco et al., 2023)."""
    return values


def _ties(values: torch.Tensor, *, density: float, **_) -> torch.Tensor:
    """TIES (Yadav et al., 2023): each vector keeps its largest `density`; where signs differ, those of the smaller sum are
    dropped; what is left is averaged over the tasks that kept a weight, not over all."""
    trimmed = torch.stack([v * _largest(v.abs(), density) for v in values])
    agrees = (trimmed.sign() == trimmed.sum(0).sign()) & (trimmed != 0)
    return trimmed * agrees / agrees.sum(0).clamp(min=1)


def _dare(values: torch.Tensor, *, names: Sequence[str], density: float, seed: int, **_) -> torch.Tensor:
    """DARE (Yu et al., 2024): a weight of a vector is kept with probability `density` and rescaled by its inverse."""
    rows = []
    for name, v in zip(names, values, strict=True):
        generator = torch.Generator().manual_seed(derive_seed(seed, name, "dare"))
        rows.append(v * (torch.rand(len(v), generator=generator) < density) / density)
    return torch.stack(rows)


def _breadcrumbs(values: torch.Tensor, *, sizes: Sequence[int], density: float, outliers: float, **_) -> torch.Tensor:
    """Model breadcrumbs (Davari & Belilovsky, 2024): in every tensor a vector loses its largest `outliers`, and keeps the
    largest `density` of the rest."""
    rows = []
    for v in values:
        parts = []
        for part in v.split(list(sizes)):
            size = part.abs()
            inliers = ~_largest(size, outliers)
            parts.append(part * inliers * _largest(size * inliers, density))
        rows.append(torch.cat(parts))
    return torch.stack(rows)


def _consensus(values: torch.Tensor, *, threshold: float, agreement: int, **_) -> torch.Tensor:
    """Consensus of TALL masks (Wang et al., 2024): a weight matters to a task if its change is at least `threshold` times
    what the other tasks add to it; one that matters to fewer than `agreement` tasks is dropped (of one task, to none)."""
    others = values.sum(0) - values
    matters = (values.abs() >= threshold * others.abs()) & (values != 0)
    return values * (matters.sum(0) >= min(agreement, len(values)))


def _normalized(values: torch.Tensor, **_) -> torch.Tensor:
    """All vectors at their mean length, so that no task drowns another."""
    lengths = values.double().norm(dim=1)
    return values * (lengths.mean() / lengths.clamp(min=1e-30)).float()[:, None]


def _largest(size: torch.Tensor, share: float) -> torch.Tensor:
    """Flags of the largest `share` of a vector; ties by position."""
    return smallest(size, round(share * len(size)), largest=True)


METHODS: dict[str, Method] = {
    "linear": _linear, "ties": _ties, "dare": _dare, "breadcrumbs": _breadcrumbs, "consensus": _consensus, "normalized": _normalized,
}  # fmt: skip
