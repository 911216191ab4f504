"""How long the stages of a run will take, from what single pieces of its work were timed to take
(`orchestrate.timed`).

Nothing is measured here: the shape of a run is (who waits for what, what is done side by side), as the stages
themselves have it.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from talos_ray.config import Spec
from talos_ray.core.mask import DATA_FREE
from talos_ray.orchestrate.scoring import DISTURBED, PAIRS


@dataclass(frozen=True, kw_only=True)
class TaskWork:
    """One task's inputs, and what they cost a worker, in seconds.

    Args:
        train, validation, test: inputs of each split.
        learned: inputs that the merge learns from, and that single edits are looked at on.
        judged: validation inputs that candidates are judged on.
        unprepared: split -> inputs that this machine has not decoded and preprocessed yet; who comes first does it.
        load: the task's data in a process that has not seen them. prepare: an input.
        shards: of a calibration round, one after the other.
        steps: arm -> updates of its training; none of a control task, or where a checkpoint stands for it.
        step: arm -> one update.
        forward: of an input, without gradients. fit: a head of the task's own.
    """

    name: str
    train: int
    validation: int
    test: int
    learned: int
    judged: int
    unprepared: Mapping[str, int]
    load: float
    prepare: float
    shards: tuple[float, ...] = ()
    steps: Mapping[str, int]
    step: Mapping[str, float]
    forward: float
    fit: float = 0.0
    batch: int = 0  # inputs of one update of its training

    @property
    def tests(self) -> float:
        """One model's answers to all test inputs, once they are prepared."""
        return self.test * self.forward

    def first_use(self, split: str, used: int | None = None) -> float:
        """What preparing a split costs whoever reads so many of its inputs (all, if not given) first."""
        left = self.unprepared.get(split, 0)
        return self.prepare * (left if used is None else min(left, used))

    def trained(self, arm: str) -> float:
        """The task's whole training under an arm."""
        steps = self.steps.get(arm, 0)
        return steps * self.step[arm] if steps else 0.0


@dataclass(frozen=True, kw_only=True)
class Work:
    """What all tasks have in common, in seconds.

    Args:
        check: the check of the spec. ray: Ray's start.
        start: processes of all workers at once, with their libraries. start_alone: of one. build: the model in it.
        hooks: the first task of a calibration, which finds the weights that no hook fits.
        select: a mask from scores.
        merge_step: arm -> an update of its coefficients. compose: a candidate put into the model.
        composed: the driver's own look at the model that was chosen.
    """

    check: float
    ray: float
    start: float
    start_alone: float
    build: float
    hooks: float = 0.0
    select: float = 0.0
    merge_step: Mapping[str, float] = field(default_factory=dict)
    compose: float = 0.0
    composed: float = 0.0

    def begin(self, workers: int) -> float:
        """So many workers that begin at once, before their first piece of work."""
        return (self.start if workers > 1 else self.start_alone) + self.build


@dataclass(frozen=True, kw_only=True)
class Workers:
    """How many are at it at once, by stage."""

    calibrate: int
    train: int
    search: int


def in_turn(pieces: Iterable[float], workers: int) -> float:
    """Seconds until pieces of work, handed out in their order to whoever is free, are all done."""
    free = [0.0] * workers
    for piece in pieces:
        heapq.heapreplace(free, free[0] + piece)
    return max(free)


def longest_first(pieces: Iterable[float], workers: int) -> float:
    """The same, with the longest handed out first."""
    return in_turn(sorted(pieces, reverse=True), workers)


def waves_expected(waves: int, stable: float | None) -> int:
    """Waves of shards that a calibration round will take.

    A round may end early, but not before its second wave; when, only the scores themselves can tell. So the middle
    between the earliest and the latest end is taken.
    """
    if stable is None or waves <= 2:
        return waves
    return math.ceil((2 + waves) / 2)


def calibrates(spec: Spec) -> bool:
    """Whether a run of the spec measures sensitivity."""
    return spec.mask.path is None and spec.mask.strategy not in DATA_FREE


def arms(spec: Spec) -> list[str]:
    """What is trained, merged and tested apart."""
    return ["sparse", "dense"] if spec.baseline.enabled else ["sparse"]


def seconds_by_stage(spec: Spec, tasks: Sequence[TaskWork], work: Work, workers: Workers) -> dict[str, float]:
    """Seconds of every stage that a run of the spec will have.

    Args:
        tasks: first the targets, in the spec's order, then the control tasks.
    """
    targets = tasks[: len(spec.tasks)]
    stages = {"check": work.check, "ray": work.ray}
    if calibrates(spec):
        stages["calibrate"] = _calibrate(spec, targets, work, workers.calibrate)
    if any(task.steps for task in targets):
        stages["train"] = _train(spec, targets, work, workers.train)
    stages["search"] = _search(spec, tasks, work, workers.search)
    stages["test"] = _test(spec, tasks, work, workers.search)
    return stages


