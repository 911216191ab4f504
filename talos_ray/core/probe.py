"""A linear probe: what a model's features still say of a task."""

from __future__ import annotations

import torch

DECAY = 1e-3  # L2 on the probe's weights, of features at unit variance


def linear_probe(
    train: torch.Tensor, labels: torch.Tensor, test: torch.Tensor, wanted: torch.Tensor
) -> tuple[int, int]:
    """(right, inputs) on `test` features [m, d] of a linear classifier fitted to `train` [n, d]: what a model still knows of a
    task, whatever its own head says (Alain & Bengio, 2017). Logistic regression by L-BFGS from zero: no randomness.

    Args:
        labels, wanted: int64 [n] and [m].
    """
    middle, spread = train.mean(0), train.std(0).clamp(min=1e-6)
    x, classes = (train - middle) / spread, int(max(labels.max(), wanted.max())) + 1
    weight = torch.zeros(classes, x.shape[1], requires_grad=True)
    bias = torch.zeros(classes, requires_grad=True)
    solver = torch.optim.LBFGS([weight, bias], max_iter=100, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        solver.zero_grad()
        value = torch.nn.functional.cross_entropy(x @ weight.T + bias, labels) + DECAY * weight.square().sum()
        value.backward()
        return value

    with torch.enable_grad():
        solver.step(loss)
    with torch.no_grad():
        right = (((test - middle) / spread) @ weight.T + bias).argmax(-1) == wanted
    return int(right.sum()), len(wanted)
