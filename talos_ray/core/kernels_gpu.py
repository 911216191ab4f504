"""Kernels for a GPU, compiled by Triton, which comes with torch: composing in one pass, and sums of squared
gradients."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

TYPES = {
    torch.float32: tl.float32,
    torch.bfloat16: tl.bfloat16,
    torch.float16: tl.float16,
    torch.int32: tl.int32,
    torch.int64: tl.int64,
}
LANES = 1024  # weights that a block of threads composes at once
TILE = 64  # rows and columns of a matrix whose squares a block of threads sums


@triton.jit
def _compose(
    jobs,
    places,
    base,
    sources,
    alphas,
    TASKS: tl.constexpr,
    STORED: tl.constexpr,
    OUT: tl.constexpr,
    INDEX: tl.constexpr,
    LANES: tl.constexpr,
):
    job = jobs + tl.program_id(0) * 7
    out = tl.load(places + tl.load(job)).to(tl.pointer_type(OUT))
    index = tl.load(job + 1).to(tl.pointer_type(INDEX))
    width = tl.load(job + 2)
    place = tl.load(job + 3)
    count = tl.load(job + 4)
    start = tl.load(job + 5)
    for done in range(0, count, LANES):
        i = done + tl.arange(0, LANES)
        mine = i < count
        total = tl.load(base + place + i, mask=mine).to(tl.float32)
        for task in tl.static_range(TASKS):
            values = tl.load(sources + task).to(tl.pointer_type(STORED))
            total = tl.fma(tl.load(values + place + i, mask=mine).to(tl.float32), tl.load(alphas + task), total)
        if width == 0:  # noqa: SIM108 - Triton compiles no conditional expression over tensors
            at = start + i
        else:
            at = tl.load(index + i // width, mask=mine).to(tl.int64) * width + i % width
        tl.store(out + at, total.to(OUT), mask=mine)


def compose(
    jobs, places, base, sources, alphas, stored: torch.dtype, out: torch.dtype, index: torch.dtype, one_each: bool
) -> None:
    """All jobs, a block of threads each, with one coefficient a delta. Arguments: see `core.fused.Fused`."""
    with torch.cuda.device(base.device):
        _compose[(len(jobs),)](
            jobs, places, base, sources, alphas, len(sources), TYPES[stored], TYPES[out], TYPES[index], LANES
        )


@triton.jit
def _squares(left, right, sums, samples, positions, p, q, TILE: tl.constexpr, DEEP: tl.constexpr, ONCE: tl.constexpr):
    rows = tl.program_id(0) * TILE + tl.arange(0, TILE)
    columns = tl.program_id(1) * TILE + tl.arange(0, TILE)
    total = tl.zeros((TILE, TILE), tl.float32)
    deep = tl.arange(0, DEEP)
    left += rows[:, None] + deep[None, :] * p
    right += deep[:, None] * q + columns[None, :]
    for _ in range(samples):
        if ONCE:  # all positions at once: loads of the next sample overlap with the product of this one
            a = tl.load(left, mask=(deep[None, :] < positions) & (rows[:, None] < p), other=0.0)
            b = tl.load(right, mask=(deep[:, None] < positions) & (columns[None, :] < q), other=0.0)
            gradient = tl.dot(a, b, input_precision="ieee")
        else:
            gradient = tl.zeros((TILE, TILE), tl.float32)
            for first in range(0, positions, DEEP):
                inside = first + deep < positions
                a = tl.load(left + first * p, mask=inside[None, :] & (rows[:, None] < p), other=0.0)
                b = tl.load(right + first * q, mask=inside[:, None] & (columns[None, :] < q), other=0.0)
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
    left = left.contiguous()
    right = right.contiguous()
    n, t, p = left.shape
    q = right.shape[2]
    sums = torch.empty(p, q, dtype=torch.float32, device=left.device)
    deep = max(16, min(64, triton.next_power_of_2(t)))
    grid = (triton.cdiv(p, TILE), triton.cdiv(q, TILE))
    with torch.cuda.device(left.device):
        _squares[grid](left, right, sums, n, t, p, q, TILE, deep, t <= deep, num_stages=4)
    return sums
