"""Tasks of EleutherAI's lm-evaluation-harness as tables: the texts, choices and right answers of its multiple-choice
tasks, so that a standard evaluation can be a control task.

A task of the harness is code of the harness: templates and functions. So a spec can only name one that is installed, or
that lies in a folder which whoever runs it has named in the environment; and it is run once a machine, which keeps the
rows that it gave.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from talos_ray.data.folders import state_of
from talos_ray.demo.tasks import cache_folder
from talos_ray.errors import SpecError, nearest

SCHEME = "lm_eval:"
OWN_TASKS = "TALOS_LM_EVAL_TASKS"  # a folder of task files of the user's own
ABOUT = "task.json"


def is_harness(data: str) -> bool:
    return data.startswith(SCHEME)


def recipe(data: str) -> dict[str, Any]:
    """What a spec would say of `lm_eval:TASK` if it said all.

    Raises:
        SpecError: the harness is not installed, has no such task, or the task does not rank answers.
    """
    choices = _about(data)["choices"]
    return {
        "name": re.sub(r"[^A-Za-z0-9_.-]", "_", data.removeprefix(SCHEME)),
        "data": data,
        "kind": "text",
        "input": "text",
        "choices": tuple(f"{{choice_{number}}}" for number in range(choices)),
        "classes": tuple(f"choice {number}" for number in range(choices)),
        "prompts": ("{}",),
    }


def files_of(data: str) -> tuple[dict[str, Path], list[str]]:
    """A Parquet file a split, with columns text, choice_0, … and label; and what somebody should know of them.

    Raises:
        SpecError: as `recipe`.
    """
    about = _about(data)
    return {split: kept(data) / f"{split}.parquet" for split in about["splits"]}, about["notes"]


def _about(data: str) -> Any:
    folder = kept(data)
    if not folder.exists():
        _keep(data.removeprefix(SCHEME), folder)
    return json.loads((folder / ABOUT).read_text(encoding="utf-8"))


def kept(data: str) -> Path:
    """Where this machine keeps the rows of a task: by the harness's version and the user's own files, too."""
    try:
        harness = version("lm_eval")
    except PackageNotFoundError:
        raise SpecError(
            f"data {data!r} needs the library lm_eval; wanted it installed; pip install 'talos_ray[lm-eval]'"
        ) from None
    own = os.environ.get(OWN_TASKS)
    key = [data, harness, state_of(Path(own).expanduser()) if own else None]
    return cache_folder() / "lm_eval" / hashlib.sha256(repr(key).encode()).hexdigest()[:16]


def _keep(name: str, folder: Path) -> None:
    """Run a task of the harness, and keep its rows."""
    import datasets

    datasets.disable_progress_bars()
    task = _task(name)
    splits = _splits(task)
    rows = {split: [_row(task, name, split, number, doc) for number, doc in enumerate(docs)] for split, docs in splits}
    # Every row of a task of ours has the same number of answers.
    counts = Counter(len(row) for split in rows.values() for row in split)
    ((columns, _),) = counts.most_common(1)
    notes = []
    if others := sum(n for count, n in counts.items() if count != columns):
        notes.append(
            f"task {SCHEME + name}: {others} of {counts.total()} rows have another number of choices than "
            f"{columns - 2} and are left out"
        )
    if len(rows) == 1:
        notes.append(f"task {SCHEME + name} has one split only, from which training and test data are cut")

    folder.parent.mkdir(parents=True, exist_ok=True)
    # Written elsewhere and renamed: nobody takes half of it for the whole.
    draft = Path(tempfile.mkdtemp(dir=folder.parent, prefix="."))
    for split, found in rows.items():
        whole = [row for row in found if len(row) == columns]
        datasets.Dataset.from_list(whole).to_parquet(draft / f"{split}.parquet")
    about = {"choices": columns - 2, "splits": list(rows), "notes": notes}
    (draft / ABOUT).write_text(json.dumps(about), encoding="utf-8")
    try:
        draft.rename(folder)
    except OSError:  # another process was first
        shutil.rmtree(draft)


def _task(name: str) -> Any:
    from lm_eval.tasks import TaskManager

    own = os.environ.get(OWN_TASKS)
    # To read the thousands of files of the harness takes seconds, and the user's own tasks come first in any case.
    manager = TaskManager(include_path=own, include_defaults=False) if own else TaskManager()
    if own and name not in manager.all_tasks:
        manager = TaskManager(include_path=own)
    if name not in manager.all_tasks:
        raise SpecError(
            f"task {SCHEME + name!r}: the harness has none of that name{nearest(name, manager.all_tasks)}; wanted one "
            f"of `lm_eval ls tasks`; correct it, or name the folder of your own in {OWN_TASKS}"
        )
    try:
        tasks = manager.load(name)["tasks"]
    except Exception as error:  # the harness, its tasks' own code and their data sets raise many kinds
        reason = " ".join(str(error).split()) or type(error).__name__
        raise SpecError(f"task {SCHEME + name!r} cannot be loaded by the harness: {reason[:300]}") from None
    if len(tasks) != 1:
        shown = ", ".join(sorted(tasks)[:4])
        raise SpecError(f"task {SCHEME + name!r} is a group of {len(tasks)} tasks ({shown}, …); wanted one; name each")
    (task,) = tasks.values()
    if task.OUTPUT_TYPE != "multiple_choice" or task.multiple_input or task.multiple_target:
        kind = task.OUTPUT_TYPE.replace("_", " ")
        several = " with several texts or answers a row" if task.OUTPUT_TYPE == "multiple_choice" else ""
        raise SpecError(
            f"task {SCHEME + name!r} is one of {kind}{several}; wanted one of multiple choice, with one text and one "
            "right answer a row; choose another"
        )
    return task


def _splits(task: Any) -> list[tuple[str, Iterable[Any]]]:
    """Test data are what the harness evaluates on. What it does not use there is training and validation data; where
    there is nothing else, the spec's shares are cut from it."""
    found = {
        "train": task.training_docs() if task.has_training_docs() else None,
        "validation": task.validation_docs() if task.has_validation_docs() else None,
        "test": task.test_docs() if task.has_test_docs() else None,
    }
    for wanted, instead in (("test", "validation"), ("train", "validation"), ("train", "test")):
        if found[wanted] is None:
            found[wanted] = found[instead]
            found[instead] = None
    return [(split, docs) for split, docs in found.items() if docs is not None]


def _row(task: Any, name: str, split: str, number: int, doc: Mapping[str, Any]) -> dict[str, Any]:
    """The text that the harness asks, without examples before it, what may follow, and which of it is right."""
    context = task.fewshot_context(doc, num_fewshot=0, gen_prefix=task.doc_to_prefix(doc))
    choices = task.doc_to_choice(doc)
    right = task.doc_to_target(doc)
    label = choices.index(right) if right in choices else right
    place = f"task {SCHEME + name!r}: row {number} of split {split!r}"
    if not isinstance(label, int) or not 0 <= label < len(choices):
        raise SpecError(f"{place} has {right!r} for its right answer; wanted one of its {len(choices)} choices")
    # The harness gives spaces that end a text to the answer, and so does our tokenizing: an answer begins with one.
    text = context.rstrip(" ")
    row: dict[str, Any] = {"text": text, "label": int(label)}
    for answer, choice in enumerate(choices):
        follows = context[len(text) :] + task.config.target_delimiter + choice
        if not follows.startswith(" ") or not follows.strip():
            raise SpecError(
                f"{place} goes on with {follows!r}; wanted a space and a text, as models here continue one; choose "
                "another task"
            )
        row[f"choice_{answer}"] = follows[1:]
    return row
