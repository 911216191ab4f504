"""Tasks: from a name, a file or a Hugging Face dataset to checked examples with labels and class names."""

from __future__ import annotations

import functools
import hashlib
import io
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from string import Formatter
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from talos_ray.config import CHOICE, HUB_NAME, Task, shortly, validated
from talos_ray.data.folders import IMAGES, has_tables, state_of
from talos_ray.data.given import (
    IMAGE_COLUMN,
    NO_LABEL,
    image_files,
    pictures,
    rows_of_columns,
    rows_of_images,
    rows_of_texts,
    unlabelled,
)
from talos_ray.data.labels import class_names, counted, places, said
from talos_ray.data.pixels import HEAD, head_and_tail, trouble_with
from talos_ray.data.readers import (
    columns_of,
    holds_rows,
    is_here,
    load_splits,
    state_of_data,
    told_of_hidden,
    told_template,
)
from talos_ray.data.split import ROWS, apart, content_of, cut_missing, marked, rows_of
from talos_ray.data.split import Split as Split
from talos_ray.data.tables import KINDS
from talos_ray.errors import SpecError, nearest

UNEVEN = 10  # a class with less than such a part of the largest one's examples is told
HELD = "holds the character U+001F, which separates a text from its choices; take it out"
LONGEST = 300  # characters of a path that a message names
NAMED = 20  # columns that one names
CHANNELS = 4  # of an image, at most: what comes last in an array of it
LOOKED = 64  # texts that are looked at to see whether they are names of image files


@dataclass(frozen=True, eq=False)
class TaskData:
    """A task's three splits, its class names in label order, and what somebody should know of them."""

    task: Task
    classes: tuple[str, ...]
    train: Split
    validation: Split
    test: Split
    notes: tuple[str, ...] = ()

    @property
    def phrases(self) -> tuple[str, ...]:
        if self.task.phrases is not None or self.task.underscores == "keep":
            return self.task.phrases or self.classes
        return tuple(name.replace("_", " ") for name in self.classes)


# ------------------------------------------------------------------------------------------- loading


def load_task(task: Task, seed: int) -> TaskData:
    """Load and check a task, once a process as long as its files stay what they are. `seed` decides how missing splits
    are cut.

    Raises:
        SpecError: missing file, dataset or column, a label outside the classes, an empty split, rows that cannot be
            read for sure.
    """
    return _load_task(task.model_dump_json(exclude={"train", "checkpoint"}), seed, state_of_data(task))


def state_of_examples(task: Task, seed: int) -> str:
    """Changes when a file of a task's data does, or an image that one of them names."""
    states: list[object] = [state_of_data(task)]
    # A table of paths stays what it is when somebody paints over an image.
    if task.kind == "image" and is_here(task) and not task.data.startswith("demo:"):
        data = load_task(task, seed)
        for split in (data.train, data.validation, data.test):
            stored = split.rows.with_format("arrow")[:].column(split.column)  # not decoded
            for image in stored.to_pylist():
                if image["bytes"] is None:  # it stays in a file of its own
                    states += state_of(Path(image["path"]))
    return hashlib.sha256(repr(states).encode()).hexdigest()


@functools.lru_cache(maxsize=64)
def _load_task(settings: str, seed: int, state: str) -> TaskData:
    task = Task.model_validate_json(settings)
    splits, notes = load_splits(task)
    names = _splits_of(task, splits)
    columns = {}
    for name in dict.fromkeys(names.values()):
        _check_columns(task, splits[name], name)
        _check_filled(task, splits[name], name)
        columns[name] = said(task, splits[name], name)
    classes = class_names(task, splits[names["train"]].features[task.label], columns.values())
    if len(classes) != (task.class_count or len(classes)):
        raise SpecError(
            f"task {task.name!r}: {task.data} has {len(classes)} classes; wanted {task.class_count} (class_count); "
            "check the data and column `label`, or correct class_count"
        )
    by_name = {}
    for name, raw in columns.items():
        by_name[name], more = _split(task, splits[name], name, raw, classes)
        notes += more
    if len(classes) < 2 and task.choices is None:
        raise SpecError(
            f"task {task.name!r}: column {task.label!r} of {task.data} has {len(classes)} class "
            f"({', '.join(classes)}); wanted at least 2; check the column, or name all in `classes`"
        )
    # All at once, so that the same input has the same number in every split.
    by_name = dict(zip(by_name, marked(list(by_name.values())), strict=True))
    parts = cut_missing(task, {kind: by_name[name] for kind, name in names.items()}, seed)
    # An input in two splits would be trained on and then tested.
    parts, doubles = apart(task, parts, names)
    if doubles:
        notes.append(doubles)
    return TaskData(task, classes, **parts, notes=tuple(notes))


