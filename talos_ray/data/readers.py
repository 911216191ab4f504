"""From what a task calls its data to rows, a split each: the demo's sets, files, folders, streams, the Hugging Face
Hub."""

from __future__ import annotations

import glob
import hashlib
import itertools
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from string import Formatter
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from talos_ray.config import CHOICE, Task
from talos_ray.data import harness, zero_shot
from talos_ray.data.folders import (
    IMAGES,
    METADATA,
    PUBLISHED,
    Images,
    check_readable,
    check_shards,
    files_below,
    has_tables,
    hidden_data,
    passed_over,
    read_images,
    split_of_folder,
    state_of,
    tables_in,
    told_some,
)
from talos_ray.data.split import rows_of
from talos_ray.data.tables import KINDS, Reading, check_is_table, column_names, read_table
from talos_ray.demo.tasks import RECIPES, cache_folder, materialize
from talos_ray.errors import SpecError, nearest

SAVED = ("dataset_info.json", "dataset_dict.json")  # of what save_to_disk wrote
FILE_NAME = "file_name"  # column of a metadata table, as datasets' imagefolder has it
IMAGE = "image"  # column of the images that it lists
KEY_OF_WEBDATASET = "__key__"  # column that every WebDataset has
CARD_SAYS = ("header", "names", "column_names", "skiprows", "quotechar", "quoting", "field", "encoding", "na_values")
VIEWS = {"string_view": "large_string", "binary_view": "large_binary"}  # as some writers of Parquet name the same
NOTHING = "nothing"  # what a column without any value holds
CARD = "README.md"  # in whose first lines a data set may say which of its files are which split


def is_here(task: Task) -> bool:
    """Whether a task's data are the demo's, or a file or folder, and not a name of the Hugging Face Hub.

    Raises:
        SpecError: neither can be called so.
    """
    path = Path(task.data).expanduser()
    # What looks like a path is meant as one, also where nothing is there: else a slip would be looked up on the Hub.
    named = path.suffix.lower() in KINDS or task.data.startswith((".", "/", "~", "demo:"))
    try:
        return path.exists() or named
    except OSError as error:
        # In a folder that is closed to this user; whoever reads it will say so.
        if named and isinstance(error, PermissionError):
            return True
        raise SpecError(
            f"task {task.name!r}: data {task.data[:200]!r} is no name of a file ({error.strerror}); wanted a file or "
            "folder that can be read, or a name of the Hub; check the path"
        ) from None


def state_of_data(task: Task) -> str:
    """Changes when a file of a task's data does. Of what is not here, nothing is known."""
    if harness.is_harness(task.data):
        return harness.kept(task.data).name
    if task.data.startswith("demo:") or not is_here(task):
        return ""
    state = state_of(Path(task.data).expanduser())
    return hashlib.sha256(repr(state).encode()).hexdigest()


def columns_of(task: Task) -> list[str]:
    """The columns that make an input: one, or those of a template."""
    if not task.templated:
        return [task.input]
    try:
        fields = [name for _, name, _, _ in Formatter().parse(task.template) if name is not None]
    except ValueError as error:
        raise SpecError(
            f"task {task.name!r}: {told_template(task)!r} is no template: {error}; wanted columns in braces, like "
            f"'{{question}} {{answer}}'"
        ) from None
    # A field may go on into a column: {meta[title]}, {answers.text}.
    return [re.split(r"[.\[]", field)[0] for field in fields]


def told_template(task: Task) -> str:
    return task.template.replace(CHOICE, " | ")


