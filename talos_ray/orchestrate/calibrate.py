"""Calibration on Ray: a fixed number of virtual shards a task, summed in shard order, selected exactly.

The mask is bitwise the same for any number of workers, because nothing in it depends on who scored what:
samples, labels' seeds and the order of sums belong to the shard. Between rounds only the packed mask travels.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import ray
import torch
from datasets import Image

from talos_ray.config import Spec
from talos_ray.core.finetune import derive_seed
from talos_ray.core.fisher import SquaredGradients
from talos_ray.core.mask import Mask, mask_from_flags, round_keep, select
from talos_ray.orchestrate.worker import Shared, workbench
from talos_ray.tasks import Split, TaskData, encoded

_looped: dict[str, tuple[str, ...]] = {}  # base -> tensors without a hook, found once a process


def calibration_split(spec: Spec, data: TaskData) -> Split:
    """The training inputs of one task that are scored: drawn by seed, in a fixed order."""
    n = min(spec.calibration.samples_per_task, len(data.train))
    generator = torch.Generator().manual_seed(derive_seed(spec.seed, data.task.name, "calibration"))
    return data.train.select(torch.randperm(len(data.train), generator=generator)[:n].tolist())


@ray.remote
def score_shard(shared: Shared, task: str, examples: list, kept: np.ndarray | None, seed: int) -> np.ndarray:
    """Sums of squared per-sample gradients, float32 [P], of one shard under one round's damping."""
    bench, settings = workbench(shared), shared.spec.calibration
    bench.reset()
    if kept is not None:
        flags = Mask(shared.layout, kept).flags
        params = dict(bench.family.module.named_parameters())
        with torch.no_grad():
            for name, keep in shared.layout.split(flags).items():
                p = params[name]
                p.mul_(torch.where(keep.view(p.shape), 1.0, settings.damping).to(p.device, p.dtype))
    generator = torch.Generator().manual_seed(seed)
    gradients = SquaredGradients(bench.family.module, shared.layout, _looped.get(shared.base))
    decode = Image().decode_example
    for start in range(0, len(examples), settings.batch_size):
        inputs = bench.family.preprocess([decode(e) for e in examples[start : start + settings.batch_size]])
        gradients.add(bench.logits(task), inputs.to(bench.device), generator, settings.score)
        _looped[shared.base] = gradients.looped
    bench.reset()
    return gradients.sums.cpu().numpy()


@ray.remote
def add_shards(*shards: np.ndarray) -> np.ndarray:
    """Sum in shard order, then normalise to sum 1, so that no task drowns another. float32 [P]."""
    total = np.zeros(shards[0].shape, dtype=np.float64)
    for shard in shards:
        total += shard
    return (total / max(float(total.sum()), 1e-300)).astype(np.float32)


@ray.remote
def choose(shared: Shared, keep: float, overlaps: bool, *scores: np.ndarray) -> tuple[np.ndarray, list[float]]:
    """Packed mask of the mean of the tasks' scores, and its Jaccard overlap with every task's own mask."""
    settings, seed = shared.spec.mask, shared.spec.seed
    total = np.zeros(scores[0].shape, dtype=np.float32)
    for s in scores:
        total += s

    def mask(values: np.ndarray) -> Mask:
        scores, how = torch.from_numpy(values), {"granularity": settings.granularity, "seed": seed}
        return mask_from_flags(shared.layout, select(shared.layout, settings.strategy, keep, scores=scores, **how))

    chosen = mask(total)
    return chosen.bits, [chosen.jaccard(mask(s.copy())) for s in scores] if overlaps else []


def calibrate(
    shared_ref, shared: Shared, data: list[TaskData], workers: int, on_shard: Callable[[int, int], None]
) -> Mask:
    """Score all tasks over R rounds and return the mask of `round(keep * P)` weights.

    Args:
        workers: shards scored at once. on_shard: called with (shards done, shards in all).
    """
    spec, settings = shared.spec, shared.spec.calibration
    options = {
        "num_cpus": spec.cluster.cpus_per_worker,
        "num_gpus": spec.cluster.gpus_per_worker,
        "scheduling_strategy": "SPREAD",
    }
    shards = [
        (d.task.name, i, ref)
        for d in data
        for i, ref in enumerate(_cut(calibration_split(spec, d), settings.shards_per_task))
    ]
    rounds = settings.rounds
    kept, overlaps, done = None, [], 0
    for r in range(1, rounds + 1):
        sums: dict[tuple[str, int], object] = {}
        waiting: list = []
        for task, i, ref in shards:
            if len(waiting) >= workers:
                ready, waiting = ray.wait(waiting, num_returns=1)
                done += len(ready)
                on_shard(done, rounds * len(shards))
            seed = derive_seed(spec.seed, task, "labels", r, i)
            sums[task, i] = score_shard.options(**options).remote(shared_ref, task, ref, kept, seed)
            waiting.append(sums[task, i])
        scores = [add_shards.remote(*(sums[key] for key in sums if key[0] == d.task.name)) for d in data]
        kept, overlaps = ray.get(choose.remote(shared_ref, round_keep(spec.mask.keep, r, rounds), r == rounds, *scores))
        done = r * len(shards)
        on_shard(done, rounds * len(shards))
    samples = {d.task.name: min(settings.samples_per_task, len(d.train)) for d in data}
    info = {
        **spec.mask.model_dump(exclude={"path"}), "seed": spec.seed, "rounds": rounds, "samples": samples,
        "overlap": {d.task.name: o for d, o in zip(data, overlaps, strict=True)},
    }  # fmt: skip
    return Mask(shared.layout, kept, info)


def _cut(split: Split, shards: int) -> list:
    """Object references of the shards' undecoded examples; every shard has at least one."""
    return [
        ray.put(encoded(split.select(index)))
        for index in torch.arange(len(split)).tensor_split(min(shards, len(split)))
    ]