def _splits_of(task: Task, splits: Mapping[str, Any]) -> dict[str, str]:
    """Names of the splits that stand for train, validation and test; those that are to be cut are left out.

    Raises:
        SpecError: a split is not there, or asked for twice.
    """
    asked = {"train": task.train_split, "validation": task.validation_split, "test": task.test_split}
    named = [name for name in asked.values() if name is not None]
    if twice := sorted({name for name in named if named.count(name) > 1}):
        kinds = " and ".join(f"{kind}_split" for kind, name in asked.items() if name == twice[0])
        raise SpecError(
            f"task {task.name!r}: split {twice[0]!r} is {kinds}; wanted splits that share no row; leave out all but "
            "train_split, from which the others are then cut"
        )
    names = {}
    for kind, given in asked.items():
        if given is not None and given not in splits:
            raise SpecError(
                f"task {task.name!r}: {task.data} has no split {given!r}; it has: {', '.join(splits)}; set "
                f"{kind}_split to one of them"
            )
        # A split that is called `test` and was asked for as something else is no test split any more; and validation
        # may be asked to be cut, although there is such a split.
        taken = kind in named or (kind == "validation" and task.validation_from is not None)
        found = kind if kind in splits and not taken else None
        if name := given or found:
            names[kind] = name
    return names


def load_rows(settings: Mapping[str, Any], data: str, classes: Sequence[str]) -> Split:
    """All rows of new data for a task that is described by `settings`, with the classes it has had so far; nothing is
    cut. Classes are found by name; its notes tell of those that do not occur, and of rows that are left out.

    Raises:
        SpecError: as `load_task`.
    """
    task = _of_new_data(settings, data, classes)
    rows, name, notes = _new_rows(task)
    _check_columns(task, rows, name)
    _check_filled(task, rows, name)
    raw = said(task, rows, name)
    names = class_names(task, rows.features[task.label], [raw])
    split, more = _split(task, rows, name, raw, names)
    counts = split.labels.bincount(minlength=len(names)).tolist()
    if absent := [label for label, count in zip(names, counts, strict=True) if count == 0]:
        notes.append(f"task {task.name!r}: {data} has no example of {', '.join(map(repr, absent))}")
    return replace(split, notes=(*notes, *more))


def _of_new_data(settings: Mapping[str, Any], data: str, classes: Sequence[str]) -> Task:
    """The task that new data belong to: as it was described, with its classes so far, and nothing of its own splits."""
    described = {key: value for key, value in settings.items() if not key.endswith("split") and key != "config"}
    known = {"data": data, "classes": tuple(classes), "phrases": None}
    task: Task = validated(Task, {**described, **known}, f"task {settings['name']}")
    return task


def _new_rows(task: Task) -> tuple[Any, str, list[str]]:
    """The rows of new data, the name of their split, and what somebody should know of them."""
    splits, notes = load_splits(task)
    name = "test" if "test" in splits else next(iter(splits))
    if others := [other for other in splits if other != name]:
        notes.append(f"task {task.name!r}: of {task.data} the split {name!r} is read, and not {', '.join(others)}")
    return splits[name], name, notes