def load_splits(task: Task) -> tuple[dict[str, Any], list[str]]:
    """A `datasets.Dataset` a split, and what somebody should know of them.

    Raises:
        SpecError: what is named is not there, or cannot be read without guessing.
    """
    import datasets

    datasets.disable_progress_bars()
    if task.data.startswith("demo:"):
        return _demo_splits(task), []
    if harness.is_harness(task.data):
        files, notes = harness.files_of(task.data)
        return {split: _read_parquet([file]) for split, file in files.items()}, notes
    path = Path(task.data).expanduser()
    local = is_here(task)
    if task.stream is not None:
        stored = _kept_stream(task)
        if stored.exists():
            return datasets.load_dataset(str(stored)), []
    if local:
        _check_named(task, path)
    try:
        notes = []
        if local:
            splits, notes = _local(task, path)
        elif zero_shot.is_zero_shot_set(task.data):
            splits, notes = zero_shot.load(task.data)
        elif task.stream is not None:
            splits = datasets.load_dataset(task.data, task.config, streaming=True)
        else:
            splits = datasets.load_dataset(task.data, task.config)
        splits = _with_usual_names(splits, asked={*columns_of(task), task.label})
        return (_as_stored(splits) if task.stream is None else _streamed(task, splits)), notes
    except SpecError as error:
        place = f"task {task.name!r}: "
        raise SpecError(f"{place}{str(error).removeprefix(place)}") from None
    except Exception as error:  # the loaders raise many kinds; the user needs the task and the reason
        cause = error.__cause__ or error  # datasets wraps what a file's reader has said
        reason = " ".join(str(cause).split()) or type(cause).__name__
        kind = "cannot be read" if local else "is no Hugging Face dataset that can be reached, and no local file"
        raise SpecError(f"task {task.name!r}: data {task.data!r} {kind}: {reason[:300]}") from None


def _demo_splits(task: Task) -> dict[str, Any]:
    if task.data not in RECIPES:
        raise SpecError(
            f"task {task.name!r}: demo data {task.data!r} does not exist{nearest(task.data, RECIPES)}; known: "
            f"{', '.join(RECIPES)}"
        )
    files = materialize(task.data.removeprefix("demo:"))
    return {split: _read_parquet([Path(file)]) for split, file in files.items()}


def _check_named(task: Task, path: Path) -> None:
    """Raises SpecError unless a task's data on this machine are a folder, or a file that can be a table."""
    if not path.exists():
        raise SpecError(
            f"task {task.name!r}: data {task.data!r} does not exist; wanted a file or folder that can be read; check "
            "the path"
        )
    suffix = path.suffix.lower()
    if path.is_file() and suffix not in KINDS:
        raise SpecError(
            f"task {task.name!r}: data {task.data!r} is a {suffix or 'nameless'} file; wanted one of "
            f"{', '.join(KINDS)} or an image folder"
        )


def _with_usual_names(splits: Mapping[str, Any], asked: Collection[str] = ()) -> dict[str, Any]:
    """A WebDataset's columns are named by its files' endings; its images and classes are called as everywhere else.

    Args:
        asked: columns that the task calls by their names, which stay as they are.
    """
    import datasets

    named = {}
    for split, rows in splits.items():
        features = rows.features or {}
        if KEY_OF_WEBDATASET in features:
            images = [column for column, feature in features.items() if isinstance(feature, datasets.Image)]
            usual = {"cls": "label", **({images[0]: IMAGE} if len(images) == 1 else {})}
            new = {}
            for old, name in usual.items():
                if old in features and name not in features and old not in asked:
                    new[old] = name
            rows = rows.rename_columns(new)
        named[split] = rows
    return named


def _as_stored(splits: Mapping[str, Any]) -> dict[str, Any]:
    """The same rows, whatever form somebody had asked for when they were saved: images decoded, nothing as tensors."""
    import datasets

    plain = {}
    for split, rows in splits.items():
        rows = rows.with_format(None)
        for column, feature in rows.features.items():
            # What is asked to be RGB is made so by our rule: theirs clips 16 bits, and shows what was transparent.
            if isinstance(feature, datasets.Image) and (not feature.decode or feature.mode == "RGB"):
                rows = rows.cast_column(column, datasets.Image())
            if isinstance(feature, datasets.Value) and feature.dtype in VIEWS:
                rows = rows.cast_column(column, datasets.Value(VIEWS[feature.dtype]))
        plain[split] = rows
    return plain


