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
from talos_ray.core.metrics import MergeObjective, share_right, worst_kept
from talos_ray.core.paired import margin
from talos_ray.core.probe import scored
from talos_ray.core.recompute import blocks_of, recomputing, wrapped
from talos_ray.core.seeds import sampled_rows
from talos_ray.core.segments import Blend, Granularity, Segments, segments_of
from talos_ray.models import shortened
from talos_ray.orchestrate.worker import Arm, Seen, Workbench
from talos_ray.storage.run_folder import RunFolder

FEW = 200  # training inputs below which a control task lends some of its validation inputs, unlabelled
PRESSURES = (18.0, 54.0, 162.0)  # tried one after the other where the spec says auto
FORGETTING = (1.0, 4.0, 16.0, 64.0)  # the same where a task is to be forgotten: it starts with little in its way
BETWEEN = 2  # times that the pressure is raised again, to between the last one that held and one that was too low
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
    if len(rows) < FEW and any(task == control.name for control in spec.control):
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
        return [goal.task for goal in self.goals if goal.kind in kinds]

    @property
    def objective(self) -> MergeObjective:
        """What a candidate's accuracies are worth."""
        targets = {goal.task: goal.before for goal in self.goals if goal.kind != "hold"}
        control = {goal.task: goal.before for goal in self.goals if goal.kind == "hold"}
        forgotten = frozenset(self.tasks("forget"))
        return MergeObjective(targets, control, self.search.control_keep, forgotten)

    def with_coefficient(self, coefficient: float) -> Blend:
        """One for all tasks that move, beside what the others have."""
        stays = {} if self.start is None else self.start.values
        return Blend({**stays, **dict.fromkeys(self.moving or self.deltas, coefficient)})

    def key(self, *more: object) -> str:
        """Address of what is found."""
        start = None
        if self.start is not None:
            values = {task: torch.as_tensor(numbers).tolist() for task, numbers in self.start.values.items()}
            start = [self.start.granularity, values]
        # Of the search only what decides one run's bits: how many points it tries may change, and each is still known.
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
        goals = [asdict(goal) for goal in self.goals]
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
        self.heads = LearnedHeads({}, 0.0)
        self.pools: dict[str, Pool] = {}
        self.looks: dict[str, dict[str, torch.Tensor]] = {}
        for goal in problem.goals:
            train = len(bench.examples(goal.task, "train"))
            validation = len(bench.examples(goal.task, "validation"))
            self.pools[goal.task] = pool_of(bench.shared.spec, goal.task, train, validation)
            _, self.looks[goal.task] = self.folder.stored_trial(goal.look)

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
                if "key" not in record:  # on its way: only what is stored has an address
                    yield {**record, "done": False}
            # The last one that came is the attempt's own record.
            attempts.append({name: record[name] for name in ("pressure", "scores", "kept", "worst", "holds")})
            if not best or better(record, best):
                best = record
            before = key
        yield {**best, "attempts": attempts, "done": True}

    def _pressure(self, attempts: Sequence[Mapping[str, Any]]) -> float | None:
        """Under how much pressure the next attempt learns; None where there is none."""
        aims = {goal.task: goal.aim for goal in self.problem.goals if goal.kind == "forget"}
        ladder = FORGETTING if aims else PRESSURES
        # A pressure that the spec names is a point like any other, and whether it holds is for the search to judge.
        if self.point.pressure is not None:
            return None if attempts else self.point.pressure
        if not attempts:
            return ladder[0]
        last: float = attempts[-1]["pressure"]
        if not attempts[-1]["holds"]:
            higher = [step for step in ladder if step > last]
            # Below the ladder's foot it was lowered on purpose, and to climb again would try the foot twice.
            if higher and last >= ladder[0]:
                return higher[0]
            # It was lowered too far, from one that held: what lies between is tried, closer to that one each time.
            held = [attempt["pressure"] for attempt in attempts if attempt["holds"]]
            too_low = len(attempts) - len(held)
            return math.sqrt(last * min(held)) if held and too_low <= BETWEEN else None
        # All hold. Where nothing is to be forgotten `all` of no aims is true, and the search is over.
        forgotten = all(attempts[-1]["scores"][task] <= aim for task, aim in aims.items())
        may_be_lowered = all(attempt["holds"] for attempt in attempts) and len(attempts) <= LOWER
        return None if forgotten or not may_be_lowered else last / 4

    def _shared(self) -> Record:
        """One coefficient for all tasks that move: judged and stored."""
        key = self.problem.key(asdict(self.point))
        coefficient = self.point.coefficient
        assert coefficient is not None
        blend = self.problem.with_coefficient(coefficient)
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
        problem = self.problem
        learner = self._learner(before)
        self.heads = LearnedHeads(self._first_heads(before), problem.search.head_lr)
        plan = MergePlan(steps=steps, lr=self.point.lr, seed=problem.seed)
        checkpoint = f"merge-{key[:16]}"
        curve: list[list[float]] = []
        try:
            yield from self._learned(learner, plan, pressure, checkpoint, key, curve)
            judged, heads = self._judged()
            coefficients = {task: values.cpu() for task, values in learner.coefficients.items()}
            blend = Blend(coefficients, self.point.granularity, problem.groups)
            record = self._store(key, {**judged, "pressure": pressure}, blend, heads, curve, started)
            # Only now: until the record is on storage, the checkpoint is all that there is of the attempt.
            self.folder.drop_checkpoints(checkpoint)
            yield record
        finally:
            learner.close()

    def _learner(self, before: str | None) -> LearnedCoefficients:
        """The model with coefficients in it that can be learned, as the attempt begins."""
        bench = self.bench
        bench.reset()  # what it is laid on has to be the base: the process may have had another candidate in its model
        segments = segments_of(self.mask, self.point.granularity, self.problem.groups)
        return LearnedCoefficients(
            bench.family.module,
            self.mask,
            self.arm.unpacked(bench.shared.base, self.mask.fingerprint),
            segments,
            bench.shared.base,
            self._first(segments, before),
            self.problem.moving,
        )

    def _learned(
        self,
        learner: LearnedCoefficients,
        plan: MergePlan,
        pressure: float,
        checkpoint: str,
        key: str,
        curve: list[list[float]],
    ) -> Iterator[Record]:
        """Learn to the plan's end, from the checkpoint if there is one; yields at each stop on the way what is known.

        Args:
            checkpoint, key: its name on storage, and the address of the attempt that it has to be of.
            curve: gathers updates and their losses.
        """
        steps = plan.steps
        done = 0
        stored = self.folder.load_checkpoint(checkpoint, key)
        if stored is not None:
            done, state = stored
            learner.load(state)
            self.heads.load(state)
            curve.extend(state["curve"].tolist())

        def on_step(step: int, loss: float) -> None:
            if step % max(1, steps // 50) == 0:
                curve.append([step, round(loss, 5)])

        # Whether it was killed or not, it stops at the same updates: there it is judged, and maybe given up.
        stops = {round(steps * (i + 1) / CHECKPOINTS) for i in range(CHECKPOINTS)}
        family = self.bench.family
        blocks = blocks_of(family.module, family.edited) if self.problem.train.gradient_checkpointing else ()
        with wrapped(blocks, recomputing):
            for stop in sorted(stop for stop in stops if stop > done):
                learn(
                    learner,
                    plan,
                    lambda step: self._backward(plan, step, pressure),
                    self.heads,
                    start=done,
                    until=stop,
                    on_step=on_step,
                )
                done = stop
                if done < steps:
                    state = {**learner.state(), **self.heads.state(), "curve": _tensor(curve)}
                    self.folder.save_checkpoint(checkpoint, key, done, state)
                    # A look at the validation data costs a forward of all of it, for nothing where nobody compares.
                    judged = self._judged(heads=False)[0] if self.several else {}
                    yield {"step": done, **judged}

    def _first(self, segments: Segments, before: str | None) -> float | torch.Tensor:
        """What coefficients begin with: those of the attempt before, those that the search was given, or one number."""
        tasks = sorted(self.problem.deltas)  # the order of the arm's deltas, and so of the matrix's rows
        if before is not None:
            _, known = self.folder.stored_trial(before)
            return torch.stack([known[f"coefficient/{task}"] for task in tasks])
        if self.problem.start is not None:
            return self.problem.start.refined(self.mask, segments, tasks)
        return self.problem.search.start

    def _first_heads(self, before: str | None) -> dict[str, torch.Tensor]:
        """Heads that are learned with the coefficients, and what they begin at: the frozen ones, or those of the
        attempt before. Only where one forward serves both kinds."""
        problem = self.problem
        if not (problem.own_heads and self._alike and problem.search.heads != "words"):
            return {}
        heads = {task: self._head(task) for task in problem.tasks("learn")}
        if before is None:
            return heads
        _, known = self.folder.stored_trial(before)
        for task, frozen in heads.items():
            heads[task] = known.get(f"learned head/{task}", frozen).to(frozen.device)
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
        # Two kinds of heads: those that a version would have, and those that a further attempt goes on from.
        tensors = {f"head/{task}": head for task, head in heads.items()}
        tensors |= {f"learned head/{task}": head.detach().cpu() for task, head in self.heads.heads.items()}
        if blend.granularity is not None:  # else the one coefficient of the point says it all
            tensors |= {f"coefficient/{task}": torch.as_tensor(values) for task, values in blend.values.items()}
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
        # A pool numbers its training inputs first, then those that validation data lend.
        of_train = index < len(pool.train)
        parts = [self.bench.examples(task, "train").batch(pool.train[index[of_train]])]
        if not bool(of_train.all()):
            lent = pool.validation[index[~of_train] - len(pool.train)]
            parts.append(self.bench.examples(task, "validation").batch(lent))
        inputs, labels = (torch.cat(batches) for batches in zip(*parts, strict=True))
        return inputs, labels

    def _backward(self, plan: MergePlan, step: int, pressure: float) -> float:
        """Loss and gradients of one update."""
        total = 0.0
        # Backward at once, one forward after the other: the activations of only one are in memory.
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
        # However many control tasks there are, together they cost as many inputs and weigh as much as the pressure
        # says: a spec with another one is not a spec with more pressure.
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
            size = sum(len(other.rows) for other in together) + len(batch.rows)
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
            return [(score(shortened(family, batch)), None) for score, batch in zip(scorers, inputs, strict=True)]
        together = family.features(shortened(family, torch.cat(list(inputs))))  # [sum of n, d]
        of_tasks = torch.split(together, [len(batch) for batch in inputs])
        outputs: list[tuple[torch.Tensor, torch.Tensor | None]] = []
        for task, features in zip(tasks, of_tasks, strict=True):
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
        # What must hold has to answer as before, right or wrong. Its labels are not looked at: some inputs are lent.
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
        problem = self.problem
        search = problem.search
        words: dict[str, float] = {}
        scores: dict[str, float] = {}
        chosen: dict[str, torch.Tensor] = {}
        margins = []
        for goal in problem.goals:
            task = goal.task
            given = problem.heads.get(task)
            fits = heads and problem.own_heads and goal.kind == "learn" and search.heads != "words"
            validation = self.bench.examples(task, "validation")
            features = fits or given is not None
            judged = self.bench.answered(validation, task, self.pools[task].judged, features=features)
            right = judged.right(given)
            strata = self.bench.strata(task, judged)
            words[task] = share_right(right, strata)
            scores[task] = words[task]
            if fits:
                head = self._fitted(task, judged)
                own = share_right(judged.right(head), strata)
                # A tie goes to the frozen head: one more head is one more thing to keep, and it shows no gain.
                if search.heads == "own" or own > words[task]:
                    scores[task] = own
                    chosen[task] = head
            if goal.kind == "hold":
                before = self.looks[task]["right"].bool()
                mean, error = margin([before], [right], search.control_keep, [strata])
                margins.append(mean - search.control_margin * error)
        kept, worst = worst_kept(scores, problem.objective.control)
        record = {
            "objective": problem.objective(scores),
            "scores": scores,
            "words": words,
            "kept": kept,
            "worst": worst,
            "holds": all(margin_of_task >= 0 for margin_of_task in margins),
        }
        return record, chosen

    def _fitted(self, task: str, judged: Seen) -> torch.Tensor:
        """A head of a task's own for the features of the model as it stands; begun at the one that was learned with
        the coefficients, where there is one."""
        search = self.problem.search
        train = self.bench.examples(task, "train")
        shown = self.bench.answered(train, task, self.pools[task].train, features=True)
        taught = self.looks[task]["taught"] if search.teacher == "edits" else None
        return self.bench.fitted(task, shown, judged, self.heads.heads.get(task), taught)


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
