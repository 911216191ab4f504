"""The dossier on a version: what was changed, by whom, on which data, at what cost and with what result, for whoever
has to document that a model was modified. One page to print, and the same facts as JSON.

It states facts, and leaves it to others what follows from them. The one-third rule is that of the European Commission's
guidelines of 18 July 2025 (`GUIDELINES`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from talos_ray.config import Task
from talos_ray.core.paired import Answers
from talos_ray.data.readers import is_here
from talos_ray.errors import SpecError, nearest
from talos_ray.report.page import probe_would_do
from talos_ray.storage import history
from talos_ray.storage.run_folder import HEADS, RunFolder, answers_name, software, tasks_of, version_name
from talos_ray.storage.version import PASS, Version
from talos_ray.tasks import TaskData, load_task
from talos_ray.trust import signatures, versions
from talos_ray.trust.card import data_shown, licence_beside, licence_in, model_shown

FORMAT = 1  # of dossier.json
# operations that change no version
NOT_MAKING = ("worker lost", "teams restarted", "teams begun anew", "watch", "robustness", "push")
TOLD = ("number", "time", "operation", "user", "host", "version", "by", "reason")  # of an event
GUIDELINES = {
    "title": "European Commission, Guidelines on the scope of the obligations for general-purpose AI models "
    "established by Regulation (EU) 2024/1689 (AI Act), published on 18 July 2025; on downstream modifiers",
    "address": "https://digital-strategy.ec.europa.eu/en/library/"
    "guidelines-scope-obligations-providers-general-purpose-ai-models-under-ai-act",
}
# A third of these stands in for a third of the base's training compute where that can be neither known nor estimated.
STAND_INS = {"systemic_risk": 1e25, "general_purpose": 1e23}
Facts = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What training one delta took: `steps` updates with `batch` inputs each, of `step` operations."""

    steps: int
    batch: int
    step: float

    @property
    def operations(self) -> float:
        return self.steps * self.step


@dataclass(frozen=True, kw_only=True)
class Operations:
    """Floating-point operations of all that a run did up to a version, by stage.

    Args:
        trained: task -> its trainings, of all deltas that these versions are made of.
        choice: of the short runs that chose the mask, at most. dense: of the dense fine-tuning that stands beside.
        imported: tasks whose deltas came from somebody else's training, of which nothing is known.
        parameters: of the whole model.
    """

    parameters: int
    calibration: float
    trained: Mapping[str, list[Trained]]
    merge: float
    scoring: float
    choice: float = 0.0
    dense: float = 0.0
    imported: tuple[str, ...] = ()

    @property
    def training(self) -> float:
        return sum(one.operations for trainings in self.trained.values() for one in trainings)

    @property
    def in_all(self) -> float:
        """Of the edit: dense fine-tuning is no part of it."""
        return self.calibration + self.training + self.merge + self.scoring + self.choice


@dataclass(frozen=True, kw_only=True)
class Stated:
    """What no run knows, and whoever asks for a dossier states.

    Args:
        base_compute: floating-point operations of the base's training.
        licences: task -> licence of its data.
        base_licence: of the base; what the card beside its files says, if not given.
    """

    base_compute: float | None = None
    licences: Mapping[str, str] = field(default_factory=dict)
    base_licence: str | None = None


def check_stated(folder: RunFolder, stated: Stated) -> None:
    """Raises SpecError for a compute that no training has, or the licence of no task."""
    compute = stated.base_compute
    if compute is not None and not (math.isfinite(compute) and compute > 0):
        raise SpecError(
            f"base compute is {compute:g}; wanted the floating-point operations of the base's training, like 1e21; "
            "leave it out where nobody states it"
        )
    tasks = tasks_of(folder.info())
    for task in stated.licences:
        if task not in tasks:
            raise SpecError(
                f"licence of {task!r}: the run has no such task{nearest(task, tasks)}; it has: {', '.join(tasks)}; "
                "name one of them"
            )


def facts_on(folder: RunFolder, version: Version, stated: Stated, compute: Operations | str) -> Facts:
    """All that a dossier tells, as JSON keeps it.

    Args:
        compute: what was counted, or why nothing could be.

    Raises:
        CorruptError: what the version is made of is not as it was recorded.
    """
    versions.check_sources(folder, version)
    number = versions.number_of(version)
    info = folder.info()
    answers = versions.answers_of(folder, number)
    data = {task: _data(folder, info, task, version, answers, stated) for task in _tasks_in_order(version)}
    told = _without_places(folder, info, compute) if isinstance(compute, str) else compute
    facts: Facts = {
        "format": FORMAT,
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "run": folder.store.uri.rstrip("/").rsplit("/", 1)[-1],
        "version": number,
        "in_force": folder.head == number,
        "held": versions.is_held(folder, version),
        "model": _model(info, version, stated, compute),
        "change": _change(folder, info, version),
        "people": _people(folder, number),
        "data": data,
        "compute": _compute(told, stated.base_compute),
        "results": _results(version),
        "approval": _approval(folder, number),
        "hashes": _hashes(folder, version),
        "software": {**info["software"], "dossier by": f"talos-ray {software()['talos-ray']}"},
    }
    return {**facts, "limits": list(_limits(folder, version, facts))}


