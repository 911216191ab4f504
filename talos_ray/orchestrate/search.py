"""Merge search on Ray Tune: trials take candidates from one desk and have them scored by warm workers, part by part.

A trial is started once and serves until the search is over: a process costs seconds, a candidate must not. It only
asks and counts; `orchestrate.evaluation` says what is asked, `orchestrate.proposals` which candidates. A candidate is
stopped early by the best of the generations before its own, never by one that happened to be faster, so neither the
number of trials nor a lost one changes the result. All arms are searched in one Tune run: while one waits for its
generation, the others go on.
"""

from __future__ import annotations

import logging
import signal
import statistics
import threading
import time
from collections.abc import Callable, Generator, Mapping

import ray
from ray import tune
from ray.exceptions import RayActorError

from talos_ray.core.metrics import normalized_accuracy
from talos_ray.errors import TalosError
from talos_ray.orchestrate.cluster import root_cause
from talos_ray.orchestrate.desk import Waiting, open_desk
from talos_ray.orchestrate.evaluation import Candidate, Coefficients, Counts, Found, Problem, units

NOTHING = {"CPU": 0, "memory": 1}  # a trial only waits; Ray Tune wants at least something, and a byte is least

# A search is a generator: it yields generations of points, is sent their candidates in the same order, and returns them all.
Points = list[tuple[Coefficients, float | None]]  # with what was predicted
Generations = Generator[Points, list[Candidate], Found]


class Trial(tune.Trainable):
    """Scores candidate after candidate, a part of the validation data a step, until the desk is closed. It ends a
    candidate where the best of the generations before its own is out of reach."""

    def setup(self, config: dict, problems: Mapping[str, Problem] | None = None, desk=None) -> None:
        logging.getLogger("ray.tune").setLevel(logging.ERROR)
        self.problems, self.desk = problems, Waiting(desk)
        self.order: dict | None = None
        self.finished: int | None = None
        self.returned: float | None = None  # when the last step was over

    def _begin(self) -> None:
        asked = time.perf_counter()
        self.order, waited = self.desk.next(self.trial_id, self.finished)
        self.counts: Counts = {}
        self.parts: list[tuple[float, float]] = []
        # What this candidate costs beyond its evaluation: Tune's own turn, and the way to the desk and back.
        self.overhead = time.perf_counter() - (self.returned or asked) - waited

    def step(self) -> dict:
        if self.order is None:
            self._begin()
        if self.order is None:
            return {"done": True}
        order, p = self.order, self.problems[self.order["arm"]]
        submitted = p.evaluator.submit(order["coefficients"], p.tasks, (len(self.parts), order["parts"]))
        for task, (right, seen) in p.evaluator.counts(submitted).items():
            before = self.counts.get(task, (0, 0))
            self.counts[task] = (before[0] + right, before[1] + seen)
        scores = {t: right / seen for t, (right, seen) in self.counts.items()}
        reached = normalized_accuracy({t: scores[t] for t in p.objective.single}, p.objective.single)
        self.parts.append((reached, p.doubt(self.counts)))
        whole, bars = len(self.parts) == order["parts"], order["bars"]
        behind = not whole and bool(bars) and reached < bars[len(self.parts) - 1]
        if whole or behind:
            self.order, self.finished = None, order["number"]
        self.returned = time.perf_counter()
        return {
            "number": order["number"], "objective": p.objective(scores), "scores": scores, "finished": whole or behind,
            "whole": whole, "parts": list(self.parts), "overhead": self.overhead,
        }  # fmt: skip


