"""From a label column to places among a task's classes: names by name, numbers by number, and nothing by where it
happens to stand."""

from __future__ import annotations

import math
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
        values = set().union(*columns)
        names = _names_in(task, values - {None})
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
    numbers = {value for value in values if _whole(value)}
    if values and numbers == values:
        # Numbers from 0 on count the classes, of which a class or two may be missing; others are their names.
        counted = min(values) == 0 and max(values) < 2 * len(values)
        classes = range(max(values) + 1) if counted else sorted(values)
        return tuple(map(str, classes))
    words = {value for value in values if isinstance(value, str) and not DIGITS.match(value)}
    if numbers and words:
        raise SpecError(
            f"task {task.name!r}: its labels are numbers in one split ({_some(numbers)}) and words in another "
            f"({_some(words)}); wanted one kind; correct the rows, or name all classes in `classes`"
        )
    names = {str(value) for value in values}
    for truth in TRUTHS:
        # Written in several ways, as columns of truth values, spreadsheets and scripts do: that is one class.
        written = {name for name in names if name.lower() == truth}
        if len(written) > 1:
            names = names - written | {truth.capitalize()}
    return tuple(sorted(names))


def _some(values: Iterable[object]) -> str:
    shown = sorted(values, key=str)
    more = ", …" if len(shown) > SHOWN_FEW else ""
    return ", ".join(map(repr, shown[:SHOWN_FEW])) + more


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
        other = seen.setdefault(float(name), name)
        if other != name:
            raise SpecError(
                f"task {task.name!r}: its classes {other!r} and {name!r} are one number, and column {task.label!r} "
                "holds numbers; wanted names that can be told apart; write other words into both"
            )


def _as_seen(name: str) -> str:
    """A name without what nobody sees of it: blanks at its ends, how its accents are composed, control and format
    characters (a joiner between two emoji is one that is seen)."""
    composed = unicodedata.normalize("NFC", name)
    seen = []
    for character in composed:
        hidden = unicodedata.category(character) in ("Cf", "Cc")
        # A tab is a control character, too, but parts two words.
        if character == JOINER or not hidden or character.isspace():
            seen.append(character)
    return " ".join("".join(seen).split())


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
        label = _without_float(value, numbers)
        if isinstance(label, str) and (not label.strip() or label in task.missing_words):
            label = None
        if not (label is None or isinstance(label, str | int)):
            raise SpecError(
                f"task {task.name!r}: row {row} of split {split!r} has label {shortly(label)} in column {task.label!r}"
                "; wanted the name of a class, or its number; set label to such a column"
            )
        values[row] = label
    if not isinstance(feature, datasets.ClassLabel):  # which has named its classes
        _check_one_kind(task, values, split)
    return values


def _without_float(value: Any, numbers: Mapping[float, str]) -> Any:
    """A floating-point number as what it stands for: a missing label (not-a-number), a whole number, or a class that
    is called by a number like 0.5 (`numbers`). Anything else as it is."""
    if not isinstance(value, float):
        return value
    if math.isnan(value):
        return None
    if value.is_integer():
        return int(value)
    return numbers.get(value, value)


def _named(task: Task, names: Sequence[str], values: list[Any]) -> list[Any]:
    """Class numbers of a column that names its classes, as these names; as numbers, where one side has only numbers
    to say and the other words."""
    if task.classes is not None:
        classes = list(task.classes)
        numbered_column = all(map(DIGITS.match, names))
        words_in_task = not any(map(DIGITS.match, classes))
        if numbered_column and words_in_task:
            return values
        places = [str(i) for i in range(len(names))]
        if classes == places and not any(map(DIGITS.match, names)):
            return values
    return [names[value] if value is not None and 0 <= value < len(names) else value for value in values]


def _check_one_kind(task: Task, values: list[Any], split: str) -> None:
    """Raises SpecError for a column of numbers with a word among them, unless the spec names all classes."""
    if task.classes is not None:
        return
    texts = Counter(value for value in values if isinstance(value, str))
    numbers = {text for text in texts if _number(text)}
    if not numbers or len(numbers) == len(texts):
        return
    if all(DIGITS.match(number) and not WHOLE.match(number) for number in numbers):  # 007, which is a name
        return
    # Of the two kinds the rarer one is out of place, and its first row is shown.
    numeric_rows = sum(texts[number] for number in numbers)
    numbers_are_rare = 2 * numeric_rows < texts.total()
    odd = numbers if numbers_are_rare else set(texts) - numbers
    row = next(i for i, value in enumerate(values) if isinstance(value, str) and value in odd)
    raise SpecError(
        f"task {task.name!r}: row {row} of split {split!r} has label {shortly(values[row])} in column {task.label!r}, "
        f"where others are {'words' if numbers_are_rare else 'numbers'}; "
        f"correct it, name it in missing_words, or name all classes in `classes`"
    )


def _number(text: str) -> bool:
    # Without a digit, "nan" and "infinity" would be numbers, too.
    if len(text) > DECIMALS or not any(map(str.isdigit, text)):
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
    labels = torch.tensor(_places(raw, classes), dtype=torch.int64)
    known = (labels >= 0) & (labels < len(classes))
    unknown = torch.nonzero(~known).flatten().tolist()
    outside = [row for row in unknown if raw[row] is not None]
    others = Counter(str(raw[row]) for row in outside)
    if others and task.unknown_classes == "refuse":
        first = outside[0]
        more = ", …" if len(classes) > SHOWN else ""
        raise SpecError(
            f"task {task.name!r}: row {first} of split {split!r} has label {shortly(raw[first])}, which is outside its "
            f"{len(classes)} classes ({', '.join(classes[:SHOWN])}{more}){nearest(str(raw[first]), classes)}; outside "
            f"are {counted(others)}; correct the rows, add the class, or set unknown_classes: drop"
        )
    return labels, known, others


def _places(labels: Sequence[Any], classes: Sequence[str]) -> list[int]:
    """The place of every label, -1 of a missing one and of an unknown name. A number that is a place stays as it is,
    also where there is no class at it."""
    index = {name: i for i, name in enumerate(classes)}
    numbers = {number: index[name] for number, name in _by_number(classes).items()}
    # Where classes are called by numbers (ratings from 1 to 5, with an "unknown" among them or not), a number is the
    # name of one, in every split and in new data; else it is its place.
    called_by_numbers = bool(numbers) or any(map(DIGITS.match, classes))
    all_numbers = all(_whole(label) for label in labels if label is not None)
    by_name = called_by_numbers or not all_numbers
    class_places = []
    for label in labels:
        if label is None:
            class_places.append(-1)
        elif _whole(label) and not by_name:
            class_places.append(label)
        else:
            class_places.append(_place_of(label, index, numbers))
    return class_places


def _by_number(classes: Iterable[str]) -> dict[float, str]:
    """The classes that are called by numbers, as numbers are written: '1', '2.0', but not '007'."""
    return {float(name): name for name in classes if WHOLE.match(name) or DECIMAL.match(name)}


def _place_of(label: Any, index: Mapping[str, int], numbers: Mapping[float, int]) -> int:
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
