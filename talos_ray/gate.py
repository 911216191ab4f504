"""The gate: what must hold on test data before a version becomes head, judged with intervals and not on point values.

A version passes if everything that is asked is *shown*: each condition by its own 95 % interval, so that one that does
not hold is passed at most 1 time in 40, however many conditions there are. It fails if something is shown not to hold;
where several tasks are asked the same, by Holm's rule, so that of many tasks none fails by chance alone more often
than a single one would.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import torch

from talos_ray.config import Gate
from talos_ray.core.metrics import Z95
from talos_ray.core.paired import holm, kept, kept_above, margin, wanted_inputs

PASS, FAIL, OPEN = "pass", "fail", "not enough data to tell"
LEVEL = 0.025  # of each side of a 95 % interval


@dataclass(frozen=True)
class Check:
    """One condition. `kind`: the gate's setting that asks for it. `value`, `low`, `high`: what was found, with its 95
    % interval, in the unit of `wanted`; `more` and `most`: from how many to how many test inputs are missing to tell,
    where it cannot be told and more would help; no `most` where there is no end; `together`: tasks that are asked the
    same, and judged by Holm's rule."""

    kind: str
    what: str
    task: str
    wanted: float
    value: float
    low: float
    high: float
    n: int
    result: str
    more: int | None = None
    most: int | None = None
    together: int = 1

    def __str__(self) -> str:
        found = f"{self.what} is {self.value:.3f} ({self.low:.3f} to {self.high:.3f}), wanted {self.wanted:.3f}"
        if self.result != OPEN:
            return found
        if not self.more:
            missing = "more test inputs may not help"
        elif self.most:
            missing = f"about {self.more:,} to {self.most:,} more test inputs needed"
        else:
            missing = f"{self.more:,} more test inputs needed, or many times as many"
        return f"{found}: not enough data to tell, {missing}"


def judge(
    gate: Gate,
    targets: Sequence[str],
    controls: Sequence[str],
    base: Mapping[str, torch.Tensor],
    now: Mapping[str, torch.Tensor],
    disentanglement: Mapping[str, float] | None = None,
) -> dict:
    """Judge a version: `{"result": pass | fail | not enough data to tell, "checks": [...]}`.

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
        before, after = [base[t] for t in targets], [now[t] for t in targets]
        gain, error = margin(before, after, 1.0)
        low, high = gain - Z95 * error, gain + Z95 * error
        result = PASS if low >= gate.target_gain else FAIL if high < gate.target_gain else OPEN
        n = sum(map(len, before))
        missing = _missing(gain - gate.target_gain, error, n) if result == OPEN else {}
        checks.append(
            Check(
                "target_gain", "mean gain of the targets", "", gate.target_gain, gain, low, high, n, result, **missing
            )
        )
    if gate.disentanglement is not None and disentanglement:
        xi = sum(disentanglement.values()) / len(disentanglement)
        result = PASS if xi <= gate.disentanglement else FAIL
        checks.append(
            Check("disentanglement", "mean disentanglement error", "", gate.disentanglement, xi, xi, xi, 0, result)
        )
    found = [c.result for c in checks]
    result = FAIL if FAIL in found else OPEN if OPEN in found else PASS
    return {"result": result, "checks": [asdict(c) for c in checks]}


def holds(gate: Gate, judged: Mapping) -> bool:
    """Whether a version so judged may become head by itself."""
    return judged["result"] == PASS or (judged["result"] == OPEN and not gate.strict)


def told(judged: Mapping, most: int | None = None) -> list[str]:
    """A sentence for everything that is not met, and then for what cannot be told.

    Args:
        most: of them; how many more there are is said in one of its own.
    """
    unmet = [c for c in judged["checks"] if c["result"] != PASS]
    unmet.sort(key=lambda c: c["result"] != FAIL)
    shown = unmet if most is None or len(unmet) <= most else unmet[: most - 1]
    sentences = [str(Check(**{"kind": "", **c})) for c in shown]
    if more := unmet[len(shown) :]:
        failed = sum(c["result"] == FAIL for c in more)
        failing = f"{failed} of them not met, " if failed else ""
        sentences.append(f"and {len(more)} more conditions, {failing}which its report lists")
    return sentences


def _kept(kind: str, what: str, wanted: float, answers: Mapping[str, tuple[torch.Tensor, torch.Tensor]]) -> list[Check]:
    """That each task keeps `wanted` of its accuracy. `answers`: task -> which inputs were right before, and after."""
    above = {task: kept_above(before, after, wanted) for task, (before, after) in answers.items()}
    fallen = holm([0.5 * math.erfc(-z / math.sqrt(2)) for z in above.values()], LEVEL)
    checks = []
    for (task, z), fell in zip(above.items(), fallen, strict=True):
        before, after = answers[task]
        result = PASS if z >= Z95 else FAIL if fell else OPEN
        missing = _missing(*margin([before], [after], wanted), len(before)) if result == OPEN else {}
        value, low, high = kept(before, after)
        checks.append(
            Check(
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
                **missing,
            )
        )
    return checks


def _missing(over: float, error: float, n: int) -> dict[str, int | None]:
    """How many more inputs are needed, from and to."""
    needed = wanted_inputs(over, error, n)
    if needed is None:
        return {}
    least, most = needed
    # The score test may still want some where this estimate, which is Wald's, is content.
    return {"more": max(1, least - n), "most": None if most is None else max(most - n, n // 4 + 1)}
