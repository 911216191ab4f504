"""A linear probe: what a model's features still say of a task."""

from __future__ import annotations

import torch

DECAY = 1e-3  # L2 on the probe's weights, of features at unit variance


def linear_head(features: torch.Tensor, labels: torch.Tensor, classes: int) -> torch.Tensor:
    """A linear classifier [classes, d + 1] of features [n, d]: `features @ head[:, :-1].T + head[:, -1]` are the logits.

    Logistic regression by L-BFGS from zero, on features at unit variance: no randomness.
    """
    middle, spread = features.mean(0), features.std(0).clamp(min=1e-6)
    x = (features - middle) / spread
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
    weight = weight.detach() / spread
    return torch.cat([weight, (bias.detach() - weight @ middle)[:, None]], 1)


def linear_probe(
    train: torch.Tensor, labels: torch.Tensor, test: torch.Tensor, wanted: torch.Tensor
) -> tuple[int, int]:
    """(right, inputs) on `test` features [m, d] of a linear classifier fitted to `train` [n, d]: what a model still knows of a
    task, whatever its own head says (Alain & Bengio, 2017).

    Args:
        labels, wanted: int64 [n] and [m].
    """
    head = linear_head(train, labels, int(max(labels.max(), wanted.max())) + 1)
    right = (test @ head[:, :-1].T + head[:, -1]).argmax(-1) == wanted
    return int(right.sum()), len(wanted)