def load_inputs(
    settings: Mapping[str, Any], inputs: str | Path | Sequence[Any], classes: Sequence[str], *, labelled: bool = False
) -> Split:
    """Inputs that are to be answered for a task that is described by `settings`: every one of them, in their order.

    Args:
        inputs: a file or folder of data, with labels or without; or a list: of texts (of mappings from columns to
            values, where the task's inputs are made of several), of paths of image files and folders, or of images
            (PIL, or arrays).
        labelled: read the label column, too. Labels are found by name.

    Returns:
        A split whose labels are places among the classes, `NO_LABEL` where an input has none, or one that is no class.

    Raises:
        SpecError: an input that is missing or cannot be read; a label outside the classes, unless the task drops these.
    """
    task = _of_new_data(settings, str(inputs) if isinstance(inputs, str | Path) else LISTED, classes)
    task = task.model_copy(update={"stream": None})  # which draws rows, and every one is to be answered
    listed = _as_list(task, inputs, labelled)
    if listed is None:
        rows, name, notes = _new_rows(task)
    else:
        _check_can_be_listed(task, listed, labelled)
        if task.kind == "image" and not isinstance(listed[0], str | Path):
            return pictures(listed)
        task = task.model_copy(update={"missing_words": ()})  # which are of tables
        rows = _rows_of_list(task, listed)
        name = "inputs"
        notes = []
        if task.kind == "image":
            for path in listed:
                notes += told_of_hidden(task, Path(os.path.expanduser(path)))
            task = task.model_copy(update={"input": IMAGE_COLUMN})
    _check_columns(task, rows, name, labelled)
    _check_all_there(task, rows)
    inputs, column = _as_inputs(task, rows, name)
    split = Split(inputs, column, unlabelled(len(rows)), notes=tuple(notes))
    if task.kind == "image" and (troubled := troubled_images(split)):
        row, why = troubled[0]
        raise SpecError(f"task {task.name!r}: input {split.words(row)!r} (row {row}): {why}")
    return _with_labels(task, split, rows, name) if labelled else split


LISTED = "the list of inputs"  # stands for a path where there is none


def _check_can_be_listed(task: Task, listed: Sequence[Any], labelled: bool) -> None:
    if labelled:
        raise SpecError(
            f"task {task.name!r}: a list of inputs has no label column; wanted a table or a folder; name one"
        )
    if not len(listed):
        raise SpecError(f"task {task.name!r}: 0 inputs are given; wanted at least 1; name some")


def _as_list(task: Task, inputs: Any, labelled: bool) -> Sequence[Any] | None:
    """The inputs as a list; None where they are rows of a table, or of a folder of tables, or of one of classes."""
    if not isinstance(inputs, str | Path | Iterable):
        raise SpecError(f"task {task.name!r}: the inputs are {type(inputs).__name__}; wanted a list, also of one: […]")
    if not isinstance(inputs, str | Path):
        _check_is_list(task, inputs)
        return list(inputs)
    path = Path(inputs).expanduser()
    try:
        here = is_here(task)
        # `photos/cat.png` may be a name of the Hub as well; it is meant as a file that is not there.
        named = HUB_NAME.match(str(inputs)) and path.suffix.lower() not in IMAGES
    except SpecError:  # nothing can be called so
        here = False
        named = None
    if not here and not named:
        raise SpecError(
            f"task {task.name!r}: {str(inputs)[:60]!r} is no file, no folder and no name of the Hub; "
            f"wanted one, or a list of {task.kind}s; check the path"
        )
    alone = path.is_file() and path.suffix.lower() not in KINDS
    pictures_alone = path.is_dir() and not labelled and not holds_rows(path)
    return [path] if task.kind == "image" and (alone or pictures_alone) else None


def _check_is_list(task: Task, inputs: Any) -> None:
    """Raises SpecError for what can be gone through, but not input by input: a mapping's keys, a table's columns, an
    image's lines, what has no order."""
    kind = type(inputs).__name__
    if isinstance(inputs, Mapping) or hasattr(inputs, "columns"):
        raise SpecError(
            f"task {task.name!r}: the inputs are a {kind}, which is gone through by its keys; wanted a list; name one "
            "of its columns, or make a mapping of every row"
        )
    if isinstance(inputs, bytes | bytearray | set | frozenset):
        raise SpecError(f"task {task.name!r}: the inputs are {kind}; wanted a list, in an order that stays; make one")
    if not isinstance(inputs, np.ndarray) or (inputs.ndim and inputs.dtype.kind in "OSU"):  # a list of whatever it is
        return
    if inputs.ndim < 3 or (inputs.ndim == 3 and inputs.shape[-1] <= CHANNELS):
        raise SpecError(
            f"task {task.name!r}: the inputs are an array {list(inputs.shape)}, which is one {task.kind} at most; "
            f"wanted a list of {task.kind}s, also of one: […]"
        )


