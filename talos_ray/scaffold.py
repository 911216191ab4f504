"""A first spec from a folder of data: every file or image folder in it becomes a task, with its columns guessed. What
`check` reads is read here by the same readers."""

from __future__ import annotations

import re
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import yaml

from talos_ray.data.folders import IMAGES, SPLITS, files_below, has_tables, read_images, tables_in
from talos_ray.data.tables import KINDS, as_numbers, read_table
from talos_ray.errors import SpecError

MODELS = {"image": "open_clip:ViT-B-32/laion2b_s34b_b79k", "text": "hf:sentence-transformers/all-MiniLM-L6-v2"}
PROMPTS = {"image": "a photo of a {}.", "text": "{}"}
LABELS = ("label", "labels", "class", "category", "kind", "target", "y")
UPDATES = 300  # of a task, where its rows bear them
EPOCHS = 30  # at most
TRAINED = 0.7  # of a task's rows, where the splits are cut from them
BATCHES = {16: 400, 32: 2000, 64: float("inf")}  # size -> most training rows that it is for
SHOWN = 8  # classes that a comment names
LONGEST = 90  # characters of a task's name
PLAIN = re.compile(r"[A-Za-z][\w./-]*$", re.ASCII)  # what YAML reads as it stands, if it is no word of its own


@dataclass(frozen=True)
class Guess:
    """What one file or folder seems to be."""

    name: str
    data: str
    kind: str
    columns: dict[str, str]  # 'input' and 'label', where they are not the usual ones
    classes: list[str]
    rows: int
    unlabelled: int = 0  # rows among them


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
    inside = any(g.data == "." for g in found) and folder.resolve() == Path.cwd()
    output = "../runs/mine" if inside else "runs/mine"  # never among the data
    return "\n".join(
        [
            "# Made by `talos init`. What is guessed is marked; `talos check` tells all that is wrong before anything "
            "runs.",
            f"model: {scalar(model or MODELS[kind])}",
            "tasks:",
            *(line for g in found if g.kind == kind for line in _lines(g)),
            *(f"# left out, because it holds {g.kind}s: {comment(g.data)}" for g in found if g.kind != kind),
            *(f"# left out: {comment(why)}" for why in left),
            "# control:                    # what must hold: tasks that are looked at and never trained. Move one "
            "here, or name another",
            f"output: {output}             # a local path, or s3://bucket/folder",
            "# preset: auto                # also try masks and learning rates, in short runs",
            "# gate: {control_keep: 0.95}  # a version that does not meet it is kept aside",
            _training([g.rows for g in found if g.kind == kind], model or MODELS[kind], kind),
            "# cluster: {gpus_per_worker: 1}",
            "",
        ]
    )


