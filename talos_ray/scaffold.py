"""A first spec from a folder of data: every file or image folder in it becomes a task, with its columns guessed. A
guess is written only if it can be read as `check` reads it; of what is left out, the reason is written."""

from __future__ import annotations

import csv
import io
import os
import re
import statistics
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet
import yaml

from talos_ray.data.folders import (
    IMAGES,
    METADATA,
    SPLITS,
    SetName,
    files_below,
    has_tables,
    json_notes,
    split_of,
    tables_in,
)
from talos_ray.data.pixels import HEAD, trouble_with
from talos_ray.data.readers import holds_rows
from talos_ray.data.tables import KINDS, Reading, as_numbers, check_is_table, other_separator, read_table
from talos_ray.errors import SpecError
from talos_ray.spec import reads_text, resolve_task
from talos_ray.tasks import TaskData, load_task

MODELS = {"image": "open_clip:ViT-B-32/laion2b_s34b_b79k", "text": "hf:sentence-transformers/all-MiniLM-L6-v2"}
PROMPTS = {"image": "a photo of a {}.", "text": "{}"}
# What columns are called, the surest names first. A column that is called so wins over what its values look like.
CALLED = {
    "image": ("image", "images", "img", "picture", "photo", "file", "file_name", "filename", "path"),
    "text": ("text", "texts", "sentence", "content", "body", "review", "message", "comment", "document", "input"),
    "label": ("label", "labels", "class", "category", "sentiment", "kind", "target", "y"),
}
# A name that begins so says that it is a label, whatever stands behind: `label_text` holds the names of classes.
LABELLED = re.compile(r"\s*(?i:labels?|class(es)?|categor(y|ies)|sentiments?|targets?)(?=[\W_\dA-Z]|$)")
UPDATES = 300  # of a task, where its rows bear them
EPOCHS = 30  # at most
BATCHES = {16: 400, 32: 2000, 64: float("inf")}  # size -> most training rows that it is for
SHOWN = 8  # classes that a comment names
LONG = 40  # characters of a class that it shows
TOLD = 300  # characters of a reason
LONGEST = 90  # characters of a task's name
LONGEST_NAME = 255  # characters of a file's name
PLAIN = re.compile(r"[A-Za-z][\w./-]*$", re.ASCII)  # what YAML reads as it stands, if it is no word of its own
# What readers raise: pyarrow's errors are most of them ValueErrors, and so are those of characters that are none.
UNREADABLE = (SpecError, pa.ArrowException, OSError, ValueError, RecursionError)


@dataclass(frozen=True)
class Guess:
    """What one file or folder seems to be."""

    name: str
    data: str
    kind: str
    columns: dict[str, str]  # 'input' and 'label'
    loaded: TaskData
    dropping: bool  # rows that lack something


class Unclear(Exception):
    """Why nothing is guessed."""


def scaffold(folder: Path, model: str | None = None) -> str:
    """A commented YAML spec of the tasks that lie in a folder, or of the one that the folder is.

    Raises:
        SpecError: there is no such folder, or nothing in it that could be a task.
    """
    if not folder.is_dir():
        raise SpecError(
            f"folder {str(folder)!r} does not exist; wanted one with a file or image folder a task; check the path"
        )
    guesses, left_out = _tasks_in(folder)
    if not guesses:
        raise SpecError(
            f"folder {str(folder)!r} holds no {', '.join(KINDS)} with a label column, and no folder of images a class;"
            " wanted one a task" + (f"; {left_out[0]}" if left_out else "")
        )
    # A run has one model, which reads inputs of one kind: of those, most that lie here.
    kinds = [guess.kind for guess in guesses]
    kind = max(dict.fromkeys(kinds), key=kinds.count)
    model = model or MODELS[kind]
    read = "text" if reads_text(model) else "image"
    lines: list[str] = []
    for guess in guesses:
        if guess.kind == kind:
            lines += _lines(guess, read)
    others = [guess for guess in guesses if guess.kind != kind]
    rows = [len(guess.loaded.train) for guess in guesses if guess.kind == kind]
    inside = any(guess.data == "." for guess in guesses) and folder.resolve() == Path.cwd()
    output = "../runs/mine" if inside else "runs/mine"  # never among the data
    return "\n".join(
        [
            "# Made by `talos init`. What is guessed is marked; `talos check` tells all that is wrong before anything "
            "runs.",
            f"model: {scalar(model)}",
            "tasks:",
            *lines,
            *(f"# left out, because it holds {guess.kind}s: {comment(guess.data)}" for guess in others),
            *(f"# left out: {comment(why)}" for why in left_out),
            "# control:                    # what must hold: tasks that are looked at and never trained. Move one "
            "here, or name another",
            f"output: {output}             # a local path, or s3://bucket/folder",
            "# preset: auto                # also try masks and learning rates, in short runs",
            "# gate: {control_keep: 0.95}  # a version that does not meet it is kept aside",
            _training(rows, model, kind),
            "# cluster: {gpus_per_worker: 1}",
            "",
        ]
    )