def _rows_of_list(task: Task, listed: Sequence[Any]) -> Any:
    if task.kind == "image":
        for number, value in enumerate(listed):
            if not isinstance(value, str | Path):
                raise SpecError(f"input {number} is {type(value).__name__}; wanted a path, as the first one")
        return rows_of_images(image_files(listed))
    if task.templated:
        return rows_of_columns(listed, columns_of(task))
    return rows_of_texts(listed, task.input)


def _check_all_there(task: Task, rows: Any) -> None:
    """Raises SpecError where an input is missing: every one is to be answered, so none can be left out."""
    if len(rows) == 0:
        raise SpecError(f"task {task.name!r}: {task.data} holds 0 inputs; wanted at least 1; check the data")
    for column in dict.fromkeys(columns_of(task)):
        if empty := _missing(task, rows, column):
            more = f" ({len(empty)} rows have none)" if len(empty) > 1 else ""
            raise SpecError(
                f"task {task.name!r}: row {empty[0]} of {task.data} has no {task.kind} in column {column!r}{more}; "
                "wanted one in every row, because each is answered; fill it, or take it out"
            )
    if task.templated and (empty := _all_blank(rows, columns_of(task))):
        raise SpecError(
            f"task {task.name!r}: row {empty[0]} of {task.data} has no text in any of its columns; wanted one in every "
            "row, because each is answered; fill it, or take it out"
        )


def _with_labels(task: Task, split: Split, rows: Any, name: str) -> Split:
    raw = said(task, rows, name)
    labels, known, others = places(task, rows, name, raw, tuple(task.classes or ()))
    notes = list(split.notes)
    if others:
        notes.append(
            f"task {task.name!r}: {sum(others.values())} of {len(raw)} rows are of other classes and not counted: "
            f"{counted(others)} (unknown_classes: drop)"
        )
    if lacking := sum(value is None for value in raw):
        notes.append(f"task {task.name!r}: {lacking} of {len(raw)} rows have no label and are not counted")
    return replace(split, labels=torch.where(known, labels, NO_LABEL), notes=tuple(notes))


def _split(task: Task, rows: Any, name: str, raw: list[Any], classes: tuple[str, ...]) -> tuple[Split, list[str]]:
    """One split, and what is told of rows that are left out of it."""
    whole, notes = _whole_rows(task, rows, name, raw)
    if len(whole) < len(raw):
        rows = rows.select(whole)
        raw = [raw[i] for i in whole]
    labels, known, others = places(task, rows, name, raw, classes)
    if others:
        index = torch.nonzero(known).flatten()
        rows = rows.select(index.tolist())
        labels = labels[index]
        notes.append(
            f"task {task.name!r}: {sum(others.values())} of {len(raw)} rows of {name} are of other classes and left "
            f"out: {counted(others)} (unknown_classes: drop)"
        )
    if not len(labels):
        why = "".join(f" ({note.removeprefix(f'task {task.name!r}: ')})" for note in notes[-1:])
        raise SpecError(
            f"task {task.name!r}: no row of split {name!r} of {task.data} is left{why}; wanted at least 1; check the "
            "data"
        )
    inputs, column = _as_inputs(task, rows, name)
    return Split(inputs, column, labels), notes


def _whole_rows(task: Task, rows: Any, split: str, raw: list[Any]) -> tuple[list[int], list[str]]:
    """Rows that lack nothing, and what is told of the others.

    Raises:
        SpecError: some do, and the task does not leave them out.
    """
    lacking: dict[str, list[int]] = {}
    labels = [i for i, value in enumerate(raw) if value is None]
    if labels:
        lacking[f"no label in column {task.label!r}"] = labels
    what = "image" if task.kind == "image" else "text"
    for column in dict.fromkeys(columns_of(task)):
        if empty := _missing(task, rows, column):
            lacking[f"no {what} in column {column!r}"] = empty
    if task.templated and (empty := _all_blank(rows, columns_of(task))):
        lacking["no text in any of its columns"] = empty
    gone = sorted({i for found in lacking.values() for i in found})
    if not gone:
        return list(range(len(raw))), []
    lacks = next(words for words, found in lacking.items() if gone[0] in found)
    if task.missing == "refuse":
        total = f" ({len(gone)} rows lack something)" if len(gone) > 1 else ""
        raise SpecError(
            f"task {task.name!r}: row {gone[0]} of split {split!r} has {lacks}{total}; fill it, or set missing: drop "
            "to leave such rows out"
        )
    left = set(gone)
    told = (
        f"task {task.name!r}: {len(gone)} of {len(raw)} rows of {split} are left out (missing: drop), the first is "
        f"row {gone[0]}, which has {lacks}"
    )
    return [i for i in range(len(raw)) if i not in left], [told]