def _training(rows: Sequence[int], model: str, kind: str) -> str:
    """How long and how fast to train on tasks of so many rows: about `UPDATES` updates, in passes that few
    rows bear."""
    train = max(1, round(TRAINED * statistics.median(rows)))
    batch = next(size for size, most in BATCHES.items() if train <= most)
    lr = "1.2e-3" if model == "demo" else "5.0e-4" if kind == "text" else "1.0e-4"
    an_epoch = max(1, train // batch)
    if an_epoch >= UPDATES:
        return f"train: {{steps: {UPDATES}, batch_size: {batch}, lr: {lr}, warmup_steps: {UPDATES // 10}}}"
    epochs = min(EPOCHS, round(UPDATES / an_epoch))
    updates = epochs * an_epoch
    told = f"# about {updates} updates on {train:,} training rows, the median task's"
    return f"train: {{epochs: {epochs}, batch_size: {batch}, lr: {lr}, warmup_steps: {max(1, updates // 10)}}}  {told}"


def _lines(g: Guess) -> list[str]:
    shown = ", ".join(g.classes[:SHOWN]) + (", …" if len(g.classes) > SHOWN else "")
    unlabelled = f"    # missing: drop            # {g.unlabelled} rows have no label; fill them, or leave them out so"
    return [
        f"  - name: {scalar(g.name)}",
        f"    data: {scalar(g.data)}",
        *(f"    {key}: {scalar(column)}                # guessed" for key, column in g.columns.items()),
        f"    # {len(g.classes)} classes: {comment(shown)}",
        *([unlabelled] if g.unlabelled else []),
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
        return [replace(whole, data=".")], []
    found: list[Guess] = []
    left: list[str] = []
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        try:
            guess = _guess(path)
        except (SpecError, pa.ArrowException, OSError) as error:
            left.append(f"{path.name}: {str(error).splitlines()[0]}")
            continue
        if guess is None:
            if path.is_dir() or path.suffix.lower() in KINDS:
                left.append(f"{path.name}: no classes were found in it")
            continue
        if not path.name.isascii() and not _utf8(path.name):
            left.append(f"{path.name!a}: its name is not UTF-8")
            continue
        taken = {g.name for g in found}
        names = [guess.name, *(f"{guess.name}_{i}" for i in range(2, len(found) + 3))]
        found.append(replace(guess, name=next(n for n in names if n not in taken)))
    return found, left


def _utf8(name: str) -> bool:
    try:
        return bool(name.encode())
    except UnicodeEncodeError:
        return False


def _whole(folder: Path) -> Guess | None:
    """The folder as one task: its folders are the classes, or the splits, of images; or its tables are the splits of
    one set."""
    try:
        files = [f.relative_to(folder) for f in files_below(folder)]
        tables = [f for f in files if f.suffix.lower() in KINDS]
        if tables:
            stems = {f.stem.lower() for f in tables}
            if len(tables) > 1 and all(len(f.parts) == 1 for f in tables) and stems <= set(SPLITS):
                return _guess_tables(folder)
            return None
        images = [f for f in files if f.suffix.lower() in IMAGES]
        tops = {f.parts[0] for f in images}
        near = images and all(len(f.parts) == 2 for f in images)
        split = images and all(len(f.parts) == 3 for f in images) and {t.lower() for t in tops} <= set(SPLITS)
        return _guess_images(folder) if near or split else None
    except (SpecError, pa.ArrowException, OSError):
        return None


def _guess(path: Path) -> Guess | None:
    if path.is_dir():
        return _guess_tables(path) if has_tables(path) else _guess_images(path)
    return _guess_table(path, path) if path.suffix.lower() in KINDS else None


def _guess_images(path: Path) -> Guess | None:
    if not any(f.suffix.lower() in IMAGES for f in files_below(path)):
        return None
    images = read_images(path)
    classes = list(images.classes)
    rows = sum(map(len, images.splits.values()))
    return Guess(_name(path), path.name, "image", {}, classes, rows) if len(classes) > 1 else None


def _guess_tables(path: Path) -> Guess | None:
    """A folder of a table a split: what train holds says what all hold."""
    splits = tables_in(path)
    return _guess_table(path, splits["train"][0]) if "train" in splits else None


def _name(path: Path) -> str:
    stem = path.resolve().name if path.is_dir() else path.stem
    return re.sub(r"[^A-Za-z0-9_.-]", "_", stem).lstrip("_.-")[:LONGEST] or "task"


def _guess_table(path: Path, file: Path) -> Guess | None:
    table = _read(file)
    few = {c: _values(table, c) for c in table.column_names if _countable(table.schema.field(c).type)}
    texts = [c for c in table.column_names if _is_text(table.schema.field(c).type)]
    images = [c for c in texts if _names_image(file, table.column(c))]
    images += [c for c in table.column_names if _holds_images(table.schema.field(c).type)]
    longest = max(texts, key=lambda c: sum(len(str(v)) for v in table.column(c).to_pylist()), default=None)
    source = images[0] if images else longest
    labels = {c: values for c, values in few.items() if c != source and 1 < len(values) <= len(table) / 2}
    if source is None or not labels:
        return None
    label = next((c for c in labels if c.lower() in LABELS), min(labels, key=lambda c: len(labels[c])))
    kind = "image" if images else "text"
    usual = {"input": kind, "label": "label"}
    columns = {key: c for key, c in (("input", source), ("label", label)) if c != usual[key]}
    return Guess(_name(path), path.name, kind, columns, labels[label], len(table), table.column(label).null_count)


def _values(table: pa.Table, column: str) -> list[str]:
    """What a column holds, as class names."""
    return sorted(str(v) for v in table.column(column).unique().to_pylist() if v is not None)


def _names_image(file: Path, column: pa.ChunkedArray) -> bool:
    first: Iterator[str] = (v for v in column.to_pylist() if v)
    name = next(first, "")
    return name.lower().endswith(tuple(IMAGES)) and (file.parent / name).is_file()


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _countable(kind: pa.DataType) -> bool:
    return _is_text(kind) or pa.types.is_integer(kind) or pa.types.is_boolean(kind)


def _holds_images(kind: pa.DataType) -> bool:
    return pa.types.is_struct(kind) and {f.name for f in kind} == {"bytes", "path"}


def _read(path: Path) -> pa.Table:
    """A file's rows, dictionaries spelt out; an empty one is refused."""
    kind = KINDS[path.suffix.lower()]
    table = pyarrow.parquet.read_table(path) if kind == "parquet" else read_table(path)
    if not len(table):
        raise OSError("it holds no rows")
    for i, field in enumerate(table.schema):
        column = table.column(i)
        if pa.types.is_dictionary(field.type):
            table = table.set_column(i, field.name, column.cast(field.type.value_type))
        elif kind == "csv":
            table = table.set_column(i, field.name, as_numbers(column))
    return table