def _tasks_in_order(version: Version) -> list[str]:
    """Tasks that have scores, as the report has them: what was to be learnt first, and what had to hold last."""
    first = dict.fromkeys((*version.targets, *version.others, *version.controls, *version.scores))
    return [task for task in first if task in version.scores]


def _without_places(folder: RunFolder, info: Mapping[str, Any], text: str) -> str:
    """What somebody else's message says, without the folders of this machine."""
    shown = {folder.store.uri: folder.store.uri.rstrip("/").rsplit("/", 1)[-1]}
    shown[info["spec"]["model"]] = model_shown(info["spec"]["model"])
    for task in tasks_of(dict(info)).values():
        shown[task["data"]] = data_shown(task)
    # The longest first: one folder may lie in another.
    for place in sorted(shown, key=len, reverse=True):
        text = text.replace(place, shown[place])
    return text


# ---------------------------------------------------------------------------------- what was changed, and by whom


def _model(info: Mapping[str, Any], version: Version, stated: Stated, compute: Operations | str) -> Facts:
    name = info["spec"]["model"]
    return {
        "name": model_shown(name),
        "licence": stated.base_licence or licence_beside(name),
        "parameters": None if isinstance(compute, str) else compute.parameters,
        "fingerprint": version.base,
        "fingerprint_edited": version.model,
    }


def _change(folder: RunFolder, info: Mapping[str, Any], version: Version) -> Facts:
    facts: Facts = {
        "kind": version.kind,
        "created": version.created,
        "coefficients": version.coefficients,
        "merge": version.merge["method"],
        "weights_changed": version.impact.changed,
        "tensors_changed": len(version.impact.tensors),
        "delta_bytes": version.cost.delta_bytes if version.cost else None,
        "mask": None,
    }
    mask = folder.load_mask(info["base"])
    if mask is not None:
        facts["mask"] = {
            "weights": mask.k,
            "eligible": mask.layout.total,
            "share": mask.k / mask.layout.total,
            "strategy": mask.info.get("strategy"),
        }
    return facts


def _people(folder: RunFolder, number: int) -> list[Facts]:
    """Who did what to make a version, and what was done with it since."""
    events = list(history.events(folder.store))
    made = next(i for i, event in enumerate(events) if version_name(number) in event["files"])
    people = []
    for place, event in enumerate(events):
        later = event.get("version") == number or event["operation"] == "sign"
        if event["operation"] in NOT_MAKING or (place > made and not later):
            continue
        kept = {key: event.get(key) for key in TOLD}
        people.append({**kept, "key": event.get("key") if signatures.is_signed(event) else None})
    return people


def _approval(folder: RunFolder, number: int) -> Facts | None:
    """Who put a version in force although its gate does not let it through, and who signed that."""
    event = folder.approval(number)
    if event is None:
        return None
    later = [other for other in history.events(folder.store) if other["number"] > event["number"]]
    keys = [other["key"] for other in later if other["operation"] == "sign" and signatures.is_signed(other)]
    kept = {key: event[key] for key in ("number", "time", "user", "host", "by", "reason")}
    return {**kept, "signed_by": list(dict.fromkeys(keys))}


def _hashes(folder: RunFolder, version: Version) -> Facts:
    """What the record says of itself, and of the files that the version stands on."""
    number = versions.number_of(version)
    events, digest = folder.last_event()
    names = [version_name(number), answers_name(number), "mask.safetensors", HEADS, version.rows]
    names += [version.learned.file if version.learned else None, f"report/{number:04d}.html"]
    recorded = history.recorded(folder.store)
    return {
        "events": events,
        "record": digest,
        "base": version.base,
        "mask": version.mask,
        "model": version.model,
        "deltas": version.deltas,
        "files": {name: recorded[name] for name in names if name in recorded},
    }


# ---------------------------------------------------------------------------------- data


def _data(
    folder: RunFolder, info: Mapping[str, Any], task: str, version: Version, answers: Answers | None, stated: Stated
) -> Facts:
    """What is known of a task's data: of what lies here now the counts, and whether it is what the version saw."""
    settings = folder.stored(Task, tasks_of(dict(info))[task])
    found = _loaded(settings, info["spec"]["seed"])
    recorded = {"test": None if answers is None else answers.data.get(task), "train": None}
    if task in version.deltas:
        recorded["train"] = (folder.delta_info(task, version.deltas[task]) or {}).get("data")
    facts: Facts = {
        "kind": version.kind_of(task),
        "source": data_shown(settings.model_dump()),
        "config": settings.config,
        "licence": stated.licences.get(task) or _licence_of(settings),
        "inputs": {"train": None, "validation": None, "test": version.scores[task].merged.n},
        "fingerprints": {part: mark for part, mark in recorded.items() if mark is not None},
        "state": "unreachable",
        "notes": [],
    }
    if found is None:
        return facts
    splits = {"train": found.train, "validation": found.validation, "test": found.test}
    marks = {part: split.fingerprint() for part, split in splits.items()}
    same = all(marks[part] == mark for part, mark in facts["fingerprints"].items())
    facts["state"] = "as recorded" if same else "changed"
    # Of data that are others by now neither counts nor prints say anything of what the version saw.
    if same:
        facts["inputs"] = {part: len(split) for part, split in splits.items()}
        facts["fingerprints"] = marks
        facts["notes"] = [_without_places(folder, info, note) for note in found.notes]
    return facts


