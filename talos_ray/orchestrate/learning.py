"""One learning run of a merge search, on the worker that has the model and its accelerator.

A run is a chain of *attempts*: coefficients are learned, judged on validation data and, where a control task does not
hold, learned further under more pressure. Everything random is a function of the spec, and an attempt is stored under
the hash of all that decides it, with a checkpoint on the way. So a run that was killed ends with the bits that it
would have had, on whichever node it goes on.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import torch

from talos_ray.config import Merge, Search, Spec, Train
from talos_ray.core.layout import fingerprint, key_of
from talos_ray.core.learned import LearnedCoefficients, LearnedHeads, MergePlan, agreement_loss, learn
from talos_ray.core.mask import Mask
from talos_ray.core.metrics import MergeObjective, worst_kept
from talos_ray.core.paired import margin
from talos_ray.core.probe import scored
from talos_ray.core.recompute import blocks_of, recomputing, wrapped
from talos_ray.core.seeds import sampled_rows
from talos_ray.core.segments import Blend, Granularity, Segments, segments_of
from talos_ray.models import shortened
from talos_ray.orchestrate.worker import Arm, Workbench
from talos_ray.storage.run_folder import RunFolder

FEW = 200  # training inputs below which a control task lends some of its validation inputs, unlabelled
PRESSURES = (18.0, 54.0, 162.0)  # tried one after the other where the spec says auto
FORGETTING = (1.0, 4.0, 16.0, 64.0)  # the same where a task is to be forgotten: it starts with little in its way
LOWER = 3  # times that the pressure may be lowered to a quarter, where all hold and the task is not forgotten yet
DOUBT = 0.75  # what a task that is to be forgotten is to think of an input's own class, as a share of what chance would
AGAIN = 0.5  # share of the steps that a further attempt takes: it goes on where the one before ended
CHECKPOINTS = 4  # an attempt
TOGETHER = (
    64  # inputs in one forward on a CPU: the activations of more fall out of its caches (an eighth slower at 144)
)

Record = dict[str, Any]  # what is told of a candidate, as JSON keeps it


@dataclass(frozen=True)
class Pool:
    """Whose inputs a search learns from, and on whose labels it is judged: row numbers, int64, of a task's splits."""

    train: torch.Tensor
    validation: torch.Tensor  # inputs of validation data that are learned from too
    judged: torch.Tensor  # all other validation data

    def __len__(self) -> int:
        return len(self.train) + len(self.validation)


