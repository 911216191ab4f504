"""Merge methods: what is done to the T task vectors before they are added up.

A method turns the matrix of task vectors [T, k] into another of the same shape (those of `core.subspaces` into one on
a wider mask). What is composed stays a linear
combination of its rows, base + sum of coefficient x row, so learning, searching, composing in place and exact
rollback work alike for all of them. Coefficients of 0 always give the base. With one task and a coefficient of 1, those
that only resolve conflicts (`linear`, `consensus`, `normalized`) give base + delta; those that thin out do not.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence

import torch

from talos_ray.core.blocks import Touched, blocks
from talos_ray.core.delta import Delta
from talos_ray.core.mask import Mask, mask_from_flags, smallest
from talos_ray.core.seeds import derive_seed
from talos_ray.core.segments import layer_groups
from talos_ray.core.subspaces import SUBSPACES, Subspaces

Method = Callable[..., torch.Tensor]


def merged(
    deltas: Mapping[str, Delta],
    mask: Mask,
    method: str = "linear",
    groups: int | Mapping[str, str] | None = None,
    **settings: float,
) -> tuple[Mask, dict[str, Delta]]:
    """The rows that coefficients multiply: the deltas as a method leaves them (float32; `linear` gives what came in),
    in the order of their names, and the mask that they are on. With `groups`, a row a task and group of layers, named
    `TASK@GROUP`.

    Args:
        settings: those of the spec's `search.merge`.
    """
    mask, rows = _by_method(deltas, mask, method, **settings)
    return mask, rows if groups is None else _by_group(rows, mask, groups)


def task_of(row: str) -> str:
    """The task that a row of `merged` belongs to."""
    return row.partition("@")[0]


def coefficients_of(coefficients: Mapping[str, float], task: str) -> dict[str, float]:
    """A task's own: by group of layers, or under '' if there is one."""
    return {row.partition("@")[2]: a for row, a in coefficients.items() if task_of(row) == task}


def _by_group(rows: Mapping[str, Delta], mask: Mask, groups: int | Mapping[str, str]) -> dict[str, Delta]:
    group = layer_groups(mask.layout.names, groups)
    sizes = {n: int(f.sum()) for n, f in mask.layout.split(mask.flags).items()}
    there = sorted({group[n] for n, size in sizes.items() if size})
    inside = {g: torch.cat([torch.full((size,), group[n] == g) for n, size in sizes.items()]) for g in there}
    return {
        f"{t}@{g}": Delta(f"{t}@{g}", d.values * inside[g], d.base, d.mask, d.info)
        for t, d in rows.items()
        for g in there
    }


def _by_method(
    deltas: Mapping[str, Delta], mask: Mask, method: str, **settings: float
) -> tuple[Mask, dict[str, Delta]]:
    names = sorted(deltas)
    if method == "linear" or not names:
        return mask, {t: deltas[t] for t in names}
    values = torch.stack([deltas[t].values.float() for t in names])
    if method in SUBSPACES:
        mask, rows = _by_matrix(values, mask, functools.partial(SUBSPACES[method], **settings))
    else:
        sizes = [int(f.sum()) for f in mask.layout.split(mask.flags).values()]
        rows = METHODS[method](values, sizes=sizes, names=names, **settings)
    own = mask.fingerprint
    return mask, {t: Delta(t, row, deltas[t].base, own, deltas[t].info) for t, row in zip(names, rows, strict=True)}