def _missing(task: Task, rows: Any, column: str) -> list[int]:
    """Rows whose value is null, or a word that stands for none; where a column is the whole input, also those of an
    empty text; of images, those of neither bytes nor a path."""
    values = rows.with_format("arrow")[:].column(column)
    kind = values.type
    empty = pc.is_null(values)
    if isinstance(kind, pa.BaseExtensionType):
        return _numbers(empty)
    if pa.types.is_struct(kind) and {f.name for f in kind} == {"bytes", "path"}:
        both = pc.and_(pc.is_null(pc.struct_field(values, "bytes")), pc.is_null(pc.struct_field(values, "path")))
        empty = pc.or_(empty, both)
    elif pa.types.is_string(kind) or pa.types.is_large_string(kind):
        empty = pc.or_(empty, pc.is_in(values, pa.array(task.missing_words, kind)))
        empty = empty if task.templated else pc.or_(empty, _blank(values))
    return _numbers(empty)


def _numbers(flags: pa.ChunkedArray) -> list[int]:
    """Rows whose flag is set."""
    rows: list[int] = pc.indices_nonzero(flags).to_pylist()
    return rows


def _blank(texts: pa.ChunkedArray) -> pa.ChunkedArray:
    return pc.equal(pc.fill_null(pc.utf8_trim_whitespace(texts), ""), "")


def _all_blank(rows: Any, columns: Sequence[str]) -> list[int]:
    """Rows of which a template's columns hold nothing but empty texts: what stands around these is no input."""
    table = rows.with_format("arrow")[:]
    texts = [table.column(column) for column in dict.fromkeys(columns)]
    if not all(pa.types.is_string(t.type) or pa.types.is_large_string(t.type) for t in texts):
        return []
    return _numbers(functools.reduce(pc.and_, map(_blank, texts)))


def troubled_images(split: Split) -> list[tuple[int, str]]:
    """Rows whose image cannot be read as it is, and why: cut off, too large, of a depth that nobody can tell. Headers
    and the last bytes say most of it, so it is cheap to ask."""
    found = []
    table = split.rows.with_format("arrow")
    for start in range(0, len(split), ROWS):
        values = table[start : start + ROWS].column(split.column).combine_chunks()
        stored = values.field("bytes")
        # Cut within Arrow: of an image only its two ends are looked at.
        heads = pc.binary_slice(stored, 0, HEAD).to_pylist()
        tails = pc.binary_slice(stored, -2, None).to_pylist()
        sizes = pc.binary_length(stored).to_pylist()
        paths = values.field("path").to_pylist()
        for row, (first, last, size, path) in enumerate(zip(heads, tails, sizes, paths, strict=True)):
            if first is None:  # it stays in a file of its own
                first, last, size = head_and_tail(Path(path))
            if why := trouble_with(first, last, size, functools.partial(_openable, stored, row, path)):
                found.append((start + row, why))
    return found


def _openable(stored: pa.Array, row: int, path: str | None) -> Path | io.BytesIO:
    """What Pillow opens for an image: its bytes, or its file."""
    data = stored[row].as_py()
    if data is not None:
        return io.BytesIO(data)
    assert path is not None  # rows with neither have been refused
    return Path(path)