def pool_of(spec: Spec, task: str, train: int, validation: int) -> Pool:
    """The pool of a task with so many training and validation inputs.

    A control task has to show the model enough of what must hold. One with few training inputs shows some of its
    validation inputs too, without their labels; those take no part in the choice, or the choice would be made on what
    was learned.
    """
    rows = sampled_rows(train, spec.search.inputs)
    everything = torch.arange(validation)
    lent = everything[:0]
    if len(rows) < FEW and any(task == c.name for c in spec.control):
        lent = sampled_rows(validation, min(validation // 2, spec.search.inputs - len(rows)))
    return Pool(rows, lent, everything[~torch.isin(everything, lent)])


@dataclass(frozen=True, kw_only=True)
class Goal:
    """What a search wants of one task.

    Args:
        kind: `learn` what its teacher answers, `hold` it, or `forget` the task: answer as if by chance.
        aim: accuracy on the judged validation data from which on a task counts as forgotten.
        before: accuracy on the judged validation data that it is measured by: the single edit's, or what must hold.
        look: address of its teacher's answers (`scoring.look`).
    """

    task: str
    kind: Literal["learn", "hold", "forget"]
    before: float
    look: str
    aim: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Point:
    """One candidate that a search tries. `coefficient`: one of the grid, shared by all tasks, and nothing is
    learned."""

    arm: str
    merge: str  # name of the way to merge
    granularity: Granularity = "task"
    lr: float = 0.0
    pressure: float | None = None  # None: raised until control tasks hold
    coefficient: float | None = None


@dataclass(frozen=True, kw_only=True)
class MergeProblem:
    """What is searched for one set of task vectors: all that a learning run needs to know, beside the vectors
    themselves.

    Args:
        deltas: task -> fingerprint of its delta.
        marks: what else decides the result: fingerprints of data and heads.
        start: coefficients to begin with; `search.start` for all, if not given.
        moving: tasks whose coefficients are learned; all, if not given.
        heads: task -> linear head [classes, d + 1] that it is scored with instead of its frozen one.
        own_heads: whether targets may get heads of their own.
    """

    goals: tuple[Goal, ...]
    deltas: Mapping[str, str]
    base: str
    marks: str
    folder: str
    search: Search
    train: Train
    seed: int
    merge: Merge = field(default_factory=Merge)
    start: Blend | None = None
    moving: tuple[str, ...] | None = None
    heads: Mapping[str, torch.Tensor] = field(default_factory=dict)
    own_heads: bool = True

    @property
    def groups(self) -> int | dict[str, str]:
        return self.merge.groups or 4

    def tasks(self, *kinds: str) -> list[str]:
        """Those of some kinds of goal."""
        return [g.task for g in self.goals if g.kind in kinds]

    @property
    def objective(self) -> MergeObjective:
        """What a candidate's accuracies are worth."""
        wanted = {g.task: g.before for g in self.goals if g.kind != "hold"}
        held = {g.task: g.before for g in self.goals if g.kind == "hold"}
        forgotten = frozenset(self.tasks("forget"))
        return MergeObjective(wanted, held, self.search.control_keep, forgotten)

    def key(self, *more: object) -> str:
        """Address of what is found."""
        start = None
        if self.start is not None:
            values = {t: torch.as_tensor(a).tolist() for t, a in self.start.values.items()}
            start = [self.start.granularity, values]
        settings = self.search.model_dump(
            include={
                "teacher",
                "heads",
                "head_lr",
                "words_weight",
                "steps",
                "start",
                "inputs",
                "batch_size",
                "control_batch_size",
                "control_keep",
                "control_margin",
            }
        )
        goals = [asdict(g) for g in self.goals]
        merge = self.merge.model_dump()
        return key_of(
            [
                self.base,
                self.marks,
                dict(self.deltas),
                merge,
                goals,
                settings,
                start,
                self.moving,
                fingerprint(self.heads),
                self.seed,
                self.own_heads,
                *more,
            ]
        )


@dataclass(frozen=True, kw_only=True)
class Batch:
    """One task's share of an update.

    Args:
        weight: of its loss.
        rows: row numbers in the task's pool, int64 [n].
    """

    goal: Goal
    weight: float
    rows: torch.Tensor


class LearningRun:
    """One point of a search, tried on a workbench.

    Args:
        several: whether other points of the search may stop it on its way.
    """

    def __init__(
        self, bench: Workbench, arm: Arm, problem: MergeProblem, point: Point, *, several: bool = False
    ) -> None:
        self.bench = bench
        self.arm = arm
        self.problem = problem
        self.point = point
        self.several = several
        self.folder = RunFolder(problem.folder)
        self.mask = Mask(bench.shared.layout, arm.bits)
        self.pools = {g.task: pool_of(bench.shared.spec, g.task, *self._sizes(g.task)) for g in problem.goals}
        self.heads = LearnedHeads({}, 0.0)
        self.looks = {g.task: self.folder.stored_trial(g.look)[1] for g in problem.goals}

    def _sizes(self, task: str) -> tuple[int, int]:
        return len(self.bench.examples(task, "train")), len(self.bench.examples(task, "validation"))

    def reports(self) -> Generator[Record]:
        """What is known of the candidate so far, from time to time, and at last its record, with `done`."""
        if self.point.coefficient is not None:
            yield {**self._shared(), "done": True}
            return
        before: str | None = None
        best: Record = {}
        attempts: list[Record] = []
        while (pressure := self._pressure(attempts)) is not None:
            steps = self.problem.search.steps
            if attempts:
                steps = max(1, round(AGAIN * steps))
            # An attempt's address holds that of the one before, whose coefficients it goes on from.
            key = self.problem.key(asdict(self.point), pressure, steps, before or "")
            record: Record = {}
            for record in self._attempt(key, pressure, steps, before):
                if "key" not in record:
                    yield {**record, "done": False}
            attempts.append({k: record[k] for k in ("pressure", "scores", "kept", "worst", "holds")})
            if not best or better(record, best):
                best = record
            before = key
        yield {**best, "attempts": attempts, "done": True}

    def _pressure(self, attempts: Sequence[Mapping[str, Any]]) -> float | None:
        """Under how much pressure the next attempt learns; None where there is none."""
        aims = {g.task: g.aim for g in self.problem.goals if g.kind == "forget"}
        ladder = FORGETTING if aims else PRESSURES
        if self.point.pressure is not None:
            return None if attempts else self.point.pressure
        if not attempts:
            return ladder[0]
        last: float = attempts[-1]["pressure"]
        if not attempts[-1]["holds"]:
            higher = [p for p in ladder if p > last]
            if higher and last >= ladder[0]:
                return higher[0]
            # It was lowered too far, from one that held: what lies between is tried once.
            held = attempts[-2] if len(attempts) > 1 else None
            lowered_from: float = held["pressure"] if held is not None and held["holds"] else 0.0
            return math.sqrt(last * lowered_from) if lowered_from > last else None
        forgotten = all(attempts[-1]["scores"][task] <= aim for task, aim in aims.items())
        lowered = all(a["holds"] for a in attempts) and len(attempts) <= LOWER
        return None if forgotten or not lowered else last / 4

    def _shared(self) -> Record:
        """One coefficient for all tasks: judged and stored."""
        key = self.problem.key(asdict(self.point))
        coefficient = self.point.coefficient
        assert coefficient is not None
        blend = Blend({task: coefficient for task in self.problem.deltas})
        if (stored := self.folder.load_trial(key)) is not None:
            return stored[0]
        started = time.perf_counter()
        self.bench.compose(self.arm, blend)
        judged, heads = self._judged()
        return self._store(key, judged, blend, heads, [], started)

    def _attempt(self, key: str, pressure: float, steps: int, before: str | None) -> Iterator[Record]:
        """Learn, judge, store. Yields what is known on the way, and the record at last."""
        if (stored := self.folder.load_trial(key)) is not None:
            yield stored[0]
            return
        started = time.perf_counter()
        p = self.problem
        bench = self.bench
        bench.reset()
        segments = segments_of(self.mask, self.point.granularity, p.groups)
        learner = LearnedCoefficients(
            bench.family.module,
            self.mask,
            self.arm.unpacked(bench.shared.base, self.mask.fingerprint),
            segments,
            bench.shared.base,
            self._first(segments, before),
            p.moving,
        )
        self.heads = LearnedHeads(self._first_heads(before), p.search.head_lr)
        plan = MergePlan(steps=steps, lr=self.point.lr, seed=p.seed)
        name = f"merge-{key[:16]}"
        found = self.folder.load_checkpoint(name, key)
        done = 0
        curve: list[list[float]] = []
        if found is not None:
            done, state = found
            learner.load(state)
            self.heads.load(state)
            curve = state["curve"].tolist()
        stops = {round(steps * (i + 1) / CHECKPOINTS) for i in range(CHECKPOINTS)}

        def on_step(step: int, loss: float) -> None:
            if step % max(1, steps // 50) == 0:
                curve.append([step, round(loss, 5)])

        try:
            with wrapped(
                blocks_of(bench.family.module, bench.family.edited) if p.train.gradient_checkpointing else (),
                recomputing,
            ):
                for stop in sorted(s for s in stops if s > done):
                    learn(
                        learner,
                        plan,
                        lambda s: self._backward(plan, s, pressure),
                        self.heads,
                        start=done,
                        until=stop,
                        on_step=on_step,
                    )
                    done = stop
                    if done < steps:
                        self.folder.save_checkpoint(
                            name, key, done, {**learner.state(), **self.heads.state(), "curve": _tensor(curve)}
                        )
                        yield {"step": done, **(self._judged(heads=False)[0] if self.several else {})}
            judged, heads = self._judged()
            blend = Blend({t: a.cpu() for t, a in learner.coefficients.items()}, self.point.granularity, p.groups)
            record = self._store(key, {**judged, "pressure": pressure}, blend, heads, curve, started)
            self.folder.drop_checkpoints(name)
            yield record
        finally:
            learner.close()

    def _first(self, segments: Segments, before: str | None) -> float | torch.Tensor:
        """What coefficients begin with: those of the attempt before, those that the search was given, or one number."""
        tasks = sorted(self.problem.deltas)
        if before is not None:
            known = self.folder.stored_trial(before)[1]
            return torch.stack([known[f"coefficient/{t}"] for t in tasks])
        if self.problem.start is not None:
            return self.problem.start.refined(self.mask, segments, tasks)
        return self.problem.search.start

    def _first_heads(self, before: str | None) -> dict[str, torch.Tensor]:
        """Heads that are learned with the coefficients, and what they begin at: the frozen ones, or those of the
        attempt before. Only where one forward serves both kinds."""
        p = self.problem
        if not (p.own_heads and self._alike and p.search.heads != "words"):
            return {}
        heads = {t: self._head(t) for t in p.tasks("learn")}
        if before is not None:
            known = self.folder.stored_trial(before)[1]
            heads = {t: known.get(f"learned head/{t}", h).to(h.device) for t, h in heads.items()}
        return heads

    def _store(
        self,
        key: str,
        judged: Record,
        blend: Blend,
        heads: Mapping[str, torch.Tensor],
        curve: list[list[float]],
        started: float,
    ) -> Record:
        """Keep a candidate on storage. Returns what is told of it."""
        tensors = {f"head/{t}": h for t, h in heads.items()}
        tensors |= {f"learned head/{t}": h.detach().cpu() for t, h in self.heads.heads.items()}
        if blend.granularity is not None:
            tensors |= {f"coefficient/{t}": torch.as_tensor(a) for t, a in blend.values.items()}
        record = {
            **judged,
            "key": key,
            "point": asdict(self.point),
            "means": blend.means(self.mask),
            "curve": curve,
            "seconds": round(time.perf_counter() - started, 3),
        }
        self.folder.save_trial(key, record, tensors)
        return record

    # ------------------------------------------------------------------------------ learning

    def _inputs(self, task: str, index: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Inputs of some rows of a task's pool, and their labels."""
        pool = self.pools[task]
        here = index < len(pool.train)
        parts = [self.bench.examples(task, "train").batch(pool.train[index[here]])]
        if not bool(here.all()):
            lent = pool.validation[index[~here] - len(pool.train)]
            parts.append(self.bench.examples(task, "validation").batch(lent))
        inputs, labels = (torch.cat(x) for x in zip(*parts, strict=True))
        return inputs, labels

    def _backward(self, plan: MergePlan, step: int, pressure: float) -> float:
        """Loss and gradients of one update."""
        total = 0.0
        for together in self._forwards(self._batches(plan, step, pressure)):
            loss = self._loss(together)
            torch.autograd.backward(loss)
            total += float(loss.detach())
        return total

    def _batches(self, plan: MergePlan, step: int, pressure: float) -> list[Batch]:
        """Every task's share of one update."""
        search = self.problem.search
        held = max(1, len(self.problem.tasks("hold")))
        learnt = max(1, len(self.problem.tasks("learn", "forget")))
        batches = []
        for goal in self.problem.goals:
            if goal.kind == "hold":
                size = max(1, search.control_batch_size // held)
                weight = pressure / held
            else:
                size = search.batch_size
                weight = 1.0 / learnt
            if weight:
                rows = plan.rows_at(step, goal.task, len(self.pools[goal.task]), size)
                batches.append(Batch(goal=goal, weight=weight, rows=rows))
        return batches

    def _forwards(self, batches: Sequence[Batch]) -> Iterator[list[Batch]]:
        """Those that go through the model together."""
        most = self.problem.train.micro_batch_size
        if most is None and self.bench.device.type == "cpu":
            most = TOGETHER
        together: list[Batch] = []
        for batch in batches:
            size = sum(len(b.rows) for b in together) + len(batch.rows)
            # Large products are faster than many small ones, as far as memory, or a CPU's caches, allow them.
            if together and not (self._alike and (most is None or size <= most)):
                yield together
                together = []
            together.append(batch)
        if together:
            yield together

    @property
    def _alike(self) -> bool:
        """Whether inputs of different tasks go through the model together: where heads are linear, they meet only
        behind it."""
        return self.bench.family.words_are_linear

    def _loss(self, batches: Sequence[Batch]) -> torch.Tensor:
        """What some tasks add to the loss of an update, a scalar."""
        bench = self.bench
        autocast = bench.autocast(self.problem.train.precision)
        data = [self._inputs(batch.goal.task, batch.rows) for batch in batches]
        with torch.autocast(bench.device.type, dtype=autocast, enabled=autocast is not None):
            outputs = self._outputs([batch.goal.task for batch in batches], [inputs for inputs, _ in data])
        loss = torch.zeros((), device=bench.device)
        for batch, (logits, own_logits), (_, labels) in zip(batches, outputs, data, strict=True):
            weight = batch.weight
            if own_logits is not None:
                # Both heads have to like the features: neither is known to be the better one yet.
                loss = loss + weight * self._goal_loss(batch.goal, own_logits, batch.rows, labels)
                weight = weight * self.problem.search.words_weight
            loss = loss + weight * self._goal_loss(batch.goal, logits, batch.rows, labels)
        return loss

    def _outputs(
        self, tasks: Sequence[str], inputs: Sequence[torch.Tensor]
    ) -> list[tuple[torch.Tensor, torch.Tensor | None]]:
        """Logits [n, classes] of each task's inputs [n, ...] under its frozen head, and under the one that is learned
        with the coefficients, where there is one."""
        family = self.bench.family
        if not self._alike:
            scorers = [self._scorer(task) for task in tasks]
            return [(score(shortened(family, x)), None) for score, x in zip(scorers, inputs, strict=True)]
        together = family.features(shortened(family, torch.cat(list(inputs))))  # [sum of n, d]
        outputs: list[tuple[torch.Tensor, torch.Tensor | None]] = []
        for task, features in zip(tasks, torch.split(together, [len(x) for x in inputs]), strict=True):
            learned = self.heads.heads.get(task)
            own_logits = None if learned is None else scored(features, learned)
            outputs.append((scored(features, self._head(task)), own_logits))
        return outputs

    def _head(self, task: str) -> torch.Tensor:
        """Linear head of a task, of a model whose heads are linear."""
        other = self.problem.heads.get(task)
        if other is not None:
            return other.to(self.bench.device)
        frozen = self.bench.linear_head(task)
        assert frozen is not None
        return frozen

    def _scorer(self, task: str) -> Callable[[torch.Tensor], torch.Tensor]:
        """inputs -> logits under a task's head."""
        if task not in self.problem.heads:
            frozen: Callable[[torch.Tensor], torch.Tensor] = self.bench.logits(task)
            return frozen
        return lambda inputs: scored(self.bench.family.features(inputs), self._head(task))

    def _goal_loss(self, goal: Goal, logits: torch.Tensor, rows: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        if goal.kind == "forget":
            # Every class as likely as any other, but the right one less: with none of them ahead, whatever little the
            # features still say would go on deciding, and the answer be right as before.
            count = logits.shape[-1]
            others = (1.0 - DOUBT / count) / max(1, count - 1)
            wanted = torch.full_like(logits, others).scatter(1, labels[:, None], DOUBT / count)
            return agreement_loss(logits, wanted.log())
        taught = self.looks[goal.task]["taught"][rows].to(logits.device)
        if goal.kind == "hold":
            return agreement_loss(logits, taught)
        teacher = self.problem.search.teacher
        return agreement_loss(
            logits,
            taught=None if teacher == "labels" else taught,
            labels=None if teacher == "edits" else labels,
        )

    # ------------------------------------------------------------------------------ judging

    @torch.no_grad()
    def _judged(self, heads: bool = True) -> tuple[Record, dict[str, torch.Tensor]]:
        """What the model as it stands scores on validation data, and the heads of their own that targets get.

        Args:
            heads: whether they are fitted.
        """
        p = self.problem
        bench = self.bench
        words: dict[str, float] = {}
        scores: dict[str, float] = {}
        chosen: dict[str, torch.Tensor] = {}
        over = []
        for goal in p.goals:
            pool = self.pools[goal.task]
            other = p.heads.get(goal.task)
            fits = heads and p.own_heads and goal.kind == "learn" and p.search.heads != "words"
            judged = bench.answered(
                bench.examples(goal.task, "validation"), goal.task, pool.judged, features=fits or other is not None
            )
            right = judged.right(other)
            words[goal.task] = scores[goal.task] = float(right.float().mean())
            if fits:
                learned = self.heads.heads.get(goal.task)
                taught = self.looks[goal.task]["taught"] if p.search.teacher == "edits" else None
                shown = bench.answered(bench.examples(goal.task, "train"), goal.task, pool.train, features=True)
                head = bench.fitted(goal.task, shown, judged, learned, taught)
                right_own = judged.right(head)
                if p.search.heads == "own" or int(right_own.sum()) > int(right.sum()):
                    scores[goal.task] = float(right_own.float().mean())
                    chosen[goal.task] = head
            if goal.kind == "hold":
                mean, error = margin([self.looks[goal.task]["right"].bool()], [right], p.search.control_keep)
                over.append(mean - p.search.control_margin * error)
        kept, worst = worst_kept(scores, p.objective.control)
        return {
            "objective": p.objective(scores),
            "scores": scores,
            "words": words,
            "kept": kept,
            "worst": worst,
            "holds": all(o >= 0 for o in over),
        }, chosen


def _tensor(curve: list[list[float]]) -> torch.Tensor:
    """A loss curve as a checkpoint keeps it: float64 [points, 2], so that it comes back as it was."""
    return torch.tensor(curve, dtype=torch.float64).view(-1, 2)


def better(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    """Whether candidate `a` comes before `b`: one that holds by its margin first, then what it is worth."""
    return rank(a) < rank(b)


def rank(record: Mapping[str, Any]) -> tuple[bool, float, float, str]:
    """The best sorts first; ties go to the smaller coefficients."""
    size = sum(abs(a) for a in record["means"].values())
    return (not record["holds"], -record["objective"], size, record["key"])
