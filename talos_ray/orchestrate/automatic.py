"""`mask: {strategy: auto}`: short runs of several masks, each merged and scored on validation data; one of the best is
trained in full.

Two rounds, each searched in one Tune run. The first tries strategies and granularities; the second the best of them
with other shares of weights and of layers, and other learning rates. A round waits for all of its runs, so the choice
is a function of the spec and never of who was first: that is why it is no asynchronous scheduler that decides. What was
tried is the trade-off curve: how local an edit can be before it stops being useful.

Scores on validation data are uncertain, so of those within two standard errors of the best the cheapest to train is
taken. (The rule of one standard error is Breiman, Friedman, Olshen and Stone's, Classification and Regression Trees,
1984. Here the best score is uncertain, too: of two equally good settings one scores more than 1.4 of them below the
other in a third of all cases.)
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from typing import Any

import numpy as np
import ray
import torch

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
    tasks = [task.name for task in spec.tasks]
    choice = store.read_json(CHOICE) if store.exists(CHOICE) else None
    masks: dict[MaskSettings, Mask] = {}
    # A choice stands while tasks are added, because the mask of a run stays what it is.
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
            asked = {key: asked.get(key) for key in value}
        if asked != value:
            return False
    return True


def _with(spec: Spec, chosen: Setting) -> Spec:
    """The spec as it would be, had it asked for what was chosen. The rate is a factor, also on tasks' own rates."""
    train = spec.train.model_copy(update={"lr": spec.train.lr * chosen.lr})
    tasks = []
    for task in spec.tasks:
        own = task.train
        if "lr" in own:
            own = {**own, "lr": own["lr"] * chosen.lr}
        tasks.append(task.model_copy(update={"train": own}))
    return spec.model_copy(update={"mask": chosen.mask, "train": train, "tasks": tuple(tasks)})


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
    scores = first_scores(session, [p.data[task] for task in p.targets])
    rows = _round(session, p, spec, first_round(spec), share, masks, scores)
    best = _best(rows, spec.auto.tolerance)
    rows += _round(session, p, spec, second_round(spec, best, p.layout), share, masks, scores)
    best = _best(rows, spec.auto.tolerance)
    score = next(row for row in rows if row["setting"] == asdict(best))
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
    trained = [row for row in rows if row["merged"]]
    if not trained:
        raise TalosError("every short run diverged: loss is not finite; wanted one that trains; lower train.lr")
    # Where none holds control one is chosen all the same: the gate judges the version, and not a short run.
    held = [row for row in trained if row["held"]] or trained
    top = max(held, key=lambda row: row["merged"])
    near = [row for row in held if row["merged"] >= top["merged"] - tolerance * top["error"]]
    cheapest = min(near, key=lambda row: (int(12 * row["work"]), -row["merged"], row["setting"]["keep"]))
    return Setting(**cheapest["setting"])


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
    _make_masks(session, p, settings, masks, scores)
    plans = {}
    for setting in settings:
        short = {}
        for task in spec.tasks:
            whole = spec.train_for(task, len(p.data[task.name].train))
            short[task.name] = shortened(whole, share, setting.lr)
        plans[setting] = ArmPlan(setting.name, session.folder, masks[setting.mask], {}, short)
    values = _trained(session, p, plans)
    arms = []
    deltas: dict[str, dict[str, Delta]] = {}
    for setting, plan in plans.items():
        trained = values[setting]
        if len(trained) < len(p.targets):
            continue  # one of its runs diverged, and there is nothing to merge
        mask = plan.mask.fingerprint
        deltas[plan.name] = {task: Delta(task, delta, p.base, mask, {}) for task, delta in trained.items()}
        arms.append(plan)
    session.slots_of("search", 1, spec.cluster.search_workers)
    chosen = MergeSearch(session, p, stage="choose").choose(arms, deltas) if arms else {}
    rows = []
    for setting in settings:
        best = chosen.get(setting.name)
        rows.append(_row(setting, masks[setting.mask], None if best is None else best.found, p, share))
    return rows


def _make_masks(
    session: Session, p: Prepared, settings: Sequence[Setting], masks: dict[MaskSettings, Mask], scores: Scores | None
) -> None:
    """Add to `masks` those of settings that it does not hold yet. Settings that differ by their rates share one."""
    workers = session.slots_of("choose", 1, session.spec.cluster.calibration_workers)
    data = [p.data[task] for task in p.targets]
    for i, setting in enumerate(settings):
        words = f"mask: {setting.strategy}, {setting.granularity}, {setting.keep:g}"
        session.progress.update("choose", i / len(settings) / 4, words)  # a quarter of the bar, as training has half
        if setting.mask not in masks:
            masks[setting.mask] = mask_of(session, setting.mask, data, workers, first=scores)


def _trained(session: Session, p: Prepared, plans: Mapping[Setting, ArmPlan]) -> dict[Setting, dict[str, torch.Tensor]]:
    """Setting -> task -> values of its delta after a short run, without tasks whose run diverged. All runs of all
    settings are handed out at once, so that no worker waits for the last one of a setting."""
    remote = short_run.options(**options(session.spec.cluster))
    bits: dict[MaskSettings, ray.ObjectRef[Any]] = {}
    refs: dict[tuple[Setting, str], ray.ObjectRef[Frozen | None]] = {}
    for setting, plan in plans.items():
        if setting.mask not in bits:
            bits[setting.mask] = ray.put(plan.mask.bits)
        for task in p.targets:
            reference = bits[setting.mask]
            refs[setting, task] = remote.remote(session.shared_ref, reference, task, plan.settings[task])
    waiting = list(refs.values())
    while waiting:
        _, waiting = ray.wait(waiting, num_returns=1)
        done = len(refs) - len(waiting)
        session.progress.update("choose", 0.25 + done / len(refs) / 2, f"short run {done} of {len(refs)}")
    trained: dict[Setting, dict[str, torch.Tensor]] = {setting: {} for setting in plans}
    for (setting, task), ref in refs.items():
        frozen = ray.get(ref)
        if frozen is not None:
            trained[setting][task] = thaw(frozen)["values"]
    return trained


def _row(setting: Setting, mask: Mask, found: Record | None, p: Prepared, share: float) -> Record:
    """One point of the trade-off: what it keeps, what it scores, what it costs. `merged` is 0 where a short run
    diverged."""
    row = {
        "setting": asdict(setting),
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
    merged = {task: together[task] for task in p.targets}
    control = found["control_validation"]
    return {
        **row,
        "held": found["control_held"],
        "single": absolute_accuracy(single),
        "merged": absolute_accuracy(merged),
        "error": standard_error(merged, {task: len(p.data[task].validation.labels) for task in merged}),
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
