"""The gate: what must hold on test data before a version becomes head, judged with intervals and not on point values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import torch

from talos_ray.config import Gate
from talos_ray.core.metrics import Z95
from talos_ray.core.paired import margin, wanted_inputs

PASS, FAIL, OPEN = "pass", "fail", "not enough data to tell"


@dataclass(frozen=True)
class Check:
    """One condition. `kind`: the gate's setting that asks for it. `value`, `low`, `high`: what was found, with its 95 % interval, in the unit of `wanted`; `more`: test
    inputs that are missing to tell, where it cannot be told and more would help."""

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

    def __str__(self) -> str:
        found = f"{self.what} is {self.value:.3f} ({self.low:.3f} to {self.high:.3f}), wanted {self.wanted:.3f}"
        if self.result != OPEN:
            return found
        missing = f"about {self.more:,} more test inputs needed" if self.more else "more test inputs may not help"
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
            checks += [_kept(kind, f"{what} {t}", t, wanted, base[t], now[t]) for t in tasks]
    if gate.target_gain is not None and targets:
        before, after = [base[t] for t in targets], [now[t] for t in targets]
        gain, error = margin(before, after, 1.0)
        n = sum(map(len, before))
        checks.append(
            _check(
                "target_gain", "mean gain of the targets", "", gate.target_gain, gain, error, n, gain - gate.target_gain
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


def told(judged: Mapping) -> list[str]:
    """A sentence for everything that is not met or cannot be told."""
    return [str(Check(**{"kind": "", **c})) for c in judged["checks"] if c["result"] != PASS]


def _kept(kind: str, what: str, task: str, wanted: float, before: torch.Tensor, after: torch.Tensor) -> Check:
    """Of accuracy after / before. It is at least `wanted` where after - wanted x before is at least 0, which has an interval."""
    over, error = margin([before], [after], wanted)
    score = max(float(before.double().mean()), 1e-9)
    return _check(kind, what, task, wanted, wanted + over / score, error / score, len(before), over / score)


def _check(kind: str, what: str, task: str, wanted: float, value: float, error: float, n: int, over: float) -> Check:
    low, high = value - Z95 * error, value + Z95 * error
    result = PASS if low >= wanted else FAIL if high < wanted else OPEN
    needed = wanted_inputs(over, error, n) if result == OPEN else None
    return Check(kind, what, task, wanted, value, low, high, n, result, needed - n if needed else None)
