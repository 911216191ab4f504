"""The gate: pass, fail, or not enough data to tell, and never on point values."""

import torch

from talos_ray import gate
from talos_ray.config import Gate


def right(n, accuracy):
    return torch.arange(n) < round(n * accuracy)


def judged(n, control=(0.9, 0.9), target=(0.3, 0.6), xi=None, **settings):
    base = {"c": right(n, control[0]), "t": right(n, target[0])}
    now = {"c": right(n, control[1]), "t": right(n, target[1])}
    return gate.judge(Gate(**settings), ["t"], ["c"], base, now, xi)


def test_the_same_point_values_pass_fail_or_leave_it_open_by_their_number():
    assert judged(1000, control=(0.9, 0.88))["result"] == gate.PASS
    assert judged(1000, control=(0.9, 0.8))["result"] == gate.FAIL
    few = judged(20, control=(0.9, 0.9))
    assert few["result"] == gate.OPEN and few["checks"][0]["more"] > 20
    (told,) = gate.told(few)
    assert (
        "not enough data to tell" in told and "more test inputs needed" in told and "kept by control c is 1.000" in told
    )
    assert judged(20 + 3 * few["checks"][0]["more"], control=(0.9, 0.9))["result"] == gate.PASS


def test_every_condition_can_fail_and_names_its_task():
    checks = judged(500, target=(0.6, 0.5), target_keep=1.0, target_gain=0.1, disentanglement=0.2, xi={"t": 0.5})
    assert checks["result"] == gate.FAIL
    failed = {c["what"]: c["task"] for c in checks["checks"] if c["result"] == gate.FAIL}
    assert failed == {
        "share of its base score kept by target t": "t", "mean gain of the targets": "", "mean disentanglement error": "",
    }  # fmt: skip
    assert judged(500, target_keep=1.0, target_gain=0.1, disentanglement=0.6, xi={"t": 0.5})["result"] == gate.PASS


def test_what_is_null_asks_nothing():
    found = judged(500, control=(0.9, 0.1), control_keep=None)
    assert found == {"result": gate.PASS, "checks": []}


def test_what_cannot_be_told_holds_only_where_the_gate_is_strict():
    few = judged(20)
    assert gate.holds(Gate(), few) and not gate.holds(Gate(strict=True), few)
    assert not gate.holds(Gate(), judged(1000, control=(0.9, 0.8)))
