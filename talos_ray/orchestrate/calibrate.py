"""Calibration on Ray: a fixed number of virtual shards a task, summed in shard order, selected exactly.

The mask is bitwise the same for any number of workers, because nothing in it depends on who scored what:
samples, labels' seeds and the order of sums belong to the shard. Between rounds only the packed mask travels.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

import numpy as np
import ray
import torch

from talos_ray.config import Mask as MaskSettings
from talos_ray.config import Spec
from talos_ray.core.fisher import Checked, SquaredGradients
from talos_ray.core.mask import CHUNK, DATA_FREE, Mask, jaccard, mask_from_flags, round_keep, select
from talos_ray.core.seeds import derive_seed
from talos_ray.errors import SpecError
from talos_ray.models import check_model
from talos_ray.models.lean import import_lean
from talos_ray.orchestrate.cluster import WARM, nodes, options, remote_address, room
from talos_ray.orchestrate.worker import Shared, Workbench, workbench
from talos_ray.tasks import Split, TaskData, decoded, encoded

PIECE = (
    1 << 28
)  # weights whose scores travel as one object: an object store and its spilling take many GB in pieces only
ROOM = 0.25  # of the object store, that scores may take
Scores = dict[tuple[str, int], list]  # (task, shard) -> references of its pieces


def calibration_split(spec: Spec, data: TaskData) -> Split:
    """The training inputs of one task that are scored: drawn by seed, in a fixed order."""
    return data.train.drawn(spec.calibration.samples_per_task, spec.seed, data.task.name, "calibration")


@ray.remote(**WARM)
def libraries(model: str) -> None:
    """What a worker process has to load before it sees a model, without any of the run's own data."""
    with contextlib.suppress(SpecError):  # the driver says it
        import_lean(model)
        check_model(model)


def ahead(spec: Spec) -> None:
    """Have the processes that will score load their libraries while the driver still checks the spec. Only on a Ray of
    this
    machine: an autoscaler would take tasks that wait for a reason to start nodes."""
    if not remote_address(spec.cluster):
        load = libraries.options(**options(spec.cluster), scheduling_strategy="SPREAD")
        for _ in range(min(room(spec.cluster, nodes()), spec.cluster.calibration_workers or 1 << 30)):
            load.remote(spec.model)


@ray.remote(**WARM)
def check(shared: Shared, task: str, examples: list) -> Checked:
    """Which weights no hook fits and what a sample costs: found once, because all shards must go the same way."""
    bench = workbench(shared)
    bench.reset()
    gradients = SquaredGradients(bench.family.module, shared.layout)
    forward, asked, score = _asked(bench, task)
    return gradients.check(forward, asked(_inputs(bench, examples[:3]), torch.Generator()), score)


@ray.remote(**WARM)
def warm(shared: Shared, task: str) -> None:
    """What a worker process has to load before its first shard."""
    workbench(shared).logits(task)


@ray.remote(**WARM)
def score_shard(
    shared: Shared,
    task: str,
    examples: list,
    checked: Checked,
    how: MaskSettings,
    kept: np.ndarray | None,
    seed: int,
    pieces: list[slice],
) -> Iterator[np.ndarray | float]:
    """Sums of squared per-sample gradients of one shard under one round's damping, float32 [P] in pieces; at last, the
    seconds."""
    bench = workbench(shared)
    settings = shared.spec.calibration
    started = time.perf_counter()
    bench.reset()
    if kept is not None:
        flags = Mask(shared.layout, kept).flags
        closed = shared.layout.closed(how.layers)
        params = dict(bench.family.module.named_parameters())
        with torch.no_grad():
            for name, keep in shared.layout.split(flags).items():
                if name in closed:  # not kept either, but never to be chosen from
                    continue
                p = params[name]
                p.mul_(torch.where(keep.view(p.shape), 1.0, settings.damping).to(p.device, p.dtype))
    generator = torch.Generator().manual_seed(seed)
    gradients = SquaredGradients(
        bench.family.module,
        shared.layout,
        checked,
        budget=round(settings.memory_gb * 1e9),
        autocast=bench.autocast(settings.precision),
    )
    forward, asked, score = _asked(bench, task)
    for start in range(0, len(examples), settings.batch_size):
        inputs = _inputs(bench, examples[start : start + settings.batch_size])
        gradients.add(forward, asked(inputs, generator), generator, score)
    bench.reset()
    for piece in pieces:
        yield gradients.sums[piece].cpu().numpy()
    yield time.perf_counter() - started


