"""The decision line hides nothing."""

import torch

from talos_ray import gate
from talos_ray.config import Gate
from talos_ray.report import plots
from talos_ray.report.page import decision, gain_kept
from talos_ray.report.words import words_of
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


def many(tasks: int, merged: float | None = None) -> Version:
    """A version of many targets and a control task: `t7` and `t11` lost, all others gained, the more the higher their
    number; or all have the same score `merged`."""
    scores = {"held": TaskScores(base=score(0.8), merged=score(0.8))}
    for number in range(tasks):
        after = 0.1 if number in (7, 11) else 0.5 + number / (10 * tasks)
        after = after if merged is None else merged
        scores[f"t{number}"] = TaskScores(base=score(0.4), single=score(0.9), merged=score(after))
    targets = [task for task in scores if task != "held"]
    return version().with_fields(scores=scores, targets=targets, controls=["held"])


def test_of_many_tasks_plots_show_controls_and_those_that_did_worst():
    shown = plots.tasks_shown(many(300))
    assert shown == ["held", *(f"t{number}" for number in range(plots.MOST_TASKS - 1))]
    late = many(300).scores | {"t299": TaskScores(base=score(0.9), merged=score(0.1))}
    assert plots.tasks_shown(many(300).with_fields(scores=late))[-1] == "t299"
    assert plots.tasks_shown(many(20)) == list(many(20).scores)  # all of a few, in their order


def test_a_sentence_names_some_of_many_tasks_and_says_how_many_more_there_are():
    _, sentence = decision(many(300, merged=0.1), None, ENGLISH)
    assert "t0 (0.400 to 0.100)" in sentence and "and 288 more" in sentence and "t299" not in sentence
