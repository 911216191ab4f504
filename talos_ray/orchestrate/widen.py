"""A run on a wider mask: what a checkpoint changed off a run's mask is added to it, in a run of its own.

A run's folder belongs to one mask for good, so the run stays as it is. The new one has its deltas, each with nothing at
the new places, and is then merged as any run to which a task is added.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from talos_ray.config import Spec
from talos_ray.core.delta import carried, changed, imported
from talos_ray.core.mask import Mask, widened
from talos_ray.data.readers import is_here
from talos_ray.errors import SpecError, TalosError
from talos_ray.orchestrate.driver import run_edit
from talos_ray.orchestrate.plan import Prepared, identity_of, prepare, weights_of, with_commits
from talos_ray.orchestrate.search import Approved, approved_in
from talos_ray.progress import Progress
from talos_ray.storage import history
from talos_ray.storage.files import JsonObject
from talos_ray.storage.run_folder import HEADS, RunFolder
from talos_ray.user_files import check_new_folder

OPERATION = "widen"


def widen(spec: Spec, to: Path, *, verbose: bool = False) -> None:
    """Make a run in a new folder whose mask also holds what the last task's checkpoint changed, and merge that task in.
    Given again after it was cut off, it goes on.

    Args:
        spec: of the run, with the task that is imported as its last.
        to: new or empty.

    Raises:
        SpecError: the spec, the checkpoint or the folder, before anything is written; or nothing lies off the mask.
        TalosError: a stage could not be finished; what was finished is kept.
    """
    from talos_ray.orchestrate.cluster import check_output

    spec = with_commits(spec)
    folder = RunFolder(spec.output)
    mask = _mask_of(folder)
    task = spec.tasks[-1]
    source = {"run": folder.store.uri, "version": folder.head, "mask": mask.fingerprint, "task": task.name}
    new = RunFolder(str(to))
    begun = _begun(new, source)
    if not begun:
        check_new_folder(to)
        check_output(str(to), [task.data for task in (*spec.tasks, *spec.control) if is_here(task)])
    progress = Progress()
    with progress:
        prepared = prepare(spec, progress)
        wider = _wider(prepared, mask, to, progress)
        asked = _spec_of(spec, wider, to)
        if not begun:
            _build(folder, prepared, mask, wider, asked, source)
        elif begun["mask"] != wider.fingerprint:
            raise SpecError(
                f"folder {str(to)!r} was begun with other weights of checkpoint {task.checkpoint!r}; wanted a new or "
                "empty folder; choose another"
            )
    run_edit(asked, verbose=verbose, progress=progress, approved=_approved(folder, prepared, mask, wider, new))


def _mask_of(folder: RunFolder) -> Mask:
    """A finished run's mask, as it was recorded.

    Raises:
        TalosError: the run has no version. CorruptError: its mask or heads were changed.
    """
    if folder.head is None:
        raise TalosError(
            f"run {folder.store.uri!r} has no version yet; wanted a finished run; run its own command again first"
        )
    folder.check("mask.safetensors", HEADS)
    mask = folder.load_mask(folder.info()["base"])
    assert mask is not None  # or the check had failed
    return mask


def _begun(new: RunFolder, source: JsonObject) -> JsonObject | None:
    """The event by which a folder was made of this very run for this task, if it was."""
    events = history.events(new.store) if new.is_ours else ()
    return next((event for event in events if event["operation"] == OPERATION and event["source"] == source), None)


def _wider(p: Prepared, mask: Mask, to: Path, progress: Progress) -> Mask:
    """The mask with all that the last task's checkpoint changed, and a line on what that is.

    Raises:
        SpecError: the mask holds it all.
    """
    task = p.spec.tasks[-1]
    tuned = weights_of(task, p.layout, p.spec.model, p.tensors)
    wider = widened(mask, changed(tuned, p.tensors, p.layout))
    if wider.k == mask.k:
        raise SpecError(
            f"checkpoint {task.checkpoint!r} of task {task.name!r} changes no eligible weight off the mask of run "
            f"{p.spec.output!r}, so no wider one is needed; wanted some; import it without --widen (widen=)"
        )
    _, _, lost = imported(tuned, p.tensors, mask)
    progress.say(
        f"widen: {mask.k:,} weights on the mask, {wider.k - mask.k:,} added, {wider.k:,} of {p.layout.total:,} after; "
        f"{lost:.1%} of the change of {task.name} (squared length) lay off the mask; the run with it is {to}"
    )
    return wider


def _spec_of(spec: Spec, wider: Mask, to: Path) -> Spec:
    """The new run's spec. Its mask is in its own folder, and single weights of any layer."""
    about = {"path": str(to / "mask.safetensors"), "keep": wider.k / wider.layout.total}
    update = {
        "output": str(to),
        "mask": spec.mask.model_copy(update={**about, "granularity": "element", "layers": 1.0}),
        # It changes every weight, whatever the mask: the run that was widened has shown what that gives.
        "baseline": spec.baseline.model_copy(update={"enabled": False}),
    }
    return spec.model_copy(update=update)