def _asked(bench: Workbench, task: str) -> tuple[Callable, Callable, str]:
    """What is sampled of a task's inputs: the forward pass, what it is given (a function of inputs and generator), and
    its score."""
    settings = bench.shared.spec.calibration
    family = bench.family
    if settings.labels == "classes":
        return bench.logits(task), lambda inputs, generator: inputs, settings.score
    head = bench.head(task)
    dtype = bench.autocast(settings.precision)

    def write(inputs: torch.Tensor, generator: torch.Generator) -> dict[str, torch.Tensor]:
        with torch.autocast(bench.device.type, dtype=dtype, enabled=dtype is not None):
            return family.sampled(inputs, head, generator)

    # The answer is sampled already; its log-probability [n, 1] stands where the logit of a sampled class would.
    return family.likelihood, write, "logit"


def _inputs(bench: Workbench, examples: list) -> torch.Tensor:
    return bench.family.preprocess(decoded(examples)).to(bench.device)


@ray.remote(**WARM, num_returns=2)
def add_shard(total: np.ndarray | None, shard: np.ndarray) -> tuple[np.ndarray, float]:
    """A piece of a task's scores with one more shard, float32, and its sum. Shards are added one by one, in their
    order."""
    total = shard if total is None else total + shard
    return total, float(total.sum(dtype=np.float64))


