"""What answers: one model, the versions and edits that take turns in it, and the requests that wait for them."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Final

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest

from talos_ray.core.segments import Blend
from talos_ray.data.split import Split
from talos_ray.serving.inputs import decoded, reading
from talos_ray.serving.record import FOLLOW_SECONDS, Canary, Record, Refused, View
from talos_ray.serving.switch import BASE, Switch
from talos_ray.storage.version import Version
from talos_ray.tasks import load_inputs
from talos_ray.trust.predict import Pipeline, Predictions, check_top, notes_on
from talos_ray.trust.recompose import Edit, deltas_of, edit_of
from talos_ray.trust.versions import check_sources, number_of

MERGED: Final = "merged"
SINGLE: Final = "single"
TargetKey = tuple[str, int | None, str | None]  # task, number of a version, task whose edit stands alone


@dataclass(frozen=True, eq=False, kw_only=True)
class Target:
    """Who answers a request.

    Args:
        view: the run when it came.
        version: that the edit is of.
        edit: a task, whose edit answers alone; None where the whole version does.
        pipe: the task's, on the one model.
    """

    view: View
    version: Version
    edit: str | None
    pipe: Pipeline

    @property
    def name(self) -> str:
        """Of what the module has to hold. Versions never change, and edits are named by their content."""
        if not self.version.deltas:
            return BASE
        if self.edit is None:
            return f"version {self.version.number}"
        return f"edit of task {self.edit!r} {self.version.deltas[self.edit]}"

    def load(self) -> Edit:
        """What the module has to hold beside the base, from storage."""
        run = self.view.run
        check_sources(run.folder, self.version)
        if self.edit is None:
            deltas = deltas_of(run.folder, run.mask, run.info["base"], self.version.deltas)
            return edit_of(run.folder, self.version, run.mask, deltas)
        wanted = {self.edit: self.version.deltas[self.edit]}
        deltas = deltas_of(run.folder, run.mask, run.info["base"], wanted)
        return Edit(mask=run.mask, rows=deltas, blend=Blend({self.edit: 1.0}))


@dataclass(frozen=True, eq=False, kw_only=True)
class Waiting:
    """A request that is not answered yet: its inputs, as they are and as a split."""

    target: Target
    inputs: Sequence[Any]
    split: Split
    top_k: int
    answer: Future[Predictions] = field(default_factory=Future)


class Metrics:
    """What Prometheus is told. Tasks and versions are those of the run: a request cannot make new ones up."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.replica = f"{socket.gethostname()}-{os.getpid()}"
        labels = ["replica", "task", "version", "edit", "status"]
        counter = partial(Counter, registry=self.registry)
        self.requests = counter("talos_ray_serve_requests", "Requests that were answered or refused.", labels)
        self.inputs = counter("talos_ray_serve_inputs", "Inputs that were answered.", ["replica"])
        self.switches = Histogram(
            "talos_ray_serve_switch_seconds",
            "Times that the model was given another version or edit, and how long that took.",
            ["replica"],
            registry=self.registry,
        )

    def count(self, status: int, target: Target | None = None) -> None:
        """A request that ended with this HTTP status."""
        task = ""
        version = ""
        edit = ""
        if target is not None:
            task = target.pipe.settings["name"]
            version = str(target.version.number)
            edit = MERGED if target.edit is None else SINGLE
        self.requests.labels(self.replica, task, version, edit, str(status)).inc()

    def text(self) -> bytes:
        """In Prometheus' text format."""
        return generate_latest(self.registry)


