"""Calibration on Ray: a fixed number of virtual shards a task, summed in shard order, selected exactly.

The mask is bitwise the same for any number of workers, because nothing in it depends on who scored what:
samples, labels' seeds and the order of sums belong to the shard. Between rounds only the packed mask travels.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy as np
import ray
import torch
from numpy.typing import NDArray
from ray import ObjectRef

from talos_ray.config import Mask as MaskSettings
from talos_ray.config import Spec
from talos_ray.core.fisher import Batch, Checked, Score, SquaredGradients
from talos_ray.core.mask import CHUNK, DATA_FREE, Mask, jaccard, mask_from_flags, round_keep, select
from talos_ray.core.seeds import derive_seed
from talos_ray.errors import SpecError
from talos_ray.models import check_model
from talos_ray.models.family import AnswerFamily
from talos_ray.models.lean import import_lean
from talos_ray.orchestrate.cluster import WARM, nodes, options, remote_address, room
from talos_ray.orchestrate.selection import Selection, calibration_split, selection_of
from talos_ray.orchestrate.worker import Bits, Shared, Workbench, workbench
from talos_ray.tasks import TaskData, decoded, encoded

if TYPE_CHECKING:
    from talos_ray.data.split import Split
    from talos_ray.orchestrate.session import Session

ScorePiece = NDArray[np.float32]  # scores of neighbouring weights, at most `PIECE` of them
Examples = list[Any]  # what `tasks.encoded` gives: texts, or images as stored bytes
ShardKey = tuple[str, int]  # task, and the number of the shard among the task's own
Wave = list[ShardKey]
Scores = dict[ShardKey, list[ObjectRef[ScorePiece]]]
Total = tuple[ObjectRef[ScorePiece], ObjectRef[float]]  # a piece of a task's scores, and its sum
OnShard = Callable[[int, int], None]  # (shards done, shards in all if no round ends early)

# Weights whose scores travel as one object: an object store and its spilling take many GB in pieces only.
PIECE = 1 << 28
ROOM = 0.25  # of the object store, that scores may take


# ---------------------------------------------------------------------------------- on workers


@ray.remote(**WARM)
def libraries(model: str) -> None:
    """What a worker process has to load before it sees a model, without any of the run's own data."""
    with contextlib.suppress(SpecError):  # the driver says it
        import_lean(model)
        check_model(model)


@ray.remote(**WARM)
def check(shared: Shared, task: str, examples: Examples) -> Checked:
    """`checked_hooks` on this process's workbench."""
    return checked_hooks(workbench(shared), task, examples)


def checked_hooks(bench: Workbench, task: str, examples: Examples) -> Checked:
    """Which weights no hook fits and what a sample costs: found once, because all shards must go the same way."""
    bench.reset()
    gradients = SquaredGradients(bench.family.module, bench.shared.layout)
    sampling = _sampling(bench, task)
    # A few inputs do: what a hook fits is a question of the layers, and the cost is told for one sample.
    batch = sampling.batch(_inputs(bench, examples[:3]), torch.Generator())
    return gradients.check(sampling.forward, batch, sampling.score)


@ray.remote(**WARM)
def warm(shared: Shared, task: str) -> None:
    """What a worker process has to load before its first shard."""
    workbench(shared).logits(task)


@ray.remote(**WARM)
def score_shard(
    shared: Shared,
    task: str,
    examples: Examples,
    checked: Checked,
    selection: Selection,
    kept: Bits | None,
    seed: int,
    pieces: list[slice],
) -> Iterator[ScorePiece | float]:
    """`shard_scores` on this process's workbench."""
    yield from shard_scores(workbench(shared), task, examples, checked, selection, kept, seed, pieces)


def shard_scores(
    bench: Workbench,
    task: str,
    examples: Examples,
    checked: Checked,
    selection: Selection,
    kept: Bits | None,
    seed: int,
    pieces: list[slice],
) -> Iterator[ScorePiece | float]:
    """Sums of squared per-sample gradients of one shard under one round's damping, float32 [P] in pieces; at last, the
    seconds."""
    shared = bench.shared
    settings = shared.spec.calibration
    started = time.perf_counter()
    # The process may have had an edit in its model, or the damping of another shard.
    bench.reset()
    if kept is not None:
        _damp(bench, kept, shared.layout.closed(selection.layers))
    generator = torch.Generator().manual_seed(seed)
    gradients = SquaredGradients(
        bench.family.module,
        shared.layout,
        checked,
        budget=round(settings.memory_gb * 1e9),
        autocast=bench.autocast(settings.precision),
    )
    sampling = _sampling(bench, task)
    for start in range(0, len(examples), settings.batch_size):
        inputs = _inputs(bench, examples[start : start + settings.batch_size])
        gradients.add(sampling.forward, sampling.batch(inputs, generator), generator, sampling.score)
    # The next Ray task of this process finds the base as it was, whatever it is about.
    bench.reset()
    for piece in pieces:
        yield gradients.sums[piece].cpu().numpy()
    yield time.perf_counter() - started