def _by_matrix(values: torch.Tensor, mask: Mask, method: Subspaces) -> tuple[Mask, torch.Tensor]:
    """Every matrix's part of the task vectors [T, k] through a method, as the rows and columns that the mask touches;
    other tensors stay as they are. Returns the mask that holds the result, and the result on it."""
    flags = {n: f.clone() for n, f in mask.layout.split(mask.flags).items()}
    parts = []
    for block in blocks(mask):
        shape = torch.Size(mask.layout.shapes[mask.layout.names.index(block.name)])
        mine = values[:, block.place]
        if len(shape) == 2:
            touched = block.touched(shape) if block.index is not None else Touched(shape, None, None)
            size = [n if i is None else len(i) for i, n in zip((touched.rows, touched.columns), shape, strict=True)]
            inner = touched.inner(block) if block.index is not None else None
            dense = mine.new_zeros(len(mine), size[0] * size[1])
            dense[:, slice(None) if inner is None else inner] = mine
            mine = method(dense.view(len(mine), *size).double()).float().flatten(1)
            rows, columns = (
                torch.arange(n) if i is None else i for i, n in zip((touched.rows, touched.columns), shape, strict=True)
            )
            flags[block.name].view(shape)[rows[:, None], columns] = True
        parts.append(mine)
    everything = torch.cat([flags[n].flatten() for n in mask.layout.names])
    return mask_from_flags(mask.layout, everything), torch.cat(parts, 1)


def _linear(values: torch.Tensor, **_: object) -> torch.Tensor:
    """Task arithmetic (Ilharco et al., 2023)."""
    return values


def _ties(values: torch.Tensor, *, density: float, **_: object) -> torch.Tensor:
    """TIES (Yadav et al., 2023): each vector keeps its largest `density`; where signs differ, those of the smaller sum
    are dropped; what is left is averaged over the tasks that kept a weight, not over all."""
    trimmed = torch.stack([v * _largest(v.abs(), density) for v in values])
    agrees = (trimmed.sign() == trimmed.sum(0).sign()) & (trimmed != 0)
    return trimmed * agrees / agrees.sum(0).clamp(min=1)


def _dare(values: torch.Tensor, *, names: Sequence[str], density: float, seed: int, **_: object) -> torch.Tensor:
    """DARE (Yu et al., 2024): a weight of a vector is kept with probability `density` and rescaled by its inverse."""
    rows = []
    for name, v in zip(names, values, strict=True):
        generator = torch.Generator().manual_seed(derive_seed(seed, name, "dare"))
        rows.append(v * (torch.rand(len(v), generator=generator) < density) / density)
    return torch.stack(rows)


def _breadcrumbs(
    values: torch.Tensor, *, sizes: Sequence[int], density: float, outliers: float, **_: object
) -> torch.Tensor:
    """Model breadcrumbs (Davari & Belilovsky, 2024): in every tensor a vector loses its largest `outliers`, and keeps
    the largest `density` of the rest."""
    rows = []
    for v in values:
        parts = []
        for part in v.split(list(sizes)):
            size = part.abs()
            inliers = ~_largest(size, outliers)
            parts.append(part * inliers * _largest(size * inliers, density))
        rows.append(torch.cat(parts))
    return torch.stack(rows)


def _consensus(values: torch.Tensor, *, threshold: float, agreement: int, **_: object) -> torch.Tensor:
    """Consensus of TALL masks (Wang et al., 2024): a weight matters to a task if its change is at least `threshold`
    times what the other tasks add to it; one that matters to fewer than `agreement` tasks is dropped (of one task, to
    none)."""
    others = values.sum(0) - values
    matters = (values.abs() >= threshold * others.abs()) & (values != 0)
    return values * (matters.sum(0) >= min(agreement, len(values)))


def _normalized(values: torch.Tensor, **_: object) -> torch.Tensor:
    """All vectors at their mean length, so that no task drowns another."""
    lengths: torch.Tensor = values.double().norm(dim=1)  # [T]
    scale = lengths.mean() / lengths.clamp(min=1e-30)
    return values * scale.float()[:, None]


def _largest(size: torch.Tensor, share: float) -> torch.Tensor:
    """Flags of the largest `share` of a vector; ties by position."""
    return smallest(size, round(share * len(size)), largest=True)


METHODS: dict[str, Method] = {
    "linear": _linear,
    "ties": _ties,
    "dare": _dare,
    "breadcrumbs": _breadcrumbs,
    "consensus": _consensus,
    "normalized": _normalized,
}