def _local(task: Task, path: Path) -> tuple[dict[str, Any], list[str]]:
    """What lies on this machine, and what of it is not read."""
    import datasets

    if path.is_file():
        return _tables(task, {task.train_split: [path]}), []
    if any((path / name).is_file() for name in SAVED):
        _check_filled(path)
        splits = datasets.load_from_disk(str(path))
        return (splits if isinstance(splits, dict) else {task.train_split: splits}), []
    by_card = _describes_itself(path)
    notes = told_of_hidden(task, path)
    if not holds_rows(path):
        images = read_images(path, task.classes or ())
        if images.empty:
            notes.append(f"task {task.name!r}: folder(s) {told_some(images.empty)} of {task.data} hold no images")
        return _images(images), notes
    if task.config is not None and not by_card:
        raise SpecError(
            f"config is {task.config!r}, but no README.md of {task.data!r} names configs; wanted the folder of one "
            "alone; leave config out, and name that folder in data"
        )
    if not has_tables(path):
        if by_card:
            raise SpecError(
                f"{CARD} of {task.data!r} says which files are which split, which is read of tables only; wanted the "
                "images in folders that are called train and test; move them, or take `configs` out of it"
            )
        return _listed_images(task, path), notes
    notes_beside = _notes_beside_images(task, path)
    if notes_beside:
        images = read_images(path, task.classes or (), beside=notes_beside)
        notes.append(f"task {task.name!r}: of {task.data} these tables are not read: {told_some(notes_beside)}")
        return _images(images), notes
    others = passed_over(path)
    if others:
        notes.append(f"task {task.name!r}: of {task.data} these files are not read: {told_some(others)}")
    if not by_card:
        return _tables(task, tables_in(path)), notes
    splits, notes_of_card = _tables_by_card(task, path)
    return splits, [*notes, *notes_of_card]


def told_of_hidden(task: Task, path: Path) -> list[str]:
    """That files or folders in a folder are hidden and not read, if there are some."""
    hidden = hidden_data(path) if path.is_dir() else []
    folders = [name for name in hidden if (path / name).is_dir()]
    files = [name for name in hidden if name not in folders]
    notes = []
    for kind, names in (("folders", folders), ("files", files)):
        if names:
            notes.append(f"task {task.name!r}: of {path} the hidden {kind} {told_some(names)} are not read")
    return notes


def _tables_by_card(task: Task, path: Path) -> tuple[dict[str, Any], list[str]]:
    """Tables whose splits a data set's card names, and what somebody should know of them. What is in them is read as
    strictly as without a card, unless it says how it wants them read."""
    import datasets

    builder = datasets.load_dataset_builder(str(path), task.config, cache_dir=_cache(task))
    config = builder.config
    files = {str(split): list(map(Path, names)) for split, names in (config.data_files or {}).items()}
    below = []  # a card may also name files elsewhere
    for files_of_split in files.values():
        below += [file.relative_to(path) for file in files_of_split if file.is_relative_to(path)]
    check_shards(path, below)
    if not _is_plain(config, files):
        note = f"task {task.name!r}: {task.data} is read as its {CARD} says, by rules that guess what is missing"
        return datasets.load_dataset(str(path), task.config, cache_dir=_cache(task)), [note]
    delimiter = getattr(config, "delimiter", None) or getattr(config, "sep", None)
    splits = _tables(task, files, delimiter)
    # The card may name the classes that the files have only numbers for.
    feature = (builder.info.features or {}).get(task.label)
    for split, rows in splits.items():
        if isinstance(feature, datasets.ClassLabel) and rows.features[task.label].dtype.startswith(("int", "uint")):
            splits[split] = rows.cast_column(task.label, feature)
    return splits, []


def _notes_beside_images(task: Task, path: Path) -> list[str]:
    """The tables of a folder, if none of them has the column of the task's images, and there are images: then they are
    notes beside these (a list of class names, say)."""
    if task.kind != "image" or task.templated:
        return []
    files = list(files_below(path))
    if not any(file.suffix.lower() in IMAGES for file in files):
        return []
    tables = [file for file in files if file.suffix.lower() in KINDS and file.name not in PUBLISHED]
    if any(task.input in _columns_in(file) for file in tables):
        return []
    return [str(file.relative_to(path)) for file in tables]


