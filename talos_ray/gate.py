"""The gate: what must hold on test data before a version becomes head, judged with intervals and not on point values.

A version passes if everything that is asked is *shown*: each condition by its own 95 % interval, so that one that does
not hold is passed at most 1 time in 40, however many conditions there are. It fails if something is shown not to hold;
where several tasks are asked the same, by Holm's rule, so that of many tasks none fails by chance alone more often
than a single one would.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch

from talos_ray.config import Gate
from talos_ray.core.metrics import Z95
from talos_ray.core.paired import holm, kept, kept_above, margin, wanted_inputs
from talos_ray.storage.version import FAIL, OPEN, PASS, GateCheck, GateResult

LEVEL = 0.025  # of each side of a 95 % interval


class Pair(NamedTuple):
    """Which of a task's test inputs the base and the version get right, bool [n] each, and what each counts in."""

    before: torch.Tensor
    after: torch.Tensor
    strata: torch.Tensor | None


def judge(
    gate: Gate,
    targets: Sequence[str],
    controls: Sequence[str],
    base: Mapping[str, torch.Tensor],
    now: Mapping[str, torch.Tensor],
    disentanglement: Mapping[str, float] | None = None,
    strata: Mapping[str, torch.Tensor | None] | None = None,
) -> GateResult:
    """Judge a version.

    Args:
        base, now: task -> which test inputs the base and the version get right, bool [n].
        strata: task -> what each of these inputs counts in, `core.metrics.strata_of`; all alike, if not given.
        disentanglement: task -> share of its predictions that the other edits change.
    """
    counted_in = strata or {}
    pairs = {task: Pair(base[task], now[task], counted_in.get(task)) for task in (*targets, *controls)}
    # In the order in which a report tells them: what must not be lost first.
    checks = []
    for kind, wanted, what, tasks in (
        ("control_keep", gate.control_keep, "share of its base score kept by control", controls),
        ("target_keep", gate.target_keep, "share of its base score kept by target", targets),
    ):
        if wanted is not None:
            checks += _kept(kind, what, wanted, {task: pairs[task] for task in tasks})
    if gate.target_gain is not None and targets:
        checks.append(_mean_gain(gate.target_gain, [pairs[task] for task in targets]))
    if gate.disentanglement is not None and disentanglement:
        checks.append(_disentangled(gate.disentanglement, disentanglement))
    results = [check.result for check in checks]
    # One that fails decides, however many others cannot be told.
    result = FAIL if FAIL in results else OPEN if OPEN in results else PASS
    return GateResult(result=result, checks=checks, settings=gate.model_dump())


def _mean_gain(wanted: float, targets: Sequence[Pair]) -> GateCheck:
    """That the targets' mean score has grown by `wanted`."""
    before = [pair.before for pair in targets]
    after = [pair.after for pair in targets]
    gain, error = margin(before, after, 1.0, [pair.strata for pair in targets])
    low = gain - Z95 * error
    high = gain + Z95 * error
    result = PASS if low >= wanted else FAIL if high < wanted else OPEN
    inputs = sum(map(len, before))
    return GateCheck(
        kind="target_gain",
        what="mean gain of the targets",
        task="",
        wanted=wanted,
        value=gain,
        low=low,
        high=high,
        n=inputs,
        result=result,
        together=1,
        **_missing(result, gain - wanted, error, inputs),
    )


def _disentangled(wanted: float, by_task: Mapping[str, float]) -> GateCheck:
    """That other edits change no more than a share `wanted` of the predictions, in the mean over tasks (the
    disentanglement error: Ortiz-Jimenez et al., 2023). It has no interval: it is measured on validation data, on a
    sample of fixed size."""
    error = sum(by_task.values()) / len(by_task)
    return GateCheck(
        kind="disentanglement",
        what="mean disentanglement error",
        task="",
        wanted=wanted,
        value=error,
        low=error,
        high=error,
        n=0,
        result=PASS if error <= wanted else FAIL,
        more=None,
        most=None,
        together=1,
    )


def _kept(kind: str, what: str, wanted: float, answers: Mapping[str, Pair]) -> list[GateCheck]:
    """That each task keeps `wanted` of its score."""
    above = {}
    for task, (before, after, strata) in answers.items():
        above[task] = kept_above(before, after, wanted, strata)
    # The normal distribution's lower tail: how likely a score as low is by chance, if the task does keep its share.
    fallen = holm([0.5 * math.erfc(-score / math.sqrt(2)) for score in above.values()], LEVEL)
    checks = []
    for (task, score), fell in zip(above.items(), fallen, strict=True):
        before, after, strata = answers[task]
        result = PASS if score >= Z95 else FAIL if fell else OPEN
        value, low, high = kept(before, after, strata)
        checks.append(
            GateCheck(
                kind=kind,
                what=f"{what} {task}",
                task=task,
                wanted=wanted,
                value=value,
                low=low,
                high=high,
                n=len(before),
                result=result,
                together=len(answers),
                **_missing(result, *margin([before], [after], wanted, [strata]), len(before)),
            )
        )
    return checks


def _missing(result: str, over: float, error: float, n: int) -> dict[str, int | None]:
    """How many more inputs are needed to tell, from and to; None where none are, or none would help."""
    needed = wanted_inputs(over, error, n) if result == OPEN else None
    if needed is None:
        return {"more": None, "most": None}
    least, most = needed
    # The score test may still want some where this estimate, which is Wald's, is content.
    return {"more": max(1, least - n), "most": None if most is None else max(most - n, n // 4 + 1)}