class Dealer(tune.Callback):
    """The driver's side: lays the generations of all arms on the desk, and hands Tune's results back to them.

    Args:
        searches: arm -> (its problem, its generations).
        failures: trials and desks that may be lost before the search is given up.
        on_candidate: called with the arm's name and each of its candidates.
    """

    def __init__(
        self,
        searches: Mapping[str, tuple[Problem, Generations]],
        desk,
        failures: int,
        on_candidate: Callable[[str, Candidate], None],
    ) -> None:
        self.searches, self.desk, self.on_candidate = dict(searches), desk, on_candidate
        self.failures_left = failures
        self.desk_lost = False
        self.orders: list[tuple[str, Coefficients, float | None, int]] = []  # with its number in its own search
        self.open: dict[int, dict] = {}  # what is, or was, on the desk and has no result
        self.results: dict[int, Candidate] = {}
        self.generation: dict[str, range] = {}  # the orders of an arm's present generation
        self.best: dict[str, Candidate] = {}
        self.found: dict[str, Found] = {}
        self.overheads: list[float] = []
        for arm in self.searches:
            self._send(arm, None)

    def __getstate__(self) -> dict:  # Tune saves its callbacks; the ledger is what outlives us
        return {}

    def _send(self, arm: str, candidates: list[Candidate] | None) -> None:
        problem, search = self.searches[arm]
        try:
            points = search.send(candidates)
        except StopIteration as end:
            self.found[arm] = end.value
            if len(self.found) == len(self.searches):
                self._tell("close")
            return
        first, best = len(self.orders), self.best.get(arm)
        self.generation[arm] = range(first, first + len(points))
        before = sum(order[0] == arm for order in self.orders)
        for i, (number, (coefficients, predicted)) in enumerate(zip(self.generation[arm], points, strict=True)):
            self.orders.append((arm, coefficients, predicted, before + i))
            parts = 1 if predicted is not None else problem.parts
            reachable = best is not None and best.objective >= 0 and len(best.parts) == parts
            bars = [value - doubt for value, doubt in best.parts] if reachable else []
            order = {"number": number, "arm": arm, "coefficients": coefficients, "parts": parts, "bars": bars}
            self.open[number] = order
        self._tell("put", [self.open[number] for number in self.generation[arm]])

    def _tell(self, what: str, *args) -> None:
        try:
            getattr(self.desk, what)(*args)
        except RayActorError:  # its trials end, too, and then there is another
            self.failures_left -= not self.desk_lost
            self.desk_lost = True

    def move(self, desk) -> None:
        """To another desk, with all that the one before may have held."""
        self.desk, self.desk_lost = desk, False
        self._tell("put", list(self.open.values()))

    def on_trial_result(self, iteration: int, trials: list, trial, result: dict, **info) -> None:
        number = result.get("number")
        if not result.get("finished") or number in self.results:  # a trial that was lost may tell a thing again
            return
        arm, coefficients, predicted, place = self.orders[number]
        self.overheads.append(result["overhead"])
        candidate = Candidate(
            result["objective"],
            coefficients,
            {t: result["scores"][t] for t in self.searches[arm][0].tasks},
            tuple(map(tuple, result["parts"])),
            result["whole"],
            predicted,
            place,
        )
        self.results[number] = candidate
        del self.open[number]
        self.on_candidate(arm, candidate)
        if all(n in self.results for n in self.generation[arm]):
            candidates = [self.results[n] for n in self.generation[arm]]
            self.best[arm] = min([*candidates, *filter(None, [self.best.get(arm)])], key=lambda c: c.rank)
            self._send(arm, candidates)

    def on_trial_error(self, iteration: int, trials: list, trial, **info) -> None:
        """The other trials take over what it had, while there are failures left."""
        self._tell("lost", trial.trial_id)
        if self.desk_lost:
            return
        self.failures_left -= 1
        if self.failures_left < 0:
            self._tell("close")


def run(
    searches: Mapping[str, tuple[Problem, Generations]],
    desk,
    slots: int,
    scratch: str,
    on_candidate: Callable[[str, Candidate], None],
) -> tuple[dict[str, Found], float]:
    """All searches in one Tune run. Returns what each found, and the median of the seconds that a candidate cost beyond
    its evaluation.

    Args:
        desk: from `desk.open_desk`; it is closed with the search.
        slots: workers that evaluate at once.
        scratch: a folder for Tune's own state, of no use afterwards.

    Raises:
        KeyboardInterrupt: as it was; the ledger has what was found.
        TalosError: trials, or their desk, failed more often than `cluster.max_failures`.
    """
    problems = {arm: problem for arm, (problem, _) in searches.items()}
    failures = next(iter(problems.values())).evaluator.spec.cluster.max_failures
    dealer = Dealer(searches, Waiting(desk), failures, on_candidate)
    # One more trial than can be served at once, so that no worker waits for a trial's turn.
    at_once = 1 + -(-slots // min(len(units(p.tasks)) for p in problems.values()))
    on_interrupt = signal.getsignal(signal.SIGINT)
    try:
        while True:
            trainable = tune.with_resources(tune.with_parameters(Trial, problems=problems, desk=desk), NOTHING)
            results = tune.Tuner(
                trainable,
                tune_config=tune.TuneConfig(num_samples=at_once),
                run_config=tune.RunConfig(
                    storage_path=scratch, verbose=0, callbacks=[dealer], checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
                ),
            ).fit()  # fmt: skip
            if len(dealer.found) == len(problems):
                break
            if dealer.failures_left < 0:
                raise TalosError(f"the trials of the merge search failed: {root_cause(results.errors[0])}")
            if results.num_errors < at_once:  # Tune caught it, and ended its trials
                raise KeyboardInterrupt
            if dealer.desk_lost:
                dealer.move(Waiting(desk := open_desk()))
    finally:
        ray.kill(desk)
        # Tune leaves its own in place, which would swallow the next one.
        if on_interrupt is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, on_interrupt)
    return dealer.found, statistics.median(dealer.overheads)
