"""Sparse fine-tuning of one task: ordinary non-linear training in which only masked weights move.

Every random choice is a function of (seed, task, epoch or step), never of what ran before. So a task that
resumes from a checkpoint ends bitwise where it would have ended, on whichever team it lands.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.distributed as dist

from talos_ray.core.fisher import Batch
from talos_ray.core.optimizer import SparseAdamW
from talos_ray.core.replay import Replay
from talos_ray.core.seeds import derive_seed

State = dict[str, torch.Tensor]
LOOK_STEPS = 16  # between two looks at a GPU's losses, for which it has to be waited for


@dataclass(frozen=True)
class Plan:
    """One task's training: `steps` updates with `batch_size` samples each (over all workers)."""

    task: str
    samples: int
    steps: int
    batch_size: int
    lr: float
    warmup_steps: int
    seed: int
    label_smoothing: float = 0.0
    label_noise: float = 0.0
    classes: int = 0  # wanted where there is label noise
    schedule: str = "cosine"  # or constant
    completion: bool = False  # logits are log-probabilities [n, 1] of what is to be learnt, and not to be compared
    class_weights: tuple[float, ...] | None = None  # of an example of each class; all the same, if not given

    def __post_init__(self) -> None:
        if self.label_noise and not self.classes:
            raise ValueError(
                f"task {self.task!r}: label_noise is {self.label_noise:g} and classes 0; wanted the number of "
                "classes, among which a wrong label is drawn; give it"
            )

    def lr_at(self, step: int) -> float:
        """Linear warm-up, then cosine to 0 or the peak to the end. `step` counts from 0."""
        if step < self.warmup_steps:
            return self.lr * (step + 1) / self.warmup_steps
        if self.schedule == "constant":
            return self.lr
        share = (step - self.warmup_steps) / max(1, self.steps - self.warmup_steps)
        return self.lr * 0.5 * (1 + math.cos(math.pi * share))

    def batch_at(self, step: int) -> torch.Tensor:
        """Indices (int64) of the samples of one update; every epoch is a fresh permutation."""
        size = min(self.batch_size, self.samples)
        # What is left over of an epoch fills no batch, and is passed over: all updates weigh the same.
        per_epoch = self.samples // size
        start = step % per_epoch * size
        order = self._order(step // per_epoch)
        return order[start : start + size]

    @functools.lru_cache(maxsize=2)  # noqa: B019 - a plan is small, and so are the last two epochs
    def _order(self, epoch: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(derive_seed(self.seed, self.task, "epoch", epoch))
        return torch.randperm(self.samples, generator=generator)

    def labels_at(self, index: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """The labels [n] of the samples `index` [n], as they are trained on: a share of all samples, always the same
        ones, is wrong."""
        if not self.label_noise or self.classes < 2:
            return labels
        wrong, draws = self._noise
        # From 1 to classes - 1 further on: never the right class, and every other one as often.
        shift = 1 + draws[index] % (self.classes - 1)
        offset = wrong[index] * shift
        return (labels + offset.to(labels.device)) % self.classes

    def loss(self, labels: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        """Sum over the samples with these labels [n], as they are trained on, and logits [n, C]."""
        if self.completion:
            return -logits.sum()
        weights = None if self.class_weights is None else logits.new_tensor(self.class_weights)
        return torch.nn.functional.cross_entropy(
            logits, labels, weight=weights, reduction="sum", label_smoothing=self.label_smoothing
        )

    @functools.cached_property
    def _noise(self) -> tuple[torch.Tensor, torch.Tensor]:
        generator = torch.Generator().manual_seed(derive_seed(self.seed, self.task, "label noise"))
        wrong = torch.rand(self.samples, generator=generator) < self.label_noise
        return wrong, torch.randint(0, 2**31, (self.samples,), generator=generator)

    def parts_at(
        self, step: int, rank: int = 0, world: int = 1, micro_batch_size: int | None = None
    ) -> tuple[torch.Tensor, ...]:
        """This worker's samples of one update, cut into those of one backward each."""
        samples = self.batch_at(step)[rank::world]
        parts: tuple[torch.Tensor, ...] = samples.split(micro_batch_size or max(1, len(samples)))
        return parts


def balanced(labels: torch.Tensor, classes: int) -> tuple[float, ...]:
    """Weights of the classes of labels [n] by which each has the same share of the loss: n / (classes · count), after
    King and Zeng (2001), as scikit-learn's `balanced`. Of a class that does not occur, 0."""
    counts = labels.bincount(minlength=classes)
    occurring = int((counts > 0).sum())
    return tuple(len(labels) / (occurring * count) if count else 0.0 for count in counts.tolist())


class Looks:
    """Looks at validation while a task is trained, and the weights that did best there.

    Args:
        loss: the mean validation loss of the module as it stands.
        every: updates between two looks; there is one after the last update, too.
        patience: looks without a lesser loss after which the training is over; None: never.
    """

    def __init__(self, loss: Callable[[], float], every: int, patience: int | None = None) -> None:
        self.loss = loss
        self.every = every
        self.patience = patience
        self.seen: list[tuple[int, float]] = []  # updates done, validation loss
        self.best: torch.Tensor | None = None  # values float32 [k]

    @property
    def best_at(self) -> int:
        """Updates after which the loss was least, the first of several."""
        return min(self.seen, key=lambda look: look[1])[0]

    @property
    def over(self) -> bool:
        """Whether the training has gone on for long enough without getting better."""
        since = [step for step, _ in self.seen if step > self.best_at]
        return self.patience is not None and len(since) >= self.patience

    def take(self, optimizer: SparseAdamW, step: int, rank: int) -> None:
        """Look at what the optimizer has in its module after `step` updates. Of a team the first worker looks, and all
        others are told what it saw: on other hardware they might see another number, and stop elsewhere."""
        loss = torch.tensor(self.loss() if rank == 0 else 0.0, dtype=torch.float64, device=optimizer.values.device)
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            dist.broadcast(loss, src=0)
        self.seen.append((step, float(loss)))
        if self.best_at == step:
            self.best = optimizer.values.detach().clone()

    @torch.no_grad()
    def settle(self, optimizer: SparseAdamW) -> None:
        """Put the best weights into the optimizer and its module."""
        if self.best is not None:
            optimizer.values.copy_(self.best)
            optimizer.push()

    def state(self) -> State:
        """What a checkpoint has to hold of it."""
        if self.best is None:
            return {}
        return {"best": self.best, "looks": torch.tensor(self.seen, dtype=torch.float64)}

    def load(self, state: State) -> None:
        """Go on from a `state()`."""
        if "best" in state:
            self.best = state["best"].clone()
            self.seen = [(int(step), loss) for step, loss in state["looks"].tolist()]


def finetune(
    optimizer: SparseAdamW,
    plan: Plan,
    logits: Callable[[Batch], torch.Tensor],
    batch: Callable[[torch.Tensor], tuple[Batch, torch.Tensor]],
    *,
    start: tuple[int, State] | None = None,
    rank: int = 0,
    world: int = 1,
    autocast: torch.dtype | None = None,
    micro_batch_size: int | None = None,
    looks: Looks | None = None,
    on_step: Callable[[int, torch.Tensor], None] = lambda step, loss: None,
) -> list[float]:
    """Train until `plan.steps` and leave the tuned weights in the optimizer's module.

    Args:
        logits: batch -> [n, C], with a gradient path to the masked weights.
        batch: indices -> (batch, labels int64 [n]); asked for `plan.parts_at` of every step, in order.
        start: (step, state) of a checkpoint to go on from: the optimizer's state, and that of `looks`.
        rank, world: this worker's place in a team; each takes every world-th sample of a batch.
        autocast: dtype of the forward pass, or None for the model's own.
        micro_batch_size: samples in one backward; the gradients of a batch add up. All at once, if not given.
        looks: at validation: the weights with the least loss there are left in the module, and it may end the training.
        on_step: called after each update with the number of updates done and the batch's loss, a number on the model's
            device: a GPU that is asked for every one of them cannot work ahead.

    Returns:
        The loss of every update done by this call, in order.

    Raises:
        FloatingPointError: a loss is not finite. A GPU's losses are looked at once in LOOK_STEPS.
    """
    first_step = 0
    if start is not None:
        first_step, state = start
        optimizer.load(state)
        if looks is not None:
            looks.load(state)
    waiting: list[torch.Tensor] = []  # losses that nobody has looked at yet
    losses: list[float] = []
    team_batch = min(plan.batch_size, plan.samples)

    def work(inputs: Batch, labels: torch.Tensor) -> torch.Tensor:
        with torch.autocast(labels.device.type, dtype=autocast, enabled=autocast is not None):
            scores = logits(inputs)
        loss = plan.loss(labels, scores.float())
        # The optimizer takes the mean over the team: times its size, that is the mean over the whole batch, however
        # unevenly its samples fall to the workers.
        (loss * (world / team_batch)).backward()
        return loss.detach()

    run = Replay(work, [optimizer.grad])
    for step in range(first_step, plan.steps):
        if looks is not None and looks.over:  # before the step, so that what goes on from a checkpoint stops there, too
            break
        torch.manual_seed(derive_seed(plan.seed, plan.task, "step", step, rank))  # dropout, if the model has any
        parts = plan.parts_at(step, rank, world, micro_batch_size)
        samples = sum(map(len, parts))
        sums: list[torch.Tensor] = []
        for part in parts:
            inputs, labels = batch(part)
            sums.append(run(inputs, plan.labels_at(part, labels)))
        optimizer.step(plan.lr_at(step))
        mean = functools.reduce(torch.add, sums) / max(1, samples)
        waiting.append(mean)
        if mean.device.type == "cpu" or len(waiting) >= LOOK_STEPS or step == plan.steps - 1:
            losses += _read(waiting, plan, step)
            waiting.clear()
        if looks is not None and ((step + 1) % looks.every == 0 or step + 1 == plan.steps):
            looks.take(optimizer, step + 1, rank)
        on_step(step + 1, mean)
    if waiting:
        losses += _read(waiting, plan, first_step + len(losses) + len(waiting) - 1)
    if looks is not None:
        looks.settle(optimizer)
    return losses


def _read(losses: list[torch.Tensor], plan: Plan, last: int) -> list[float]:
    values: list[float] = torch.stack(losses).tolist()
    for step, value in enumerate(values, last - len(values) + 1):
        if not math.isfinite(value):
            raise FloatingPointError(
                f"task {plan.task!r}: loss is {value} at step {step}; wanted a finite loss; lower train.lr (now "
                f"{plan.lr:g})"
            )
    return values