def _build(folder: RunFolder, p: Prepared, mask: Mask, wider: Mask, spec: Spec, source: JsonObject) -> None:
    """Make the new run's folder with mask, heads and deltas: all of it, or none."""
    to = Path(spec.output)
    # Tasks that were taken out of head come along, so that somebody may add them again; the run sets them aside.
    info = folder.info()
    named = {task.name for task in (*spec.tasks, *spec.control)}
    aside = [task for task in (*info.get("set_aside", ()), *info["spec"]["tasks"]) if task["name"] not in named]
    asked = spec.model_dump(mode="json")
    asked["tasks"] = [*asked["tasks"], *aside]
    names = [task["name"] for task in asked["tasks"] if task["name"] != spec.tasks[-1].name]
    heads, known = folder.store.read_tensors(HEADS)
    to.parent.mkdir(parents=True, exist_ok=True)
    # Beside the folder that it becomes, so that the last step is a rename and no copy.
    with TemporaryDirectory(dir=to.parent, prefix=".talos-widen-") as scratch:
        new = RunFolder(f"{scratch}/run")
        identity = identity_of(spec, p.base, p.targets, wider.fingerprint)
        new.begin(asked, p.base, identity, heads, known["classes"], known.get("keys"))
        new.save_mask(wider, p.base)
        marks = _carry(folder, names, mask, wider, new)
        files = ["mask.safetensors", *(f"deltas/{task}.safetensors" for task in marks)]
        _, record = folder.last_event()
        new.record(
            OPERATION,
            files,
            source=source,
            record=record,
            base=p.base,
            mask=wider.fingerprint,
            k=wider.k,
            deltas=marks,
        )
        os.replace(f"{scratch}/run", to)


def _carry(folder: RunFolder, tasks: Sequence[str], mask: Mask, wider: Mask, new: RunFolder) -> dict[str, str]:
    """Put the deltas of tasks that have one into the new run. Returns their fingerprints there."""
    marks = {}
    for task in tasks:
        delta = folder.load_delta(task)
        if delta is None:
            continue
        folder.check(f"deltas/{task}.safetensors")  # what was tampered with would get a new record that is whole
        wide = carried(delta, mask, wider)
        new.save_delta(wide)
        marks[task] = wide.fingerprint
    return marks


def _approved(folder: RunFolder, p: Prepared, mask: Mask, wider: Mask, new: RunFolder) -> Approved | None:
    """What the tasks in force of the run have, and keep in the new one, as when a task is added to it."""
    found = approved_in(folder, p, _fingerprints(folder, p.targets))
    if found is None:
        return None
    deltas = _fingerprints(new, list(found.deltas))
    return replace(found, blend=found.blend.widened(mask, wider), deltas=deltas)


def _fingerprints(folder: RunFolder, tasks: Sequence[str]) -> dict[str, str]:
    """Of the deltas that a run has of these tasks."""
    told = {task: folder.delta_info(task) for task in tasks}
    return {task: about["fingerprint"] for task, about in told.items() if about is not None}
