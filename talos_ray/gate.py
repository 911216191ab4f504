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
    checks = []
    for kind, wanted, what, tasks in (
        ("control_keep", gate.control_keep, "share of its base score kept by control", controls),
        ("target_keep", gate.target_keep, "share of its base score kept by target", targets),
    ):
        if wanted is not None:
            checks += _kept(kind, what, wanted, {t: (base[t], now[t]) for t in tasks})
    if gate.target_gain is not None and targets:
        before = [base[t] for t in targets]
        after = [now[t] for t in targets]
        gain, error = margin(before, after, 1.0)
        low = gain - Z95 * error
        high = gain + Z95 * error
        result = PASS if low >= gate.target_gain else FAIL if high < gate.target_gain else OPEN
        n = sum(map(len, before))
        checks.append(
            GateCheck(
                kind="target_gain",
                what="mean gain of the targets",
                task="",
                wanted=gate.target_gain,
                value=gain,
                low=low,
                high=high,
                n=n,
                result=result,
                together=1,
                **_missing(result, gain - gate.target_gain, error, n),
            )
        )
    if gate.disentanglement is not None and disentanglement:
        xi = sum(disentanglement.values()) / len(disentanglement)
        result = PASS if xi <= gate.disentanglement else FAIL
        checks.append(
            GateCheck(
                kind="disentanglement",
                what="mean disentanglement error",
                task="",
                wanted=gate.disentanglement,
                value=xi,
                low=xi,
                high=xi,
                n=0,
                result=result,
                more=None,
                most=None,
                together=1,
            )
        )
    found = [c.result for c in checks]
    result = FAIL if FAIL in found else OPEN if OPEN in found else PASS
    return GateResult(result=result, checks=checks, settings=gate.model_dump())


def _kept(
    kind: str, what: str, wanted: float, answers: Mapping[str, tuple[torch.Tensor, torch.Tensor]]
) -> list[GateCheck]:
    """That each task keeps `wanted` of its accuracy. `answers`: task -> which inputs were right before, and after."""
    above = {task: kept_above(before, after, wanted) for task, (before, after) in answers.items()}
    fallen = holm([0.5 * math.erfc(-z / math.sqrt(2)) for z in above.values()], LEVEL)
    checks = []
    for (task, z), fell in zip(above.items(), fallen, strict=True):
        before, after = answers[task]
        result = PASS if z >= Z95 else FAIL if fell else OPEN
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
