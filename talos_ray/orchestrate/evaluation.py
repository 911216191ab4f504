"""What a candidate of the merge search is, and how warm workers score it: composed in place, a few tasks a unit.

The ledger on storage makes sure that nothing is evaluated twice, whatever happens to those who asked. What only
the workers need is imported where they need it: a trial's process loads this file too, and neither torch nor data.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import ray

from talos_ray.config import Spec, Train
from talos_ray.core.metrics import MergeObjective
from talos_ray.orchestrate.cluster import WARM, options

if TYPE_CHECKING:
    import numpy as np
    import torch

Coefficients = dict[str, float]
Counts = dict[str, tuple[int, int]]  # task -> (right predictions, inputs)
Part = tuple[int, int]  # (i, n): the i-th of n parts of the validation data
WHOLE: Part = (0, 1)
SAMPLE: Part = (0, 0)  # what the surrogate looks at

UNIT = 4  # most tasks that one worker scores in one go
CONTROL_TIMES = 5  # more inputs of a control task than of a target: it holds or not by itself, targets count as a mean
PROBE_ROWS = 2000  # inputs of a split that a linear probe looks at
DOUBT = 2.0  # standard errors by which a candidate must be behind before it is stopped


@dataclass(frozen=True)
class Ledger:
    """What was evaluated, on storage, by (deltas in use, coefficients, validation data, tasks and part scored)."""

    folder: str
    base: str
    data: str

    def key(
        self, deltas: Mapping[str, str], coefficients: Mapping[str, float], tasks: Sequence[str], part: Part
    ) -> str:
        from talos_ray.core.layout import key_of

        used = {t: [f, coefficients[t]] for t, f in deltas.items() if coefficients.get(t)}
        return key_of([self.base, self.data, used, sorted(tasks), part])


def sample(spec: Spec, task: str, n: int) -> torch.Tensor:
    """Row numbers of the n validation inputs of a task that the surrogate looks at (int64, ascending)."""
    from talos_ray.core.surrogate import sampled_rows

    times = CONTROL_TIMES if any(task == control.name for control in spec.control) else 1
    return sampled_rows(n, times * spec.search.probe_inputs)


@ray.remote(**WARM)
def measure(shared, arm, coefficients: Mapping[str, float], tasks: Sequence[str], part: Part, ledger: Ledger) -> Counts:
    """Right predictions of one candidate on a part of the validation data of `tasks`: from the ledger, or by evaluation.
    What is stored holds the logits of the surrogate's inputs too, so that a search that was cut off goes on as if it had not been."""
    import torch

    from talos_ray.orchestrate.worker import workbench
    from talos_ray.storage.run_folder import RunFolder

    folder = RunFolder(ledger.folder)
    key = ledger.key({t: f for t, _, f in arm.deltas}, coefficients, tasks, part)
    if (found := folder.load_trial(key)) is not None:
        return {t: tuple(c) for t, c in found[0]["counts"].items()}
    bench, started = workbench(shared), time.perf_counter()
    bench.compose(arm, coefficients)
    counts, logits = {}, {}
    for task in tasks:
        n = len(bench.examples(task, "validation"))
        looked_at = sample(shared.spec, task, n)
        index = looked_at if part == SAMPLE else torch.arange(part[0], n, part[1])
        kept = looked_at if part in (WHOLE, SAMPLE) else looked_at[:0]
        counts[task], logits[task] = bench.correct(task, "validation", index, kept)
    spent = round(time.perf_counter() - started, 4)
    info = {"arm": arm.name, "coefficients": dict(coefficients), "part": part, "counts": counts, "seconds": spent}
    folder.save_trial(key, info, logits)
    return counts


@ray.remote(**WARM)
def evaluate(
    shared, arm, coefficients: Mapping[str, float], tasks: Sequence[str], corruption: str | None = None
) -> dict[str, np.ndarray]:
    """What base + sum of coefficient x delta answers on the test data of some tasks: class numbers, int32 [n] each."""
    from talos_ray.orchestrate.worker import workbench

    bench = workbench(shared)
    bench.compose(arm, coefficients)
    return {t: bench.predicted(t, corruption) for t in tasks}


