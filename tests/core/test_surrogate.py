"""The surrogate: exact where the network is linear, led by what it should be, honest about what it knows."""

import pytest
import torch

from talos_ray.core.metrics import MergeObjective
from talos_ray.core.surrogate import Surrogate, rank_correlation, sampled_rows

TASKS, N, CLASSES = ("a", "b", "held"), 120, 3


def linear_world(seed: int = 0):
    """Logits that are linear in two coefficients: each helps its own task; the second hurts the control task."""
    g = torch.Generator().manual_seed(seed)
    labels = {t: torch.randint(CLASSES, (N,), generator=g) for t in TASKS}
    right = {t: torch.nn.functional.one_hot(labels[t], CLASSES).float() for t in TASKS}
    base = {t: torch.randn(N, CLASSES, generator=g) for t in TASKS}
    base["held"] += 3 * right["held"]
    push = {"a": (6.0, 0.0), "b": (0.0, 6.0), "held": (0.0, -8.0)}
    slopes = {t: torch.stack([p * right[t] for p in push[t]]) for t in TASKS}
    objective = MergeObjective({"a": 1.0, "b": 1.0}, {"held": 0.9}, keep=0.97)
    return Surrogate(base, slopes, labels, objective, 0.0, 1.0)


def test_prediction_is_exact_for_a_linear_model_and_at_the_anchor():
    s, a = linear_world(), torch.tensor([0.3, 0.7])
    logits = {t: s.constant[t] + 0.3 * s.slopes[t][0] + 0.7 * s.slopes[t][1] for t in TASKS}
    truth = {t: float((logits[t].argmax(-1) == s.labels[t]).float().mean()) for t in TASKS}
    assert s.accuracies(a[None]) == [truth]
    bent = {t: f + 5 * torch.randn(N, CLASSES, generator=torch.Generator().manual_seed(1)) for t, f in logits.items()}
    truth = {t: float((bent[t].argmax(-1) == s.labels[t]).float().mean()) for t in TASKS}
    assert s.around(a, bent).accuracies(a[None]) == [truth]


def test_a_sample_predicts_the_anchor_at_what_it_scores_on_all_inputs():
    s, a = linear_world(), torch.tensor([0.2, 0.4])
    logits = {t: s.constant[t] + torch.tensordot(a, s.slopes[t], 1) for t in TASKS}
    everywhere = {"a": 0.81, "held": 0.93}
    sampled, plain = s.around(a, logits, everywhere), s.around(a, logits)
    (there,), (seen,) = sampled.accuracies(a[None]), plain.accuracies(a[None])
    assert there == {"a": pytest.approx(0.81), "b": seen["b"], "held": pytest.approx(0.93)}
    (elsewhere,), (as_seen,) = sampled.accuracies(a[None] + 0.3), plain.accuracies(a[None] + 0.3)
    assert elsewhere["a"] == pytest.approx(as_seen["a"] * 0.81 / seen["a"])
    again = sampled.around(a, logits, everywhere)
    assert again.accuracies(a[None]) == [there]  # a correction replaces the one before


def test_it_climbs_where_targets_gain_and_stops_where_control_falls():
    s = linear_world()
    free, held = s.climb(torch.full((2, 2), 0.1), torch.tensor([0.0, 5.0]))
    assert free.min() > 0.4 and held[0] > 0.4 and held[1] < 0.1
    assert s.accuracies(held[None])[0]["held"] >= 0.97 * 0.9 > s.accuracies(free[None])[0]["held"]


def test_points_climb_and_are_predicted_alike_alone_and_together():
    s, points = linear_world(), torch.rand(40, 2, generator=torch.Generator().manual_seed(3))
    assert s.predict(points) == [v for a in points for v in s.predict(a[None])]
    pressures = torch.linspace(0, 1, 4)
    alone = torch.cat([s.climb(points[i : i + 1], pressures[i : i + 1]) for i in range(4)])
    assert torch.allclose(s.climb(points[:4], pressures), alone, atol=1e-4)


def test_proposals_are_new_inside_the_bounds_and_best_first():
    s = linear_world()
    first = s.propose([torch.zeros(2)], [], 4)
    assert [v for v, _ in first] == sorted((v for v, _ in first), reverse=True) and first[0][0] > s.predict(
        torch.zeros(1, 2)
    )[0]
    assert all(float(a.min()) >= 0 and float(a.max()) <= 1 for _, a in first)
    known = [a for _, a in first]
    second = s.propose([known[0]], known, 4)
    assert all(float((a - b).abs().max()) > 0.01 for _, a in second for b in known)
    assert all(torch.equal(a, b) for (_, a), (_, b) in zip(first, s.propose([torch.zeros(2)], [], 4), strict=True))


def test_rank_correlation_against_known_values():
    assert abs(rank_correlation([1, 2, 3, 4], [10, 20, 30, 40]) - 1) < 1e-12
    assert abs(rank_correlation([1, 2, 3, 4], [4, 3, 2, 1]) + 1) < 1e-12
    assert abs(rank_correlation([1, 2, 3, 4, 5], [2, 1, 4, 3, 5]) - 0.8) < 1e-12
    assert rank_correlation([1, 1, 1], [1, 2, 3]) == 0.0


def test_a_sample_has_every_class_of_data_whose_classes_take_turns():
    for n, most in ((160, 80), (160, 40), (1000, 100), (7, 9)):
        rows = sampled_rows(n, most)
        assert len(rows) == min(n, most) and torch.equal(rows, rows.unique()) and rows.max() < n
        assert torch.equal(rows, sampled_rows(n, most))
        assert len((rows % 4).unique()) == 4