def _columns_in(path: Path) -> list[str]:
    """The columns of a table; none, if it cannot be read as one."""
    try:
        if KINDS[path.suffix.lower()] == "parquet":
            names: list[str] = pq.read_schema(path).names
            return names
        return column_names(path)
    except (SpecError, OSError, pa.ArrowException):
        return []


def _check_filled(path: Path) -> None:
    """Raises SpecError where a split that `save_to_disk` wrote has no rows, which its own reader cannot say."""
    for state in sorted(path.rglob("state.json")):
        if not json.loads(state.read_text(encoding="utf-8")).get("_data_files", True):
            split = state.parent.name if state.parent != path else "the only one"
            raise SpecError(
                f"split {split!r} of {str(path)!r} holds 0 examples; wanted at least 1; save the set without it"
            )


def _is_plain(config: Any, files: Mapping[str, Sequence[Path]]) -> bool:
    """Whether the tables that a data set's card names can be read as strictly as others: of one kind, and with
    nothing said on how but what stands between cells."""
    kinds: set[str | None] = set()
    for files_of_split in files.values():
        kinds.update(KINDS.get(file.suffix.lower()) for file in files_of_split)
    if len(kinds) != 1 or None in kinds:
        return False
    # What a card leaves out has the loader's default.
    default = type(config)(name=config.name, data_dir=config.data_dir)
    return all(getattr(config, key, None) == getattr(default, key, None) for key in CARD_SAYS)


def _check_types(paths: Sequence[Path], columns: set[str], schemas: Sequence[pa.Schema]) -> None:
    """Raises SpecError unless all files of a split have the same columns, and in those that are needed the same kind
    of values."""
    first_names = schemas[0].names
    for path, schema in zip(paths, schemas, strict=True):
        twice = sorted(name for name in columns if schema.names.count(name) > 1)
        if twice:
            raise SpecError(f"{str(path)!r} has two columns that are called {twice[0]!r}; wanted one; rename the other")
        if set(schema.names) != set(first_names):
            raise SpecError(
                f"{str(path)!r} has other columns ({', '.join(schema.names)}) than {str(paths[0])!r} "
                f"({', '.join(first_names)}); wanted the same in all files of a split; rename them"
            )
    for column in sorted(columns & set(first_names)):
        kinds: dict[Path, str] = {}
        for path, schema in zip(paths, schemas, strict=True):
            kind = _kind_of(schema.field(column).type)
            if kind != NOTHING:  # which goes with any kind
                kinds[path] = kind
        for other, kind in kinds.items():
            first = next(iter(kinds))
            if kind != kinds[first]:
                raise SpecError(
                    f"column {column!r} holds {kinds[first]} in {str(first)!r} and {kind} in {str(other)!r}; "
                    "wanted the same in all files of a split; write them alike"
                )


def _check_class_names(paths: Sequence[Path], label: str, schemas: Sequence[pa.Schema]) -> None:
    """Raises SpecError where the files of a split count their classes differently: read together, the numbers of all
    would stand for the names of the first."""
    first = _class_names_in(schemas[0], label)
    for path, schema in zip(paths, schemas, strict=True):
        names = _class_names_in(schema, label)
        for place, (in_first, in_other) in enumerate(itertools.zip_longest(first, names)):
            if in_first != in_other:
                raise SpecError(
                    f"number {place} in column {label!r} is {_shown_class(in_first)} in {str(paths[0])!r} and "
                    f"{_shown_class(in_other)} in {str(path)!r}; wanted the same in all files of a split; write the "
                    "classes' names instead"
                )


def _shown_class(name: str | None) -> str:
    return "no class" if name is None else repr(name)


def _class_names_in(schema: pa.Schema, label: str) -> list[str]:
    """The classes' names that `datasets` has written beside a column of their numbers; none, if it has not."""
    import datasets

    feature = datasets.Features.from_arrow_schema(schema).get(label)
    return list(feature.names) if isinstance(feature, datasets.ClassLabel) else []