@ray.remote(**WARM)
def inspect(shared, arm, coefficients: Mapping[str, float], task: str, again: Train) -> dict:
    """What a model still knows of a task, beyond its accuracy: how often it predicts each class on test data, what a
    linear probe on its features scores there, fitted to training data, and what it scores once it is trained `again` a little."""
    from talos_ray.core.mask import Mask
    from talos_ray.core.metrics import accuracy
    from talos_ray.core.probe import linear_probe
    from talos_ray.orchestrate.team import retrain
    from talos_ray.orchestrate.worker import workbench

    bench = workbench(shared)
    bench.compose(arm, coefficients)
    train, _, labels = bench.outputs(task, "train", PROBE_ROWS)
    test, predicted, wanted = bench.outputs(task, "test", PROBE_ROWS)
    classes = len(shared.heads[task])
    retrain(bench, Mask(shared.layout, arm.bits), task, again)
    (recovered, n), _ = bench.correct(task, "test")
    bench.reset()
    return {
        "predicted": predicted.bincount(minlength=classes).tolist(),
        "labels": wanted.bincount(minlength=classes).tolist(),
        "probe": accuracy(*linear_probe(train, labels, test, wanted)).as_dict(),
        "retrained": accuracy(recovered, n).as_dict(),
    }


@dataclass(frozen=True)
class Evaluator:
    """Has candidates of one arm scored on validation data, by whatever workers are free.

    `refs`: of the shared base and of the arm, in a container, so that Ray passes them on as they are.
    `deltas`: the arm's tasks and their deltas' fingerprints.
    """

    refs: tuple
    deltas: Mapping[str, str]
    ledger: Ledger
    spec: Spec

    def submit(self, coefficients: Mapping[str, float], tasks: Sequence[str], part: Part = WHOLE) -> list:
        """References of the counts, a unit of tasks each."""
        # A strategy is named, or Ray would look for the CPUs in the trial's own placement group.
        remote = measure.options(**options(self.spec.cluster), scheduling_strategy="DEFAULT")
        return [remote.remote(*self.refs, coefficients, unit, part, self.ledger) for unit in units(tasks)]

    def counts(self, submitted: Sequence) -> Counts:
        """Waits for what was submitted."""
        return {t: c for unit in ray.get(list(submitted)) for t, c in unit.items()}

    def logits(
        self, coefficients: Mapping[str, float], tasks: Sequence[str], part: Part = WHOLE
    ) -> dict[str, torch.Tensor]:
        """Of the `sample` of each task, from a candidate that was scored on it or on all validation data: float32 [n, C] a task."""
        from talos_ray.storage.run_folder import RunFolder

        folder, found = RunFolder(self.ledger.folder), {}
        for unit in units(tasks):
            _, logits = folder.load_trial(self.ledger.key(self.deltas, coefficients, unit, part))
            found |= logits
        return found


def units(tasks: Sequence[str]) -> list[tuple[str, ...]]:
    """Tasks in groups of nearly equal size, at most UNIT each."""
    n = -(-len(tasks) // UNIT)
    return [tuple(tasks[i * len(tasks) // n : (i + 1) * len(tasks) // n]) for i in range(n)]


@dataclass(frozen=True)
class Problem:
    """What is searched: an arm's coefficients, by an objective over target and control tasks."""

    evaluator: Evaluator
    objective: MergeObjective
    parts: int  # of the validation data, no more than the smallest task has inputs

    @property
    def search(self):
        return self.evaluator.spec.search

    @property
    def tasks(self) -> tuple[str, ...]:
        return (*self.objective.single, *self.objective.control)

    @property
    def targets(self) -> tuple[str, ...]:
        return tuple(sorted(self.evaluator.deltas))

    def point(self, values: Mapping[str, float]) -> Coefficients:
        """One coefficient a task, rounded to what is stored."""
        return {t: round(float(values[t]), 4) for t in self.targets}

    def doubt(self, counts: Counts) -> float:
        """How far two candidates' mean normalized accuracies on the inputs counted may lie apart by chance alone."""
        single = self.objective.single
        variance = sum(0.25 / counts[t][1] / max(s, 1e-9) ** 2 for t, s in single.items()) / len(single) ** 2
        return DOUBT * (2 * variance) ** 0.5


@dataclass(frozen=True)
class Candidate:
    """One evaluated point: `parts` holds its mean normalized accuracy and `doubt` after each part of the validation data,
    `predicted` what the surrogate promised (None where nothing was), `number` how many of its search were asked for before it. Not
    `whole`: stopped before the last part."""

    objective: float
    coefficients: Coefficients
    scores: dict[str, float]
    parts: tuple[tuple[float, float], ...]
    whole: bool
    predicted: float | None
    number: int

    @property
    def rank(self):
        """The best sorts first; ties go to the smaller coefficients."""
        size = sum(abs(a) for a in self.coefficients.values())
        return (not self.whole, -self.objective, size, sorted(self.coefficients.items()))


@dataclass(frozen=True)
class Found:
    """Every candidate, the best first; how well the surrogate ranked them (None where it was not used), and after how many of them
    it took new slopes, each time."""

    candidates: list[Candidate]
    correlation: float | None = None
    fell_back: bool = False
    looks: tuple[int, ...] = ()
