"""Joint training, the yardstick of a merge: one edit on the same mask, trained on the data of all tasks at once.

It costs every task's data whenever one is added or removed, and no task can be taken out of it again; what a merge of single edits
reaches is held against it. `jobs/quality.py --joint` runs it on its runs, with the same inputs and about as many samples as all
single edits together, and the same hold on the control tasks.
"""

from __future__ import annotations

import torch

from talos_ray.config import Spec
from talos_ray.core.finetune import Plan
from talos_ray.core.learned import MergePlan, agreement_loss
from talos_ray.core.mask import mask_from_flags
from talos_ray.core.optimizer import SparseAdamW
from talos_ray.core.probe import scored
from talos_ray.orchestrate.learning import Pool, pool_of
from talos_ray.orchestrate.plan import prepare
from talos_ray.orchestrate.worker import Shared, Workbench, freeze
from talos_ray.progress import Progress
from talos_ray.storage.run_folder import RunFolder

HELD = 16  # inputs of the control tasks in an update
PRESSURE = 8.0


def by_own_head(bench: Workbench, task: str, pool: Pool) -> float:
    """Test accuracy of the model as it stands under a head of the task's own, fitted as a merge fits its."""
    shown = bench.answered(bench.examples(task, "train"), task, pool.train, features=True)
    judged = bench.answered(bench.examples(task, "validation"), task, pool.judged, features=True)
    tested = bench.answered(bench.examples(task, "test"), task, features=True)
    return float(tested.right(bench.fitted(task, shown, judged)).float().mean())


def joint(uri: str, dense: bool = False) -> dict[str, float]:
    """Mean test accuracy of the targets after joint training on a run's mask (or on all weights): by the words' heads (`words`), and
    by heads of the tasks' own that are fitted afterwards (`own`); and the least share that a control task keeps (`kept`)."""
    folder = RunFolder(uri)
    spec = Spec.model_validate({**folder.info()["spec"], "output": uri})
    prepared = prepare(spec, Progress())
    bench = Workbench(Shared(spec, prepared.base, freeze(prepared.tensors), prepared.layout, prepared.heads))
    mask = folder.load_mask(prepared.base)
    if dense:
        mask = mask_from_flags(prepared.layout, torch.ones(prepared.layout.total, dtype=torch.bool))
    targets, controls = prepared.targets, prepared.controls
    sizes = {t: (len(d.train), len(d.validation)) for t, d in prepared.data.items()}
    pools = {t: pool_of(spec, t, *sizes[t]) for t in sizes}

    def right(task: str, split: str = "test") -> float:
        return float(bench.answered(bench.examples(task, split), task).right().float().mean())

    before = {c: right(c) for c in controls}
    taught = {c: bench.answered(bench.examples(c, "train"), c, pools[c].train).logits.log_softmax(-1) for c in controls}
    settings = spec.train_for(spec.tasks[0], sizes[targets[0]][0])
    steps = settings.steps * len(targets)
    each = max(1, settings.batch_size // len(targets))
    lr = (spec.baseline.lr or settings.lr) if dense else settings.lr
    rate = Plan(
        task="joint", samples=1, steps=steps, batch_size=1, lr=lr, warmup_steps=settings.warmup_steps, seed=spec.seed
    )
    order = MergePlan(steps=steps, lr=1.0, seed=spec.seed)
    optimizer = SparseAdamW(bench.family.module, mask, lr)
    for step in range(steps):
        loss = torch.zeros(())
        rows = {t: order.rows_at(step, t, sizes[t][0], each) for t in targets}
        held = {c: order.rows_at(step, c, len(taught[c]), HELD // len(controls)) for c in controls}
        parts = [bench.examples(t, "train").batch(i) for t, i in rows.items()]
        parts += [bench.examples(c, "train").batch(pools[c].train[i]) for c, i in held.items()]
        features = bench.family.features(torch.cat([x for x, _ in parts])).split([len(x) for x, _ in parts])
        for task, seen, (_, labels) in zip((*rows, *held), features, parts, strict=True):
            logits = scored(seen, bench.linear_head(task))
            if task in held:
                loss = loss + PRESSURE / len(controls) * agreement_loss(logits, taught[task][held[task]])
            else:
                loss = loss + agreement_loss(logits, None, labels) / len(targets)
        loss.backward()
        optimizer.step(rate.lr_at(step))
    found = {"words": 0.0, "own": 0.0}
    for task in targets:
        found["words"] += right(task) / len(targets)
        found["own"] += by_own_head(bench, task, pools[task]) / len(targets)
    found["kept"] = min((right(c) / before[c] for c in controls), default=1.0)
    optimizer.close()
    return found
