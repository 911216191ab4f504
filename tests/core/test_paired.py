"""Paired comparison: intervals that cover what they say, and McNemar's exact test."""

import pytest
import torch
from scipy.stats import binomtest

from talos_ray.core.metrics import Z95
from talos_ray.core.paired import bootstrap, change, margin, wanted_inputs


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
    before, after = pairs(200, 0.8, 0.02, 0.03, generator)
    value, error = margin([before], [after], 0.97)
    n = wanted_inputs(value, error, 200)
    assert n > 200 and abs(value) == pytest.approx(Z95 * error * (200 / n) ** 0.5, rel=0.01)
    assert wanted_inputs(0.0, 0.1, 10) is None and wanted_inputs(0.5, 0.01, 10) == 10
