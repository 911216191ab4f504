"""Scores and their intervals."""

import pytest
import sklearn.metrics
import torch

from talos_ray.core.metrics import (
    BINS,
    MergeObjective,
    absolute_accuracy,
    accuracy,
    calibration_error,
    class_scores,
    mostly_taken_for,
    normalized_accuracy,
    score,
    share_right,
    standard_error,
    strata_of,
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


def test_scores_by_class_against_the_counts_by_hand():
    labels = torch.tensor([0, 0, 0, 0, 1, 1, 2, 2])
    predicted = torch.tensor([0, 0, 1, 4, 1, 1, 0, 4], dtype=torch.int32)  # 3 occurs nowhere, 4 in answers only
    found = class_scores(predicted, labels, 5)
    assert found.confusion == [[2, 1, 0, 0, 1], [0, 2, 0, 0, 0], [1, 0, 0, 0, 1], [0] * 5, [0] * 5]
    assert found.recall == [0.5, 1.0, 0.0, None, None]
    assert found.precision == [pytest.approx(2 / 3), pytest.approx(2 / 3), None, None, 0.0]
    assert found.balanced_accuracy == pytest.approx(0.5)
    assert found.macro_f1 == pytest.approx((2 * 2 / 7 + 2 * 2 / 5 + 0 + 0) / 4)
    assert found.calibration_error is None
    names = ["cat", "dog", "emu", "fox", "gnu"]
    taken = [mostly_taken_for(row, i, names) for i, row in enumerate(found.confusion)]
    assert taken == ["dog (1)", "", "cat (1)", "", ""]


def test_scores_by_class_are_those_of_scikit_learn():
    dice = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 6, (500,), generator=dice)
    predicted = torch.where(torch.rand(500, generator=dice) < 0.6, labels, torch.randint(0, 6, (500,), generator=dice))
    found = class_scores(predicted.int(), labels, 6)
    assert found.balanced_accuracy == pytest.approx(sklearn.metrics.balanced_accuracy_score(labels, predicted))
    assert found.macro_f1 == pytest.approx(sklearn.metrics.f1_score(labels, predicted, average="macro"))
    assert sum(map(sum, found.confusion)) == 500
    assert sum(found.confusion[i][i] for i in range(6)) == int((labels == predicted).sum())


def test_calibration_error_bin_by_bin():
    dice = torch.Generator().manual_seed(0)
    probability = torch.rand(2000, generator=dice)
    probability[:2] = torch.tensor([0.0, 1.0])
    right = (probability * BINS).floor() % 2 == 1  # too sure in one bin, not sure enough in the next
    wanted = 0.0
    for low in range(BINS):
        inside = (probability * 15 > low) & (probability * 15 <= low + 1) if low else probability * 15 <= 1
        if inside.any():
            gap = probability[inside].double().mean() - right[inside].double().mean()
            wanted += float(inside.double().mean() * gap.abs())
    assert calibration_error(probability, right) == pytest.approx(wanted, abs=1e-6) and wanted > 0.1
    sure = torch.full((10,), 0.75)
    assert calibration_error(sure, torch.tensor([True] * 6 + [False] * 4)) == pytest.approx(0.15)
    assert calibration_error(torch.ones(5), torch.ones(5, dtype=torch.bool)) == 0


def test_balanced_accuracy_is_the_mean_recall_of_scikit_learn():
    generator = torch.Generator().manual_seed(0)
    labels = torch.multinomial(torch.tensor([0.8, 0.15, 0.05]), 400, replacement=True, generator=generator)
    predicted = torch.where(torch.rand(400, generator=generator) < 0.6, labels, torch.zeros_like(labels))
    right = predicted == labels
    strata = strata_of(labels, "balanced_accuracy")
    wanted = sklearn.metrics.balanced_accuracy_score(labels, predicted)
    assert share_right(right, strata) == pytest.approx(wanted)
    found = score(right, strata)
    plain = score(right)
    assert (found.value, found.n) == (pytest.approx(wanted), 400) and found.low < wanted < found.high
    # Few inputs of the rare class decide a third of it, so it is less sure than accuracy of as many inputs.
    assert found.high - found.low > 1.5 * (plain.high - plain.low)
    assert strata_of(labels, "accuracy") is None and plain.value == pytest.approx(float(right.float().mean()))
    with pytest.raises(ValueError, match="0 inputs"):
        score(right[:0], strata[:0])


def test_the_interval_of_balanced_accuracy_holds_the_truth_and_its_own_value():
    generator = torch.Generator().manual_seed(2)
    labels = torch.cat([torch.zeros(180), torch.ones(60), torch.full((20,), 2.0)]).long()
    recall = torch.tensor([0.9, 0.7, 0.5])  # of each class, in truth
    covered = 0
    for _ in range(1000):
        found = score(torch.rand(len(labels), generator=generator) < recall[labels], labels)
        covered += found.low <= float(recall.mean()) <= found.high
    assert 930 <= covered <= 985
    everything = score(torch.ones(len(labels), dtype=torch.bool), labels)
    assert (everything.value, everything.high) == (1.0, 1.0) and 0.9 < everything.low < 1