def _damp(bench: Workbench, kept: Bits, closed: set[str]) -> None:
    """Scale down the weights that the round before did not keep (TaLoS, iterative calibration), so that the others are
    scored as if those were almost gone. Parameters in `closed` are not kept either, but never to be chosen from."""
    layout = bench.shared.layout
    damping = bench.shared.spec.calibration.damping
    params = dict(bench.family.module.named_parameters())
    with torch.no_grad():
        for name, keep in layout.split(Mask(layout, kept).flags).items():
            if name in closed:
                continue
            param = params[name]
            factors = torch.where(keep.view(param.shape), 1.0, damping)
            param.mul_(factors.to(param.device, param.dtype))


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """What is sampled of a task's inputs: what the forward pass is given of them, the pass itself, and its score."""

    forward: Callable[[Batch], torch.Tensor]
    batch: Callable[[torch.Tensor, torch.Generator], Batch]
    score: Score


def _sampling(bench: Workbench, task: str) -> Sampling:
    """How the spec wants a task's labels to be sampled: a class, or a whole answer token by token."""
    settings = bench.shared.spec.calibration
    return _sampled_classes(bench, task) if settings.labels == "classes" else _sampled_answers(bench, task)


def _sampled_classes(bench: Workbench, task: str) -> Sampling:
    logits = bench.logits(task)

    def forward(batch: Batch) -> torch.Tensor:
        assert isinstance(batch, torch.Tensor)
        return logits(batch)

    score = bench.shared.spec.calibration.score
    return Sampling(forward=forward, batch=lambda inputs, generator: inputs, score=score)


def _sampled_answers(bench: Workbench, task: str) -> Sampling:
    family = bench.family
    assert isinstance(family, AnswerFamily)  # the check of the spec has refused `tokens` for every other
    head = bench.head(task)
    dtype = bench.autocast(bench.shared.spec.calibration.precision)

    def write(inputs: torch.Tensor, generator: torch.Generator) -> dict[str, torch.Tensor]:
        with torch.autocast(bench.device.type, dtype=dtype, enabled=dtype is not None):
            return family.sampled(inputs, head, generator)

    def forward(batch: Batch) -> torch.Tensor:
        assert isinstance(batch, dict)
        return family.likelihood(batch)

    # The answer is sampled already; its log-probability [n, 1] stands where the logit of a sampled class would.
    return Sampling(forward=forward, batch=write, score="logit")


def _inputs(bench: Workbench, examples: Examples) -> torch.Tensor:
    return bench.family.preprocess(decoded(examples)).to(bench.device)


@ray.remote(**WARM, num_returns=2)
def add_shard(total: ScorePiece | None, shard: ScorePiece) -> tuple[ScorePiece, float]:
    """A piece of a task's scores with one more shard, float32, and its sum. Shards are added one by one, in their
    order."""
    total = shard if total is None else total + shard
    return total, float(total.sum(dtype=np.float64))


