"""`mask: {strategy: auto}`: short runs of several masks, each merged and scored on validation data; one of the best is
trained in full.

Two rounds, each searched in one Tune run. The first tries strategies and granularities; the second the best of them
with other shares of weights and of layers, and other learning rates. A round waits for all of its runs, so the choice
is a function of the spec and
never of who was first: that is why it is no asynchronous scheduler that decides. What was tried is the trade-off curve:
how local an edit can be before it stops being useful.

Scores on validation data are uncertain, so of those within two standard errors of the best the cheapest to train is
taken. (The rule of one standard error is Breiman, Friedman, Olshen and Stone's, Classification and Regression Trees,
1984. Here the best score is
uncertain, too: of two equally good settings one scores more than 1.4 of them below the other in a third of all cases.)
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from typing import Any

import numpy as np
import ray

from talos_ray.choice import Setting, first_round, second_round, share_of_each
from talos_ray.config import Mask as MaskSettings
from talos_ray.config import Spec, Train
from talos_ray.core.delta import Delta
from talos_ray.core.mask import Mask
from talos_ray.core.metrics import absolute_accuracy, standard_error, worst_kept
from talos_ray.core.rows import step_share
from talos_ray.errors import TalosError
from talos_ray.orchestrate.calibrate import Scores, first_scores, mask_of
from talos_ray.orchestrate.cluster import WARM, options
from talos_ray.orchestrate.learning import Record
from talos_ray.orchestrate.plan import ArmPlan, Prepared, prepare, shortened
from talos_ray.orchestrate.search import MergeSearch
from talos_ray.orchestrate.session import Session, connected, on_ray
from talos_ray.orchestrate.worker import Frozen, Shared, freeze, thaw, workbench
from talos_ray.progress import Progress
from talos_ray.storage.files import Store
from talos_ray.storage.run_folder import CHOICE, RunFolder

SHORTER = 0.5  # share of the steps of the merge search that follows each short run
SCRATCH = "choice"  # folder of the search's ledger while it lasts


def resolved(spec: Spec, progress: Progress, verbose: bool, stack: ExitStack) -> tuple[Spec, Mask | None]:
    """The spec with the mask and the learning rate that were chosen, before or now, and the mask itself if it was made
    now. Ray, if it is needed, ends with `stack`.

    Raises:
        TalosError: as `prepare`, or every short run diverged.
    """
    asked = spec.model_dump(mode="json", include={"model", "seed", "mask", "auto", "train", "calibration"})
    store = Store(spec.output)
    tasks = [t.name for t in spec.tasks]
    choice = store.read_json(CHOICE) if store.exists(CHOICE) else None
    masks: dict[MaskSettings, Mask] = {}
    if choice is None or not _same(choice["asked"], asked) or not set(choice["tasks"]) <= set(tasks):
        prepared = prepare(checkable(spec), progress)
        started = time.monotonic()
        stack.enter_context(connected(spec.cluster, verbose, progress))
        with on_ray(prepared, RunFolder(f"{store.uri}/{SCRATCH}"), verbose, progress) as session:
            rows, best = _choose(session, prepared, spec, masks)
        seconds = round(time.monotonic() - started, 1)
        choice = {"asked": asked, "tasks": tasks, "chosen": asdict(best), "tried": rows, "seconds": seconds}
        store.write_json(CHOICE, choice)
        store.delete_folder(SCRATCH)
    chosen = Setting(**choice["chosen"])
    return _with(spec, chosen), masks.get(chosen.mask)


def _same(before: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Whether a choice answers what is asked now. Settings that came later than the choice do not count."""
    for name, value in before.items():
        asked = now[name]
        if isinstance(value, dict):
            asked = {k: asked.get(k) for k in value}
        if asked != value:
            return False
    return True


def _with(spec: Spec, chosen: Setting) -> Spec:
    train = spec.train.model_copy(update={"lr": spec.train.lr * chosen.lr})
    own = {t.name: {**t.train, "lr": t.train["lr"] * chosen.lr} for t in spec.tasks if "lr" in t.train}
    tasks = tuple(t.model_copy(update={"train": own.get(t.name, t.train)}) for t in spec.tasks)
    return spec.model_copy(update={"mask": chosen.mask, "train": train, "tasks": tasks})


def checkable(spec: Spec) -> Spec:
    """A spec that leaves nothing open, for the short runs: each is merged by one learning run, shorter as the training
    is, of plain task arithmetic."""
    learned = {"granularity": "row", "lr": spec.search.several("lr")[0], "trials": 0, "heads": "words"}
    if spec.search.method == "learned":
        learned["steps"] = max(1, round(SHORTER * spec.search.steps))
    linear = spec.search.merge.model_copy(update={"method": "linear"})
    search = spec.search.model_copy(update={**learned, "merge": linear})
    baseline = spec.baseline.model_copy(update={"enabled": False})
    return spec.model_copy(update={"mask": first_round(spec)[0].mask, "search": search, "baseline": baseline})


