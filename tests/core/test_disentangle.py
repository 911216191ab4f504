"""xi and linearity against cases whose answer is known."""

import pytest
import torch

from talos_ray.core.disentangle import disentanglement, nonlinearity
from talos_ray.core.metrics import MergeObjective
from talos_ray.core.surrogate import Surrogate

TASKS = ["a", "b", "c"]


def surrogate(slopes: dict[str, torch.Tensor]) -> Surrogate:
    base = {t: torch.tensor([[1.0, 0.0]] * 8) for t in TASKS}
    labels = {t: torch.zeros(8, dtype=torch.int64) for t in TASKS}
    return Surrogate(base, slopes, labels, MergeObjective(dict.fromkeys(TASKS, 1.0), {}, 0.9), 0.0, 1.0)


def test_edits_that_leave_others_alone_have_no_error():
    slopes = {t: torch.stack([torch.ones(8, 2) * (i == j) for j in range(3)]) for i, t in enumerate(TASKS)}
    found = disentanglement(surrogate(slopes), TASKS, dict.fromkeys(TASKS, 1.0))
    assert found["pairs"] == [[0.0] * 3] * 3 and set(found["together"].values()) == {0.0}
    assert found["points"] == [0.25, 0.5, 0.75, 1.0] and torch.tensor(found["grid"]).abs().max() == 0


def test_the_error_is_the_share_of_predictions_that_the_other_delta_changes():
    slopes = {t: torch.zeros(3, 8, 2) for t in TASKS}
    slopes["a"][1, :6, 1] = 2.0  # b's delta flips six of a's eight inputs, from a coefficient of 0.5 on
    found = disentanglement(surrogate(slopes), TASKS, {"a": 1.0, "b": 0.6, "c": 1.0})
    assert found["pairs"] == [[0.0, 0.75, 0.0], [0.0] * 3, [0.0] * 3]
    assert found["together"] == {"a": 0.75, "b": 0.0, "c": 0.0}
    grid = torch.tensor(found["grid"])
    assert torch.equal(grid, grid.T) and grid[0, 0] == 0 and grid[3, 3] == pytest.approx(0.75 / 6)
    assert grid[0, 3] == pytest.approx(0.75 / 12)  # only one of the two tasks has the larger coefficient
    below = disentanglement(surrogate(slopes), TASKS, {"a": 1.0, "b": 0.4, "c": 1.0})
    assert below["pairs"][0][1] == 0.0


def test_one_task_disturbs_nobody():
    one = Surrogate({"a": torch.zeros(4, 2)}, {"a": torch.ones(1, 4, 2)}, {"a": torch.zeros(4).long()}, None, 0.0, 1.0)
    found = disentanglement(one, ["a"], {"a": 1.0})
    assert found["pairs"] == [[0.0]] and found["together"] == {"a": 0.0}


def test_nonlinearity_is_zero_for_a_linear_model_and_one_where_the_prediction_says_nothing():
    torch.manual_seed(0)
    slopes = {t: torch.randn(3, 8, 2) for t in TASKS}
    s, a = surrogate(slopes), torch.tensor([0.5, 0.2, 0.1])
    linear = {t: s.constant[t] + torch.tensordot(a, slopes[t], 1) for t in TASKS}
    assert nonlinearity(s, a, linear) < 1e-6
    assert nonlinearity(s, torch.zeros(3), linear) == pytest.approx(1.0)
    assert nonlinearity(s, a, s.constant) == 0.0  # an edit that moves nothing