def _kind_of(kind: pa.DataType) -> str:
    """What an Arrow type holds, in a word."""
    if pa.types.is_dictionary(kind):
        return _kind_of(kind.value_type)
    if pa.types.is_null(kind):
        return NOTHING
    if pa.types.is_boolean(kind):
        return "truth values"
    if pa.types.is_integer(kind) or pa.types.is_floating(kind):
        return "numbers"
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return "texts"
    return str(kind)


def holds_rows(path: Path) -> bool:
    """Whether a folder says itself what its rows are, by tables or as `datasets` saves them; else it is images."""
    saved = any((path / name).is_file() for name in SAVED)
    return saved or has_tables(path) or any(f.name in METADATA for f in files_below(path))


def _reading(task: Task, columns: set[str]) -> Reading:
    """How a task wants its tables read, of which so many columns are needed."""
    return Reading(label=task.label, columns=columns, quotes=task.quotes, missing_words=task.missing_words)


def _tables(task: Task, files: Mapping[str, Sequence[Path]], delimiter: str | None = None) -> dict[str, Any]:
    """Tables of one kind, read strictly; Parquet, which cannot slide, by datasets, which maps it into memory.

    Args:
        delimiter: what stands between the cells of CSV files, if it is not what their suffix says.
    """

    needed = {*columns_of(task), task.label}
    how = replace(_reading(task, needed), delimiter=delimiter)
    # Only a column of images holds paths; in any other a text stays as it is, also where a file is called so.
    images = task.input if task.kind == "image" and not task.templated else None
    splits = {}
    for split, paths in files.items():
        if KINDS[paths[0].suffix.lower()] != "parquet":
            splits[split] = rows_of(_read_alike(paths, how, images))
            continue
        for path in paths:
            check_is_table(path)
        schemas = [pq.read_schema(path) for path in paths]
        _check_types(paths, needed, schemas)
        _check_class_names(paths, task.label, schemas)
        if not any(pq.read_metadata(path).num_rows for path in paths):
            raise SpecError(f"split {split!r} of {task.data} holds 0 examples; wanted at least 1; check the data")
        splits[split] = _read_parquet(paths, _cache(task))
    return splits


def _read_parquet(paths: Sequence[Path], cache: str | None = None) -> Any:
    """One `datasets.Dataset` of some Parquet files. `load_dataset("parquet")` would tell the Hub at every call that
    it was called; where names are not resolved quickly, that alone takes seconds."""
    import datasets

    # It takes names for patterns, in which brackets and stars stand for others.
    names = [glob.escape(str(path)) for path in paths]
    return datasets.Dataset.from_parquet(names, cache_dir=cache)


def _read_alike(paths: Sequence[Path], how: Reading, images: str | None = None) -> pa.Table:
    """The files of a split as one table.

    Args:
        images: a column whose texts are paths; those that lead somewhere from the table's own folder become whole.
    """
    tables = _read_each(paths, how, read_table)
    _check_types(paths, set(how.columns or ()), [table.schema for table in tables])
    if images is not None:
        tables = [_with_paths(path, table, images) for path, table in zip(paths, tables, strict=True)]
    # Permissive, because a column may be empty in one file, or hold whole numbers there alone.
    return pa.concat_tables(tables, promote_options="permissive")


def _read_each(paths: Sequence[Path], how: Reading, read: Callable[[Path, Reading], pa.Table]) -> list[pa.Table]:
    """Tables that belong together. Where labels are numbers in some CSV files only, all are texts, as they were
    written."""
    tables = [read(path, how) for path in paths]
    kinds = set()
    for table in tables:
        if how.label in table.column_names:
            kinds.add(_kind_of(table.schema.field(how.label).type))
    if len(kinds - {NOTHING}) > 1:
        tables = [read(path, replace(how, label=None)) for path in paths]
    return tables


