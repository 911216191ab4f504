"""Linear heads on a model's features: what the features say of a task, whatever the classes' own words say."""

from __future__ import annotations

import torch

from talos_ray.core.metrics import share_right

DECAY = 1e-3  # L2 on what is fitted, of features at unit variance
DECAYS = (1.0, 1e-1, 1e-2, 1e-3)  # that `fitted_head` chooses among


def linear_head(
    features: torch.Tensor,
    labels: torch.Tensor,
    classes: int,
    start: torch.Tensor | None = None,
    decay: float = DECAY,
) -> torch.Tensor:
    """A linear classifier [classes, d + 1] of features [n, d]: `features @ head[:, :-1].T + head[:, -1]` are the
    logits.

    Logistic regression by L-BFGS on features at unit variance, with L2 towards `start`: no randomness.

    Args:
        labels: int64 [n], or what a teacher says instead: probabilities float32 [n, classes].
        start: a head [classes, d + 1] that the fit begins at and is drawn to; all zeros, if not given.
        decay: how hard.
    """
    middle = features.mean(0)
    spread = features.std(0).clamp(min=1e-6)
    normal = (features - middle) / spread  # [n, d]
    before = torch.zeros(classes, features.shape[1] + 1) if start is None else start
    # Only what is added to `start` is fitted, so that L2 on it draws towards `start`.
    known = features @ before[:, :-1].T + before[:, -1]  # [n, classes]
    weight = torch.zeros(classes, normal.shape[1])
    bias = torch.zeros(classes)
    by_weight = torch.empty_like(weight)
    by_bias = torch.empty_like(bias)
    weight.grad = by_weight
    bias.grad = by_bias
    solver = torch.optim.LBFGS([weight, bias], max_iter=100, line_search_fn="strong_wolfe")
    hard = labels.dim() == 1
    wanted = torch.nn.functional.one_hot(labels, classes).to(features.dtype) if hard else labels  # [n, classes]
    push = wanted * (-1.0 / len(features))  # gradient of the mean cross-entropy in the log-probabilities

    def loss() -> torch.Tensor:
        """And its gradients, by hand: the bits of autograd, whose own work takes longer than so small a product."""
        log_probs = (known + normal @ weight.T + bias).log_softmax(-1)
        of_wanted = (
            torch.nn.functional.nll_loss(log_probs, labels) if hard else (log_probs * labels).sum() / -len(labels)
        )
        by_logits = torch.ops.aten._log_softmax_backward_data(push, log_probs, -1, log_probs.dtype)  # [n, classes]
        torch.mm(by_logits.T, normal, out=by_weight)
        by_weight.add_(2 * weight * decay)
        torch.sum(by_logits, 0, out=by_bias)
        value: torch.Tensor = of_wanted + decay * weight.square().sum()
        return value

    with torch.no_grad():
        solver.step(loss)
    # Back to features as they are: w (x - m) / s + b = (w / s) x + (b - (w / s) m).
    moved = weight / spread
    shift = bias - moved @ middle
    return before + torch.cat([moved, shift[:, None]], 1)


def scored(features: torch.Tensor, head: torch.Tensor) -> torch.Tensor:
    """Logits [n, classes] of features [n, d] under a linear head [classes, d + 1]."""
    return features @ head[:, :-1].T + head[:, -1]


def fitted_head(
    features: torch.Tensor,
    labels: torch.Tensor,
    start: torch.Tensor,
    held_out: torch.Tensor,
    held_out_labels: torch.Tensor,
    balanced: bool = False,
) -> torch.Tensor:
    """The linear head [classes, d + 1] that is best on held-out inputs, of those drawn to `start` more or less hard.

    Args:
        features, labels: float32 [n, d], and what it is fitted to, as `linear_head` takes it.
        start: [classes, d + 1].
        held_out, held_out_labels: float32 [m, d] and int64 [m] that say how hard; of equally good ones the closest to
            `start`, which is one of them.
        balanced: whether their classes count alike, and not they themselves.
    """
    strata = held_out_labels if balanced else None

    def worth(head: torch.Tensor) -> float:
        return share_right(scored(held_out, head).argmax(-1) == held_out_labels, strata)

    best = start
    most = worth(start)
    # From the hardest on, and only a better one is taken: so the closest to `start` wins.
    for decay in DECAYS:
        if most == 1.0:  # none can be better
            break
        head = linear_head(features, labels, len(start), start, decay)
        value = worth(head)
        if value > most:
            best = head
            most = value
    return best


def linear_probe(
    train: torch.Tensor, labels: torch.Tensor, test: torch.Tensor, wanted: torch.Tensor
) -> tuple[int, int]:
    """(right, inputs) on `test` features [m, d] of a linear classifier fitted to `train` [n, d]: what a model still
    knows of a task, whatever its own head says (Alain & Bengio, 2017).

    Args:
        labels, wanted: int64 [n] and [m].
    """
    classes = int(max(labels.max(), wanted.max())) + 1
    head = linear_head(train, labels, classes)
    right = scored(test, head).argmax(-1) == wanted
    return int(right.sum()), len(wanted)
