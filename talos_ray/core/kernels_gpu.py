"""Kernels for a GPU, compiled by Triton, which comes with torch: composing in one pass, and sums of squared gradients."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

TYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}
LANES = 1024  # weights that a block of threads composes at once
TILE = 64  # rows and columns of a matrix whose squares a block of threads sums


@triton.jit
def _compose(jobs, places, base, sources, alphas, TASKS: tl.constexpr, STORED: tl.constexpr, OUT: tl.constexpr, LANES: tl.constexpr):  # fmt: skip
    job = jobs + tl.program_id(0) * 6
    out = tl.load(places + tl.load(job)).to(tl.pointer_type(OUT))
    index = tl.load(job + 1).to(tl.pointer_type(tl.int64))
    width, place, count, start = tl.load(job + 2), tl.load(job + 3), tl.load(job + 4), tl.load(job + 5)
    for done in range(0, count, LANES):
        i = done + tl.arange(0, LANES)
        mine = i < count
        total = tl.load(base + place + i, mask=mine).to(tl.float32)
        for task in tl.static_range(TASKS):
            values = tl.load(sources + task).to(tl.pointer_type(STORED))
            total = tl.fma(tl.load(values + place + i, mask=mine).to(tl.float32), tl.load(alphas + task), total)
        if width == 0:
            at = start + i
        else:
            at = tl.load(index + i // width, mask=mine) * width + i % width
        tl.store(out + at, total.to(OUT), mask=mine)


def compose(jobs, places, base, sources, alphas, delta: torch.dtype) -> None:
    """All jobs, a block of threads each. Arguments: see `core.fused.Fused`."""
    places, sources, alphas = (t.to(base.device, non_blocking=True) for t in (places, sources, alphas))
    _compose[(len(jobs),)](jobs, places, base, sources, alphas, len(sources), TYPES[delta], TYPES[base.dtype], LANES)


@triton.jit
def _squares(left, right, sums, samples, positions, p, q, TILE: tl.constexpr, DEEP: tl.constexpr):
    rows = tl.program_id(0) * TILE + tl.arange(0, TILE)
    columns = tl.program_id(1) * TILE + tl.arange(0, TILE)
    total = tl.zeros((TILE, TILE), tl.float32)
    for _ in range(samples):
        gradient = tl.zeros((TILE, TILE), tl.float32)
        for first in range(0, positions, DEEP):
            t = first + tl.arange(0, DEEP)
            a = tl.load(left + t[None, :] * p + rows[:, None], mask=(t[None, :] < positions) & (rows[:, None] < p), other=0.0)  # fmt: skip
            b = tl.load(right + t[:, None] * q + columns[None, :], mask=(t[:, None] < positions) & (columns[None, :] < q), other=0.0)  # fmt: skip
            gradient = tl.dot(a, b, gradient, input_precision="ieee")
        total += gradient * gradient
        left += positions * p
        right += positions * q
    where = rows[:, None].to(tl.int64) * q + columns[None, :]
    tl.store(sums + where, total, mask=(rows[:, None] < p) & (columns[None, :] < q))


def squares(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Sum over samples of (left^T right)^2 for left [n, t, p] and right [n, t, q] of one dtype: float32 [p, q].

    No sample's product ever reaches memory: it is squared where it was made.
    """
    left, right = left.contiguous(), right.contiguous()
    n, t, p = left.shape
    q = right.shape[2]
    sums = torch.empty(p, q, dtype=torch.float32, device=left.device)
    _squares[(triton.cdiv(p, TILE), triton.cdiv(q, TILE))](
        left, right, sums, n, t, p, q, TILE, 64 if t > 32 else 32 if t > 16 else 16
    )
    return sums
