"""Scores and their intervals."""

import pytest

from talos_ray.core.metrics import (
    MergeObjective,
    absolute_accuracy,
    accuracy,
    normalized_accuracy,
    standard_error,
    worst_kept,
)


def test_wilson_interval_against_published_values():
    # Newcombe (1998), table I: 81 of 263 and 15 of 148 and 0 of 20, Wilson's score method without correction
    for right, n, low, high in ((81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611)):
        score = accuracy(right, n)
        assert (score.value, score.n) == (right / n, n)
        assert score.low == pytest.approx(low, abs=1e-4) and score.high == pytest.approx(high, abs=1e-4)


def test_no_inputs_is_refused():
    with pytest.raises(ValueError, match="0 inputs"):
        accuracy(0, 0)


def test_means():
    merged, single = {"a": 0.6, "b": 0.4}, {"a": 0.8, "b": 0.8}
    assert absolute_accuracy(merged) == pytest.approx(0.5)
    assert normalized_accuracy(merged, single) == pytest.approx((0.75 + 0.5) / 2)
    assert standard_error({"a": 0.5}, {"a": 100}) == pytest.approx(0.05)
    assert standard_error({"a": 0.5, "b": 0.5}, {"a": 100, "b": 100}) == pytest.approx(0.05 / 2**0.5)


def test_a_candidate_that_lets_control_fall_never_beats_one_that_holds():
    objective = MergeObjective({"a": 0.5, "b": 1.0}, {"held": 0.8}, keep=0.95)
    assert objective({"a": 0.5, "b": 0.5, "held": 0.76}) == 0.75
    fallen = [objective({"a": 1.0, "b": 1.0, "held": h}) for h in (0.75, 0.5)]
    assert 0 > fallen[0] > fallen[1]


def test_forgetting_is_worth_nothing_where_another_task_falls():
    objective = MergeObjective({"t": 0.8}, {"held": 0.5, "other": 0.9}, 0.9, frozenset({"t"}))
    assert objective({"t": 0.1, "held": 0.5, "other": 0.9}) == pytest.approx(0.9)
    assert objective({"t": 0.1, "held": 0.44, "other": 0.9}) == pytest.approx(0.88 - 0.9 - 1)
    assert worst_kept({"held": 0.44, "other": 0.9}, objective.control) == (pytest.approx(0.88), "held")
    assert MergeObjective({"t": 0.8}, {}, 0.9, frozenset({"t"}))({"t": 0.3}) == pytest.approx(0.7)
