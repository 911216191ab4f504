"""From a label column to places among a task's classes: names by name, numbers by number, and nothing by where it
happens to stand."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from talos_ray.config import Task, shortly
from talos_ray.data.tables import DECIMAL, DIGITS, WHOLE
from talos_ray.errors import SpecError, nearest

SHOWN = 8  # classes that a message names
SHOWN_FEW = 3  # values that stand for a kind
DECIMALS = 40  # characters of a number that is looked at
JOINER = "\u200d"  # which makes one emoji of two, and letters of some scripts look otherwise
TRUTHS = ("false", "true")  # as they are written, in any case


def class_names(task: Task, feature: Any, columns: Iterable[list[Any]]) -> tuple[str, ...]:
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
    if isinstance(feature, datasets.Value) and feature.dtype.startswith(("int", "uint", "float")):
        _check_numbers_apart(task, names)
    if task.phrases is not None:
        _check_apart(task, "phrases", task.phrases)
    for what, given in (("phrases", task.phrases), ("choices", task.choices)):
        if given is not None and len(given) != len(names):
            one = "one a class" if what == "phrases" else "one template a class"
            raise SpecError(
                f"task {task.name!r}: {len(given)} {what} for {len(names)} classes; wanted {one}, in the classes' order"
            )
    return names


def _names_in(task: Task, values: set[Any]) -> tuple[str, ...]:
    """Names of the classes that a column holds, over all splits.

    Raises:
        SpecError: numbers in one split and words in another.
    """
    numbers = {v for v in values if _whole(v)}
    if values and numbers == values:
        counted = min(values) == 0 and max(values) < 2 * len(values)  # a class or two may be missing
        return tuple(str(i) for i in (range(max(values) + 1) if counted else sorted(values)))
    if numbers and (words := {v for v in values if isinstance(v, str) and not DIGITS.match(v)}):
        raise SpecError(
            f"task {task.name!r}: its labels are numbers in one split ({_some(numbers)}) and words in another "
            f"({_some(words)}); wanted one kind; correct the rows, or name all classes in `classes`"
        )
    names = {str(v) for v in values}
    for truth in TRUTHS:
        # Written in several ways, as columns of truth values, spreadsheets and scripts do: that is one class.
        written = {n for n in names if n.lower() == truth}
        if len(written) > 1:
            names = names - written | {truth.capitalize()}
    return tuple(sorted(names))


def _some(values: Iterable[object]) -> str:
    shown = sorted(values, key=str)
    return ", ".join(repr(v) for v in shown[:SHOWN_FEW]) + (", …" if len(shown) > SHOWN_FEW else "")


def _check_apart(task: Task, what: str, names: Sequence[str]) -> None:
    """Raises SpecError where two names look the same (they differ in blanks, in characters that nobody sees, or in how
    an accent is composed), or one is empty."""
    seen: dict[str, str] = {}
    for name in names:
        word = _as_seen(name)
        if not word:
            raise SpecError(f"task {task.name!r}: one of its {what} is empty ({name!r}); wanted a word; name it")
        if word in seen:
            other = seen[word]
            if other == name:
                same = f"{name!r} twice"
            elif other.split() == name.split():
                same = f"{other!r} and {name!r}, which differ in blanks only"
            else:
                same = f"{other!a} and {name!a}, which look the same (accents, or characters that nobody sees)"
            raise SpecError(
                f"task {task.name!r}: its {what} hold {same}; wanted names that can be told apart; correct the spec, "
                "or the rows"
            )
        seen[word] = name


def _check_numbers_apart(task: Task, names: Sequence[str]) -> None:
    """Raises SpecError where two classes of a column of numbers are one number."""
    seen: dict[float, str] = {}
    for name in names:
        if not (WHOLE.match(name) or DECIMAL.match(name)):
            continue
        if (other := seen.setdefault(float(name), name)) != name and float(other) == float(name):
            raise SpecError(
                f"task {task.name!r}: its classes {other!r} and {name!r} are one number, and column {task.label!r} "
                "holds numbers; wanted names that can be told apart; write other words into both"
            )


def _as_seen(name: str) -> str:
    """A name without what nobody sees of it: blanks at its ends, how its accents are composed, control and format
    characters (a joiner between two emoji is one that is seen)."""
    composed = unicodedata.normalize("NFC", name)
    seen = "".join(c for c in composed if c == JOINER or unicodedata.category(c) not in ("Cf", "Cc") or c.isspace())
    return " ".join(seen.split())


def _whole(label: object) -> bool:
    return isinstance(label, int) and not isinstance(label, bool)


def said(task: Task, rows: Any, split: str) -> list[Any]:
    """The label column: names, truth values or whole numbers, also where a missing one has made floats of them; None
    where there is none.

    Raises:
        SpecError: no labels at all, what is no label, or numbers with a word among them.
    """
    import datasets

    feature = rows.features[task.label]
    values: list[Any] = rows.with_format("arrow")[:].column(task.label).to_pylist()
    # As the Hub has test splits of competitions.
    if set(map(str, values)) <= {"-1", "None"} and "-1" not in (task.classes or ()):
        raise SpecError(
            f"task {task.name!r}: split {split!r} of {task.data} has no labels (all are {values[0]}); wanted labelled "
            "examples; set train_split, validation_split or test_split to splits that have them"
        )
    if isinstance(feature, datasets.ClassLabel):
        values = _named(task, feature.names, values)
    numbers = _by_number(task.classes or ())
    for row, value in enumerate(values):
        if isinstance(value, float):
            value = values[row] = None if value != value else int(value) if value.is_integer() else value
            if isinstance(value, float):
                value = values[row] = numbers.get(value, value)
        if isinstance(value, str) and (not value.strip() or value in task.missing_words):
            value = values[row] = None
        if not (value is None or isinstance(value, str | int)):
            raise SpecError(
                f"task {task.name!r}: row {row} of split {split!r} has label {shortly(value)} in column {task.label!r}"
                "; wanted the name of a class, or its number; set label to such a column"
            )
    if not isinstance(feature, datasets.ClassLabel):  # which has named its classes
        _check_one_kind(task, values, split)
    return values


def _named(task: Task, names: Sequence[str], values: list[Any]) -> list[Any]:
    """Class numbers of a column that names its classes, as these names; as numbers, where one side has only numbers
    to say and the other words."""
    if task.classes is not None:
        classes = list(task.classes)
        counted = [str(i) for i in range(len(names))]
        nothing_said = all(map(DIGITS.match, names)) and not any(map(DIGITS.match, classes))
        if nothing_said or (classes == counted and not any(map(DIGITS.match, names))):
            return values
    return [names[v] if v is not None and 0 <= v < len(names) else v for v in values]


def _check_one_kind(task: Task, values: list[Any], split: str) -> None:
    """Raises SpecError for a column of numbers with a word among them, unless the spec names all classes."""
    if task.classes is not None:
        return
    texts = Counter(v for v in values if isinstance(v, str))
    numbers = {v for v in texts if _number(v)}
    if not numbers or len(numbers) == len(texts):
        return
    if all(DIGITS.match(n) and not WHOLE.match(n) for n in numbers):  # 007, which is a name
        return
    few = 2 * sum(texts[n] for n in numbers) < texts.total()  # those that are out of place
    row = next(i for i, v in enumerate(values) if isinstance(v, str) and (v in numbers) == few)
    raise SpecError(
        f"task {task.name!r}: row {row} of split {split!r} has label {shortly(values[row])} in column {task.label!r}, "
        f"where others are {'words' if few else 'numbers'}; "
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
    task: Task, rows: Any, split: str, raw: list[Any], classes: tuple[str, ...]
) -> tuple[torch.Tensor, torch.Tensor, Counter[str]]:
    """Places among the classes of what `said` gave, int64 [n]; which rows have one, bool [n]; and how many have which
    other label. A row without a label has no place, and counts as none of the others.

    Raises:
        SpecError: a label outside the classes, where the task does not leave such rows out.
    """
    index = {name: i for i, name in enumerate(classes)}
    numbers = {number: index[name] for number, name in _by_number(classes).items()}
    # Where classes are called by numbers (ratings from 1 to 5, with an "unknown" among them or not), a number is the
    # name of one, in every split and in new data; else it is its place.
    named = bool(numbers) or any(map(DIGITS.match, classes)) or not all(_whole(v) for v in raw if v is not None)
    found = [-1 if v is None else v if not named and _whole(v) else _place_of(v, index, numbers) for v in raw]
    labels = torch.tensor(found, dtype=torch.int64)
    known = (labels >= 0) & (labels < len(classes))
    outside = [i for i in torch.nonzero(~known).flatten().tolist() if raw[i] is not None]
    others = Counter(str(raw[i]) for i in outside)
    if others and task.unknown_classes == "refuse":
        row = outside[0]
        shown = f"{', '.join(classes[:SHOWN])}{', …' if len(classes) > SHOWN else ''}"
        raise SpecError(
            f"task {task.name!r}: row {row} of split {split!r} has label {shortly(raw[row])}, which is outside its "
            f"{len(classes)} classes "
            f"({shown}){nearest(str(raw[row]), classes)}; outside are {counted(others)}; correct the rows, add the "
            "class, or set unknown_classes: drop"
        )
    return labels, known, others


def _by_number(classes: Iterable[str]) -> dict[float, str]:
    """The classes that are called by numbers, as numbers are written: '1', '2.0', but not '007'."""
    return {float(c): c for c in classes if WHOLE.match(c) or DECIMAL.match(c)}


def _place_of(label: object, index: Mapping[str, int], numbers: Mapping[float, int]) -> int:
    """The place of a class by its name, -1 if there is none; true and false are the same in any case, and 1 is what
    1.0 is."""
    name = str(label)
    if name not in index and _whole(label):
        return numbers.get(float(name), -1)
    if name not in index and name.lower() in TRUTHS:
        name = next((known for known in index if known.lower() == name.lower()), name)
    return index.get(name, -1)


def counted(names: Counter[str]) -> str:
    """'4 zebra, 2 emu': the most frequent ones."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(f"{n} {shortly(name)}" for name, n in names.most_common(SHOWN)) + more