def told_of(data: TaskData) -> str | None:
    """What somebody should know of a task's classes before an hour is spent on it: those that are rare or missing."""
    counts = data.train.labels.bincount(minlength=len(data.classes))
    largest = int(counts.max())
    sentences = []
    if rare := [label for label in counts.argsort().tolist() if counts[label] * UNEVEN < largest]:
        sizes = _first_four([f"{data.classes[label]!r} {int(counts[label])}" for label in rare])
        sentences.append(
            f"rare classes in its {len(data.train)} training examples: {sizes}; the largest has "
            f"{largest}; accuracy counts every input alike"
        )
    fix = "" if data.task.stratified else "; stratified: true would share them out"
    for kind in ("validation", "test"):
        scored = getattr(data, kind).labels.bincount(minlength=len(data.classes))
        # Of a class that has no training example either there is nothing to know.
        absent = [name for label, name in enumerate(data.classes) if counts[label] and not scored[label]]
        if absent:
            names = _first_four([repr(name) for name in absent])
            sentences.append(f"its {kind} split has no example of {names}, so nothing is known of these{fix}")
    return f"task {data.task.name!r}: {'; '.join(sentences)}" if sentences else None


def _first_four(words: Sequence[str]) -> str:
    more = f" and {len(words) - 4} more" if len(words) > 4 else ""
    return ", ".join(words[:4]) + more


class _Whole(Formatter):
    """Fills templates, and takes nothing for the word None."""

    def format_field(self, value: object, format_spec: str) -> str:
        if value is None:
            raise ValueError("a value is missing (null)")
        text: str = super().format_field(value, format_spec)
        return text

    def convert_field(self, value: object, conversion: str | None) -> object:
        return value if value is None else super().convert_field(value, conversion)


def _filled(task: Task, rows: Any, split: str) -> Any:
    """The rows with a column `input`, made of several by the task's template."""

    def fill(row: dict[str, Any], number: int) -> dict[str, str]:
        try:
            text = _Whole().format(task.template, **row)
            if text.count(CHOICE) != len(task.choices or ()):
                raise SpecError(f"task {task.name!r}: row {number} of split {split!r} {HELD}")
            return {"input": text}
        except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
            raise SpecError(
                f"task {task.name!r}: row {number} of split {split!r} does not fit the template "
                f"{told_template(task)!r}: {type(error).__name__} {error}; correct the row, or the template"
            ) from None

    return rows.map(fill, with_indices=True, remove_columns=columns_of(task), load_from_cache_file=False)


def _check_filled(task: Task, rows: Any, split: str) -> None:
    if len(rows) == 0:
        raise SpecError(
            f"task {task.name!r}: split {split!r} of {task.data} holds 0 examples; wanted at least 1; check the data"
        )


