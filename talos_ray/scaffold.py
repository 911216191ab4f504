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
    found, left = _tasks_in(folder)
    if not found:
        raise SpecError(
            f"folder {str(folder)!r} holds no {', '.join(KINDS)} with a label column, and no folder of images a class;"
            " wanted one a task" + (f"; {left[0]}" if left else "")
        )
    kinds = [g.kind for g in found]
    kind = max(dict.fromkeys(kinds), key=kinds.count)
    model = model or MODELS[kind]
    inside = any(g.data == "." for g in found) and folder.resolve() == Path.cwd()
    output = "../runs/mine" if inside else "runs/mine"  # never among the data
    return "\n".join(
        [
            "# Made by `talos init`. What is guessed is marked; `talos check` tells all that is wrong before anything "
            "runs.",
            f"model: {scalar(model)}",
            "tasks:",
            *(line for g in found if g.kind == kind for line in _lines(g, "text" if reads_text(model) else "image")),
            *(f"# left out, because it holds {g.kind}s: {comment(g.data)}" for g in found if g.kind != kind),
            *(f"# left out: {comment(why)}" for why in left),
            "# control:                    # what must hold: tasks that are looked at and never trained. Move one "
            "here, or name another",
            f"output: {output}             # a local path, or s3://bucket/folder",
            "# preset: auto                # also try masks and learning rates, in short runs",
            "# gate: {control_keep: 0.95}  # a version that does not meet it is kept aside",
            _training([len(g.loaded.train) for g in found if g.kind == kind], model, kind),
            "# cluster: {gpus_per_worker: 1}",
            "",
        ]
    )


