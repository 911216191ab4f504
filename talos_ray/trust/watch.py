"""Does head still hold on data that came later? Each file is scored once, and the history keeps what was found."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from talos_ray import gate
from talos_ray.config import Gate
from talos_ray.core.paired import Answers
from talos_ray.errors import SpecError
from talos_ray.models import Family
from talos_ray.storage import history
from talos_ray.storage.run_folder import RunFolder, version_name
from talos_ray.storage.version import GateResult, Version
from talos_ray.tasks import load_rows
from talos_ray.trust.compare import ask
from talos_ray.trust.versions import number_of


def arrived(folder: RunFolder, tasks: Mapping[str, Mapping[str, Any]], where: Path) -> Iterator[tuple[str, Path, str]]:
    """(task, file or folder, its SHA-256) of what lies in `where` and has not been scored. A name begins with its
    task's.

    Raises:
        SpecError: no such folder, or a name that begins with no task's.
    """
    if not where.is_dir():
        raise SpecError(f"folder {str(where)!r} does not exist; wanted one where new data arrive; check the path")
    # By name and content: a file that lies there still is scored once, one that was replaced again.
    known = {event["sha256"] for event in history.events(folder.store) if event["operation"] == "watch"}
    for path in sorted(path for path in where.iterdir() if not path.name.startswith(".")):
        # One task's name may begin like another's; the longer one is meant.
        fitting = [task for task in tasks if path.name.startswith(task)]
        task = max(fitting, key=len, default=None)
        if task is None:
            raise SpecError(
                f"{str(path)!r} belongs to no task of run {folder.store.uri!r}; wanted a name that begins with one: "
                f"{', '.join(tasks)}; rename it"
            )
        if (mark := _sha256(path)) not in known:
            yield task, path, mark


def score(
    folder: RunFolder,
    version: Version,
    task: Mapping[str, Any],
    classes: list[str],
    path: Path,
    mark: str,
    models: Mapping[str, Family],
    heads: Mapping[str, tuple[str, torch.Tensor]],
) -> dict[str, Any]:
    """Score base and head on one file, judge it by the spec's gate, and write it down. Returns the event.

    Args:
        models: "base" and "now". heads: the task's kind of head, and the head, at both.

    Raises:
        SpecError: the data.
    """
    name = task["name"]
    rows = load_rows(task, str(path.resolve()), classes)
    answers = {}
    scores = {}
    for model, family in models.items():
        answers[model] = ask(family, name, rows, heads[model], version.metrics)
        scores[model] = answers[model].score(name).as_dict()
    judged = _judged(folder, version, name, answers)
    details: dict[str, Any] = {"notes": list(rows.notes)} if rows.notes else {}
    return folder.record(
        "watch",
        version=number_of(version),
        task=name,
        data=path.name,
        sha256=mark,
        scores=scores,
        gate=judged.result,
        why=judged.told,
        **details,
    )


def _judged(folder: RunFolder, version: Version, task: str, answers: Mapping[str, Answers]) -> GateResult:
    """By the gate that the version itself was judged by, which may be another than the spec's by now."""
    settings = folder.stored(Gate, version.gate.settings if version.gate else {}, version_name(number_of(version)))
    # A single file shows what is kept of a task, and not what all of them have gained.
    settings = settings.model_copy(update={"target_gain": None, "disentanglement": None})
    kind = version.kind_of(task)
    return gate.judge(
        settings,
        targets=[task] if kind == "target" else [],
        controls=[task] if kind == "control" else [],
        base={task: answers["base"].right(task)},
        now={task: answers["now"].right(task)},
        strata={task: answers["now"].strata(task)},
    )


def _sha256(path: Path) -> str:
    """Of a file, or of all files of a folder with their names."""
    digest = hashlib.sha256()
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if file.is_file():
            digest.update(str(file.relative_to(path.parent)).encode())
            digest.update(file.read_bytes())
    return digest.hexdigest()
