"""Paired comparison: intervals that cover what they say, and McNemar's test."""

import time

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from scipy.stats import binomtest

from talos_ray.core.metrics import Z95
from talos_ray.core.paired import bootstrap, change, holm, kept, kept_above, kept_z, margin, wanted_inputs


def pairs(n, both, lost, won, generator):
    """Right or wrong of two models whose answers are the same but for `lost` and `won`, shares of the inputs."""
    u = torch.rand(n, generator=generator)
    before = u < both + lost
    after = (u < both) | ((u >= both + lost) & (u < both + lost + won))
    return before, after


@pytest.mark.parametrize(("won", "lost"), [(0, 0), (5, 5), (9, 2), (0, 12), (300, 260)])
def test_mcnemar_is_the_exact_binomial_test(won, lost):
    before = torch.tensor([True] * lost + [False] * won + [True] * 7)
    after = torch.tensor([False] * lost + [True] * won + [True] * 7)
    found = change(before, after)
    assert (found.won, found.lost, found.n) == (won, lost, won + lost + 7)
    assert found.p == pytest.approx(binomtest(won, won + lost).pvalue if won + lost else 1.0)


@pytest.mark.parametrize(("n", "share"), [(20, 0.95), (100, 1.0), (400, 0.95)])
def test_the_interval_of_a_margin_covers_the_truth(n, share):
    generator = torch.Generator().manual_seed(n)
    both, lost, won = 0.7, 0.06, 0.03
    truth, inside = both + won - share * (both + lost), 0
    for _ in range(1500):
        before, after = pairs(n, both, lost, won, generator)
        value, error = margin([before], [after], share)
        inside += abs(value - truth) <= Z95 * error
    assert inside / 1500 > 0.925


def test_the_bootstrap_covers_the_mean_over_tasks():
    generator, shares, inside = torch.Generator().manual_seed(0), (0.3, 0.7, 0.9), 0
    for i in range(300):
        samples = [torch.rand(n, generator=generator) < p for n, p in zip((80, 200, 50), shares, strict=True)]
        low, high = bootstrap(samples, seed=i)
        inside += low <= sum(shares) / 3 <= high
    assert 0.90 < inside / 300 < 0.985
    assert bootstrap(samples) == bootstrap(samples)
    before, after = pairs(400, 0.5, 0.05, 0.25, generator)
    low, high = bootstrap([after.int() - before.int()])
    apart = bootstrap([after]), bootstrap([before])
    assert low < 0.2 < high and high - low < sum(b - a for a, b in apart)  # pairs tell more than two scores do


def test_few_inputs_without_a_change_are_no_certainty():
    same = torch.tensor([True] * 6)
    value, error = margin([same], [same], 1.0)
    assert value == 0 and error > 0.1


def test_as_many_inputs_as_it_says_are_enough():
    generator = torch.Generator().manual_seed(0)
    before, after = pairs(200, 0.8, 0.02, 0.05, generator)
    value, error = margin([before], [after], 0.95)
    least, most = wanted_inputs(value, error, 200)
    assert 200 <= least <= most
    assert wanted_inputs(error / 2, error, 200)[1] is None  # it might be nothing at all
    assert wanted_inputs(0.0, 0.1, 10) is None and wanted_inputs(0.5, 0.01, 10) == (10, 10)
    # Samples as large as the upper end say tell it in at least 80 % of all cases, if the margin is as it looks.
    value, error = 0.02, 0.012
    least, most = wanted_inputs(value, error, 200)
    shown = [value + torch.randn(4000, generator=generator) * error * (200 / n) ** 0.5 for n in (least, most)]
    power = [
        float((v > Z95 * error * (200 / n) ** 0.5).double().mean()) for v, n in zip(shown, (least, most), strict=True)
    ]
    assert power[0] < 0.8 < power[1]


@pytest.mark.parametrize(("won", "lost"), [(3, 9), (1990, 2010), (2100, 2300), (500_000, 501_000)])
def test_mcnemar_is_linear_and_close_to_the_exact_test_where_it_is_not_exact(won, lost):
    before = torch.cat([torch.ones(lost, dtype=torch.bool), torch.zeros(won, dtype=torch.bool)])
    started = time.process_time()
    found = change(before, ~before)
    assert time.process_time() - started < 1
    assert (found.won, found.lost) == (won, lost) and found.p == pytest.approx(
        binomtest(won, won + lost).pvalue, abs=2e-4
    )


