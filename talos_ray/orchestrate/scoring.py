"""What models answer, and the numbers of a version: the only place where test data are read, once."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np
import ray
import torch
from numpy.typing import NDArray
from ray import ObjectRef

from talos_ray.config import Merge, Task, Train
from talos_ray.core.compose import Composer
from talos_ray.core.delta import Delta
from talos_ray.core.layout import fingerprint, key_of
from talos_ray.core.mask import Mask
from talos_ray.core.merging import merged
from talos_ray.core.metrics import absolute_accuracy, accuracy, normalized_accuracy, score, share_right
from talos_ray.core.paired import Answers, bootstrap, change
from talos_ray.core.probe import linear_probe
from talos_ray.core.seeds import sampled_rows
from talos_ray.core.segments import Blend
from talos_ray.core.subspaces import SUBSPACES
from talos_ray.models import base_tensors, load_model
from talos_ray.orchestrate.cluster import WARM, options
from talos_ray.orchestrate.learning import pool_of
from talos_ray.orchestrate.worker import Arm, Predicted, Shared, Workbench, workbench
from talos_ray.storage.run_folder import RunFolder
from talos_ray.storage.version import ArmResult, Cost, Impact, Summary, TaskScores, TensorChange, Version

if TYPE_CHECKING:
    from talos_ray.orchestrate.plan import ArmPlan, Prepared
    from talos_ray.orchestrate.session import Session

PROBE_ROWS = 2000  # inputs of a split that a linear probe looks at
DISTURBED = 80  # validation inputs of each task that the disentanglement error is measured on
PAIRS = 20  # most tasks whose pairs are looked at one by one
Result = TypeVar("Result")
TESTED = 4096  # test inputs that one Ray task scores, a multiple of the workbench's batch: no batch is cut in two
LISTS = 4  # Ray tasks that a worker gets at least, where there is so much work
Heads = Mapping[str, torch.Tensor]  # task -> linear head of its own, float32 [classes, d + 1]


# ---------------------------------------------------------------------------------- on workers


@dataclass(frozen=True, kw_only=True, eq=False)
class LookRequest:
    """One model's look at one task, which is kept under `key`.

    Args:
        blend: how much of each delta is in the model.
        own: also fit a linear head to the model's features.
        head: linear head that is used instead of the frozen one.
        size: inputs that are looked at.
    """

    task: str
    blend: Blend
    own: bool
    head: torch.Tensor | None
    key: str
    size: int


@ray.remote(**WARM)
def look(shared: Shared, arm: Arm | None, requests: Sequence[LookRequest], uri: str) -> list[dict[str, Any]]:
    """What models make of tasks, each found once for all learning runs and stored under its key: answers on the inputs
    that are learned from (log-probabilities, float16 [n, classes]), and which validation inputs are answered right.

    Args:
        arm: whose deltas; the base, if not given.
    """
    folder = RunFolder(uri)
    # A look that is on storage is not taken again: a run that was killed has most of them.
    infos = []
    at_base = False
    for request in requests:
        stored = folder.load_trial(request.key)
        if stored is not None:
            infos.append(stored[0])
            continue
        bench = workbench(shared)
        if arm is not None:
            bench.compose(arm, request.blend)
        elif not at_base:  # once for all requests: it copies every weight
            bench.reset()
            at_base = True
        infos.append(_looked(shared, folder, bench, arm, request))
    return infos


def _looked(
    shared: Shared, folder: RunFolder, bench: Workbench, arm: Arm | None, request: LookRequest
) -> dict[str, Any]:
    """A look at the model that the bench holds."""
    started = time.perf_counter()
    task = request.task
    head = request.head
    train = bench.examples(task, "train")
    validation = bench.examples(task, "validation")
    pool = pool_of(shared.spec, task, len(train), len(validation))  # the bench's own may be of another search
    features = request.own or head is not None
    # What is learned from is apart from what is judged by, even where validation data lend some of it.
    shown = bench.answered(train, task, pool.train, features=features)
    lent = bench.answered(validation, task, pool.validation, features=features)
    judged = bench.answered(validation, task, pool.judged, features=features)
    taught = torch.cat([shown.under(head), lent.under(head)])
    right = judged.right(head)
    tensors = {"taught": taught.log_softmax(-1).half(), "right": right.to(torch.uint8)}
    info: dict[str, Any] = {"right": int(right.sum()), "inputs": len(right), "arm": "base" if arm is None else arm.name}
    strata = bench.strata(task, judged)
    if strata is not None:
        info["score"] = share_right(right, strata)
    if request.own:
        tensors["head"] = bench.fitted(task, shown, judged)
        right_own = judged.right(tensors["head"])
        info["right_own"] = int(right_own.sum())
        if strata is not None:
            info["score_own"] = share_right(right_own, strata)
    info["seconds"] = round(time.perf_counter() - started, 3)
    folder.save_trial(request.key, info, tensors)
    return info


@dataclass(frozen=True, kw_only=True, eq=False)
class TestPart:
    """Rows [start, stop) of a task's test data, for one model to answer.

    Args:
        blend: how much of each delta is in the model.
        head: the task's own linear head, if it has one.
        corruption: that the inputs are put under.
    """

    __test__ = False  # nor does pytest take it for one of its own

    task: str
    start: int
    stop: int
    blend: Blend
    head: torch.Tensor | None = None
    corruption: str | None = None

    @property
    def size(self) -> int:
        return self.stop - self.start


@ray.remote(**WARM)
def evaluate(shared: Shared, arm: Arm, parts: Sequence[TestPart]) -> list[Predicted]:
    """What models answer on parts of test data: what `Workbench.predicted` gives of a task's frozen head, and of its
    own if it has one."""
    bench = workbench(shared)
    predictions = []
    composed: Blend | None = None
    for part in parts:
        if part.blend is not composed:  # parts of one model still share its coefficients here
            bench.compose(arm, part.blend)
            composed = part.blend
        predictions.append(bench.predicted(part.task, part.head, part.corruption, range(part.start, part.stop)))
    return predictions


@dataclass(frozen=True, kw_only=True, eq=False)
class DisturbedTask:
    """A task whose edit others may disturb. `head`: its own, if it has one."""

    task: str
    head: torch.Tensor | None
    size: int = DISTURBED


@ray.remote(**WARM)
def disturbed(
    shared: Shared, arm: Arm, tasks: Sequence[DisturbedTask], blend: Blend, pairs: bool
) -> list[tuple[dict[str, float], float]]:
    """The disentanglement error of tasks (Ortiz-Jimenez et al., 2023): the share of a task's validation inputs that are
    answered differently, compared with its own edit alone, where one other edit joins (by the other's name), and where
    all others do."""
    bench = workbench(shared)

    def answers(one: DisturbedTask, present: Sequence[str]) -> torch.Tensor:
        """What `one` is answered with the edits of some tasks, int64 [n]."""
        bench.compose(arm, blend.only(present))
        examples = bench.examples(one.task, "validation")
        rows = sampled_rows(len(examples), DISTURBED)
        seen = bench.answered(examples, one.task, rows, features=one.head is not None)
        return seen.under(one.head).argmax(-1)

    everything = list(blend.values)
    # First of all, while one model serves every task: of many edits it takes longer to compose than to ask.
    together = [answers(one, everything) for one in tasks]
    errors = []
    for one, answered_together in zip(tasks, together, strict=True):
        alone = answers(one, [one.task])
        others = [task for task in everything if task != one.task]
        by_pair = {}
        if pairs:  # of n tasks, n models for each
            for other in others:
                by_pair[other] = float((answers(one, [one.task, other]) != alone).float().mean())
        errors.append((by_pair, float((answered_together != alone).float().mean())))
    return errors


@ray.remote(**WARM)
def inspect(shared: Shared, arm: Arm, blend: Blend, task: str, again: Train) -> dict[str, Any]:
    """What a model still knows of a task, beyond its accuracy: how often it predicts each class on test data, what a
    linear probe on its features scores there, fitted to training data, and what it scores once it is trained `again` a
    little."""
    from talos_ray.orchestrate.task_training import retrain

    bench = workbench(shared)
    bench.compose(arm, blend)
    train, _, labels = bench.outputs(task, "train", PROBE_ROWS)
    test, predicted, wanted = bench.outputs(task, "test", PROBE_ROWS)
    classes = len(shared.heads[task])
    # Last, because it changes the model that the features above are of.
    retrain(bench, Mask(shared.layout, arm.bits), task, again)
    right = bench.answered(bench.examples(task, "test"), task).right()
    bench.reset()
    return {
        "predicted": predicted.bincount(minlength=classes).tolist(),
        "labels": wanted.bincount(minlength=classes).tolist(),
        "probe": accuracy(*linear_probe(train, labels, test, wanted)).as_dict(),
        "retrained": score(right).as_dict(),
    }


# ---------------------------------------------------------------------------------- on the driver


@dataclass(frozen=True, kw_only=True)
class Way:
    """One arm under one merge method: the rows that are added up, and a reference of them in the object store.

    `single`: the same of the deltas as they were trained; `trained`: their fingerprints.
    """

    name: str
    plan: ArmPlan
    how: Merge
    mask: Mask
    rows: Mapping[str, Delta]
    ref: ObjectRef[Arm]
    single: ObjectRef[Arm]
    trained: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """What a version is to be made of: a way to merge, how much of each delta, and heads of the tasks' own.

    `found`: what is told of the search, where there was one.
    """

    way: Way
    blend: Blend
    heads: Heads
    found: dict[str, Any] = field(default_factory=dict)


def ways_of(
    arms: Sequence[ArmPlan],
    deltas: Mapping[str, Mapping[str, Delta]],
    methods: Sequence[Merge],
    grouped: bool = False,
) -> dict[str, Way]:
    """Every arm's task vectors under each merge method (dense ones: as trained), put into the object store by the
    driver, who outlives the teams that made them.

    Args:
        grouped: a row a task and group of layers, as versions of earlier releases have them; else groups are segments
            of the coefficients.
    """
    ways = {}
    for plan in arms:
        single = ray.put(Arm.stored(plan.name, plan.mask.bits, deltas[plan.name]))
        trained = {task: delta.fingerprint for task, delta in deltas[plan.name].items()}
        # The dense arm is what the sparse one is compared with: plain task arithmetic, as its paper has it.
        tried = methods if plan is arms[0] else (Merge(method="linear"),)
        for how in tried:
            groups = how.groups if grouped else None
            settings = how.model_dump(exclude={"groups"})
            mask, rows = merged(deltas[plan.name], plan.mask, groups=groups, **settings)
            name = f"{plan.name} {how.method}" if len(tried) > 1 else plan.name
            # Plain addition makes no new rows: the deltas in the object store serve as they are.
            plain = how.method == "linear" and groups is None
            ref = single if plain else ray.put(Arm.stored(name, mask.bits, rows))
            ways[name] = Way(
                name=name, plan=plan, how=how, mask=mask, rows=rows, ref=ref, single=single, trained=trained
            )
    return ways


class Request(Protocol):
    """A small piece of work on one model. `size`: inputs that it is about."""

    @property
    def size(self) -> int: ...


Asked = TypeVar("Asked", bound=Request)


def in_lists(sizes: Sequence[int], workers: int, apart: Sequence[object] = ()) -> list[range]:
    """Places of pieces of work, in order, in lists that are one Ray task each.

    A Ray task unpacks the spec, all heads and all deltas anew, which costs more than a small piece itself: so a list is
    as long as it can be without making workers wait for the last one.

    Args:
        sizes: inputs of each piece.
        apart: what pieces of one list have to have in common.
    """
    room = min(TESTED, math.ceil(sum(sizes) / (LISTS * workers)))
    lists: list[range] = []
    left = 0
    for place, size in enumerate(sizes):
        if not lists or size > left or (apart and apart[place] != apart[place - 1]):
            lists.append(range(place, place))
            left = room
        lists[-1] = range(lists[-1].start, place + 1)
        left -= size
    return lists


def shared_out(
    session: Session,
    asked: Sequence[tuple[ObjectRef[Arm] | None, Asked]],
    send: Callable[[ObjectRef[Arm] | None, list[Asked]], ObjectRef[list[Result]]],
    stage: str,
    words: str,
) -> list[Result]:
    """The results of pieces of work, each on a model of an arm (None: the base), with progress while they come.

    Args:
        send: starts a Ray task for pieces of one arm.
    """
    sizes = [max(1, request.size) for _, request in asked]
    lists = in_lists(sizes, session.slots["search"], [arm for arm, _ in asked])
    refs: list[ObjectRef[list[Result]]] = []
    pieces: dict[Any, int] = {}
    for places in lists:
        arm, _ = asked[places.start]  # one for all of a list
        ref = send(arm, [asked[place][1] for place in places])
        refs.append(ref)
        pieces[ref] = len(places)
    waiting: list[Any] = list(refs)
    done = 0
    # One by one and not all at once, because somebody looks at how far it is.
    while waiting:
        (ready,), waiting = ray.wait(waiting, num_returns=1)
        done += pieces[ready]
        session.progress.update(stage, done / len(asked), f"{words}: {done} of {len(asked)}")
    return [result for results in ray.get(refs) for result in results]


@dataclass(frozen=True)
class Look:
    """One model's look at one task, on storage under `key`."""

    key: str
    info: Mapping[str, Any]

    @property
    def accuracy(self) -> float:
        """On the judged validation data, by the frozen head, or by the one that was given; the task's metric."""
        right: int = self.info["right"]
        inputs: int = self.info["inputs"]
        score: float = self.info.get("score", right / inputs)
        return score

    @property
    def accuracy_own(self) -> float:
        """By the head that was fitted; by the frozen one, where none was."""
        if "right_own" not in self.info:
            return self.accuracy
        right: int = self.info["right_own"]
        inputs: int = self.info["inputs"]
        score: float = self.info.get("score_own", right / inputs)
        return score


class Looks:
    """Has models looked at, each once a run: what was found before is read from storage."""

    def __init__(self, session: Session, prepared: Prepared, stage: str) -> None:
        self.session = session
        self.p = prepared
        self.stage = stage
        self.asked: dict[str, tuple[ObjectRef[Arm] | None, LookRequest]] = {}
        self.infos: dict[str, dict[str, Any]] = {}
        self.remote = look.options(**options(prepared.spec.cluster))

    def key(self, task: str, used: Sequence[object], own: bool, head: torch.Tensor | None) -> str:
        """Address of a look: all that decides it."""
        p = self.p
        data = [p.data[task].train.fingerprint(), p.data[task].validation.fingerprint()]
        frozen = p.head_mark(task)
        other = None if head is None else fingerprint({"head": head})
        # A control task may lend validation inputs, so the same data are cut otherwise where it is a target.
        lends = task in p.controls
        measured = p.data[task].task.measured
        return key_of(["look", p.base, data, frozen, other, lends, p.spec.search.inputs, used, own, *measured])

    def ask(
        self,
        task: str,
        *,
        ref: ObjectRef[Any] | None = None,
        blend: Blend | None = None,
        used: Sequence[object] = (),
        own: bool = False,
        head: torch.Tensor | None = None,
    ) -> str:
        """Have a task looked at, once `found` is called. Returns the look's key.

        Args:
            ref: of the arm whose deltas `blend` adds up; the base, if not given.
            used: what says which deltas those are, and how much of them.
        """
        key = self.key(task, list(used), own, head)
        if key not in self.asked:
            data = self.p.data[task]
            request = LookRequest(
                task=task,
                blend=blend or Blend({}),
                own=own,
                head=head,
                key=key,
                size=len(data.train) + len(data.validation),
            )
            self.asked[key] = (ref, request)
        return key

    def found(self) -> dict[str, Look]:
        """All looks that were asked for, by key."""
        new = {key: asked for key, asked in self.asked.items() if key not in self.infos}
        uri = self.session.folder.store.uri

        def send(arm: ObjectRef[Arm] | None, requests: list[LookRequest]) -> ObjectRef[list[dict[str, Any]]]:
            given: Any = arm  # for mypy, a reference of an arm is none of an arm or nothing
            return self.remote.remote(self.session.shared_ref, given, requests, uri)

        infos = shared_out(self.session, list(new.values()), send, self.stage, "single-task answers")
        self.infos.update(zip(new, infos, strict=True))
        return {key: Look(key, self.infos[key]) for key in self.asked}

    def head(self, key: str) -> torch.Tensor:
        """The linear head that a look fitted."""
        _, tensors = self.session.folder.stored_trial(key)
        return tensors["head"]


@dataclass(frozen=True, kw_only=True)
class _Predictions:
    """What models predict on test data: the base, and of every arm the merged model and its single edits."""

    base: dict[str, Predicted]
    merged: dict[str, dict[str, Predicted]]
    single: dict[str, dict[str, Predicted]]


class Tested:
    """Has models answer test data, all at once, so that the workers are busy until the last answer.

    Args:
        stage, words: what progress is shown under, and as.
    """

    def __init__(self, session: Session, prepared: Prepared, stage: str, words: str) -> None:
        self.session = session
        self.p = prepared
        self.stage = stage
        self.words = words
        self.remote = evaluate.options(**options(prepared.spec.cluster))
        self.asked: list[list[tuple[ObjectRef[Arm] | None, TestPart]]] = []  # of every model

    def ask(
        self, arm: ObjectRef[Arm], blend: Blend, tasks: Sequence[str], heads: Heads, corruption: str | None = None
    ) -> None:
        """Have one model answer the test data of some tasks."""
        parts: list[tuple[ObjectRef[Arm] | None, TestPart]] = []
        for task in tasks:
            size = len(self.p.data[task].test)
            for start, stop in rows_of_parts(size):
                part = TestPart(
                    task=task, start=start, stop=stop, blend=blend, head=heads.get(task), corruption=corruption
                )
                parts.append((arm, part))
        self.asked.append(parts)

    def answered(self) -> Iterator[dict[str, Predicted]]:
        """Task -> predictions, of every model in the order in which they were asked."""

        def send(arm: ObjectRef[Arm] | None, parts: list[TestPart]) -> ObjectRef[list[Predicted]]:
            assert arm is not None
            return self.remote.remote(self.session.shared_ref, arm, parts)

        everything = [part for parts in self.asked for part in parts]
        predictions = iter(shared_out(self.session, everything, send, self.stage, self.words))
        for parts in self.asked:
            of_task: dict[str, list[Predicted]] = {}
            for _, part in parts:
                of_task.setdefault(part.task, []).append(next(predictions))
            yield {task: _joined(pieces) for task, pieces in of_task.items()}


def rows_of_parts(size: int) -> list[tuple[int, int]]:
    """Where the parts of so many test inputs begin and end: a large set is shared among workers."""
    return [(start, min(size, start + TESTED)) for start in range(0, max(1, size), TESTED)]


def _joined(parts: Sequence[Predicted]) -> Predicted:
    """Predictions of a task's rows, from those of its parts."""
    joined = {}
    for kind in parts[0]:
        joined[kind] = np.concatenate([part[kind] for part in parts])
    return joined


def score_version(
    session: Session,
    prepared: Prepared,
    arms: Sequence[ArmPlan],
    deltas: Mapping[str, Mapping[str, Delta]],
    chosen: Mapping[str, Chosen],
    others: Sequence[str] = (),
) -> tuple[Version, Answers, Answers]:
    """A version: test scores of base, probe, single edits and merged model of every arm; and what the base and the
    merged model answered.

    Args:
        chosen: arm -> what its merged model is made of.
        others: tasks of the run that are no part of this version, and are scored all the same.
    """
    p = prepared
    session.progress.begin("test", "test scores")
    everything = [*p.targets, *others, *p.controls]
    predictions = _predictions(session, p, arms, chosen, everything)
    # With the answers goes what they answer: two versions are compared input by input only on the same test data.
    marks = {task: p.data[task].test.fingerprint() for task in everything}
    base_words = _by(predictions.base, "words")
    base = answers(p, base_words, marks, _by(predictions.base, "words_probability"))
    probe = answers(p, _by(predictions.base, "own"), marks)
    # Every arm is scored against the same base and the same probe: only so are arms alike but for their masks.
    results = {}
    merged_answers = {}
    for plan in arms:
        mine = chosen[plan.name]
        merged_answers[plan.name] = _merged_answers(p, mine, predictions.merged[plan.name], marks)
        results[plan.name] = _arm_result(
            p,
            mine,
            deltas=deltas[plan.name],
            base=base,
            probe=probe,
            together=predictions.merged[plan.name],
            single=predictions.single[plan.name],
            others=others,
        )
    # Only the sparse arm becomes a version; a dense one is what it is compared with.
    arm = arms[0]
    now = merged_answers[arm.name]
    version = _version(
        session,
        p,
        arm,
        chosen[arm.name],
        deltas=deltas[arm.name],
        result=results[arm.name],
        baseline=results.get("dense"),
        base=base,
        probe=probe,
        now=now,
        others=others,
    )
    session.progress.end("test", _gain_in_words(version.summary))
    return version, base, now


def _gain_in_words(means: Summary) -> str:
    # A version without targets, as after a removal of the last one, is its base.
    if means.zero_shot is None or means.merged is None:
        return "no target task is left"
    gain = means.merged - means.zero_shot
    return f"targets {means.zero_shot:.3f} -> {means.merged:.3f} ({gain:+.3f}) on test data"


def _predictions(
    session: Session, p: Prepared, arms: Sequence[ArmPlan], chosen: Mapping[str, Chosen], everything: list[str]
) -> _Predictions:
    probe_heads, single_heads = _own_heads(session, p, chosen)
    tested = Tested(session, p, "test", "test scores")
    # No delta in the blend makes the base, whichever arm it is asked of.
    first = chosen[arms[0].name].way
    tested.ask(first.single, Blend({}), everything, probe_heads)
    for plan in arms:
        mine = chosen[plan.name]
        tested.ask(mine.way.ref, mine.blend, everything, mine.heads)
        for task in p.targets:
            tested.ask(mine.way.single, Blend({task: 1.0}), [task], single_heads[plan.name])
    # Answers come in the order of the questions above, so they are taken in the same loops.
    answered = tested.answered()
    base = next(answered)
    merged_models = {}
    single = {}
    for plan in arms:
        merged_models[plan.name] = next(answered)
        single[plan.name] = {task: next(answered)[task] for task in p.targets}
    return _Predictions(base=base, merged=merged_models, single=single)


def _merged_answers(p: Prepared, mine: Chosen, together: Mapping[str, Predicted], marks: Mapping[str, str]) -> Answers:
    """What the merged model answers: by a task's own head where it has one, by its words elsewhere."""
    # Not whichever is better on test data: the search chose by validation data, and the choice stands.
    predicted = {}
    probability = {}
    for task, kinds in together.items():
        kind = "own" if task in mine.heads else "words"
        predicted[task] = kinds[kind]
        probability[task] = kinds[f"{kind}_probability"]
    return answers(p, predicted, marks, probability)


def _version(
    session: Session,
    p: Prepared,
    arm: ArmPlan,
    mine: Chosen,
    *,
    deltas: Mapping[str, Delta],
    result: ArmResult,
    baseline: ArmResult | None,
    base: Answers,
    probe: Answers,
    now: Answers,
    others: Sequence[str],
) -> Version:
    """The version that the sparse arm's merged model is."""
    model, tensors = _composed(p, mine)
    optional = _optional_fields(session, p, mine, result=result, base=base, probe=probe, now=now)
    flipped = {}
    for task in (*p.targets, *others, *p.controls):
        flipped[task] = float((base.predicted[task] != now.predicted[task]).float().mean())
    return Version(
        kind="addition",
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        base=p.base,
        mask=arm.mask.fingerprint,
        deltas={task: delta.fingerprint for task, delta in sorted(deltas.items())},
        model=model,
        merge=mine.way.how.model_dump(),
        targets=p.targets,
        others=list(others),
        controls=p.controls,
        metrics=dict(now.metrics),
        impact=Impact(tensors=tensors, flipped=flipped),
        baseline=baseline,
        **{**result.as_dict(), **optional},
    )


def _optional_fields(
    session: Session, p: Prepared, mine: Chosen, *, result: ArmResult, base: Answers, probe: Answers, now: Answers
) -> dict[str, Any]:
    """Fields of a version that not every one has. Rows and coefficients that it needs are stored on the way."""
    fields: dict[str, Any] = {}
    way = mine.way
    # Singular vectors differ in the last bits from machine to machine.
    if way.how.method in SUBSPACES and way.rows:
        assert result.cost is not None  # `_arm_result` gives one
        fields["rows"], size = session.folder.save_merged(way.mask, way.rows)
        fields["cost"] = result.cost.with_fields(merged_bytes=size, weights_changed=way.mask.k)
    if mine.blend.granularity is not None or mine.heads:
        fields["learned"] = session.folder.save_learned(mine.blend, mine.heads, way.mask)
    if p.targets:
        before = [base.right(task) for task in p.targets]
        after = [now.right(task) for task in p.targets]
        strata = [now.strata(task) for task in p.targets]
        # Input by input: what both models get right, or both wrong, widens no interval of the gain.
        gains = [right.int() - right_before.int() for right_before, right in zip(before, after, strict=True)]
        samples = {"zero_shot": before, "merged": after, "gain": gains}
        intervals = {name: bootstrap(by_task, strata=strata) for name, by_task in samples.items()}
        fields["summary"] = result.summary.with_fields(intervals=intervals)
    if probe.predicted:
        probed = [task for task in p.targets if task in probe.predicted]
        compared = {}
        for task in probed:
            compared[task] = asdict(change(probe.right(task), now.right(task), now.strata(task)))
        fields["probe"] = compared
    return fields


def metrics_of(tasks: Iterable[Task]) -> dict[str, str]:
    """Task -> its metric, of those that are not scored by accuracy."""
    return {task.name: task.metric for task in tasks if task.measured}


def _own_heads(session: Session, p: Prepared, chosen: Mapping[str, Chosen]) -> tuple[Heads, dict[str, Heads]]:
    """Heads of their own for the base (the probe) and for every single edit of every arm, for the tasks that could
    have one in the merged model: so that what is compared has the same kind of head."""
    if not fits_heads(p):
        return {}, {arm: {} for arm in chosen}
    looks = Looks(session, p, "test")
    # All are asked for before any is waited for.
    probes = {task: looks.ask(task, own=True) for task in p.targets}
    singles = {}
    for arm, mine in chosen.items():
        singles[arm] = {task: single_look(looks, mine.way, task, own=True) for task in p.targets}
    looks.found()

    def fitted(keys: Mapping[str, str]) -> Heads:
        return {task: looks.head(key) for task, key in keys.items()}

    return fitted(probes), {arm: fitted(keys) for arm, keys in singles.items()}


def fits_heads(p: Prepared) -> bool:
    """Whether tasks may get heads of their own: not in a model that writes its answers, nor where the spec wants
    words."""
    return p.own_heads and p.spec.search.heads != "words"


def single_look(looks: Looks, way: Way, task: str, own: bool) -> str:
    """Have a single edit looked at."""
    used = [way.trained[task], way.plan.mask.fingerprint]
    return looks.ask(task, ref=way.single, blend=Blend({task: 1.0}), used=used, own=own)


def _by(seen: Mapping[str, Predicted], kind: str) -> Predicted:
    """Task -> what was predicted of it by one kind of head, or how surely."""
    return {task: kinds[kind] for task, kinds in seen.items() if kind in kinds}


def answers(
    p: Prepared,
    found: Mapping[str, NDArray[np.generic]],
    marks: Mapping[str, str],
    sure: Mapping[str, NDArray[np.generic]] | None = None,
) -> Answers:
    """What models answered, with the labels. `marks`: fingerprints of the test data; `sure`: probabilities, by task."""
    # Copied, because what comes from the object store is memory that nobody may write to, and that may go.
    return Answers(
        {task: torch.from_numpy(predicted.copy()) for task, predicted in found.items()},
        {task: p.data[task].test.labels for task in found},
        {task: marks[task] for task in found if task in marks},
        {task: torch.from_numpy(probability.copy()) for task, probability in (sure or {}).items()},
        metrics_of(p.data[task].task for task in found),
    )


def _arm_result(
    p: Prepared,
    mine: Chosen,
    *,
    deltas: Mapping[str, Delta],
    base: Answers,
    probe: Answers,
    together: Mapping[str, Predicted],
    single: Mapping[str, Predicted],
    others: Sequence[str],
) -> ArmResult:
    """Scores, summary, search and costs of one arm."""
    scores = {}
    for task in (*p.targets, *others, *p.controls):
        scores[task] = _task_scores(
            p, task, base=base, probe=probe, together=together[task], single=single.get(task), own=task in mine.heads
        )
    # A field that is not given is not in the file either, so a version without a search says nothing of one.
    searched = {"search": mine.found} if mine.found else {}
    return ArmResult(
        coefficients=mine.blend.means(mine.way.mask),
        scores=scores,
        summary=_summary(p, scores, own=bool(mine.heads), probed=bool(probe.predicted)),
        **searched,
        cost=_cost(p, mine.way.plan, deltas),
    )


def _cost(p: Prepared, plan: ArmPlan, deltas: Mapping[str, Delta]) -> Cost:
    """What an arm took: seconds of all tasks, the most bytes of one optimizer, bytes on storage."""
    seconds = [float(_number(delta, "seconds")) for delta in deltas.values()]
    # Not their sum: a worker trains one task after the other, and holds one optimizer at a time.
    state_bytes = [int(_number(delta, "state_bytes")) for delta in deltas.values()]
    return Cost(
        train_seconds=round(sum(seconds), 2),
        state_bytes=max(state_bytes, default=0),
        delta_bytes=sum(plan.folder.store.size(f"deltas/{task}.safetensors") for task in p.targets),
        weights_changed=plan.mask.k,
    )


def _task_scores(
    p: Prepared,
    task: str,
    *,
    base: Answers,
    probe: Answers,
    together: Predicted,
    single: Predicted | None,
    own: bool,
) -> TaskScores:
    """All scores of one task. `own`: whether it has a head of its own in the merged model."""

    def scored(predicted: NDArray[np.generic]) -> dict[str, Any]:
        right = torch.from_numpy(predicted.copy()) == p.data[task].test.labels
        return score(right, base.strata(task)).as_dict()

    kind = "own" if own else "words"
    scores = {"base": base.score(task).as_dict(), "merged": scored(together[kind])}
    if task in probe.predicted and task in p.targets:
        scores["probe"] = probe.score(task).as_dict()
    # By the frozen head, too, or nobody could tell what the edit did from what the head did.
    if own:
        scores["merged_words"] = scored(together["words"])
    if single is not None:
        scores["single"] = scored(single[kind])
        if own:
            scores["single_words"] = scored(single["words"])
    return TaskScores(**scores)


def _summary(p: Prepared, scores: Mapping[str, TaskScores], *, own: bool, probed: bool) -> Summary:
    """Means over the targets. `own`: whether any has a head of its own; `probed`: whether the base was, with one."""

    def values(*kinds: str) -> dict[str, float]:
        """Of every target, the first of these kinds that it has."""
        firsts = {}
        for task in p.targets:
            measured = scores[task].measured()
            firsts[task] = next(measured[kind].value for kind in kinds if kind in measured)
        return firsts

    def mean(*kinds: str) -> float:
        return absolute_accuracy(values(*kinds))

    means: dict[str, float] = {}
    if p.targets:
        means["zero_shot"] = mean("base")
        means["single"] = mean("single")
        means["merged"] = mean("merged")
        means["normalized"] = normalized_accuracy(values("merged"), values("single"))
        if own:
            means["merged_words"] = mean("merged_words", "merged")
            means["single_words"] = mean("single_words", "single")
        if probed:
            means["probe"] = mean("probe")
    control_kept = {}
    for control in p.controls:
        before = max(scores[control].base.value, 1e-9)  # the base may have answered none right
        control_kept[control] = scores[control].merged.value / before
    return Summary(**means, control_kept=control_kept)


def _number(delta: Delta, field: str) -> int | float:
    """A number that was stored beside a delta."""
    value = delta.info[field]
    assert isinstance(value, int | float)
    return value


def _composed(p: Prepared, mine: Chosen) -> tuple[str, dict[str, TensorChange]]:
    """Fingerprint of the composed model, and how many weights of each tensor changed and how far (norm of the change
    over norm of the base). Proves on the way that rolling back gives the base's own bytes."""
    family = load_model(p.spec.model)
    mask = mine.way.mask
    composer = Composer(family.module, mask, list(mine.way.rows.values()), p.base, mine.blend.segments(mask))
    composer.compose(mine.blend.values)
    now = base_tensors(family)
    composed = fingerprint(now)
    tensors = {}
    # Of the composed model as it is, and not of the coefficients: rounding leaves some weights as they were.
    for name in p.layout.names:
        if changed := int((now[name] != p.tensors[name]).sum()):
            before = p.tensors[name].float()
            # A tensor of the base that is all zeros, like a fresh bias, has no length to be compared with.
            length = before.norm().clamp(min=1e-30)
            relative = float((now[name].float() - before).norm() / length)
            tensors[name] = TensorChange(changed=changed, weights=before.numel(), relative=relative)
    # Nothing is published that could not be taken back: exactness is shown for each version, and not believed.
    composer.rollback()
    if fingerprint(base_tensors(family)) != p.base:
        raise AssertionError(
            "rolling back did not restore the base's fingerprint: this is a bug in talos_ray; nothing was changed"
        )
    return composed, tensors
