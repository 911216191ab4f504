"""Joint training, the yardstick of a merge: one edit on the same mask, trained on the data of all tasks at once.

It costs every task's data whenever one is added or removed, and no task can be taken out of it again; what a merge of
single edits reaches is held against it. It gets about as many samples as all single edits together, and holds the
control tasks, too.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import ray
import torch

from talos_ray.config import Spec, Train
from talos_ray.core.finetune import Plan
from talos_ray.core.learned import MergePlan, agreement_loss
from talos_ray.core.mask import mask_from_flags
from talos_ray.core.metrics import share_right
from talos_ray.core.optimizer import SparseAdamW
from talos_ray.core.probe import scored
from talos_ray.orchestrate.cluster import options
from talos_ray.orchestrate.learning import Pool, pool_of
from talos_ray.orchestrate.plan import Prepared, prepare
from talos_ray.orchestrate.worker import Shared, Workbench, freeze
from talos_ray.progress import Progress
from talos_ray.storage.run_folder import RunFolder

HELD = 16  # inputs of the control tasks in an update
TOLD = 8.0  # seconds between two words on how far it is
PRESSURE = 8.0  # weight of the control tasks' answers in the loss


@dataclass(frozen=True, kw_only=True)
class Joint:
    """Test accuracy of every target after joint training, on so many `inputs`: by the words' heads (`words`), and by
    heads of the tasks' own that are fitted afterwards (`own`; none where the model has no features). `kept`: the least
    share of its score that a control task keeps."""

    words: dict[str, float]
    own: dict[str, float]
    inputs: dict[str, int]
    kept: float | None


def train_jointly(uri: str, dense: bool = False, say: Callable[[str], None] = print) -> Joint:
    """Train on a run's mask, or on all weights, by one worker of the cluster at hand.

    Args:
        say: is told how far it is.

    Raises:
        SpecError: as `talos_ray.edit`, of the run's own spec.
    """
    spec = RunFolder(uri).stored(Spec, {**RunFolder(uri).info()["spec"], "output": uri})
    words: Any = _trained.options(**options(spec.cluster)).remote(spec, dense)  # a generator, which its type hides
    for ref in words:
        told: Joint | str = ray.get(ref)
        if isinstance(told, Joint):
            return told
        say(told)
    raise AssertionError("joint training ended without a result: this is a bug in talos_ray")


@ray.remote
def _trained(spec: Spec, dense: bool) -> Iterator[Joint | str]:
    """How far it is, from time to time, and at last what came of it."""
    prepared = prepare(spec, Progress())
    shared = Shared(spec, prepared.base, freeze(prepared.tensors), prepared.layout, prepared.heads)
    bench = Workbench(shared)
    mask = RunFolder(spec.output).load_mask(prepared.base)
    if dense or mask is None:
        mask = mask_from_flags(prepared.layout, torch.ones(prepared.layout.total, dtype=torch.bool))
    pools = {}
    for task, data in prepared.data.items():
        pools[task] = pool_of(spec, task, len(data.train), len(data.validation))
    before = {control: _right(bench, control) for control in prepared.controls}
    settings = spec.train_for(spec.tasks[0], len(prepared.data[prepared.targets[0]].train))
    lr = (spec.baseline.lr or settings.lr) if dense else settings.lr
    optimizer = SparseAdamW(bench.family.module, mask, lr)
    yield from _train(bench, prepared, pools, optimizer, settings.model_copy(update={"lr": lr}))
    kept = [_right(bench, control) / score for control, score in before.items()]
    yield Joint(
        words={task: _right(bench, task) for task in prepared.targets},
        own={task: by_own_head(bench, task, pools[task]) for task in prepared.targets if prepared.own_heads},
        inputs={task: len(prepared.data[task].test) for task in prepared.targets},
        kept=min(kept, default=None),
    )
    optimizer.close()


def _train(
    bench: Workbench, prepared: Prepared, pools: dict[str, Pool], optimizer: SparseAdamW, settings: Train
) -> Iterator[str]:
    """As many updates as the single edits have together, of a batch with samples of every task in it. Yields how far
    it is."""
    targets = prepared.targets
    controls = prepared.controls
    steps = settings.steps * len(targets)
    each = max(1, settings.batch_size // len(targets))
    seed = prepared.spec.seed
    rate = Plan(
        task="joint",
        samples=1,
        steps=steps,
        batch_size=1,
        lr=settings.lr,
        warmup_steps=settings.warmup_steps,
        seed=seed,
    )
    order = MergePlan(steps=steps, lr=1.0, seed=seed)
    # What the base answers on the control tasks, before any weight moves: that is to stay.
    taught = {}
    for control in controls:
        seen = bench.answered(bench.examples(control, "train"), control, pools[control].train)
        taught[control] = seen.logits.log_softmax(-1)
    told = time.monotonic()
    for step in range(steps):
        if time.monotonic() - told > TOLD:
            told = time.monotonic()
            yield f"joint training: step {step} of {steps}"
        batches = {}
        for task in targets:
            rows = order.rows_at(step, task, len(prepared.data[task].train), each)
            batches[task] = (rows, bench.examples(task, "train").batch(rows))
        for control in controls:
            rows = order.rows_at(step, control, len(taught[control]), HELD // len(controls))
            batches[control] = (rows, bench.examples(control, "train").batch(pools[control].train[rows]))
        logits = _logits(bench, {task: inputs for task, (_, (inputs, _)) in batches.items()})
        loss = torch.zeros((), device=bench.device)
        for task, (rows, (_, labels)) in batches.items():
            if task in taught:
                held = agreement_loss(logits[task], taught[task][rows].to(bench.device))
                loss = loss + PRESSURE / len(controls) * held
            else:
                loss = loss + agreement_loss(logits[task], None, labels) / len(targets)
        loss.backward()
        optimizer.step(rate.lr_at(step))


def _logits(bench: Workbench, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Logits [n, classes] of every task's inputs under its frozen head."""
    heads = {task: bench.linear_head(task) for task in inputs}
    if any(head is None for head in heads.values()):
        return {task: bench.logits(task)(batch).float() for task, batch in inputs.items()}
    # One forward for all tasks: they share the model, and differ in their heads alone.
    together = bench.family.features(torch.cat(list(inputs.values())))
    parts = together.split([len(batch) for batch in inputs.values()])
    logits = {}
    for (task, head), seen in zip(heads.items(), parts, strict=True):
        assert head is not None
        logits[task] = scored(seen, head)
    return logits


def _right(bench: Workbench, task: str) -> float:
    """Test score of the model as it stands, by a task's frozen head."""
    tested = bench.answered(bench.examples(task, "test"), task)
    return share_right(tested.right(), bench.strata(task, tested))


def by_own_head(bench: Workbench, task: str, pool: Pool) -> float:
    """Test score of the model as it stands under a head of the task's own, fitted as a merge fits its."""
    shown = bench.answered(bench.examples(task, "train"), task, pool.train, features=True)
    judged = bench.answered(bench.examples(task, "validation"), task, pool.judged, features=True)
    tested = bench.answered(bench.examples(task, "test"), task, features=True)
    right = tested.right(bench.fitted(task, shown, judged))
    return share_right(right, bench.strata(task, tested))
