"""Merge methods that work on the singular vectors of every matrix of the task vectors.

What they make of scattered weights fills the rows and columns that the mask touches: it may leave the mask. Like all
merge methods they give a row a task, linear in which the merged model is; at coefficients of 1 the rows add up to what
the papers define. Where singular vectors that are nearly parallel meet, `_orthogonal` takes the nearest orthogonal
ones (Procrustes), as they do.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

# of the largest singular value of the sum: what lies below is noise, which would be amplified, and is left out
NOISE = 1e-3

# T task vectors of one matrix, float64 [T, r, c] -> rows of the same shape
Subspaces = Callable[..., torch.Tensor]


def tsv(deltas: torch.Tensor, **_: object) -> torch.Tensor:
    """TSV-M, task singular vectors (Gargiulo et al., CVPR 2025): of every task the largest 1/T of its singular
    directions, made orthogonal to those of the others."""
    tasks = len(deltas)
    u, s, v = _svd(deltas)
    n = max(1, s.shape[1] // tasks)
    left = _apart(u[:, :, :n])
    right = _apart(v[:, :, :n])
    return (left * s[:, None, :n]) @ right.transpose(1, 2)


def _apart(directions: torch.Tensor) -> torch.Tensor:
    """Directions of all tasks [T, r, n], made orthogonal across the tasks."""
    tasks, rows, n = directions.shape
    side_by_side = torch.cat(list(directions), 1)  # [r, T * n]
    return _orthogonal(side_by_side).view(rows, tasks, n).transpose(0, 1)


def iso_c(deltas: torch.Tensor, **_: object) -> torch.Tensor:
    """Iso-C, isotropic merging (Marczak et al., ICML 2025): the sum of the task vectors with all its singular values
    at their mean. A task's row is what it contributes to every direction of the sum."""
    u, s, _v = _svd(deltas.sum(0))
    strong = s > NOISE * s[0]
    mean = s.mean()  # of all: what is left out as noise still counts in the paper's mean
    u = u[:, strong]  # [r, m]
    s = s[strong]
    return mean * (u / s) @ (u.T @ deltas)


def iso_cts(deltas: torch.Tensor, *, common: float, **_: object) -> torch.Tensor:
    """Iso-CTS (the same paper): the largest `common` of the sum's directions, and for what remains of each task
    directions of its own in equal numbers; all made orthogonal, with one singular value, their mean."""
    tasks = len(deltas)
    u, s, v = _svd(deltas.sum(0))
    rank = len(s)
    own = (rank - round(common * rank)) // tasks
    # The rest of an uneven division goes to the shared directions, but never one that is noise.
    strong = int((s > NOISE * s[0]).sum())
    shared = min(rank - own * tasks, strong)
    u = u[:, :shared]  # [r, shared]
    s = s[:shared]
    v = v[:, :shared]  # [c, shared]
    left_over = deltas - u @ (u.T @ deltas)  # [T, r, c]
    own_u, own_s, own_v = (factor[..., :own] for factor in _svd(left_over))
    left = _orthogonal(torch.cat([u, *own_u], 1))  # [r, shared + T * own]
    right = _orthogonal(torch.cat([v, *own_v], 1))  # [c, shared + T * own]
    mean = torch.cat([s, own_s.flatten()]).mean()
    # What a task has of the shared directions; over the tasks these add up to the product of both sides.
    within = (u / s).T @ deltas @ v  # [T, shared, shared]
    rows = left[:, :shared] @ within @ right[:, :shared].T
    for task in range(tasks):
        columns = slice(shared + task * own, shared + (task + 1) * own)
        rows[task] += left[:, columns] @ right[:, columns].T
    return mean * rows


def _svd(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """U [..., r, n], S [..., n], V [..., c, n] with n = min(r, c)."""
    u, s, vh = torch.linalg.svd(x, full_matrices=False)
    return u, s, vh.transpose(-1, -2)


def _orthogonal(x: torch.Tensor) -> torch.Tensor:
    """The matrix [r, n] with orthonormal columns that is nearest to x [r, n]."""
    u, _, vh = torch.linalg.svd(x, full_matrices=False)
    nearest: torch.Tensor = u @ vh
    return nearest


SUBSPACES: dict[str, Subspaces] = {"tsv": tsv, "iso_c": iso_c, "iso_cts": iso_cts}