def _calibrate(spec: Spec, targets: Sequence[TaskWork], work: Work, workers: int) -> float:
    """Rounds of shards, a wave after each of which the mask is estimated. Shards of later waves begin early, so the
    workers are busy until a round's last wave."""
    longest = max(len(task.shards) for task in targets)
    waves = waves_expected(longest, spec.calibration.stable)
    shards = [task.shards[i] for i in range(waves) for task in targets if i < len(task.shards)]
    a_round = in_turn(shards, workers) + waves * work.select
    # At the end every task's own mask is compared with that of all.
    alone = in_turn([work.select] * len(targets), workers)
    return work.begin(workers) + work.hooks + spec.calibration.rounds * a_round + alone


def _train(spec: Spec, targets: Sequence[TaskWork], work: Work, workers: int) -> float:
    """Every task under every arm, the longest first."""
    jobs = []
    for arm in arms(spec):
        for task in targets:
            if not task.steps.get(arm):
                continue
            # The inputs are prepared under the arm that comes first, and the others find them.
            fresh = arm == "sparse"
            shown = task.steps[arm] * task.batch
            jobs.append(task.load + task.trained(arm) + (task.first_use("train", shown) if fresh else 0.0))
    return work.begin(min(workers, len(jobs))) + longest_first(jobs, workers)


def runs_by_arm(spec: Spec, held: bool) -> dict[str, int]:
    """Learning runs, or points of the grid, that every arm has. `held`: whether there are control tasks."""
    search = spec.search
    if search.method == "grid":
        each = search.shared_points
    else:
        pressures = len(search.several("pressure")) if held else 1
        each = len(search.several("granularity")) * len(search.several("lr")) * pressures + search.trials
    # The dense arm is added up as it is, whatever ways to merge the other one is tried with.
    return {arm: each * (len(search.merge.tried) if arm == "sparse" else 1) for arm in arms(spec)}


def _search(spec: Spec, tasks: Sequence[TaskWork], work: Work, workers: int) -> float:
    """Looks at the base and the single edits, then the runs, then how far edits disturb each other."""
    targets = tasks[: len(spec.tasks)]
    controls = tasks[len(spec.tasks) :]
    looks = [_look(task, work) for task in controls]
    for arm in arms(spec):
        looks += [_look(task, work, own=True, fresh=arm == "sparse") for task in targets]
    judged = sum(task.judged * task.forward for task in tasks)
    heads = sum(task.learned * task.forward + task.fit for task in targets if task.fit)
    counts = runs_by_arm(spec, bool(controls))
    runs = []
    for arm, count in counts.items():
        a_run = judged + heads
        if spec.search.method == "learned":
            a_run += spec.search.steps * work.merge_step[arm]  # the first attempt is taken to hold
            if max(counts.values()) > 1:  # judged on its way, to be stopped where another one is out of reach
                a_run += 3 * judged
        runs += [a_run] * count
    at_once = min(workers, len(runs))
    # A trial is an actor, which takes a process of its own and loads what it will need.
    searched = work.begin(at_once) + sum(task.load for task in tasks) + in_turn(runs, at_once)
    disturbed = []
    if len(targets) > 1:
        others = len(targets) - 1 if len(targets) <= PAIRS else 0
        models = others + 2  # alone, with each other one, with all
        for task in targets:
            inputs = min(DISTURBED, task.validation)
            disturbed.append(models * (work.compose + inputs * task.forward))
    disturbed *= len(arms(spec))
    # The processes that have calibrated are still there for the looks; those of GPUs had to make room for training.
    warm = calibrates(spec) and not spec.cluster.gpus_per_worker
    begin = 0.0 if warm else work.begin(workers)
    return begin + in_turn(looks, workers) + searched + in_turn(disturbed, workers)


def _look(task: TaskWork, work: Work, own: bool = False, fresh: bool = True) -> float:
    """One model's answers to a task's inputs of training and validation. `fresh`: nobody has looked at them yet."""
    seen = work.compose + (task.learned + task.judged) * task.forward + (task.fit if own else 0.0)
    if not fresh:
        return seen
    shown = sum(task.steps.values()) * task.batch  # what training has prepared already
    left = max(0, min(task.learned, task.unprepared.get("train", 0)) - shown)
    return task.load + seen + task.prepare * left + task.first_use("validation")


def _test(spec: Spec, tasks: Sequence[TaskWork], work: Work, workers: int) -> float:
    """Test answers of the base, and of every arm's merged model and single edits; before them, heads for the base."""
    targets = tasks[: len(spec.tasks)]
    probes = [_look(task, work, own=True, fresh=False) for task in targets if task.fit]
    answers = [task.load + task.first_use("test") + task.tests for task in tasks]
    for _ in arms(spec):
        answers += [task.tests for task in tasks]
        answers += [work.compose + task.tests for task in targets]
    return in_turn(probes, workers) + in_turn(answers, workers) + work.composed
