"""How the benchmark measures: ours and the other alternate in one run, medians are compared, a bar is held or not."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

TASKS, KEEP = 8, 0.1
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@dataclass(frozen=True)
class Row:
    """One comparison. `ratio` is other / ours where more is better (bar '>='), ours / other where less is ('<=')."""

    name: str
    ours: float
    other: float
    ratio: float
    unit: str
    against: str
    repeats: int
    spread: float  # (slowest - fastest) / median of ours
    bar: str
    holds: bool


def row(name: str, ours: list[float], other: list[float], unit: str, against: str, bar: str) -> Row:
    a, b = statistics.median(ours), statistics.median(other)
    sign, limit = bar.split()
    ratio = b / a if sign == ">=" else a / b
    holds = ratio >= float(limit) if sign == ">=" else ratio <= float(limit)
    return Row(
        name,
        a,
        b,
        round(ratio, 3),
        unit,
        against,
        len(ours),
        round((max(ours) - min(ours)) / a, 3) if a else 0.0,
        bar,
        holds,
    )


def seconds(work: Callable[[], object]) -> float:
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    work()
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def side_by_side(repeats: int, *works: Callable[[], object]) -> list[list[float]]:
    """Times of each work in ms, alternating, after one round that is not counted."""
    times: list[list[float]] = [[] for _ in works]
    for i in range(repeats + 1):
        for work, kept in zip(works, times, strict=True):
            spent = seconds(work) * 1e3
            if i:
                kept.append(spent)
    return times
