"""The gate: what must hold on test data before a version becomes head, judged with intervals and not on point values.

A version passes if everything that is asked is *shown*: each condition by its own 95 % interval, so that one that does
not hold is passed at most 1 time in 40, however many conditions there are. It fails if something is shown not to hold;
where several tasks are asked the same, by Holm's rule, so that of many tasks none fails by chance alone more often
than a single one would.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch

from talos_ray.config import Gate
from talos_ray.core.metrics import Z95
from talos_ray.core.paired import holm, kept, kept_above, margin, wanted_inputs
from talos_ray.storage.version import FAIL, OPEN, PASS, GateCheck, GateResult

LEVEL = 0.025  # of each side of a 95 % interval


def judge(
    gate: Gate,
    targets: Sequence[str],
    controls: Sequence[str],
    base: Mapping[str, torch.Tensor],
    now: Mapping[str, torch.Tensor],
    disentanglement: Mapping[str, float] | None = None,
) -> GateResult:
    """Judge a version.

    Args:
        base, now: task -> which test inputs the base and the version get right, bool [n].
        disentanglement: task -> share of its predictions that the other edits change.
    """
    # In the order in which a report tells them: what must not be lost first.
    checks = []
    for kind, wanted, what, tasks in (
        ("control_keep", gate.control_keep, "share of its base score kept by control", controls),
        ("target_keep", gate.target_keep, "share of its base score kept by target", targets),
    ):
        if wanted is not None:
            checks += _kept(kind, what, wanted, {task: (base[task], now[task]) for task in tasks})
    if gate.target_gain is not None and targets:
        before = [base[task] for task in targets]
        after = [now[task] for task in targets]
        checks.append(_mean_gain(gate.target_gain, before, after))
    if gate.disentanglement is not None and disentanglement:
        checks.append(_disentangled(gate.disentanglement, disentanglement))
    results = [check.result for check in checks]
    # One that fails decides, however many others cannot be told.
    result = FAIL if FAIL in results else OPEN if OPEN in results else PASS
    return GateResult(result=result, checks=checks, settings=gate.model_dump())


def _mean_gain(wanted: float, before: Sequence[torch.Tensor], after: Sequence[torch.Tensor]) -> GateCheck:
    """That the targets' mean accuracy has grown by `wanted`. `before`, `after`: which inputs of each are right."""
    gain, error = margin(before, after, 1.0)
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


def _kept(
    kind: str, what: str, wanted: float, answers: Mapping[str, tuple[torch.Tensor, torch.Tensor]]
) -> list[GateCheck]:
    """That each task keeps `wanted` of its accuracy. `answers`: task -> which inputs were right before, and after."""
    above = {task: kept_above(before, after, wanted) for task, (before, after) in answers.items()}
    # The normal distribution's lower tail: how likely a score as low is by chance, if the task does keep its share.
    fallen = holm([0.5 * math.erfc(-score / math.sqrt(2)) for score in above.values()], LEVEL)
    checks = []
    for (task, score), fell in zip(above.items(), fallen, strict=True):
        before, after = answers[task]
        result = PASS if score >= Z95 else FAIL if fell else OPEN
        value, low, high = kept(before, after)
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
                **_missing(result, *margin([before], [after], wanted), len(before)),
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