def _with_paths(path: Path, table: pa.Table, column: str) -> pa.Table:
    """A table whose images are named from where it lies."""
    if column not in table.column_names or _kind_of(table.schema.field(column).type) != "texts":
        return table

    def whole(name: str | None) -> str | None:
        if name is None:
            return None
        beside = path.parent / name
        try:
            return str(beside) if beside.is_file() else name
        except (OSError, ValueError):  # too long, or with a zero in it: told with its row, later
            return name

    names = pa.array([whole(name) for name in table[column].to_pylist()], pa.string())
    return table.set_column(table.column_names.index(column), column, names)


def _cache(task: Task) -> str:
    """Where datasets keeps what it makes of files: by their sizes and times of change, too, because it looks at the
    latter alone."""
    import datasets

    return os.path.join(datasets.config.HF_DATASETS_CACHE, f"talos-{state_of_data(task)[:16]}")


def _describes_itself(path: Path) -> bool:
    """Whether a data set's card says which files are which split, as on the Hub."""
    card = path / CARD
    if not card.is_file():
        return False
    text = card.read_text(encoding="utf-8", errors="replace")
    if not text.startswith("---"):
        return False
    # Only its first lines, between dashes, are read by programs.
    head = text.split("\n---", 1)[0]
    return re.search(r"^configs:", head, re.MULTILINE) is not None


def _images(images: Images) -> dict[str, Any]:
    import datasets

    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=list(images.classes))})
    splits = {}
    for split, files in images.splits.items():
        columns = {"image": [str(file) for file, _ in files], "label": [number for _, number in files]}
        splits[split] = datasets.Dataset.from_dict(columns, features=features)
    return splits


def _listed_images(task: Task, path: Path) -> dict[str, Any]:
    """Images with tables (metadata.csv) that say what they show, by the files' names from the table's own folder; in
    folders that are called like splits, or all in one. Every image has to be in one row."""
    import datasets

    columns = {*columns_of(task), task.label} - {IMAGE}
    how = _reading(task, {*columns, FILE_NAME})
    lists = [file for file in files_below(path) if file.name in METADATA]
    tables = _read_each(lists, how, _metadata)
    listed: dict[str, list[pa.Table]] = {}  # split, or '' -> rows of its images
    seen: set[str] = set()
    for metadata, rows in zip(lists, tables, strict=True):
        images = _images_in(metadata, rows, seen)
        splits = [split_of_folder(image.relative_to(os.path.abspath(path))) for image in images]
        paths = pa.array([str(image) for image in images], pa.string())
        rows = rows.drop_columns([FILE_NAME]).append_column(IMAGE, paths)
        for split in dict.fromkeys(splits):
            of_split = pa.array([other == split for other in splits])
            listed.setdefault(split, []).append(rows.filter(of_split))
    if "" in listed and len(listed) > 1:
        named = ", ".join(sorted(set(listed) - {""}))
        raise SpecError(
            f"{str(path)!r}: some images lie in folders called like splits ({named}) and some do not; wanted all or "
            "none; move them"
        )
    _check_all_listed(path, seen)
    joined = {}
    for split, parts in listed.items():
        dataset = rows_of(pa.concat_tables(parts, promote_options="permissive"))
        joined[split or task.train_split] = dataset.cast_column(IMAGE, datasets.Image())
    return joined


def _images_in(metadata: Path, rows: pa.Table, seen: set[str]) -> list[Path]:
    """The image of every row. Adds their paths to `seen`, and raises SpecError for one that was there before."""
    images = [_image_in(metadata, row, name) for row, name in enumerate(rows[FILE_NAME].to_pylist())]
    for row, image in enumerate(images):
        # By its own name, not by what it is a link to: caches keep equal files once.
        if str(image) in seen:
            raise SpecError(
                f"{str(metadata)!r}, row {row}: {image.name!r} is listed twice; wanted a row an image; take one out"
            )
        seen.add(str(image))
    return images