def _loaded(task: Task, seed: int) -> TaskData | None:
    try:
        return load_task(task, seed)
    except SpecError:  # the data have moved, which the dossier says
        return None


def _licence_of(task: Task) -> str | None:
    """What a card beside a task's own files says; of data of the Hub, and of none with a card, nothing is known."""
    if not is_here(task):
        return None
    place = Path(task.data).expanduser()
    return licence_in(place if place.is_dir() else place.parent)


# ---------------------------------------------------------------------------------- compute


def _compute(counted: Operations | str, base: float | None) -> Facts:
    """Operations, and what a third of the base's training is, where somebody states that."""
    facts: Facts = {"unit": "FLOP", "why_not": None, "stages": None, "in_all": None, "dense": None, "tasks": {}}
    in_all = None
    if isinstance(counted, str):
        facts["why_not"] = counted
    else:
        in_all = counted.in_all
        facts["in_all"] = in_all
        facts["dense"] = counted.dense or None
        facts["stages"] = {
            "choice": counted.choice,
            "calibration": counted.calibration,
            "training": counted.training,
            "merge": counted.merge,
            "scoring": counted.scoring,
        }
        for task, trainings in counted.trained.items():
            facts["tasks"][task] = [
                {"steps": one.steps, "batch": one.batch, "step": one.step, "operations": one.operations}
                for one in trainings
            ]
    third = None if base is None else base / 3
    facts["base"] = base
    facts["third"] = third
    facts["share"] = None if base is None or in_all is None else in_all / base
    facts["over"] = None if third is None or in_all is None else in_all > third
    stand_ins = {}
    for name, threshold in STAND_INS.items():
        stand_ins[name] = {"third": threshold / 3, "over": None if in_all is None else in_all > threshold / 3}
    facts["stand_ins"] = stand_ins
    facts["guidelines"] = GUIDELINES
    return facts


# ---------------------------------------------------------------------------------- results and limits


def _results(version: Version) -> Facts:
    """Scores side by side, as in the report, and what the gate said."""
    tasks = {}
    for task in _tasks_in_order(version):
        measured = {model: score.as_dict() for model, score in version.scores[task].measured().items()}
        tasks[task] = {"kind": version.kind_of(task), "look": version.looks.get(task, 1), **measured}
    return {
        "tasks": tasks,
        "summary": version.summary.as_dict(),
        "gate": version.gate.as_dict() if version.gate else None,
    }


def _limits(folder: RunFolder, version: Version, facts: Facts) -> Iterator[Facts]:
    """What the dossier does not show, and what went wrong: each a `limit`, with what it is about."""
    scores = version.scores
    yield {"limit": "beyond"}
    if not version.controls:
        yield {"limit": "no_control"}
    if facts["held"]:
        yield {"limit": "held"}
    if unmet := [check.what for check in version.checks if check.result != PASS]:
        yield {"limit": "unmet", "n": len(unmet), "all": len(version.checks)}
    not_learnt = [task for task in version.targets if scores[task].merged.value <= scores[task].base.value]
    if not_learnt and version.kind != "base":
        yield {"limit": "not_learnt", "tasks": not_learnt}
    if enough := probe_would_do(version):
        yield {"limit": "probe", "tasks": enough}
    if version.forgotten:
        yield {"limit": "forgotten", "tasks": version.forgotten}
    if again := [task for task, look in version.looks.items() if look > 1]:
        yield {"limit": "looks", "tasks": again}
    if version.number and folder.load_robustness(version.number) is None:
        yield {"limit": "no_robustness"}
    yield from _limits_of_data(folder, version, facts)
    if facts["compute"]["why_not"]:
        yield {"limit": "not_counted", "why": facts["compute"]["why_not"]}


def _limits_of_data(folder: RunFolder, version: Version, facts: Facts) -> Iterator[Facts]:
    data = facts["data"]
    for state in ("unreachable", "changed"):
        if tasks := [task for task, found in data.items() if found["state"] == state]:
            yield {"limit": state, "tasks": tasks}
    if unlicensed := [task for task, found in data.items() if found["licence"] is None]:
        yield {"limit": "no_licence", "tasks": unlicensed}
    for task, found in data.items():
        for note in found["notes"]:
            yield {"limit": "note", "task": task, "note": note}
    for task, mark in version.deltas.items():
        about = folder.delta_info(task, mark) or {}
        if "imported" in about:
            yield {"limit": "imported", "task": task, "lost": about["lost"]}
