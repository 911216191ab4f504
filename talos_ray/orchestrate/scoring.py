"""What models answer, and the numbers of a version: the only place where test data are read, once."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime

import numpy as np
import ray
import torch

from talos_ray.config import Merge, Train
from talos_ray.core.compose import Composer
from talos_ray.core.delta import Delta
from talos_ray.core.layout import fingerprint, key_of
from talos_ray.core.mask import Mask
from talos_ray.core.merging import SUBSPACES, merged
from talos_ray.core.metrics import absolute_accuracy, accuracy, normalized_accuracy
from talos_ray.core.paired import Answers, bootstrap, change
from talos_ray.core.probe import linear_probe
from talos_ray.core.seeds import sampled_rows
from talos_ray.core.segments import Blend
from talos_ray.models import base_tensors, load_model
from talos_ray.orchestrate.cluster import WARM, options
from talos_ray.orchestrate.learning import pool_of
from talos_ray.orchestrate.worker import Arm, workbench
from talos_ray.storage.run_folder import RunFolder
from talos_ray.storage.version import ArmResult, Cost, Impact, Summary, TaskScores, TensorChange, Version

PROBE_ROWS = 2000  # inputs of a split that a linear probe looks at
DISTURBED = 80  # validation inputs of each task that the disentanglement error is measured on
PAIRS = 20  # most tasks whose pairs are looked at one by one
Heads = Mapping[str, torch.Tensor]  # task -> linear head of its own, float32 [classes, d + 1]


# ---------------------------------------------------------------------------------- on workers


@ray.remote(**WARM)
def look(
    shared, arm: Arm | None, blend: Blend, task: str, own: bool, head: torch.Tensor | None, key: str, uri: str
) -> dict:
    """What one model makes of one task, found once for all learning runs, and stored under `key`: its answers on the
    inputs that are learned from (log-probabilities, float16 [n, classes]), and which validation inputs it gets right.

    Args:
        arm: whose deltas; the base, if not given.
        own: also fit a linear head to the model's features.
        head: linear head that is used instead of the frozen one.
    """
    folder = RunFolder(uri)
    if (stored := folder.load_trial(key)) is not None:
        return stored[0]
    bench = workbench(shared)
    started = time.perf_counter()
    if arm is None:
        bench.reset()
    else:
        bench.compose(arm, blend)
    train = bench.examples(task, "train")
    pool = pool_of(shared.spec, task, len(train), len(bench.examples(task, "validation")))
    kept_out = bench.examples(task, "validation")
    wanted = own or head is not None
    shown = bench.answered(train, task, pool.train, features=wanted)
    lent = bench.answered(kept_out, task, pool.validation, features=wanted)
    judged = bench.answered(kept_out, task, pool.judged, features=wanted)
    taught = torch.cat([shown.under(head), lent.under(head)])
    right = judged.right(head)
    tensors = {"taught": taught.log_softmax(-1).half(), "right": right.to(torch.uint8)}
    info = {"right": int(right.sum()), "inputs": len(right), "arm": "base" if arm is None else arm.name}
    if own:
        tensors["head"] = bench.fitted(task, shown, judged)
        info["right_own"] = int(judged.right(tensors["head"]).sum())
    info["seconds"] = round(time.perf_counter() - started, 3)
    folder.save_trial(key, info, tensors)
    return info


@ray.remote(**WARM)
def evaluate(
    shared, arm: Arm, blend: Blend, tasks: Sequence[str], heads: Heads, corruption: str | None = None
) -> dict[str, dict[str, np.ndarray]]:
    """What a model answers on the test data of some tasks: task -> what `Workbench.predicted` gives of its frozen head,
    and of its own if it has one in `heads`."""
    bench = workbench(shared)
    bench.compose(arm, blend)
    return {t: bench.predicted(t, heads.get(t), corruption) for t in tasks}


@ray.remote(**WARM)
def disturbed(shared, arm: Arm, blend: Blend, task: str, heads: Heads, pairs: bool) -> tuple[dict[str, float], float]:
    """The disentanglement error of one task (Ortiz-Jimenez et al., 2023): the share of its validation inputs that are
    answered differently, compared with its own edit alone, where one other edit joins (by the other's name), and where
    all others do."""
    bench = workbench(shared)
    examples = bench.examples(task, "validation")
    rows = sampled_rows(len(examples), DISTURBED)

    def answers(tasks: Sequence[str]) -> torch.Tensor:
        bench.compose(arm, blend.only(tasks))
        return bench.answered(examples, task, rows, features=task in heads).under(heads.get(task)).argmax(-1)

    alone = answers([task])
    others = [t for t in blend.values if t != task]
    changed = {t: float((answers([task, t]) != alone).float().mean()) for t in others if pairs}
    return changed, float((answers([task, *others]) != alone).float().mean())


@ray.remote(**WARM)
def inspect(shared, arm: Arm, blend: Blend, task: str, again: Train) -> dict:
    """What a model still knows of a task, beyond its accuracy: how often it predicts each class on test data, what a
    linear probe on its features scores there, fitted to training data, and what it scores once it is trained `again` a
    little."""
    from talos_ray.orchestrate.task_training import retrain

    bench = workbench(shared)
    bench.compose(arm, blend)
    train, _, labels = bench.outputs(task, "train", PROBE_ROWS)
    test, predicted, wanted = bench.outputs(task, "test", PROBE_ROWS)
    classes = len(shared.heads[task])
    retrain(bench, Mask(shared.layout, arm.bits), task, again)
    right = bench.answered(bench.examples(task, "test"), task).right()
    bench.reset()
    return {
        "predicted": predicted.bincount(minlength=classes).tolist(),
        "labels": wanted.bincount(minlength=classes).tolist(),
        "probe": accuracy(*linear_probe(train, labels, test, wanted)).as_dict(),
        "retrained": accuracy(int(right.sum()), len(right)).as_dict(),
    }


# ---------------------------------------------------------------------------------- on the driver


@dataclass(frozen=True, kw_only=True)
class Way:
    """One arm under one merge method: the rows that are added up, and a reference of them in the object store.

    `single`: the same of the deltas as they were trained; `trained`: their fingerprints.
    """

    name: str
    plan: object  # plan.ArmPlan
    how: Merge
    mask: Mask
    rows: Mapping[str, Delta]
    ref: object
    single: object
    trained: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """What a version is to be made of: a way to merge, how much of each delta, and heads of the tasks' own.

    `found`: what is told of the search, where there was one.
    """

    way: Way
    blend: Blend
    heads: Heads
    found: dict = field(default_factory=dict)


def ways_of(
    arms: Sequence, deltas: Mapping[str, Mapping[str, Delta]], methods: Sequence[Merge], grouped: bool = False
) -> dict[str, Way]:
    """Every arm's task vectors under each merge method (dense ones: as trained), put into the object store by the
    driver, who outlives the teams that made them.

    Args:
        grouped: a row a task and group of layers, as versions of earlier releases have them; else groups are segments
            of the coefficients.
    """
    found = {}
    for plan in arms:
        single = ray.put(Arm.stored(plan.name, plan.mask.bits, deltas[plan.name]))
        trained = {t: d.fingerprint for t, d in deltas[plan.name].items()}
        tried = methods if plan is arms[0] else (Merge(method="linear"),)
        for how in tried:
            groups = how.groups if grouped else None
            settings = how.model_dump(exclude={"groups"})
            mask, rows = merged(deltas[plan.name], plan.mask, groups=groups, **settings)
            name = f"{plan.name} {how.method}" if len(tried) > 1 else plan.name
            plain = how.method == "linear" and groups is None
            ref = single if plain else ray.put(Arm.stored(name, mask.bits, rows))
            found[name] = Way(
                name=name, plan=plan, how=how, mask=mask, rows=rows, ref=ref, single=single, trained=trained
            )
    return found


def waited(session, refs: list, stage: str, words: str) -> list:
    """The results of Ray tasks, with progress while they come."""
    waiting = list(refs)
    while waiting:
        _, waiting = ray.wait(waiting, num_returns=1)
        done = len(refs) - len(waiting)
        session.progress.update(stage, done / len(refs), f"{words}: {done} of {len(refs)}")
    return ray.get(refs)


@dataclass(frozen=True)
class Look:
    """One model's look at one task, on storage under `key`."""

    key: str
    info: Mapping

    @property
    def accuracy(self) -> float:
        """On the judged validation data, by the frozen head, or by the one that was given."""
        return self.info["right"] / self.info["inputs"]

    @property
    def accuracy_own(self) -> float:
        """By the head that was fitted; by the frozen one, where none was."""
        return self.info.get("right_own", self.info["right"]) / self.info["inputs"]


class Looks:
    """Has models looked at, each once a run: what was found before is read from storage."""

    def __init__(self, session, prepared, stage: str) -> None:
        self.session = session
        self.p = prepared
        self.stage = stage
        self.asked: dict[str, object] = {}
        self.remote = look.options(**options(prepared.spec.cluster))

    def key(self, task: str, used: Sequence, own: bool, head: torch.Tensor | None) -> str:
        """Address of a look: all that decides it."""
        p = self.p
        data = [p.data[task].train.fingerprint(), p.data[task].validation.fingerprint()]
        frozen = fingerprint({"head": torch.from_numpy(p.heads[task])})
        other = None if head is None else fingerprint({"head": head})
        lends = task in p.controls
        return key_of(["look", p.base, data, frozen, other, lends, p.spec.search.inputs, used, own])

    def ask(
        self,
        task: str,
        *,
        ref=None,
        blend: Blend | None = None,
        used: Sequence = (),
        own: bool = False,
        head: torch.Tensor | None = None,
    ) -> str:
        """Have a task looked at. Returns the look's key.

        Args:
            ref: of the arm whose deltas `blend` adds up; the base, if not given.
            used: what says which deltas those are, and how much of them.
        """
        key = self.key(task, list(used), own, head)
        if key not in self.asked:
            uri = self.session.folder.store.uri
            self.asked[key] = self.remote.remote(
                self.session.shared_ref, ref, blend or Blend({}), task, own, head, key, uri
            )
        return key

    def found(self) -> dict[str, Look]:
        """All looks that were asked for, by key."""
        infos = waited(self.session, list(self.asked.values()), self.stage, "single-task answers")
        return {key: Look(key, info) for key, info in zip(self.asked, infos, strict=True)}

    def head(self, key: str) -> torch.Tensor:
        """The linear head that a look fitted."""
        return self.session.folder.load_trial(key)[1]["head"]


def score_version(
    session,
    prepared,
    arms,
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
    probe_heads, single_heads = _own_heads(session, p, chosen)
    remote = evaluate.options(**options(p.spec.cluster))
    first = chosen[arms[0].name].way
    requests = [(first.single, Blend({}), everything, probe_heads)]
    for plan in arms:
        mine = chosen[plan.name]
        requests.append((mine.way.ref, mine.blend, everything, mine.heads))
        requests += [(mine.way.single, Blend({t: 1.0}), [t], single_heads[plan.name]) for t in p.targets]
    refs = [remote.remote(session.shared_ref, *request) for request in requests]
    marks = {t: p.data[t].test.fingerprint() for t in everything}
    answered = iter(waited(session, refs, "test", "test scores"))
    seen = next(answered)
    base = answers(p, _by(seen, "words"), marks, _by(seen, "words_probability"))
    probe = answers(p, _by(seen, "own"), marks)
    result = {}
    merged_answers = {}
    for plan in arms:
        mine = chosen[plan.name]
        together = next(answered)
        used = {t: "own" if t in mine.heads else "words" for t in together}
        now = {t: kinds[used[t]] for t, kinds in together.items()}
        sure = {t: kinds[f"{used[t]}_probability"] for t, kinds in together.items()}
        single = {t: next(answered)[t] for t in p.targets}
        merged_answers[plan.name] = answers(p, now, marks, sure)
        result[plan.name] = _arm_result(p, mine, deltas[plan.name], base, probe, together, single, others)
    sparse = result[arms[0].name]
    now = merged_answers[arms[0].name]
    mine = chosen[arms[0].name]
    model, tensors = _composed(p, mine)
    more: dict[str, object] = {}  # what not every version has
    # Singular vectors differ in the last bits from machine to machine.
    if mine.way.how.method in SUBSPACES and mine.way.rows:
        more["rows"], size = session.folder.save_merged(mine.way.mask, mine.way.rows)
        more["cost"] = sparse.cost.with_fields(merged_bytes=size, weights_changed=mine.way.mask.k)
    if mine.blend.granularity is not None or mine.heads:
        more["learned"] = session.folder.save_learned(mine.blend, mine.heads, mine.way.mask)
    if p.targets:
        before, after = ([a.right(t) for t in p.targets] for a in (base, now))
        gains = [b.int() - a.int() for a, b in zip(before, after, strict=True)]
        found = {"zero_shot": before, "merged": after, "gain": gains}
        intervals = {name: bootstrap(rights) for name, rights in found.items()}
        more["summary"] = sparse.summary.with_fields(intervals=intervals)
    if probe.predicted:
        more["probe"] = {t: asdict(change(probe.right(t), now.right(t))) for t in p.targets if t in probe.predicted}
    flipped = {t: float((base.predicted[t] != now.predicted[t]).float().mean()) for t in everything}
    version = Version(
        kind="addition",
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        base=p.base,
        mask=arms[0].mask.fingerprint,
        deltas={t: d.fingerprint for t, d in sorted(deltas[arms[0].name].items())},
        model=model,
        merge=mine.way.how.model_dump(),
        targets=p.targets,
        others=list(others),
        controls=p.controls,
        impact=Impact(tensors=tensors, flipped=flipped),
        baseline=result.get("dense"),
        **{**sparse.as_dict(), **more},
    )
    means = version.summary
    session.progress.end(
        "test",
        f"targets {means.zero_shot:.3f} -> {means.merged:.3f} ({means.merged - means.zero_shot:+.3f}) on test data"
        if p.targets
        else "no target task is left",
    )
    return version, base, now


def _own_heads(session, p, chosen: Mapping[str, Chosen]) -> tuple[Heads, dict[str, Heads]]:
    """Heads of their own for the base (the probe) and for every single edit of every arm, for the tasks that could
    have one in the
    merged model: so that what is compared has the same kind of head."""
    if not fits_heads(p):
        return {}, {arm: {} for arm in chosen}
    looks = Looks(session, p, "test")
    probes = {t: looks.ask(t, own=True) for t in p.targets}
    singles = {arm: {t: single_look(looks, c.way, t, True) for t in p.targets} for arm, c in chosen.items()}
    looks.found()
    return (
        {t: looks.head(key) for t, key in probes.items()},
        {arm: {t: looks.head(key) for t, key in keys.items()} for arm, keys in singles.items()},
    )


def fits_heads(p) -> bool:
    """Whether tasks may get heads of their own: not in a model that writes its answers, nor where the spec wants
    words."""
    return p.own_heads and p.spec.search.heads != "words"


def single_look(looks: Looks, way: Way, task: str, own: bool) -> str:
    """Have a single edit looked at."""
    used = [way.trained[task], way.plan.mask.fingerprint]
    return looks.ask(task, ref=way.single, blend=Blend({task: 1.0}), used=used, own=own)


def _by(seen: Mapping[str, Mapping[str, np.ndarray]], kind: str) -> dict[str, np.ndarray]:
    return {t: kinds[kind] for t, kinds in seen.items() if kind in kinds}


def answers(
    p, found: Mapping[str, np.ndarray], marks: Mapping[str, str], sure: Mapping[str, np.ndarray] | None = None
) -> Answers:
    """What models answered, with the labels. `marks`: fingerprints of the test data; `sure`: probabilities, by task."""
    return Answers(
        {t: torch.from_numpy(a.copy()) for t, a in found.items()},
        {t: p.data[t].test.labels for t in found},
        {t: marks[t] for t in found if t in marks},
        {t: torch.from_numpy(s.copy()) for t, s in (sure or {}).items()},
    )


def _arm_result(
    p, mine: Chosen, deltas, base: Answers, probe: Answers, together: Mapping, single: Mapping, others: Sequence[str]
) -> ArmResult:
    """Scores, summary, search and costs of one arm."""
    scores: dict[str, TaskScores] = {}

    def score(task: str, predicted: np.ndarray) -> dict:
        right = torch.from_numpy(predicted.copy()) == p.data[task].test.labels
        return accuracy(int(right.sum()), len(right)).as_dict()

    for t in (*p.targets, *others, *p.controls):
        kind = "own" if t in mine.heads else "words"
        found = {"base": accuracy(*base.counts(t)).as_dict(), "merged": score(t, together[t][kind])}
        if t in probe.predicted and t in p.targets:
            found["probe"] = accuracy(*probe.counts(t)).as_dict()
        if kind == "own":
            found["merged_words"] = score(t, together[t]["words"])
        if t in single:
            found["single"] = score(t, single[t][kind])
            if kind == "own":
                found["single_words"] = score(t, single[t]["words"])
        scores[t] = TaskScores(**found)

    def values(*kinds: str) -> dict[str, float]:
        """Of every target, the first of these kinds that it has."""
        found = {t: scores[t].measured() for t in p.targets}
        return {t: next(measured[k].value for k in kinds if k in measured) for t, measured in found.items()}

    def mean(*kinds: str) -> float:
        return absolute_accuracy(values(*kinds))

    means: dict[str, float] = {}
    if p.targets:
        means = {
            "zero_shot": mean("base"),
            "single": mean("single"),
            "merged": mean("merged"),
            "normalized": normalized_accuracy(values("merged"), values("single")),
        }
        if mine.heads:
            means |= {"merged_words": mean("merged_words", "merged"), "single_words": mean("single_words", "single")}
        if probe.predicted:
            means["probe"] = mean("probe")
    kept = {c: scores[c].merged.value / max(scores[c].base.value, 1e-9) for c in p.controls}
    files = mine.way.plan.folder.store
    return ArmResult(
        coefficients=mine.blend.means(mine.way.mask),
        scores=scores,
        summary=Summary(**means, control_kept=kept),
        **({"search": mine.found} if mine.found else {}),
        cost=Cost(
            train_seconds=round(sum(float(d.info["seconds"]) for d in deltas.values()), 2),
            state_bytes=max((int(d.info["state_bytes"]) for d in deltas.values()), default=0),
            delta_bytes=sum(files.size(f"deltas/{t}.safetensors") for t in p.targets),
            weights_changed=mine.way.plan.mask.k,
        ),
    )


def _composed(p, mine: Chosen) -> tuple[str, dict[str, TensorChange]]:
    """Fingerprint of the composed model, and how many weights of each tensor changed and how far (norm of the change
    over norm of the base). Proves on the way that rolling back gives the base's own bytes."""
    family = load_model(p.spec.model)
    mask = mine.way.mask
    composer = Composer(family.module, mask, list(mine.way.rows.values()), p.base, mine.blend.segments(mask))
    composer.compose(mine.blend.values)
    now = base_tensors(family)
    composed = fingerprint(now)
    tensors = {}
    for name in p.layout.names:
        if changed := int((now[name] != p.tensors[name]).sum()):
            before = p.tensors[name].float()
            far = float((now[name].float() - before).norm() / before.norm().clamp(min=1e-30))
            tensors[name] = TensorChange(changed=changed, weights=before.numel(), relative=far)
    composer.rollback()
    if fingerprint(base_tensors(family)) != p.base:
        raise AssertionError(
            "rolling back did not restore the base's fingerprint: this is a bug in talos_ray; nothing was changed"
        )
    return composed, tensors