def _check_all_listed(path: Path, listed: Collection[str]) -> None:
    """Raises SpecError where a folder holds an image that is not listed, or a file that nobody reads."""
    files = list(files_below(path))
    images = [file for file in files if file.suffix.lower() in IMAGES]
    rest = [file for file in files if os.path.abspath(file) not in listed and file.name not in METADATA]
    unlisted = [file for file in rest if file.suffix.lower() in IMAGES]
    if unlisted:
        raise SpecError(
            f"{str(path)!r}: {len(unlisted)} of {len(images)} images are not in its metadata, {told_some(unlisted)}; "
            "wanted a row each; add them or move them away"
        )
    check_readable(path, [file.relative_to(path) for file in rest])


def _metadata(path: Path, how: Reading) -> pa.Table:
    """A list of images.

    Raises:
        SpecError: it does not say which, or has a column that is called as they are.
    """
    rows = pq.read_table(path) if path.suffix == ".parquet" else read_table(path, how)
    if FILE_NAME not in rows.column_names:
        raise SpecError(
            f"{str(path)!r} has no column {FILE_NAME!r}; it has: {', '.join(rows.column_names)}; wanted the images' "
            "names there; rename one"
        )
    if IMAGE in rows.column_names:
        raise SpecError(
            f"{str(path)!r} has a column {IMAGE!r} of its own, which is what its images are called; rename the column"
        )
    return rows


def _image_in(metadata: Path, row: int, name: object) -> Path:
    """The image that a row of a folder's metadata names.

    Raises:
        SpecError: there is none.
    """
    image = Path(os.path.abspath(metadata.parent / str(name)))
    if name is None or not os.path.isfile(image):  # where `Path` would raise of a name that is too long
        raise SpecError(
            f"{str(metadata)!r}, row {row}: {FILE_NAME} is {str(name)[:100]!r}, and there is no such file beside it; "
            "wanted an image; correct the row"
        )
    return image


# ------------------------------------------------------------------------------------------- streams


def _kept_stream(task: Task) -> Path:
    """Where this machine keeps what it has read of a stream."""
    parts: list[object] = [
        task.data,
        state_of_data(task),
        task.config,
        task.stream,
        task.train_split,
        task.validation_split,
        task.test_split,
    ]
    if task.quotes or task.missing_words:
        parts += [task.quotes, task.missing_words]
    if is_here(task):  # of its tables only the columns are read that the task needs
        parts += sorted({*columns_of(task), task.label})
    if task.validation_from is not None:  # then a validation split is not read, and not kept either
        parts.append(task.validation_from)
    key = hashlib.sha256(repr(parts).encode()).hexdigest()
    return cache_folder() / "streams" / key[:16]


def _streamed(task: Task, splits: Mapping[str, Any]) -> dict[str, Any]:
    """Some rows of the splits that the task reads, kept as Parquet files: a stream can be read once only, from its
    beginning."""
    import datasets

    folder = _kept_stream(task)
    names = [task.train_split]
    if task.validation_from is None:
        names.append(task.validation_split or "validation")
    names.append(task.test_split or "test")
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Written elsewhere and renamed: nobody takes half of it for the whole.
    draft = Path(tempfile.mkdtemp(dir=folder.parent, prefix="."))
    # Each once: ImageNet is tested on its validation split, and a stream takes as long the second time.
    for name in dict.fromkeys(name for name in names if name in splits):
        rows = splits[name]
        features = splits[name].features
        if isinstance(rows, datasets.Dataset):
            rows = rows.to_iterable_dataset()
        rows = rows.shuffle(seed=0, buffer_size=task.stream).take(task.stream)
        # Images as the bytes of their files: decoded ones would be encoded again.
        for column, feature in (features or {}).items():
            if isinstance(feature, datasets.Image):
                rows = rows.cast_column(column, datasets.Image(decode=False))
        path = draft / "data" / f"{name}-00000-of-00001.parquet"
        path.parent.mkdir(exist_ok=True)
        datasets.Dataset.from_list(list(rows), features=features).to_parquet(path)
    try:
        draft.rename(folder)
    except OSError:  # another process was first
        shutil.rmtree(draft)
    stored: dict[str, Any] = datasets.load_dataset(str(folder))
    return stored