@ray.remote(**WARM)
def choose(
    shared: Shared,
    selection: Selection,
    keep: float,
    sums: list[float],
    *pieces: ScorePiece | list[ObjectRef[ScorePiece]],
) -> Bits:
    """Packed mask by the mean of the tasks' scores, each normalised to sum 1, so that no task drowns another.

    Args:
        sums: of every task's scores.
        pieces: these scores, task after task, each an array, or in a list its reference: then one is looked at at once.
    """
    # Added up piece by piece: the scores of all tasks together may be many times what one process has room for.
    mean = np.zeros(shared.layout.total, dtype=np.float32)
    pieces_per_task = len(pieces) // len(sums)
    end = 0
    for i, given in enumerate(pieces):
        piece = ray.get(given[0]) if isinstance(given, list) else given
        whole = sums[i // pieces_per_task] or 1.0  # a task that nothing is sensitive to has no say
        start = end if i % pieces_per_task else 0  # the next task begins at the first weight again
        end = start + len(piece)
        part = mean[start:end]
        for at in range(0, len(piece), CHUNK):  # the quotient of all at once would be as large as the scores
            part[at : at + CHUNK] += piece[at : at + CHUNK] / whole
        del piece  # before the next is got, or two of them would be held at once
    flags = select(
        shared.layout,
        selection.strategy,
        keep,
        granularity=selection.granularity,
        layers=selection.layers,
        scores=torch.from_numpy(mean),
        seed=shared.spec.seed,
    )
    return mask_from_flags(shared.layout, flags).bits


# ---------------------------------------------------------------------------------- on the driver


def ahead(spec: Spec) -> None:
    """Have the processes that will score load their libraries while the driver still checks the spec. Only on a Ray of
    this machine: an autoscaler would take tasks that wait for a reason to start nodes."""
    if not remote_address(spec.cluster):
        load = libraries.options(**options(spec.cluster), scheduling_strategy="SPREAD")
        for _ in range(min(room(spec.cluster, nodes()), spec.cluster.calibration_workers or 1 << 30)):
            load.remote(spec.model)


class _Choosing(Protocol):
    """`choose` as a Ray task: Ray's own types know no task that takes any number of arguments."""

    def remote(
        self,
        shared: ObjectRef[Shared],
        selection: Selection,
        keep: float,
        sums: list[float],
        /,
        *pieces: ObjectRef[ScorePiece] | list[ObjectRef[ScorePiece]],
    ) -> ObjectRef[Bits]: ...


def _choose(
    shared_ref: ObjectRef[Shared], shared: Shared, selection: Selection, keep: float, totals: Sequence[list[Total]]
) -> ObjectRef[Bits]:
    """Reference of the mask by references of every task's pieces, each with its sum."""
    sums: list[float] = []
    pieces: list[ObjectRef[ScorePiece]] = []
    for pieces_of_task in totals:
        sums.append(sum(ray.get([piece_sum for _, piece_sum in pieces_of_task])))
        pieces.extend(piece for piece, _ in pieces_of_task)
    task = cast("_Choosing", choose)  # see `_Choosing`
    # A task that gets objects by itself lends its place to another, which may start a process for it. But what is an
    # argument has to be on the node with all others, and the scores of all tasks may be more than it holds.
    if 4 * shared.layout.total * len(totals) > _room() / len(nodes()):
        return task.remote(shared_ref, selection, keep, sums, *[[piece] for piece in pieces])
    return task.remote(shared_ref, selection, keep, sums, *pieces)


def _room() -> float:
    """Bytes of the object store that scores may take."""
    store: float = ray.cluster_resources().get("object_store_memory", 0)
    return ROOM * store


def first_scores(session: Session, data: list[TaskData]) -> Scores | None:
    """Where masks of the same tasks keep what they have in common; None where the object store has no room for it."""
    shards = len(data) * session.spec.calibration.shards_per_task
    return {} if 4 * session.p.layout.total * shards < _room() else None


def mask_of(
    session: Session,
    how: MaskSettings,
    data: list[TaskData],
    workers: int,
    on_shard: OnShard = lambda done, all_: None,
    first: Scores | None = None,
) -> Mask:
    """The mask that a strategy makes of the shared base: at once, or by calibration where it asks for sensitivity.
    `first`: as `calibrate`."""
    started = time.perf_counter()
    if how.strategy not in DATA_FREE:
        mask = calibrate(session.shared_ref, session.shared, how, data, workers, on_shard, first)
        seconds = round(time.perf_counter() - started, 3)
        return Mask(mask.layout, mask.bits, {**mask.info, "seconds": seconds})
    # Random, by magnitude or all: no sample is looked at, so the driver does it by itself.
    selection = selection_of(how)
    flags = select(
        session.p.layout,
        selection.strategy,
        selection.keep,
        granularity=selection.granularity,
        layers=selection.layers,
        weights=session.p.tensors,
        seed=session.spec.seed,
    )
    info = {**how.model_dump(exclude={"path"}), "seed": session.spec.seed}
    return mask_from_flags(session.p.layout, flags, info)


def calibrate(
    shared_ref: ObjectRef[Shared],
    shared: Shared,
    how: MaskSettings,
    data: list[TaskData],
    workers: int,
    on_shard: OnShard,
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
    shards = {}
    samples = {}
    for of_task in data:
        name = of_task.task.name
        shards[name] = _cut(calibration_split(spec, of_task), spec.calibration.shards_per_task)
        samples[name] = min(spec.calibration.samples_per_task, len(of_task.train))
    calibration = _Calibration(
        shared_ref=shared_ref,
        shared=shared,
        selection=selection_of(how),
        shards=shards,
        workers=workers,
        on_shard=on_shard,
        first=first,
    )
    # Each round damps what the one before left out, so that weights are judged beside those that stay (TaLoS).
    kept = None
    for number in range(1, spec.calibration.rounds + 1):
        kept = calibration.round(number, kept)
    assert kept is not None  # the settings ask for one round at least
    info = {
        **how.model_dump(exclude={"path"}),
        "seed": spec.seed,
        "rounds": spec.calibration.rounds,
        "samples": samples,
        "stability": calibration.stability,
        "work_seconds": round(calibration.work, 3),
        "overlap": calibration.overlaps(kept),
    }
    return Mask(shared.layout, kept, info)


class _Calibration:
    """One calibration under way: what its rounds have in common, and what they leave behind.

    `stability` holds the overlap of every two successive estimates; `work` the seconds of all shards that counted.
    """

    def __init__(
        self,
        *,
        shared_ref: ObjectRef[Shared],
        shared: Shared,
        selection: Selection,
        shards: dict[str, list[ObjectRef[Examples]]],
        workers: int,
        on_shard: OnShard,
        first: Scores | None,
    ) -> None:
        self.shared_ref = shared_ref
        self.shared = shared
        self.selection = selection
        self.shards = shards
        self.workers = workers
        self.on_shard = on_shard
        self.first = first
        self.stability: list[dict[str, float]] = []
        self.work = 0.0
        self.keep = 1.0  # share of the weights that the present round keeps
        self.totals: dict[str, list[Total]] = {}  # task -> pieces of its scores, of the present round
        total = shared.layout.total
        self.pieces = [slice(start, start + PIECE) for start in range(0, total, PIECE)]
        self.waves = _waves(shards)
        self.shards_in_all = shared.spec.calibration.rounds * sum(map(len, self.waves))
        self.room = shared.layout.room(selection.layers)
        of_worker = options(shared.spec.cluster)
        self.score = score_shard.options(**of_worker, scheduling_strategy="SPREAD", num_returns=len(self.pieces) + 1)
        any_task = next(iter(shards))
        self.checked = check.options(**of_worker).remote(shared_ref, any_task, shards[any_task][0])
        # While one process checks, the others load what they will need.
        others = warm.options(**of_worker, scheduling_strategy="SPREAD")
        for _ in range(workers - 1):
            others.remote(shared_ref, any_task)

    def round(self, number: int, kept: Bits | None) -> Bits:
        """The mask of one round. `kept`: that of the round before; what it left out is damped."""
        rounds = self.shared.spec.calibration.rounds
        stable = self.shared.spec.calibration.stable
        # Rounds shrink the mask step by step, within the share of weights that the open layers hold.
        self.keep = self.room * round_keep(self.selection.keep / self.room, number, rounds)
        self.totals = {task: [] for task in self.shards}
        shards = _RoundOfShards(self, number, kept)
        estimate = None
        # One estimate a wave. The first has none before it to agree with, so a round has two waves at least, if there
        # are as many.
        for wave in self.waves:
            shards.wait_for(wave)
            self.work += shards.seconds_of(wave)
            self._add(shards, wave)
            before = estimate
            estimate = ray.get(self._chosen(list(self.totals.values())))
            if before is not None:
                overlap = jaccard(before, estimate)
                self.stability.append({"round": number, "wave": wave[0][1] + 1, "overlap": overlap})
                if stable is not None and overlap >= stable:
                    break
        shards.drop_running()
        self.on_shard(number * self.shards_in_all // rounds, self.shards_in_all)
        assert estimate is not None  # there is a wave, because every task has a shard
        return estimate

    def _add(self, shards: _RoundOfShards, wave: Wave) -> None:
        """Add a wave's shards to the totals of their tasks; of the first round, also to what other masks will use."""
        if shards.number == 1 and self.first is not None:
            self.first |= {key: shards.scores[key] for key in wave}
        # In the wave's order, whoever was ready first: float32 sums depend on it.
        for key in wave:
            task, _ = key
            # Taken out of the scores, so that the object store may let a shard go once it is added.
            pieces = shards.scores.pop(key)
            before: list[ObjectRef[ScorePiece] | None] = [total for total, _ in self.totals[task]]
            if not before:
                before = [None] * len(pieces)
            added = zip(before, pieces, strict=True)
            self.totals[task] = [_added(total, piece) for total, piece in added]

    def _chosen(self, totals: list[list[Total]]) -> ObjectRef[Bits]:
        return _choose(self.shared_ref, self.shared, self.selection, self.keep, totals)

    def overlaps(self, kept: Bits) -> dict[str, float]:
        """How much of the mask every task would have chosen alone, of the last round's scores."""
        alone = [self._chosen([total]) for total in self.totals.values()]
        overlaps = [jaccard(kept, ray.get(bits)) for bits in alone]
        return dict(zip(self.shards, overlaps, strict=True))


class _RoundOfShards:
    """The shards of one round: which are being scored, and the references of what came of the others."""

    def __init__(self, calibration: _Calibration, number: int, kept: Bits | None) -> None:
        self.calibration = calibration
        self.number = number
        self.kept = kept
        # Only in the first round is the base scored as it is, which is the same for every mask.
        known = calibration.first if number == 1 else None
        self.scores: Scores = dict(known or {})
        self.finished: set[ShardKey] = set(self.scores)
        self.todo = iter([key for wave in calibration.waves for key in wave if key not in self.scores])
        self.seconds: dict[ShardKey, ObjectRef[float]] = {}
        # A shard's seconds are the last of its objects, so the shard is done when they are there.
        self.running: dict[ObjectRef[float], ShardKey] = {}

    def wait_for(self, wave: Wave) -> None:
        """Score until all of a wave is there; whoever has nothing to do begins the next one."""
        calibration = self.calibration
        rounds = calibration.shared.spec.calibration.rounds
        in_all = calibration.shards_in_all
        while not self.finished.issuperset(wave):
            # No more at once than there are workers, so that few have begun in vain where a round ends early.
            while len(self.running) < calibration.workers and (key := next(self.todo, None)) is not None:
                self._start(key)
            ready, _ = ray.wait(list(self.running), num_returns=1)
            self.finished.add(self.running.pop(ready[0]))
            calibration.on_shard((self.number - 1) * in_all // rounds + len(self.finished), in_all)

    def _start(self, key: ShardKey) -> None:
        calibration = self.calibration
        task, i = key
        references = calibration.score.remote(
            calibration.shared_ref,
            task,
            calibration.shards[task][i],
            calibration.checked,
            calibration.selection,
            self.kept,
            derive_seed(calibration.shared.spec.seed, task, "labels", self.number, i),
            calibration.pieces,
        )
        # With `num_returns`, which Ray's types do not know, a task has a reference for each of its results.
        *scores, seconds = cast("list[ObjectRef[Any]]", references)
        self.scores[key] = scores
        self.seconds[key] = seconds
        self.running[seconds] = key

    def seconds_of(self, wave: Wave) -> float:
        """What a wave has cost now, without the shards that were known before."""
        return sum(ray.get([self.seconds.pop(key) for key in wave if key in self.seconds]))

    def drop_running(self) -> None:
        """Give up shards of waves that the round did not need."""
        # Not by force: the process would end with the task, and the model that it holds warm.
        for reference in self.running:
            ray.cancel(reference, force=False)


def _waves(shards: dict[str, list[ObjectRef[Examples]]]) -> list[Wave]:
    """The first shard of every task, the second of every task that has one, and so on."""
    longest = max(map(len, shards.values()))
    waves = []
    for i in range(longest):
        # A task with few examples has fewer shards, and no part in the last waves.
        waves.append([(task, i) for task, references in shards.items() if i < len(references)])
    return waves


def _added(total: ObjectRef[Any] | None, piece: ObjectRef[ScorePiece]) -> Total:
    """A piece of a task's scores with that of one more shard, and its sum."""
    # With `num_returns`, which Ray's types do not know, a task has a reference for each of its results.
    added, piece_sum = cast("list[ObjectRef[Any]]", add_shard.remote(total, piece))
    return added, piece_sum


def _cut(split: Split, shards: int) -> list[ObjectRef[Examples]]:
    """Object references of the shards' undecoded examples; every shard has at least one."""
    # Not by the number of workers: whose labels are sampled together, and what is added to what, decides the last bits.
    parts = torch.arange(len(split)).tensor_split(min(shards, len(split)))
    return [ray.put(encoded(split.select(index.tolist()))) for index in parts]
