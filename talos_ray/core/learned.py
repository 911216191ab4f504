"""Learned merge: the coefficients of all deltas, by gradient.

    theta(a) = base + sum_t a[t, g(j)] * delta[t, j]        g(j): the segment of masked position j

The gradient of a loss in a coefficient is a sum over its segment, `dL/da[t, g] = sum_{j in g} delta[t, j] *
dL/dtheta[j]`: one backward through the gather of the sparse optimizer, and one product with the T x k deltas. Nothing
dense is stored. Learning coefficients by gradient is AdaMerging (Yang et al., ICLR 2024, arXiv 2310.02575); here they
fit *training* inputs, by the outputs of the single edits (distillation), by labels, or by both, while the outputs of
the base are held on control inputs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from talos_ray.core.compose import Composer
from talos_ray.core.delta import Delta
from talos_ray.core.mask import Mask
from talos_ray.core.optimizer import MaskedGradient, adam_state, load_adam
from talos_ray.core.seeds import derive_seed
from talos_ray.core.segments import Segments

CHUNK = 1 << 20  # weights whose product with a delta is taken at once
State = dict[str, torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class MergePlan:
    """How long coefficients are learned, and how fast.

    Args:
        steps: updates.
        lr: peak rate of Adam on the coefficients; a cosine takes it to 0.
        seed: of the order of the inputs.
    """

    steps: int
    lr: float
    seed: int

    def lr_at(self, step: int) -> float:
        """`step` counts from 0."""
        return self.lr * 0.5 * (1 + math.cos(math.pi * step / self.steps))

    def rows_at(self, step: int, task: str, samples: int, size: int) -> torch.Tensor:
        """Row numbers (int64) of the inputs of a task in one update: every epoch is a fresh permutation of its
        `samples`."""
        size = min(size, samples)
        per_epoch = samples // size
        seed = derive_seed(self.seed, task, "merge", step // per_epoch)
        order = torch.randperm(samples, generator=torch.Generator().manual_seed(seed))
        start = step % per_epoch * size
        return order[start : start + size]


class LearnedCoefficients:
    """Adam (Kingma & Ba, 2015) on the coefficients of deltas that share one mask.

    Args:
        module: holds the base on entry, and the base plus the deltas under the present coefficients from then on.
        mask, deltas, base: as `Composer` takes them.
        segments: which masked weights share a coefficient.
        start: every coefficient's value at first, or float32 [T, G] in the order of the tasks' names.
        moving: the tasks whose coefficients are learned; all of them, if not given. The others stay as they start.

    Beside the deltas themselves it holds 2 x k float32 (the base's values and the gradient) and 4 x T x G (G segments).
    """

    def __init__(
        self,
        module: nn.Module,
        mask: Mask,
        deltas: Sequence[Delta],
        segments: Segments,
        base: str,
        start: float | torch.Tensor,
        moving: Sequence[str] | None = None,
    ) -> None:
        self.composer = Composer(module, mask, deltas, base, segments)
        self.tasks = list(self.composer.deltas)
        self.moving = self.tasks if moving is None else list(moving)
        assert self.composer.segments is not None  # it was given some
        self.segments = self.composer.segments
        first = torch.as_tensor(start, dtype=torch.float32).expand(len(self.tasks), segments.count)
        self.values = nn.Parameter(first.to(self.composer.base.device, copy=True).contiguous())
        self.grad = torch.zeros_like(self.values)  # float32 [T, G]
        self.values.grad = self.grad
        self.adam = torch.optim.Adam([self.values])
        self.gradient = MaskedGradient(module, mask, torch.zeros_like(self.composer.base, dtype=torch.float32))
        self.put()

    @property
    def coefficients(self) -> dict[str, torch.Tensor]:
        """Task -> float32 [G]."""
        return dict(zip(self.tasks, self.values.detach(), strict=True))

    def put(self) -> None:
        """Write what the present coefficients compose to into the module."""
        self.composer.compose(self.coefficients)

    @torch.no_grad()
    def pull(self) -> None:
        """The gradient of the coefficients from that of the masked weights, which is cleared."""
        flat = self.gradient.flat
        product = torch.empty_like(flat)
        for task in self.moving:
            delta = self.composer.values[task]
            # Converted in parts, because a delta in float32 is as large as the gradient.
            for start in range(0, len(flat), CHUNK):
                part = slice(start, start + CHUNK)
                torch.mul(flat[part], delta[part].float(), out=product[part])
            self.grad[self.tasks.index(task)] = self.segments.sums(product)
        flat.zero_()

    def step(self, lr: float) -> None:
        """One update with the gradient that backward has gathered; the module holds the new model afterwards."""
        self.pull()
        self.adam.param_groups[0]["lr"] = lr
        self.adam.step()
        self.put()

    def state(self) -> State:
        """Coefficients and moments, float32 [T, G], and the step count: all that a restart needs."""
        return {"values": self.values.detach().clone(), **adam_state(self.adam, self.values)}

    @torch.no_grad()
    def load(self, state: State) -> None:
        """Go back to a `state()`, bitwise, and compose it."""
        self.values.copy_(state["values"])
        load_adam(self.adam, self.values, state)
        self.put()

    def close(self) -> None:
        """The base's own bytes back into the module, and its hooks off."""
        self.gradient.close()
        self.composer.rollback()


class LearnedHeads:
    """Adam on linear heads of the tasks' own, which learn together with the coefficients (SyMerge, arXiv 2412.19098).

    Args:
        start: task -> head float32 [classes, d + 1] that it begins at.
        rate: peak rate, as a share of the standard deviation of a head's weights.
    """

    def __init__(self, start: Mapping[str, torch.Tensor], rate: float) -> None:
        self.heads = {t: nn.Parameter(h.detach().clone().contiguous()) for t, h in start.items()}
        self.rates = [rate * float(h.detach().std()) for h in self.heads.values()]
        self.adam = torch.optim.Adam([{"params": [h]} for h in self.heads.values()]) if self.heads else None

    def step(self, share: float) -> None:
        """One update at a share of the peak rate, with the gradients that backward has left, which are cleared."""
        if self.adam is None:
            return
        for group, rate in zip(self.adam.param_groups, self.rates, strict=True):
            group["lr"] = rate * share
        self.adam.step()
        self.adam.zero_grad()

    def state(self) -> State:
        """Heads, moments and step counts."""
        state: State = {}
        if self.adam is None:  # there are no heads
            return state
        for task, head in self.heads.items():
            state[f"head/{task}"] = head.detach().clone()
            moments = adam_state(self.adam, head)
            state |= {f"head/{task}/{name}": values for name, values in moments.items()}
        return state

    @torch.no_grad()
    def load(self, state: State) -> None:
        """Go back to a `state()`, bitwise."""
        if self.adam is None:
            return
        for task, head in self.heads.items():
            head.copy_(state[f"head/{task}"])
            moments = {name: state[f"head/{task}/{name}"] for name in ("exp_avg", "exp_avg_sq", "step")}
            load_adam(self.adam, head, moments)


def agreement_loss(
    logits: torch.Tensor, taught: torch.Tensor | None, labels: torch.Tensor | None = None
) -> torch.Tensor:
    """How far a model is from its teacher and from the labels: mean over inputs of KL(teacher || model), of the labels'
    cross-entropy, or of both added up.

    Args:
        logits: [n, C]. taught: log-probabilities of the teacher [n, C], or None. labels: int64 [n], or None.
    """
    log_probs = logits.float().log_softmax(-1)
    loss = log_probs.new_zeros(())
    if taught is not None:
        taught = taught.float()
        loss = loss + (taught.exp() * (taught - log_probs)).sum(-1).mean()
    if labels is not None:
        loss = loss + nn.functional.nll_loss(log_probs, labels)
    return loss


def learn(
    learner: LearnedCoefficients,
    plan: MergePlan,
    backward: Callable[[int], float],
    heads: LearnedHeads | None = None,
    *,
    start: int = 0,
    until: int | None = None,
    on_step: Callable[[int, float], None] = lambda step, loss: None,
) -> None:
    """Update the coefficients, to the plan's end or to the update `until`.

    Args:
        backward: step -> its loss, after the gradients of all of its inputs have been computed.
        heads: that are learned too.
        start: updates that are done already.
        on_step: called after each update with the number of updates done, and its loss.

    Raises:
        FloatingPointError: a loss is not finite.
    """
    for step in range(start, plan.steps if until is None else until):
        loss = backward(step)
        if not math.isfinite(loss):
            raise FloatingPointError(
                f"learning the coefficients: loss is {loss} at step {step}; wanted a finite loss; look for inputs "
                f"that are NaN, or lower search.lr (now {plan.lr:g})"
            )
        learner.step(plan.lr_at(step))
        if heads is not None:
            heads.step(plan.lr_at(step) / plan.lr)
        on_step(step + 1, loss)