def test_the_score_test_uses_the_most_likely_shares_under_what_is_asked():
    for both, lost, won, n, share in ((60, 8, 3, 100, 0.95), (350, 20, 12, 400, 0.95), (30, 2, 9, 80, 1.1)):
        rest = n - both - lost - won

        def unlikely(p, counts=(both, lost, won, rest)):
            return -sum(c * np.log(max(q, 1e-9)) for c, q in zip(counts, (*p, 1 - sum(p)), strict=True))

        equal = {"type": "eq", "fun": lambda p, share=share: p[0] + p[2] - share * (p[0] + p[1])}
        best = minimize(unlikely, [0.5, 0.1, 0.1], constraints=[equal], bounds=[(1e-6, 0.9)] * 3, tol=1e-12).x
        wanted = (both + won - share * (both + lost)) / np.sqrt(n * share * (best[1] + best[2]))
        assert float(kept_z(both, lost, won, n, share)) == pytest.approx(wanted, abs=1e-3)


def test_the_interval_of_what_was_kept_is_what_the_score_test_does_not_reject():
    generator = torch.Generator().manual_seed(3)
    for n in (8, 60, 500):
        before, after = pairs(n, 0.7, 0.1, 0.05, generator)
        value, low, high = kept(before, after)
        assert low < value < high and value == pytest.approx(float(after.sum() / before.sum()))
        assert kept_above(before, after, low) == pytest.approx(Z95, abs=1e-6)
        assert kept_above(before, after, high) == pytest.approx(-Z95, abs=1e-6)
    nothing = torch.zeros(5, dtype=torch.bool)
    assert kept(nothing, nothing)[0] == 1.0 and kept_above(nothing, nothing, 0.95) == 0.0


def test_holm_rejects_no_true_hypothesis_more_often_than_one_test_would():
    assert holm([0.001, 0.2, 0.012], 0.025) == [True, False, True]
    assert holm([0.02, 0.02], 0.025) == [False, False] and holm([], 0.025) == []
    dice = np.random.default_rng(0)
    assert np.mean([any(holm(list(dice.random(40)), 0.025)) for _ in range(2000)]) < 0.035


def rare(generator, lost=0.0):
    """Two models on 300 inputs, of which 30 are of a rare class; of what the first gets right, the second loses a share
    there, and nothing elsewhere."""
    strata = (torch.arange(300) < 30).long()
    before = torch.rand(300, generator=generator) < 0.9
    after = before & ((strata == 0) | (torch.rand(300, generator=generator) >= lost))
    return before, after, strata


def test_where_classes_count_alike_a_rare_one_that_is_lost_shows():
    before, after, strata = rare(torch.Generator().manual_seed(0), lost=1.0)
    assert kept(before, after)[0] == pytest.approx(0.9, abs=0.02)  # nine in ten inputs are as right as before
    value, low, high = kept(before, after, strata)
    assert low < value < high and value == pytest.approx(0.5, abs=0.02)
    assert kept_above(before, after, 0.85, strata) < -Z95 < Z95 < kept_above(before, after, 0.85)
    found = change(before, after, strata)
    assert (found.won, found.n) == (0, 300) and found.before - found.after > 0.4 and found.p < 0.001
    assert change(before, before, strata).p == 1.0


def test_what_keeps_just_what_is_asked_of_balanced_accuracy_hardly_ever_passes():
    # All that is lost is of the rare class: its thirty inputs alone decide how sure one can be.
    generator = torch.Generator().manual_seed(5)
    passed = fallen = 0
    for _ in range(600):
        before, after, strata = rare(generator, lost=0.2)
        z = kept_above(before, after, 0.9, strata)  # in truth (1 + 0.8) / 2
        passed += z >= Z95
        fallen += z <= -Z95
    assert passed <= 24 and fallen <= 24  # 1 in 40 would be 15


def test_intervals_of_classes_that_count_alike_are_drawn_class_by_class():
    before, after, strata = rare(torch.Generator().manual_seed(1), lost=0.3)
    low, high = bootstrap([after], strata=[strata])
    plain_low, plain_high = bootstrap([after])
    assert low < change(before, after, strata).after < high and high - low > 1.3 * (plain_high - plain_low)
    one = torch.zeros(300, dtype=torch.int64)
    assert bootstrap([after], strata=[one]) == (plain_low, plain_high)
    assert margin([before], [after], 0.9, [one]) == margin([before], [after], 0.9)