def _training(rows: Sequence[int], model: str, kind: str) -> str:
    """How long and how fast to train on tasks of so many training rows: about `UPDATES` updates, in passes that few
    rows bear."""
    train = max(1, round(statistics.median(rows)))
    batch = next(size for size, most in BATCHES.items() if train <= most)
    lr = "1.2e-3" if model == "demo" else "5.0e-4" if kind == "text" else "1.0e-4"
    an_epoch = max(1, train // batch)
    if an_epoch >= UPDATES:
        return f"train: {{steps: {UPDATES}, batch_size: {batch}, lr: {lr}, warmup_steps: {UPDATES // 10}}}"
    epochs = min(EPOCHS, round(UPDATES / an_epoch))
    updates = epochs * an_epoch
    told = f"# about {updates} updates on {train:,} training rows, the median task's"
    return f"train: {{epochs: {epochs}, batch_size: {batch}, lr: {lr}, warmup_steps: {max(1, updates // 10)}}}  {told}"


def _lines(g: Guess, read: str) -> list[str]:
    """A task's lines in a spec whose model reads inputs of a kind."""
    classes = g.loaded.classes
    named = ", ".join(c if len(c) <= LONG else f"{c[:LONG]}…" for c in classes[:SHOWN])
    shown = named + (", …" if len(classes) > SHOWN else "")
    columns = {key: c for key, c in g.columns.items() if c != {"input": read, "label": "label"}[key]}
    return [
        f"  - name: {scalar(g.name)}",
        f"    data: {scalar(g.data)}",
        *([f"    kind: {g.kind}"] if g.kind != read else []),
        *(f"    {key}: {scalar(column)}                # guessed" for key, column in columns.items()),
        f"    # {len(classes)} classes: {comment(shown)}",
        *(["    missing: drop                # guessed: fill the rows, or leave them out so"] if g.dropping else []),
        *(f"    # {comment(note)[:TOLD]}" for note in g.loaded.notes if g.dropping),
        f'    prompts: ["{PROMPTS[g.kind]}"]   # {{}} stands for the class; say what it is in your own words',
    ]


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
    found: list[Guess] = []
    left: list[str] = []
    entries = [e for e in sorted(folder.iterdir()) if not e.name.startswith(".") and _could_be(e)]
    parts = _parts(entries)
    for path in entries:
        if path in parts:
            left.append(f"{path.name}: {_why_apart(path, parts)}")
            continue
        if not _utf8(path.name):
            left.append(f"{path.name!a}: its name is not UTF-8")
            continue
        try:
            guess = _guess(folder, path, {g.name for g in found})
        except (*UNREADABLE, Unclear) as error:
            left.append(f"{path.name}: {_reason(error)}")
            continue
        found.append(guess)
        if path.is_dir() and guess.data != path.name:
            train = folder / guess.data
            tables = [f for f in files_below(path) if f.suffix.lower() in KINDS and f != train]
            odd = {f: why for f in tables if (why := _odd_beside(path, train, f, guess.columns.values()))}
            told = f"{path.name}: all but {guess.data}, because together they cannot be read"
            fix = f"; to read the others, move away {_told(odd)}" if len(odd) < len(tables) else f": {_told(odd)}"
            left.append(f"{told}{fix}" if odd else told)
    return found, left


def _why_apart(path: Path, parts: dict[Path, Path]) -> str:
    """Why what by its name is a part of a set is not read with it, and what to do; of a table that cannot be, what it
    lacks."""
    train = parts[path]
    others = [p for p, whole in parts.items() if whole == train]
    usual = f"by its name it belongs to {train.name}; to use it, move both into a folder of their own"
    if any(p.is_dir() for p in (train, *others)):
        return usual
    try:
        columns = _roles(train)[1:]
    except (*UNREADABLE, Unclear):  # of which its own line tells
        return usual
    odd = {p: why for p in others if (why := _odd_beside(p.parent, train, p, columns))}
    if path in odd:
        return f"it belongs to {train.name}, and cannot be read with it: {odd[path]}"
    return f"{usual}, without {_told(odd)}, and name that folder in `data`" if odd else usual


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
    lacks = next((c for c in columns if c not in names), None)
    return f"it has no column {lacks!r}" if lacks else None


def _told(odd: dict[Path, str]) -> str:
    return ", ".join(f"{path.name} ({why})" for path, why in odd.items())


def _reason(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "its values lie too deep in each other to be read"
    if isinstance(error, UnicodeEncodeError):
        return "it holds half a character (a surrogate, like \\ud800), which is no text"
    told = str(error).splitlines()[0] if str(error) else type(error).__name__
    told = re.sub(r"^task '[^']*': ", "", told)
    return told if len(told) <= TOLD else f"{told[:TOLD]}…"


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
    found: dict[Path, Path] = {}
    for splits in sets.values():
        if "train" in splits:
            first = splits["train"][0]
            found |= {path: first for part in splits.values() for path in part if path != first}
    return found


def _is_one_set(tops: Collection[Path]) -> bool:
    """Whether all of a folder's tables, and folders of tables, are called like splits of one set. A folder's name has
    to be a split's and nothing more, as its reader wants it; a JSON note beside tables of another kind counts not."""
    notes = json_notes([Path(top.name) for top in tops if not top.is_dir()])
    called = _called_sets([top for top in tops if Path(top.name) not in notes])
    if any(top.is_dir() and name.words for top, name in called.items()):
        return False
    return all(name.split for name in called.values()) and len({name.words for name in called.values()}) == 1


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
        files = [f.relative_to(folder) for f in files_below(folder)]
        if any(str(f) in METADATA for f in files):
            return _listed(folder, folder)
        tables = [f for f in files if f.suffix.lower() in KINDS]
        if tables:
            whole = len(tables) > 1 and _is_one_set({folder / f.parts[0] for f in tables})
            return _split_tables(folder, folder) if whole else None
        images = [f for f in files if f.suffix.lower() in IMAGES]
        tops = {f.parts[0] for f in images}
        near = images and all(len(f.parts) == 2 for f in images)
        split = images and all(len(f.parts) == 3 for f in images) and {t.lower() for t in tops} <= set(SPLITS)
        return _pictures(folder, folder) if near or split else None
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
        near = [f for f in files_below(path) if f.parent == path and f.suffix.lower() in KINDS]
        train = [f for f in near if SetName.of(f.stem).split == "train"]
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
    name = _name(path)
    name = next(n for n in (name, *(f"{name}_{i}" for i in range(2, len(taken) + 3))) if n not in taken)
    wanted = {"name": name, "data": str(path.absolute()), "kind": kind, "prompts": [PROMPTS[kind]], **columns}
    data = str(path.relative_to(folder))
    try:
        loaded = load_task(resolve_task(wanted), 0)
        dropping = False
    except SpecError as refused:
        try:
            loaded = load_task(resolve_task({**wanted, "missing": "drop"}), 0)
            dropping = True
        except SpecError:
            raise refused from None
    if len(loaded.classes) < 2:
        raise Unclear(f"its column {label!r} holds one class")
    return Guess(name, data, kind, columns, loaded, dropping)


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
    names = [c for c in table.column_names if c.strip()]
    images = [c for c in names if _holds_images(file, table.column(c))]
    texts = [c for c in names if c not in images and _holds_texts(file, table.column(c))]
    counts = {c: n for c in names if c not in images and (n := _classes(table.column(c))) > 1}
    # Where hardly a value comes again, there are no classes, whatever the column is called.
    labelled = [c for c in names if LABELLED.match(c) and counts.get(c, 0) <= len(table) / 2]
    free = [c for c in texts if c not in labelled]
    source = _called("image", images) or next(iter(images), None) or _called("text", free)
    others = [c for c in counts if c != source]
    label = _called("label", others) or next((c for c in others if c in labelled), None)
    rest = [c for c in free if c != label]
    if source is None and len(rest) == 1:
        source = rest[0]
    if label is None:  # of several with as few values, the last one: labels mostly stand behind
        few = [c for c in reversed(counts) if c != source and counts[c] <= len(table) / 2]
        label = min(few, key=lambda c: counts[c], default=None)
    if source is None:
        source = max((c for c in rest if c != label), key=lambda c: _length(table.column(c)), default=None)
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
    counted = names in ([str(i) for i in range(start, start + len(names))] for start in (0, 1))
    return counted or label not in map(str, table.column(label).unique().to_pylist())


def _called(role: str, columns: Sequence[str]) -> str | None:
    """The column that by its name has a role: its whole name says so, or else its last word."""
    for said in (str.lower, lambda name: re.split(r"[\W_]+", name.lower())[-1]):
        for word in CALLED[role]:
            if (found := next((c for c in columns if said(c.strip()) == word), None)) is not None:
                return found
    return None


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
        if not all(v.is_integer() for v in values.to_pylist()):
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
        if len(names) == 1 and (told := other_separator(path, names[0])):
            raise Unclear(told)
        table = read_table(path, Reading(columns=_once(names)))
    else:
        table = pyarrow.parquet.read_table(path) if kind == "parquet" else read_table(path)
    if not len(table):
        raise Unclear("it holds no rows")
    table = table.select([i for i, n in enumerate(table.column_names) if n in _once(table.column_names)])
    for i, field in enumerate(table.schema):
        if pa.types.is_dictionary(field.type):
            table = table.set_column(i, field.name, table.column(i).cast(field.type.value_type))
    return table


def _once(names: Sequence[str]) -> list[str]:
    return [n for n in names if n.strip() and names.count(n) == 1]


def _header(path: Path) -> list[str]:
    """The names of a CSV or TSV file's columns; none where they cannot be read, of which its reader tells."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as text:
            return next(csv.reader(text, delimiter="\t" if path.suffix.lower() == ".tsv" else ","), [])
    except (csv.Error, UnicodeDecodeError):
        return []