@ray.remote(**WARM)
def choose(shared: Shared, how: MaskSettings, keep: float, sums: list[float], *pieces) -> np.ndarray:
    """Packed mask by the mean of the tasks' scores, each normalised to sum 1, so that no task drowns another.

    Args:
        sums: of every task's scores.
        pieces: these scores, task after task, each an array, or in a list its reference: then one is looked at at once.
    """
    mean = np.zeros(shared.layout.total, dtype=np.float32)
    each = len(pieces) // len(sums)
    end = 0
    for i, found in enumerate(pieces):
        piece = ray.get(found[0]) if isinstance(found, list) else found
        whole = sums[i // each] or 1.0
        start = end if i % each else 0
        end = start + len(piece)
        part = mean[start:end]
        for at in range(0, len(piece), CHUNK):  # the quotient of all at once would be as large as the scores
            part[at : at + CHUNK] += piece[at : at + CHUNK] / whole
        del piece
    flags = select(
        shared.layout,
        how.strategy,
        keep,
        granularity=how.granularity,
        layers=how.layers,
        scores=torch.from_numpy(mean),
        seed=shared.spec.seed,
    )
    return mask_from_flags(shared.layout, flags).bits


def _choose(shared_ref, shared: Shared, how: MaskSettings, keep: float, totals: list[list[tuple]]):
    """Reference of the mask by references of every task's pieces, each with its sum."""
    sums = [sum(ray.get([s for _, s in task])) for task in totals]
    refs = [ref for task in totals for ref, _ in task]
    # A task that gets objects by itself lends its place to another, which may start a process for it. But what is an
    # argument has to be on the node with all others, and the scores of all tasks may be more than it holds.
    if 4 * shared.layout.total * len(totals) > _room() / len(nodes()):
        refs = [[ref] for ref in refs]
    return choose.remote(shared_ref, how, keep, sums, *refs)


def _room() -> float:
    """Bytes of the object store that scores may take."""
    return ROOM * ray.cluster_resources().get("object_store_memory", 0)


def first_scores(session, data: list[TaskData]) -> Scores | None:
    """Where masks of the same tasks keep what they have in common; None where the object store has no room for it."""
    shards = len(data) * session.spec.calibration.shards_per_task
    return {} if 4 * session.p.layout.total * shards < _room() else None


def mask_of(
    session,
    how: MaskSettings,
    data: list[TaskData],
    workers: int,
    on_shard: Callable[[int, int], None] = lambda done, all_: None,
    first: Scores | None = None,
) -> Mask:
    """The mask that a strategy makes of the shared base: at once, or by calibration where it asks for sensitivity.
    `first`: as `calibrate`."""
    started = time.perf_counter()
    if how.strategy not in DATA_FREE:
        mask = calibrate(session.shared_ref, session.shared, how, data, workers, on_shard, first)
        return Mask(mask.layout, mask.bits, {**mask.info, "seconds": round(time.perf_counter() - started, 3)})
    told = {**how.model_dump(exclude={"path"}), "seed": session.spec.seed}
    return mask_from_flags(session.p.layout, select(session.p.layout, weights=session.p.tensors, **told), told)


def calibrate(
    shared_ref,
    shared: Shared,
    how: MaskSettings,
    data: list[TaskData],
    workers: int,
    on_shard: Callable[[int, int], None],
    first: Scores | None = None,
) -> Mask:
    """Score all tasks over R rounds and return the mask of `round(keep * P)` weights.

    Shards come in *waves*, one of every task. After each wave the mask is estimated, and a round ends once two
    successive estimates overlap by `calibration.stable`. A wave counts when all of it is there, whoever was first,
    so the same waves count for any number of workers.

    Args:
        workers: shards scored at once; those of later waves start early and are dropped if they are not needed.
        on_shard: called with (shards done, shards in all if no round ends early).
        first: the first round's scores, of the base as it is and so the same for every mask: what is there is used,
            the rest added.
    """
    spec = shared.spec
    settings = shared.spec.calibration
    pieces = [slice(start, start + PIECE) for start in range(0, shared.layout.total, PIECE)]
    score = score_shard.options(**options(spec.cluster), scheduling_strategy="SPREAD", num_returns=len(pieces) + 1)
    shards = {d.task.name: _cut(calibration_split(spec, d), settings.shards_per_task) for d in data}
    any_task = next(iter(shards))
    checked = check.options(**options(spec.cluster)).remote(shared_ref, any_task, shards[any_task][0])
    others = warm.options(**options(spec.cluster), scheduling_strategy="SPREAD")
    for _ in range(workers - 1):  # while one checks
        others.remote(shared_ref, any_task)
    waves = [[(t, i) for t, refs in shards.items() if i < len(refs)] for i in range(max(map(len, shards.values())))]
    every = settings.rounds * sum(map(len, waves))
    room = shared.layout.room(how.layers)
    kept = None
    stability = []
    work = 0.0
    for r in range(1, settings.rounds + 1):
        keep = room * round_keep(how.keep / room, r, settings.rounds)
        sums: Scores = dict(first or {}) if r == 1 else {}
        todo = iter([key for wave in waves for key in wave if key not in sums])
        spent: dict[tuple[str, int], object] = {}
        running: dict[object, tuple[str, int]] = {}
        totals: dict[str, list[tuple]] = {task: [(None, None)] * len(pieces) for task in shards}
        finished: set[tuple[str, int]] = set(sums)
        estimate = None
        for wave in waves:
            while not finished.issuperset(wave):
                while len(running) < workers and (key := next(todo, None)) is not None:
                    task, i = key
                    seed = derive_seed(spec.seed, task, "labels", r, i)
                    *sums[key], spent[key] = score.remote(
                        shared_ref, task, shards[task][i], checked, how, kept, seed, pieces
                    )
                    running[spent[key]] = key
                ready, _ = ray.wait(list(running), num_returns=1)
                finished.add(running.pop(ready[0]))
                on_shard((r - 1) * every // settings.rounds + len(finished), every)
            work += sum(ray.get([spent.pop(key) for key in wave if key in spent]))
            if r == 1 and first is not None:
                first |= {key: sums[key] for key in wave}
            for task, i in wave:
                found = zip(totals[task], sums.pop((task, i)), strict=True)
                totals[task] = [tuple(add_shard.remote(total, piece)) for (total, _), piece in found]
            before = estimate
            estimate = ray.get(_choose(shared_ref, shared, how, keep, list(totals.values())))
            if before is not None:
                stability.append({"round": r, "wave": wave[0][1] + 1, "overlap": jaccard(before, estimate)})
                if settings.stable is not None and stability[-1]["overlap"] >= settings.stable:
                    break
        for ref in running:
            ray.cancel(ref, force=False)
        kept = estimate
        on_shard(r * every // settings.rounds, every)
    alone = [_choose(shared_ref, shared, how, keep, [total]) for total in totals.values()]
    overlaps = [jaccard(kept, ray.get(bits)) for bits in alone]
    info = {
        **how.model_dump(exclude={"path"}),
        "seed": spec.seed,
        "rounds": settings.rounds,
        "samples": {d.task.name: min(settings.samples_per_task, len(d.train)) for d in data},
        "stability": stability,
        "work_seconds": round(work, 3),
        "overlap": dict(zip(shards, overlaps, strict=True)),
    }
    return Mask(shared.layout, kept, info)


def _cut(split: Split, shards: int) -> list:
    """Object references of the shards' undecoded examples; every shard has at least one."""
    return [
        ray.put(encoded(split.select(index)))
        for index in torch.arange(len(split)).tensor_split(min(shards, len(split)))
    ]
