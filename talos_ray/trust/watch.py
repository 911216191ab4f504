"""Does head still hold on data that came later? Each file is scored once, and the history keeps what was found."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from talos_ray import gate
from talos_ray.config import Gate
from talos_ray.core.metrics import accuracy
from talos_ray.errors import SpecError
from talos_ray.models import Family
from talos_ray.storage import history
from talos_ray.storage.run_folder import RunFolder, version_name
from talos_ray.storage.version import Version
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
    known = {e["sha256"] for e in history.events(folder.store) if e["operation"] == "watch"}
    for path in sorted(p for p in where.iterdir() if not p.name.startswith(".")):
        task = max((t for t in tasks if path.name.startswith(t)), key=len, default=None)
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
    answers = {m: ask(family, name, rows, heads[m]) for m, family in models.items()}
    kind = version.kind_of(name)
    number = number_of(version)
    settings = folder.stored(Gate, version.gate.settings if version.gate else {}, version_name(number))
    # A single file shows what is kept of a task, and not what all of them have gained.
    settings = settings.model_copy(update={"target_gain": None, "disentanglement": None})
    judged = gate.judge(
        settings,
        targets=[name] if kind == "target" else [],
        controls=[name] if kind == "control" else [],
        base={name: answers["base"].right(name)},
        now={name: answers["now"].right(name)},
    )
    told = {m: accuracy(*a.counts(name)).as_dict() for m, a in answers.items()}
    details: dict[str, Any] = {"notes": list(rows.notes)} if rows.notes else {}
    return folder.record(
        "watch",
        version=number,
        task=name,
        data=path.name,
        sha256=mark,
        scores=told,
        gate=judged.result,
        why=judged.told,
        **details,
    )


def _sha256(path: Path) -> str:
    """Of a file, or of all files of a folder with their names."""
    digest = hashlib.sha256()
    for p in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if p.is_file():
            digest.update(str(p.relative_to(path.parent)).encode())
            digest.update(p.read_bytes())
    return digest.hexdigest()
