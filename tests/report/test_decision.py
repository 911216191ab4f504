"""The decision line hides nothing."""

import torch

from talos_ray import gate
from talos_ray.config import Gate
from talos_ray.report.page import decision, gain_kept, words_of
from talos_ray.storage.version import Score, Summary, TaskScores, Version

ENGLISH = words_of("en")


def version(**settings) -> Version:
    """Of three targets, 1,000 test inputs each: one learnt well, one in part, one lost (.462 to .453)."""
    accuracy = {"a": (0.3, 0.9, 0.9), "b": (0.4, 0.6, 0.9), "c": (0.462, 0.453, 0.47)}
    inputs = torch.arange(1000)
    before = {t: inputs < round(1000 * base) for t, (base, _, _) in accuracy.items()}
    after = {t: inputs < round(1000 * merged) for t, (_, merged, _) in accuracy.items()}
    asked = Gate(control_keep=None, **settings)
    kinds = ("base", "merged", "single")
    return Version(
        kind="edit",
        model="m",
        coefficients={},
        targets=list(accuracy),
        scores={t: TaskScores(**{k: score(a) for k, a in zip(kinds, found, strict=True)}) for t, found in accuracy.items()},
        summary=Summary(zero_shot=0.387, merged=0.651),
        gate=gate.judge(asked, list(accuracy), [], before, after),
    )


def score(value: float) -> Score:
    return Score(value=value, n=1000, low=value, high=value)


def test_a_task_that_was_not_learnt_keeps_the_version_aside_and_is_named_first():
    found = version()
    assert found.gate.result != gate.PASS and not found.passes
    standing, line = decision(found, None, ENGLISH)
    assert standing == "hold" and "kept by target c is 0.981" in line
    _, _, rest = line.partition("wanted 1.000")
    assert rest.index("not learnt: c (0.462 to 0.453)") < rest.index("targets 0.387 to 0.651")


def test_no_gate_makes_it_a_pass():
    standing, line = decision(version(target_keep=None), None, ENGLISH)
    assert standing == "open" and "Pass" not in line and line.startswith("In force, because the gate does not ask for it: not learnt: c")


def test_what_is_left_of_the_single_edits_gains_is_said():
    found = version()
    assert {t: round(share, 6) for t, share in gain_kept(found).items()} == {"a": 1.0, "b": 0.4}  # c's edit gains nothing
    assert "b keeps 40% of what its single edit gains, the least of all" in decision(found, None, ENGLISH)[1]
