"""From a label column to places among a task's classes: names by name, numbers by number, and nothing by where it
happens to stand."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import torch

from talos_ray.config import Task
from talos_ray.data.tables import DIGITS, WHOLE
from talos_ray.errors import SpecError, nearest

SHOWN = 8  # classes that a message names
DECIMALS = 40  # characters of a number that is looked at


def class_names(task: Task, feature: Any, columns: Iterable[list]) -> tuple[str, ...]:
    """The class names in label order: the task's own, those of the label column's feature, or what its columns hold.

    Raises:
        SpecError: two that nobody could tell apart, or an empty one.
    """
    import datasets

    if task.classes is not None:
        names = tuple(task.classes)
    elif isinstance(feature, datasets.ClassLabel):
        names = tuple(feature.names)
    else:
        names = _names_in(task, {v for column in columns for v in column} - {None})
    _check_apart(task, "classes", names)
    if task.phrases is not None:
        _check_apart(task, "phrases", task.phrases)
    for what, given in (("phrases", task.phrases), ("choices", task.choices)):
        if given is not None and len(given) != len(names):
            one = "one a class" if what == "phrases" else "one template a class"
            raise SpecError(
                f"task {task.name!r}: {len(given)} {what} for {len(names)} classes; wanted {one}, in the classes' order"
            )
    return names


def _names_in(task: Task, values: set) -> tuple[str, ...]:
    if values and all(map(_whole, values)):
        counted = min(values) == 0 and max(values) < 2 * len(values)  # a class or two may be missing
        return tuple(str(i) for i in (range(max(values) + 1) if counted else sorted(values)))
    return tuple(sorted(map(str, values)))


def _check_apart(task: Task, what: str, names: Sequence[str]) -> None:
    """Raises SpecError where two names are the same word, but for blanks, or one is empty."""
    seen: dict[str, str] = {}
    for name in names:
        word = " ".join(name.split())
        if not word:
            raise SpecError(f"task {task.name!r}: one of its {what} is empty ({name!r}); wanted a word; name it")
        if word in seen:
            other = seen[word]
            same = f"{name!r} twice" if other == name else f"{other!r} and {name!r}, which differ in blanks only"
            raise SpecError(
                f"task {task.name!r}: its {what} hold {same}; wanted names that can be told apart; correct the spec, "
                "or the rows"
            )
        seen[word] = name


def _whole(label: object) -> bool:
    return isinstance(label, int) and not isinstance(label, bool)


def said(task: Task, rows: Any, split: str) -> list:
    """The label column: names, truth values or whole numbers, also where a missing one has made floats of them; None
    where there is none.

    Raises:
        SpecError: no labels at all, what is no label, or numbers with a word among them.
    """
    import datasets

    feature = rows.features[task.label]
    values = rows.with_format("arrow")[:].column(task.label).to_pylist()
    # As the Hub has test splits of competitions.
    if set(map(str, values)) <= {"-1", "None"} and "-1" not in (task.classes or ()):
        raise SpecError(
            f"task {task.name!r}: split {split!r} of {task.data} has no labels (all are {values[0]}); wanted labelled "
            "examples; set train_split, validation_split or test_split to splits that have them"
        )
    if isinstance(feature, datasets.ClassLabel):
        values = _named(task, feature.names, values)
    for row, value in enumerate(values):
        if isinstance(value, float):
            value = values[row] = None if value != value else int(value) if value.is_integer() else value
        if isinstance(value, str) and not value.strip():
            value = values[row] = None
        if not (value is None or isinstance(value, str | int)):
            raise SpecError(
                f"task {task.name!r}: row {row} of split {split!r} has label {value!r} in column {task.label!r}; "
                "wanted the name of a class, or its number; set label to such a column"
            )
    if not isinstance(feature, datasets.ClassLabel):  # which has named its classes
        _check_one_kind(task, values, split)
    return values


def _named(task: Task, names: Sequence[str], values: list) -> list:
    """Class numbers of a column that names its classes, as these names; as numbers, where names and classes are
    another matter: the column's own are numbers, or the task's are."""
    plain = all(map(DIGITS.match, names)) or (
        task.classes is not None and list(task.classes) == [str(i) for i in range(len(names))]
    )
    if plain and task.classes is not None and set(task.classes) != set(names):
        return values
    return [names[v] if v is not None and 0 <= v < len(names) else v for v in values]


def _check_one_kind(task: Task, values: list, split: str) -> None:
    """Raises SpecError for a column of numbers with a word among them, unless the spec names all classes."""
    if task.classes is not None:
        return
    texts = {v for v in values if isinstance(v, str)}
    numbers = {v for v in texts if _number(v)}
    if not numbers or len(numbers) == len(texts):
        return
    if all(DIGITS.match(n) and not WHOLE.match(n) for n in numbers):  # 007, which is a name
        return
    row = next(i for i, v in enumerate(values) if isinstance(v, str) and v not in numbers)
    raise SpecError(
        f"task {task.name!r}: row {row} of split {split!r} has label {values[row]!r} in column {task.label!r}, where "
        "others are numbers; "
        f"correct it, name it in missing_words, or name all classes in `classes`"
    )


def _number(text: str) -> bool:
    if len(text) > DECIMALS or not any(c.isdigit() for c in text):
        return False
    try:
        float(text)
    except ValueError:
        return False
    return True


def places(
    task: Task, rows: Any, split: str, raw: list, classes: tuple[str, ...]
) -> tuple[torch.Tensor, torch.Tensor, Counter]:
    """Places among the classes of what `said` gave, int64 [n]; which rows have one, bool [n]; and how many have which
    other label. A row without a label has no place, and counts as none of the others.

    Raises:
        SpecError: a label outside the classes, where the task does not leave such rows out.
    """
    index = {name: i for i, name in enumerate(classes)}
    # Where the classes are numbers themselves (ratings from 1 to 5), a number is the name of one, and else its place.
    named = all(map(DIGITS.match, classes)) or not all(_whole(v) for v in raw if v is not None)
    found = [-1 if v is None else v if not named and _whole(v) else index.get(str(v), -1) for v in raw]
    labels = torch.tensor(found, dtype=torch.int64)
    known = (labels >= 0) & (labels < len(classes))
    outside = [i for i in torch.nonzero(~known).flatten().tolist() if raw[i] is not None]
    others = Counter(str(raw[i]) for i in outside)
    if others and task.unknown_classes == "refuse":
        row = outside[0]
        shown = f"{', '.join(classes[:SHOWN])}{', …' if len(classes) > SHOWN else ''}"
        raise SpecError(
            f"task {task.name!r}: row {row} of split {split!r} has label {raw[row]!r}, which is outside its "
            f"{len(classes)} classes "
            f"({shown}){nearest(str(raw[row]), classes)}; outside are {counted(others)}; correct the rows, add the "
            "class, or set unknown_classes: drop"
        )
    return labels, known, others


def counted(names: Counter) -> str:
    """'4 zebra, 2 emu': the most frequent ones."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(f"{n} {name!r}" for name, n in names.most_common(SHOWN)) + more