def _choose(session: Session, p: Prepared, spec: Spec, masks: dict[MaskSettings, Mask]) -> tuple[list[Record], Setting]:
    """Every setting that was tried, with what it scored, and the best. `masks` gathers theirs."""
    progress = session.progress
    session.share()
    share = share_of_each(spec, p.layout)
    progress.begin("choose", f"short runs of {share:.0%} of the training each")
    scores = first_scores(session, [p.data[t] for t in p.targets])
    rows = _round(session, p, spec, first_round(spec), share, masks, scores)
    best = _best(rows, spec.auto.tolerance)
    rows += _round(session, p, spec, second_round(spec, best, p.layout), share, masks, scores)
    best = _best(rows, spec.auto.tolerance)
    score = next(r for r in rows if r["setting"] == asdict(best))
    progress.end(
        "choose",
        f"{best.name}: merged {score['merged']:.3f} on validation data, of {len(rows)} the cheapest to train near the "
        "best",
    )
    return rows, best


def _best(rows: Sequence[Mapping[str, Any]], tolerance: float) -> Setting:
    """Of those that hold control, and score within `tolerance` standard errors of the best, the cheapest to train; of
    equally cheap ones the best, then the smaller edit. Costs are compared in twelfths of a dense step: less is noise.

    Raises:
        TalosError: every short run diverged.
    """
    if not any(r["merged"] for r in rows):
        raise TalosError("every short run diverged: loss is not finite; wanted one that trains; lower train.lr")
    trained = [r for r in rows if r["merged"]]
    held = [r for r in trained if r["held"]] or trained
    top = max(held, key=lambda r: r["merged"])
    near = [r for r in held if r["merged"] >= top["merged"] - tolerance * top["error"]]
    row = min(near, key=lambda r: (int(12 * r["work"]), -r["merged"], r["setting"]["keep"]))
    return Setting(**row["setting"])


def _round(
    session: Session,
    p: Prepared,
    spec: Spec,
    settings: Sequence[Setting],
    share: float,
    masks: dict[MaskSettings, Mask],
    scores: Scores | None,
) -> list[Record]:
    """What each setting scores after a share of the training."""
    if not settings:
        return []
    workers = session.slots_of("choose", 1, spec.cluster.calibration_workers)
    for i, s in enumerate(settings):
        session.progress.update("choose", i / len(settings) / 4, f"mask: {s.strategy}, {s.granularity}, {s.keep:g}")
        if s.mask not in masks:
            masks[s.mask] = mask_of(session, s.mask, [p.data[t] for t in p.targets], workers, first=scores)
    bits = {how: ray.put(masks[how].bits) for how in {s.mask for s in settings}}
    remote = short_run.options(**options(spec.cluster))
    refs: dict[tuple[Setting, str], ray.ObjectRef[Frozen | None]] = {}
    plans = {}
    for s in settings:
        short = {t.name: shortened(spec.train_for(t, len(p.data[t.name].train)), share, s.lr) for t in spec.tasks}
        plans[s] = ArmPlan(s.name, session.folder, masks[s.mask], {}, short)
        refs |= {(s, t): remote.remote(session.shared_ref, bits[s.mask], t, short[t]) for t in p.targets}
    waiting = list(refs.values())
    while waiting:
        _, waiting = ray.wait(waiting, num_returns=1)
        done = len(refs) - len(waiting)
        session.progress.update("choose", 0.25 + done / len(refs) / 2, f"short run {done} of {len(refs)}")
    arms = []
    deltas: dict[str, dict[str, Delta]] = {}
    for s in settings:
        values = {t: ray.get(refs[s, t]) for t in p.targets}
        trained = {t: thaw(frozen)["values"] for t, frozen in values.items() if frozen is not None}
        if len(trained) < len(values):
            continue  # one of its runs diverged, and there is nothing to merge
        mask = masks[s.mask].fingerprint
        deltas[s.name] = {t: Delta(t, v, p.base, mask, {}) for t, v in trained.items()}
        arms.append(plans[s])
    session.slots_of("search", 1, spec.cluster.search_workers)
    chosen = MergeSearch(session, p, stage="choose").choose(arms, deltas) if arms else {}
    found = {name: c.found for name, c in chosen.items()}
    return [_row(s, masks[s.mask], found.get(s.name), p, share) for s in settings]


def _row(s: Setting, mask: Mask, found: Record | None, p: Prepared, share: float) -> Record:
    """One point of the trade-off: what it keeps, what it scores, what it costs. `merged` is 0 where a short run
    diverged."""
    row = {
        "setting": asdict(s),
        "share": share,
        "weights": mask.k,
        "work": round(step_share(mask), 4),
        "held": False,
        "single": 0.0,
        "merged": 0.0,
        "error": 0.0,
        "control": None,
    }
    if found is None:
        return row
    single = found["single_validation"]
    together = found["validation"]
    merged = {t: together[t] for t in p.targets}
    control = found["control_validation"]
    return {
        **row,
        "held": found["control_held"],
        "single": absolute_accuracy(single),
        "merged": absolute_accuracy(merged),
        "error": standard_error(merged, {t: len(p.data[t].validation.labels) for t in merged}),
        "control": worst_kept(together, control)[0] if control else None,
    }


@ray.remote(**WARM)
def short_run(shared: Shared, bits: np.ndarray, task: str, settings: Train) -> Frozen | None:
    """The values of one task's delta after a short training; None if it diverged."""
    from talos_ray.orchestrate.task_training import retrain

    bench = workbench(shared)
    bench.reset()
    try:
        return freeze({"values": retrain(bench, Mask(shared.layout, bits), task, settings)})
    except FloatingPointError:
        return None
    finally:
        bench.reset()