class Server:
    """Answers for every task of a run, by any version that may be served and by single edits; for many threads.

    One model is in memory. Requests that want what it holds are answered at once; the others wait, and whoever comes
    first has it switched for all that wait for the same. Each request is a batch of its own, as in `Run.predict`, so
    its answers have the same bits (on the same kind of device, with as many threads).

    Args:
        path, version, canary, follow, allow_code: as `Record` takes them.
        device: where the model is.
        join: answer the inputs of all requests that wait for the same task of the same version in one batch: faster on
            a GPU, and the last bits of a probability then depend on who else asked.

    Raises:
        TalosError: no run, no version that may be served, or a base that is not the run's.
    """

    def __init__(
        self,
        path: str,
        *,
        version: int | None = None,
        canary: Canary | None = None,
        device: str = "cpu",
        join: bool = False,
        follow: float = FOLLOW_SECONDS,
        allow_code: Sequence[str] = (),
    ) -> None:
        self.record = Record(path, version=version, canary=canary, follow=follow, allow_code=allow_code)
        run = self.record.view().run
        family = run.model(0)
        family.module.to(device)
        self.family = family
        self.switch = Switch(family, run.info["base"])
        self.join = join
        self.metrics = Metrics()
        self._model = threading.Lock()  # who has it may switch and ask the model
        self._queue = threading.Lock()
        self._waiting: dict[str, list[Waiting]] = defaultdict(list)  # by the name of what the module has to hold
        self._targets: tuple[View, dict[TargetKey, Target]] = (self.record.view(), {})

    def predict(
        self,
        inputs: Sequence[Any],
        task: str,
        *,
        version: int | None = None,
        edit: str = MERGED,
        top_k: int = 1,
        request: str = "",
    ) -> Predictions:
        """What is answered for a task.

        Args:
            inputs: texts; mappings of columns, where the task's inputs are made of several; or image files in base64.
            version: that is to answer; the one in force (or the canary), if not given.
            edit: "merged": the whole version; "single": the task's edit alone, whole, as the version has it.
            request: an id, by which the canary chooses.

        Raises:
            Refused: with the HTTP status. TalosError: the version cannot be composed, or answers with no numbers.
        """
        # Refusals are counted, too, with as much as is known by then of who was to answer.
        target = None
        try:
            target = self._target(task, version, edit, request)
            predictions = self._answered(target, inputs, top_k)
        except Exception as error:
            self.metrics.count(error.status if isinstance(error, Refused) else 500, target)
            raise
        self.metrics.count(200, target)
        self.metrics.inputs.labels(self.metrics.replica).inc(len(predictions))
        return predictions

    def health(self) -> dict[str, Any]:
        """Which version is in force and answers, what the model holds, and how old that knowledge is in seconds.

        Raises:
            TalosError: the run cannot be read any more.
        """
        view = self.record.view()
        return {
            "status": "ok",
            "head": view.head,
            "answers": view.head if self.record.fixed is None else self.record.fixed,
            "holds": self.switch.holds,
            "seen": round(time.monotonic() - self.record.seen, 3),
        }

    def _target(self, task: str, version: int | None, edit: str, request: str) -> Target:
        """Who answers; the same object for the same, until the run changes."""
        view = self.record.view()
        settings = view.settings(task)
        if edit not in (MERGED, SINGLE):
            raise Refused(422, f"edit is {edit!r}; wanted {MERGED!r} or {SINGLE!r}")
        chosen = view.version(self.record.number(view, version, request))
        single = task if edit == SINGLE else None
        if single is not None:
            view.delta(chosen, task)
        # A new view means that the run has changed: what was made of the old one must not answer any more.
        seen, targets = self._targets
        if seen is not view:
            seen, targets = self._targets = (view, {})
        key = (task, chosen.number, single)
        if key not in targets:
            targets[key] = self._new_target(view, settings, chosen, single)
        return targets[key]

    def _new_target(self, view: View, settings: Mapping[str, Any], version: Version, single: str | None) -> Target:
        task = settings["name"]
        folder = view.run.folder
        # A version's own heads were fitted to its features. Those of a single edit are not kept: it answers under the
        # heads that the run began with, as `single_words` was measured.
        heads = folder.heads_of(version if single is None else None)
        pipe = Pipeline(
            model=self.family,
            version=number_of(version),
            settings=settings,
            classes=view.classes[task],
            head=heads[task],
            notes=notes_on(folder, version, task),
        )
        return Target(view=view, version=version, edit=single, pipe=pipe)

    def _answered(self, target: Target, inputs: Sequence[Any], top_k: int) -> Predictions:
        """Wait for the model, or be answered by who had it."""
        # Before the queue: what is wrong with a request is its own affair, and reading needs no model.
        pipe = target.pipe
        with reading():
            check_top(top_k, pipe.classes)
            rows = decoded(pipe.settings["kind"], inputs)
            split = load_inputs(pipe.settings, rows, pipe.classes)
        own = Waiting(target=target, inputs=rows, split=split, top_k=top_k)
        with self._queue:
            self._waiting[target.name].append(own)
        # Whoever had the model meanwhile may have answered for all that wait for the same, this one among them.
        with self._model:
            if not own.answer.done():
                self._answer_all(target.name)
        return own.answer.result()

    def _answer_all(self, name: str) -> None:
        """Switch once, and answer everybody who waits for the same. Nobody is left without an answer or an error."""
        # Whoever comes from now on begins a new group, and has the model after this one.
        with self._queue:
            group = self._waiting.pop(name)
        first = group[0].target
        try:
            began = time.perf_counter()
            model = first.version.model if first.edit is None else None
            # Noted only where there was a switch: requests that find what they want would hide how long one takes.
            if self.switch.to(name, first.load, model):
                self.metrics.switches.labels(self.metrics.replica).observe(time.perf_counter() - began)
            for part in self._parts(group):
                _answer(part)
        except BaseException as error:  # an interrupt, too: the others wait in threads that it does not reach
            for waiting in group:
                if not waiting.answer.done():
                    waiting.answer.set_exception(error)

    def _parts(self, group: list[Waiting]) -> list[list[Waiting]]:
        """What is answered in one batch."""
        if not self.join:
            return [[waiting] for waiting in group]
        parts: dict[Target, list[Waiting]] = defaultdict(list)
        for waiting in group:
            parts[waiting.target].append(waiting)
        return list(parts.values())


def _answer(part: list[Waiting]) -> None:
    """Answer requests for the same in one batch. What one of them breaks, the others do not suffer from."""
    if len(part) == 1:
        (alone,) = part
        try:
            alone.answer.set_result(alone.target.pipe.answer(alone.split, alone.top_k))
        except Exception as error:
            alone.answer.set_exception(error)
        return
    try:
        answers = _together(part)
    except Exception:  # one by one, so that the error reaches only whom it is about
        for waiting in part:
            _answer([waiting])
        return
    for waiting, answer in zip(part, answers, strict=True):
        waiting.answer.set_result(answer)


def _together(part: list[Waiting]) -> list[Predictions]:
    """One forward pass for several requests, and each one's share of it."""
    pipe = part[0].target.pipe
    rows = [row for waiting in part for row in waiting.inputs]
    most = max(waiting.top_k for waiting in part)  # as many classes as the one wants who wants the most
    whole = pipe.answer(load_inputs(pipe.settings, rows, pipe.classes), most)
    sizes = [len(waiting.split) for waiting in part]
    shares = []
    for waiting, best, scores in zip(part, whole.best.split(sizes), whole.scores.split(sizes), strict=True):
        share = replace(
            whole,
            inputs=[waiting.split.words(i) for i in range(len(waiting.split))],
            best=best[:, : waiting.top_k],
            scores=scores[:, : waiting.top_k],
            notes=(*pipe.notes, *waiting.split.notes),
        )
        shares.append(share)
    return shares