def _training(rows: Sequence[int], model: str, kind: str) -> str:
    """How long and how fast to train on tasks of so many training rows: about `UPDATES` updates, in passes that few
    rows bear."""
    train = max(1, round(statistics.median(rows)))
    batch = next(size for size, most in BATCHES.items() if train <= most)
    lr = "5.0e-4" if kind == "text" else "1.0e-4"
    if model == "demo":
        lr = "1.2e-3"
    an_epoch = max(1, train // batch)
    if an_epoch >= UPDATES:
        return f"train: {{steps: {UPDATES}, batch_size: {batch}, lr: {lr}, warmup_steps: {UPDATES // 10}}}"
    # Few rows bear only so many passes before they are learnt by heart.
    epochs = min(EPOCHS, round(UPDATES / an_epoch))
    updates = epochs * an_epoch
    warmup = max(1, updates // 10)
    why = f"# about {updates} updates on {train:,} training rows, the median task's"
    return f"train: {{epochs: {epochs}, batch_size: {batch}, lr: {lr}, warmup_steps: {warmup}}}  {why}"


def _lines(guess: Guess, read: str) -> list[str]:
    """A task's lines in a spec whose model reads inputs of a kind. What is the default is left out."""
    lines = [
        f"  - name: {scalar(guess.name)}",
        f"    data: {scalar(guess.data)}",
    ]
    if guess.kind != read:
        lines.append(f"    kind: {guess.kind}")
    defaults = {"input": read, "label": "label"}
    for key, column in guess.columns.items():
        if column != defaults[key]:
            lines.append(f"    {key}: {scalar(column)}                # guessed")
    classes = guess.loaded.classes
    names = [name if len(name) <= LONG else f"{name[:LONG]}…" for name in classes[:SHOWN]]
    more = ", …" if len(classes) > SHOWN else ""
    lines.append(f"    # {len(classes)} classes: {comment(', '.join(names) + more)}")
    if guess.dropping:
        lines.append("    missing: drop                # guessed: fill the rows, or leave them out so")
        lines += [f"    # {comment(note)[:TOLD]}" for note in guess.loaded.notes]
    lines.append(
        f'    prompts: ["{PROMPTS[guess.kind]}"]   # {{}} stands for the class; say what it is in your own words'
    )
    return lines


def scalar(text: str) -> str:
    """A text as YAML reads it back: bare where that is safe, else in quotation marks."""
    if PLAIN.match(text) and yaml.safe_load(text) == text:
        return text
    return yaml.dump(text, default_style='"', allow_unicode=True, width=float("inf")).rstrip("\n")


def comment(text: str) -> str:
    """A text on one line, without what YAML does not take even there."""
    return "".join(c if c.isprintable() else " " for c in text)


def _tasks_in(folder: Path) -> tuple[list[Guess], list[str]]:
    """What lies in a folder, with names that are unique; and what was left out, and why."""
    if whole := _whole(folder):
        return [whole], []
    guesses: list[Guess] = []
    left_out: list[str] = []
    entries = [path for path in sorted(folder.iterdir()) if not path.name.startswith(".") and _could_be(path)]
    parts = _parts(entries)
    for path in entries:
        if path in parts:
            left_out.append(f"{path.name}: {_why_apart(path, parts)}")
            continue
        if not _utf8(path.name):
            left_out.append(f"{path.name!a}: its name is not UTF-8")
            continue
        try:
            guess = _guess(folder, path, {other.name for other in guesses})
        except (*UNREADABLE, Unclear) as error:
            left_out.append(f"{path.name}: {_reason(error)}")
            continue
        guesses.append(guess)
        if path.is_dir() and guess.data != path.name:  # of a folder only one table could be used
            left_out.append(_why_alone(path, folder / guess.data, guess))
    return guesses, left_out


def _why_alone(path: Path, train: Path, guess: Guess) -> str:
    """Why only the training split of a folder of tables is read, and which of the others are in the way."""
    tables = [file for file in files_below(path) if file.suffix.lower() in KINDS and file != train]
    odd = {file: why for file in tables if (why := _odd_beside(path, train, file, guess.columns.values()))}
    what = f"{path.name}: all but {guess.data}, because together they cannot be read"
    if not odd:
        return what
    if len(odd) < len(tables):
        return f"{what}; to read the others, move away {_named(odd)}"
    return f"{what}: {_named(odd)}"


def _why_apart(path: Path, parts: dict[Path, Path]) -> str:
    """Why what by its name is a part of a set is not read with it, and what to do; of a table that cannot be, what it
    lacks."""
    train = parts[path]
    others = [other for other, whole in parts.items() if whole == train]
    usual = f"by its name it belongs to {train.name}; to use it, move both into a folder of their own"
    if any(part.is_dir() for part in (train, *others)):
        return usual
    try:
        columns = _roles(train)[1:]
    except (*UNREADABLE, Unclear):  # of which its own line tells
        return usual
    odd = {other: why for other in others if (why := _odd_beside(other.parent, train, other, columns))}
    if path in odd:
        return f"it belongs to {train.name}, and cannot be read with it: {odd[path]}"
    return f"{usual}, without {_named(odd)}, and name that folder in `data`" if odd else usual


def _odd_beside(root: Path, train: Path, table: Path, columns: Collection[str]) -> str | None:
    """Why a table of a folder cannot be read together with its training split; None if nothing speaks against it."""
    if KINDS[table.suffix.lower()] != KINDS[train.suffix.lower()]:
        return f"it is of another kind than {train.name}"
    if split_of(table.relative_to(root)) is None and not SetName.of(table.stem).shard:
        return "its name tells no split"
    try:
        names = _table(table).column_names
    except (*UNREADABLE, Unclear) as error:
        return _reason(error)
    missing = next((column for column in columns if column not in names), None)
    return f"it has no column {missing!r}" if missing else None


def _named(odd: dict[Path, str]) -> str:
    return ", ".join(f"{path.name} ({why})" for path, why in odd.items())


def _reason(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "its values lie too deep in each other to be read"
    if isinstance(error, UnicodeEncodeError):
        return "it holds half a character (a surrogate, like \\ud800), which is no text"
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    reason = re.sub(r"^task '[^']*': ", "", reason)  # a name that we made up a moment ago
    return reason if len(reason) <= TOLD else f"{reason[:TOLD]}…"


def _could_be(path: Path) -> bool:
    return path.is_dir() or path.suffix.lower() in KINDS


def _parts(entries: Sequence[Path]) -> dict[Path, Path]:
    """Files and folders that by their names are a part of what another holds: the training split of the same data, or
    its first piece."""
    sets: dict[tuple[str, ...], dict[str, list[Path]]] = {}
    called = _called_sets(entries)
    for path in sorted(entries, key=Path.is_dir):  # a table may list what lies in a folder of its name
        name = called[path]
        split = name.split or ("train" if name.shard else None)
        if split is not None:
            sets.setdefault(name.words, {}).setdefault(split, []).append(path)
    wholes: dict[Path, Path] = {}
    for splits in sets.values():
        if "train" not in splits:  # without one, each is a set of its own
            continue
        first = splits["train"][0]
        for pieces in splits.values():
            wholes.update((path, first) for path in pieces if path != first)
    return wholes


def _is_one_set(tops: Collection[Path]) -> bool:
    """Whether all of a folder's tables, and folders of tables, are called like splits of one set. A folder's name has
    to be a split's and nothing more, as its reader wants it; a JSON note beside tables of another kind counts not."""
    notes = json_notes([Path(top.name) for top in tops if not top.is_dir()])
    called = _called_sets([top for top in tops if Path(top.name) not in notes])
    if any(top.is_dir() and name.words for top, name in called.items()):
        return False
    words = {name.words for name in called.values()}
    return len(words) == 1 and all(name.split for name in called.values())


def _called_sets(paths: Collection[Path]) -> dict[Path, SetName]:
    """What names say. A number behind a split (train-1) is a piece of it where another split of the set has none; where
    all have one, as folds do, each is a set of its own."""
    called = {path: SetName.of(path.name if path.is_dir() else path.stem) for path in paths}
    sets = {(name.words, name.split) for name in called.values() if name.split}
    for path, name in called.items():
        whole = name.words[:-1]
        if name.numbered and any(words == whole and split != name.split for words, split in sets):
            called[path] = replace(name, words=whole)
    return called


def _utf8(name: str) -> bool:
    try:
        return bool(name.encode())
    except UnicodeEncodeError:
        return False


def _whole(folder: Path) -> Guess | None:
    """The folder as one task: its folders are the classes, or the splits, of images; its tables are the splits of one
    set; or it lists its images."""
    try:
        files = [file.relative_to(folder) for file in files_below(folder)]
        if any(str(file) in METADATA for file in files):
            return _listed(folder, folder)
        tables = [file for file in files if file.suffix.lower() in KINDS]
        if tables:
            whole = len(tables) > 1 and _is_one_set({folder / file.parts[0] for file in tables})
            return _split_tables(folder, folder) if whole else None
        # CLASS/image, or SPLIT/CLASS/image, and all alike: else its folders are tasks.
        images = [file for file in files if file.suffix.lower() in IMAGES]
        depths = {len(file.parts) for file in images}
        tops = {file.parts[0].lower() for file in images}
        is_one = depths == {2} or (depths == {3} and tops <= set(SPLITS))
        return _pictures(folder, folder) if is_one else None
    except (*UNREADABLE, Unclear):
        return None


def _guess(folder: Path, path: Path, taken: Collection[str]) -> Guess:
    """What a file or a folder in a folder seems to be.

    Raises:
        Unclear: nothing that could be a task.
        SpecError: `check` would refuse it.
    """
    if path.is_file():
        return _read(folder, path, _roles(path), taken)
    if has_tables(path):
        return _split_tables(folder, path, taken)
    return _listed(folder, path, taken) if holds_rows(path) else _pictures(folder, path, taken)


def _pictures(folder: Path, path: Path, taken: Collection[str] = ()) -> Guess:
    """A folder of images a class."""
    if not any(f.suffix.lower() in IMAGES for f in files_below(path)):
        raise Unclear("it holds no tables and no images")
    return _read(folder, path, ("image", "image", "label"), taken)


def _listed(folder: Path, path: Path, taken: Collection[str] = ()) -> Guess:
    """A folder of images with a table that says what they show; or what `datasets` saved, whose columns have names."""
    tables = [f for f in files_below(path) if f.name in METADATA]
    label = _roles(tables[0])[2] if tables else "label"
    return _read(folder, path, ("image", "image", label), taken)


def _split_tables(folder: Path, path: Path, taken: Collection[str] = ()) -> Guess:
    """A folder of a table a split: what train holds says what all hold. Where they cannot be read together, train
    alone."""
    try:
        splits = tables_in(path)
    except SpecError:
        near = [file for file in files_below(path) if file.parent == path and file.suffix.lower() in KINDS]
        train = [file for file in near if SetName.of(file.stem).split == "train"]
        if path == folder or len(train) != 1 or KINDS[train[0].suffix.lower()] == "json":
            raise
        return _read(folder, train[0], _roles(train[0]), taken)  # the rest is told of as left out
    if "train" not in splits:
        raise Unclear("none of its tables is called train")
    roles = _roles(splits["train"][0])
    try:
        return _read(folder, path, roles, taken)
    except SpecError:
        if len(splits) == 1 or len(splits["train"]) > 1 or path == folder:
            raise
        return _read(folder, splits["train"][0], roles, taken)


def _read(folder: Path, path: Path, roles: tuple[str, str, str], taken: Collection[str]) -> Guess:
    """A guess that was tried: read as `check` reads it, without rows that lack something if need be."""
    kind, source, label = roles
    columns = {"input": source, "label": label}
    name = _free_name(_name(path), taken)
    task = {"name": name, "data": str(path.absolute()), "kind": kind, "prompts": [PROMPTS[kind]], **columns}
    data = str(path.relative_to(folder))
    try:
        loaded = load_task(resolve_task(task), 0)
        dropping = False
    except SpecError as refused:
        # Where that is no help, the first reason is the one to tell.
        try:
            loaded = load_task(resolve_task({**task, "missing": "drop"}), 0)
            dropping = True
        except SpecError:
            raise refused from None
    if len(loaded.classes) < 2:
        raise Unclear(f"its column {label!r} holds one class")
    return Guess(name, data, kind, columns, loaded, dropping)


def _free_name(name: str, taken: Collection[str]) -> str:
    """A name that no task has yet, with a number behind it if need be."""
    number = 1
    free = name
    while free in taken:
        number += 1
        free = f"{name}_{number}"
    return free


def _name(path: Path) -> str:
    stem = path.resolve().name if path.is_dir() else path.stem
    return re.sub(r"[^A-Za-z0-9_.-]", "_", stem).lstrip("_.-")[:LONGEST] or "task"


# ------------------------------------------------------------------------------------------- columns


def _roles(file: Path) -> tuple[str, str, str]:
    """Kind of the inputs, and the columns of inputs and labels: by their names; else labels are what has few values,
    and inputs are the longest texts.

    Raises:
        Unclear: there are no two such columns.
    """
    table = _table(file)
    names = [name for name in table.column_names if name.strip()]
    images = [name for name in names if _holds_images(file, table.column(name))]
    rest = [name for name in names if name not in images]
    texts = [name for name in rest if _holds_texts(file, table.column(name))]
    counts = {name: count for name in rest if (count := _classes(table.column(name))) > 1}
    # Where hardly a value comes again, there are no classes, whatever the column is called.
    labelled = [name for name in names if LABELLED.match(name) and counts.get(name, 0) <= len(table) / 2]
    free = [name for name in texts if name not in labelled]
    # By name, as far as names go: images before texts, and inputs before labels.
    source = _called("image", images) or next(iter(images), None) or _called("text", free)
    others = [name for name in counts if name != source]
    label = _called("label", others) or next((name for name in others if name in labelled), None)
    free = [name for name in free if name != label]
    if source is None and len(free) == 1:
        source = free[0]
    if label is None:  # of several with as few values, the last one: labels mostly stand behind
        few = [name for name in reversed(counts) if name != source and counts[name] <= len(table) / 2]
        label = min(few, key=counts.__getitem__, default=None)
    if source is None:
        free = [name for name in free if name != label]
        source = max(free, key=lambda name: _length(table.column(name)), default=None)
    if source is None:
        raise Unclear("it has no column of texts or images; wanted one")
    if label is None:
        raise Unclear("no classes were found in it; wanted a column in which values come again")
    if KINDS[file.suffix.lower()] == "csv" and not _are_names(table, label):
        raise Unclear(
            f"its first line looks like a row, because {label!r} is a value of its column, too; wanted a line of "
            "column names; write one above it"
        )
    if source not in images and "{" in source:
        raise Unclear(f"column {source!r} has a brace in its name, which stands for a template in a spec; rename it")
    return "image" if source in images else "text", source, label


def _are_names(table: pa.Table, label: str) -> bool:
    """Whether a table's first line is one of names: in a row, a label would be one of those below. Columns that are
    called by their places have names."""
    names = [name for name in table.column_names if name.strip()]
    # Who has no names for columns counts them, from 0 or from 1.
    places = [[str(first + place) for place in range(len(names))] for first in (0, 1)]
    return names in places or label not in map(str, table.column(label).unique().to_pylist())


def _called(role: str, columns: Sequence[str]) -> str | None:
    """The column that by its name has a role: its whole name says so, or else its last word."""
    for part in (str.lower, _last_word):
        by_part = {part(column.strip()): column for column in reversed(columns)}  # of equal ones the first
        for word in CALLED[role]:
            if word in by_part:
                return by_part[word]
    return None


def _last_word(name: str) -> str:
    return re.split(r"[\W_]+", name.lower())[-1]


def _classes(column: pa.ChunkedArray) -> int:
    """Different values of a column, if these can be classes; else 0."""
    kind = column.type
    if _is_text(kind):
        column = as_numbers(column)
    elif not (pa.types.is_integer(kind) or pa.types.is_boolean(kind) or pa.types.is_floating(kind)):
        return 0
    values = column.unique().drop_null()
    if pa.types.is_floating(values.type):
        values = values.filter(pc.invert(pc.is_nan(values)))  # not-a-number is how some write that there is none
        if not all(value.is_integer() for value in values.to_pylist()):  # a measure, and no number of a class
            return 0
    return len(values)


def _length(column: pa.ChunkedArray) -> float:
    mean: float | None = pc.mean(pc.utf8_length(column.cast(pa.large_string()))).as_py()
    return mean or 0.0


def _is_text(kind: pa.DataType) -> bool:
    return any(is_kind(kind) for is_kind in (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view))


def _holds_texts(file: Path, column: pa.ChunkedArray) -> bool:
    """Texts, and no names of images, also of such as are not there."""
    if not _is_text(column.type):
        return False
    first = str(_first(column))
    return not first.lower().endswith(tuple(IMAGES)) or max(map(len, first.split("/"))) > LONGEST_NAME


def _holds_images(file: Path, column: pa.ChunkedArray) -> bool:
    """Images, or names of some that are there."""
    kind = column.type
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        data: bytes = _first(column)
        return bool(data) and trouble_with(data[:HEAD], data[-2:], len(data), lambda: io.BytesIO(data)) is None
    if _is_text(kind):
        name: str = _first(column)
        return name.lower().endswith(tuple(IMAGES)) and os.path.isfile(file.parent / name)
    return pa.types.is_struct(kind) and {f.name for f in kind} == {"bytes", "path"}


def _first(column: pa.ChunkedArray) -> Any:
    """The first value that says something."""
    return next((v.as_py() for v in column if v.as_py()), b"" if pa.types.is_binary(column.type) else "")


def _table(path: Path) -> pa.Table:
    """A file's rows, dictionaries spelt out; of several columns of one name, none."""
    kind = KINDS[path.suffix.lower()]
    check_is_table(path)
    if kind == "csv":
        names = _header(path)
        if len(names) == 1 and (why := other_separator(path, names[0])):
            raise Unclear(why)
        table = read_table(path, Reading(columns=_once(names)))
    else:
        table = pyarrow.parquet.read_table(path) if kind == "parquet" else read_table(path)
    if not len(table):
        raise Unclear("it holds no rows")
    once = _once(table.column_names)
    table = table.select([place for place, name in enumerate(table.column_names) if name in once])
    for place, field in enumerate(table.schema):
        if pa.types.is_dictionary(field.type):
            values = table.column(place).cast(field.type.value_type)
            table = table.set_column(place, field.name, values)
    return table


def _once(names: Sequence[str]) -> list[str]:
    return [name for name in names if name.strip() and names.count(name) == 1]


def _header(path: Path) -> list[str]:
    """The names of a CSV or TSV file's columns; none where they cannot be read, of which its reader tells."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as text:
            return next(csv.reader(text, delimiter="\t" if path.suffix.lower() == ".tsv" else ","), [])
    except (csv.Error, UnicodeDecodeError):
        return []