def _told_names(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


def _check_columns(task: Task, rows: Any, split: str, labelled: bool = True) -> None:
    if labelled and task.label in columns_of(task):
        raise SpecError(
            f"task {task.name!r}: column {task.label!r} is its label, and stands in its input "
            f"{told_template(task) if task.templated else task.input!r}, too, where every answer could be read; wanted "
            "two columns; set input or label to another"
        )
    columns = [("input", column) for column in columns_of(task)]
    if labelled:
        columns.append(("label", task.label))
    for key, column in columns:
        if column not in rows.column_names:
            raise SpecError(
                f"task {task.name!r}: column {column!r} is not in split {split!r} of "
                f"{task.data}{nearest(column, rows.column_names)}; "
                f"it has: {_told_names(rows.column_names)}; set {key} to one of them"
            )


def _as_inputs(task: Task, rows: Any, split: str) -> tuple[Any, str]:
    """The rows, and their input column. Texts stay as they are; paths and bytes become images; paths are relative to
    the file that names them."""
    import datasets
    from datasets import Image, Value

    if task.templated:
        return _filled(task, rows, split), "input"
    feature = rows.features[task.input]
    is_text = isinstance(feature, Value) and feature.dtype in ("string", "large_string")
    if task.kind == "text":
        if not is_text:
            raise SpecError(
                f"task {task.name!r}: column {task.input!r} of {task.data} holds {shortly(feature)}; wanted texts; set "
                "input to such a column"
            )
        _check_texts(task, rows.with_format("arrow")[:].column(task.input), split)
        return rows, task.input
    if is_text:
        folder = _folder_of(task)
        paths = [str(path if Path(path).is_absolute() else folder / path) for path in rows[task.input][:]]
        for row, path in enumerate(paths):
            _check_is_file(task, row, path)
        return rows_of_images(paths, task.input), task.input
    if isinstance(feature, Value) and feature.dtype in ("binary", "large_binary"):
        return rows.cast_column(task.input, Image()), task.input
    if isinstance(feature, dict) and set(feature) == {"bytes", "path"}:
        return _with_files(task, rows).cast_column(task.input, datasets.Image()), task.input
    if not isinstance(feature, Image):
        raise SpecError(
            f"task {task.name!r}: column {task.input!r} of {task.data} holds {shortly(feature)}; wanted images, image "
            "bytes or image paths; set input to such a column"
        )
    return _with_files(task, rows), task.input


def _check_texts(task: Task, values: pa.ChunkedArray, split: str) -> None:
    """Raises SpecError for texts that cannot be read as such, or are names of images."""
    if pc.any(pc.match_substring(values, CHOICE)).as_py():
        raise SpecError(f"task {task.name!r}: column {task.input!r} of split {split!r} {HELD}")
    folder = _folder_of(task)
    first = values[:LOOKED].to_pylist()
    # A model of texts would learn something of file names, and nobody would notice.
    if all(name.lower().endswith(tuple(IMAGES)) and os.path.isfile(folder / name) for name in first):
        raise SpecError(
            f"task {task.name!r}: column {task.input!r} of {task.data} holds names of image files, like "
            f"{first[0]!r}; wanted texts; set kind: image, or input to another column"
        )


def _with_files(task: Task, rows: Any) -> Any:
    """Rows of images that may name files instead of holding bytes, with paths from the folder of the table that names
    them.

    Raises:
        SpecError: there is no such file.
    """
    import datasets

    place = Path(task.data).expanduser()
    if task.data.startswith("demo:") or not os.path.exists(place) or (place.is_dir() and not holds_rows(place)):
        return rows  # what the Hub's tools or a folder's reader have found themselves
    values = rows.with_format("arrow")[:].column(task.input)
    alone = pc.indices_nonzero(pc.is_null(pc.struct_field(values, "bytes"))).to_pylist()
    if not alone:
        return rows
    # Tables' paths begin in their folder; those of metadata, and of what `datasets` saved, are files' as they stand.
    folder = _folder_of(task) if place.is_file() or has_tables(place) else Path()
    paths = pc.struct_field(values, "path").to_pylist()
    for row in alone:
        paths[row] = str(folder / paths[row])
        _check_is_file(task, row, paths[row])
    if len(alone) == len(paths):
        return rows_of_images(paths, task.input)
    # Some have bytes and some a file: both columns are put together anew, chunk by chunk as they lie.
    chunks = []
    for chunk in values.chunks:
        own = pa.array(paths[: len(chunk)], pa.string())
        paths = paths[len(chunk) :]
        chunks.append(pa.StructArray.from_arrays([chunk.field("bytes"), own], ["bytes", "path"]))
    mixed = rows_of(pa.table({task.input: pa.chunked_array(chunks)}))
    return mixed.cast_column(task.input, datasets.Image())


def _check_is_file(task: Task, row: int, path: str) -> None:
    if not os.path.isfile(path):  # where `Path` would raise of a name that is too long
        raise SpecError(
            f"task {task.name!r}: row {row} of {task.data} names image {path[:LONGEST]!r}, which does not exist; "
            "wanted a path relative to the file's folder; correct it"
        )


def _folder_of(task: Task) -> Path:
    """Where relative paths in a task's tables begin."""
    path = Path(task.data).expanduser()
    return path if path.is_dir() else path.parent


def encoded(split: Split) -> list[Any]:
    """The split's texts, or its images as stored bytes: small enough to travel, and independent of local files."""
    values = split.rows.with_format("arrow")[:].column(split.column).to_pylist()
    return [value if isinstance(value, str) else {"bytes": content_of(value), "path": None} for value in values]


def decoded(values: list[Any]) -> list[Any]:
    """What `encoded` gave, as examples that a family reads."""
    from datasets import Image

    decode = Image().decode_example
    return [value if isinstance(value, str) else decode(value) for value in values]
