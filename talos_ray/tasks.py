"""Tasks: from a name, a file or a Hugging Face dataset to checked examples with labels and class names."""

from __future__ import annotations

import functools
import hashlib
import re
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Formatter
from typing import Any

import pyarrow.compute as pc
import torch

from talos_ray.config import CHOICE, Task
from talos_ray.core.seeds import derive_seed
from talos_ray.demo.tasks import cache_folder
from talos_ray.errors import SpecError, nearest

FILE_KINDS = {".csv": "csv", ".tsv": "csv", ".parquet": "parquet", ".json": "json", ".jsonl": "json"}
ROWS = 512  # of a split that are looked at together
NUMBER = re.compile(r"-?\d+$")
UNEVEN = 10  # a class with less than such a part of the largest one's examples is told
ENDS = {b"\xff\xd8": b"\xff\xd9", b"\x89P": b"\x60\x82"}  # first and last two bytes of a JPEG and a PNG file
HELD = "holds the character U+001F, which separates a text from its choices; take it out"
VALIDATION_SHARE, TEST_SHARE = 0.1, 0.2  # cut from train where there is no such split


@dataclass(frozen=True, eq=False)
class Split:
    """Examples of one split: a `datasets.Dataset` with the input column, and labels int64 [n]."""

    rows: Any
    column: str
    labels: torch.Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def select(self, index: Sequence[int]) -> Split:
        index = [int(i) for i in index]
        return Split(self.rows.select(index), self.column, self.labels[index])

    def drawn(self, most: int, *seed: object) -> Split:
        """At most so many examples, drawn by a seed of any parts, in the order of the draw."""
        generator = torch.Generator().manual_seed(derive_seed(*seed))
        return self.select(torch.randperm(len(self), generator=generator)[:most].tolist())

    def fingerprint(self, labels: bool = True) -> str:
        """SHA-256 over the inputs' bytes, in order, and the labels (unless `labels` is False)."""
        digest = hashlib.sha256()
        table = self.rows.with_format("arrow")
        for start in range(0, len(self), ROWS):
            for value in table[start : start + ROWS].column(self.column).to_pylist():
                digest.update(_content(value))
        if labels:
            digest.update(self.labels.numpy().tobytes())
        return digest.hexdigest()

    def words(self, i: int) -> str:
        """One input so that a person finds it: its text, its file, or its number."""
        value = self.rows.with_format("arrow")[i : i + 1].column(self.column).to_pylist()[0]
        return value.replace(CHOICE, " | ") if isinstance(value, str) else (value.get("path") or f"row {i}")


def _content(value: object) -> bytes:
    if isinstance(value, dict) and set(value) == {"bytes", "path"}:  # the stored form of an image
        return value["bytes"] if value["bytes"] is not None else Path(value["path"]).read_bytes()
    return repr(value).encode()


@dataclass(frozen=True, eq=False)
class TaskData:
    """A task's three splits and its class names in label order."""

    task: Task
    classes: tuple[str, ...]
    train: Split
    validation: Split
    test: Split

    @property
    def phrases(self) -> tuple[str, ...]:
        return self.task.phrases or self.classes


# ------------------------------------------------------------------------------------------- loading


def load_task(task: Task, seed: int) -> TaskData:
    """Load and check a task, once a process. `seed` decides how missing splits are cut.

    Raises:
        SpecError: missing file, dataset or column, a label outside the classes, an empty split.
    """
    return _load_task(task.model_dump_json(exclude={"train", "checkpoint"}), seed)


@functools.lru_cache(maxsize=64)
def _load_task(settings: str, seed: int) -> TaskData:
    task = Task.model_validate_json(settings)
    splits = _load_splits(task)
    train_name = task.train_split
    if train_name not in splits:
        raise SpecError(
            f"task {task.name!r}: {task.data} has no split {train_name!r}; it has: {', '.join(splits)}; set train_split to one of them"
        )
    wanted = {"train": train_name}
    for kind, given in (("validation", task.validation_split), ("test", task.test_split)):
        if given is not None and given not in splits:
            raise SpecError(
                f"task {task.name!r}: {task.data} has no split {given!r}; it has: {', '.join(splits)}; set {kind}_split to one of them"
            )
        wanted[kind] = given or (kind if kind in splits else None)
    for name in {n for n in wanted.values() if n}:
        _check_columns(task, splits[name], name)
        if len(splits[name]) == 0:
            raise SpecError(
                f"task {task.name!r}: split {name!r} of {task.data} holds 0 examples; wanted at least 1; check the data"
            )
    said = {n: _said(task, splits[n], n) for n in wanted.values() if n}
    classes = _classes(task, splits[train_name].features[task.label], said.values())
    if task.phrases is not None and len(task.phrases) != len(classes):
        raise SpecError(
            f"task {task.name!r}: {len(task.phrases)} phrases for {len(classes)} classes; wanted one a class, in the classes' order"
        )
    if task.choices is not None and len(task.choices) != len(classes):
        raise SpecError(
            f"task {task.name!r}: {len(task.choices)} choices for {len(classes)} classes; wanted one template a class, in the classes' order"
        )
    parts = {
        kind: Split(*_as_inputs(task, splits[n], n), _labels(task, splits[n], n, said[n], classes))
        for kind, n in wanted.items()
        if n
    }
    if len(classes) < 2 and task.choices is None:
        raise SpecError(
            f"task {task.name!r}: column {task.label!r} of {task.data} has {len(classes)} class ({', '.join(classes)}); wanted at least 2; check the column, or name all in `classes`"
        )
    return TaskData(task, classes, **_cut_missing(task, parts, seed))


def load_rows(settings: Mapping[str, Any], data: str, classes: Sequence[str]) -> Split:
    """All rows of new data for a task that is described by `settings`, with the classes it has had so far; nothing is cut.

    Raises:
        SpecError: as `load_task`.
    """
    kept = {k: v for k, v in settings.items() if not k.endswith("split") and k != "config"}
    task = Task.model_validate({**kept, "data": data, "classes": classes})
    splits = _load_splits(task)
    name = "test" if "test" in splits else next(iter(splits))
    _check_columns(task, splits[name], name)
    rows, said = splits[name], _said(task, splits[name], name)
    labels = _labels(task, rows, name, said, _classes(task, rows.features[task.label], [said]))
    return Split(*_as_inputs(task, rows, name), labels)


def is_here(task: Task) -> bool:
    """Whether a task's data are the demo's, or a file or folder, and not a name of the Hugging Face Hub."""
    path = Path(task.data).expanduser()
    named = path.suffix.lower() in FILE_KINDS or task.data.startswith((".", "/", "~", "demo:"))
    return named or path.exists()


def _load_splits(task: Task) -> dict[str, Any]:
    import datasets

    datasets.disable_progress_bars()
    if task.data.startswith("demo:"):
        from talos_ray.demo.tasks import RECIPES, materialize

        if task.data not in RECIPES:
            raise SpecError(
                f"task {task.name!r}: demo data {task.data!r} does not exist{nearest(task.data, RECIPES)}; known: {', '.join(RECIPES)}"
            )
        return datasets.load_dataset("parquet", data_files=materialize(task.data.removeprefix("demo:")))
    path = Path(task.data).expanduser()
    suffix, local = path.suffix.lower(), is_here(task)
    if task.stream is not None and (kept := _kept_stream(task)).exists():
        return datasets.load_dataset(str(kept))
    if local and not path.exists():
        raise SpecError(
            f"task {task.name!r}: data {task.data!r} does not exist; wanted a file or folder that can be read; check the path"
        )
    if local and path.is_file() and suffix not in FILE_KINDS:
        raise SpecError(
            f"task {task.name!r}: data {task.data!r} is a {suffix or 'nameless'} file; wanted one of {', '.join(FILE_KINDS)} or an image folder"
        )
    how = {"streaming": True} if task.stream is not None else {}
    try:
        if any((path / name).is_file() for name in ("dataset_info.json", "dataset_dict.json")):
            splits = datasets.load_from_disk(str(path))  # what save_to_disk wrote
            splits = splits if isinstance(splits, dict) else {task.train_split: splits}
            splits = {n: rows.to_iterable_dataset() if how else rows for n, rows in splits.items()}
        elif local and path.is_file():
            how |= {"sep": "\t"} if suffix == ".tsv" else {}
            splits = datasets.load_dataset(FILE_KINDS[suffix], data_files={task.train_split: str(path)}, **how)
        elif local and any(f.suffix.lower() in FILE_KINDS and f.stem != "metadata" for f in path.rglob("*.*")):
            splits = datasets.load_dataset(str(path), **how)  # a data set as it lies on the Hub
        elif local:
            splits = datasets.load_dataset("imagefolder", data_dir=str(path), **how)
        else:
            splits = datasets.load_dataset(task.data, task.config, **how)
        return splits if task.stream is None else _streamed(task, splits)
    except Exception as error:  # the loaders raise many kinds; the user needs the task and the reason
        if "no data" in str(error) or (local and path.is_file() and path.stat().st_size == 0):
            raise SpecError(
                f"task {task.name!r}: {task.data!r} holds 0 examples; wanted rows with columns {task.input!r} and {task.label!r}; check the data"
            ) from None
        cause = error.__cause__ or error  # datasets wraps what a file's reader has said
        reason = str(cause).strip().splitlines()[0] if str(cause).strip() else type(cause).__name__
        kind = "cannot be read" if local else "is no Hugging Face dataset that can be reached, and no local file"
        raise SpecError(f"task {task.name!r}: data {task.data!r} {kind}: {reason[:300]}") from None


def _kept_stream(task: Task) -> Path:
    """Where this machine keeps what it has read of a stream."""
    path = Path(task.data).expanduser()
    changed = path.stat().st_mtime_ns if path.exists() else None
    told = [task.data, changed, task.config, task.stream, task.train_split, task.validation_split, task.test_split]
    return cache_folder() / "streams" / hashlib.sha256(repr(told).encode()).hexdigest()[:16]


def _streamed(task: Task, splits: Mapping[str, Any]) -> dict[str, Any]:
    """Some rows of the splits that the task reads, kept as Parquet files: a stream can be read once only, from its beginning."""
    import datasets

    kept, wanted = (
        _kept_stream(task),
        (task.train_split, task.validation_split or "validation", task.test_split or "test"),
    )
    kept.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(dir=kept.parent, prefix="."))
    for name in [n for n in wanted if n in splits]:
        rows, features = splits[name].shuffle(seed=0, buffer_size=task.stream).take(task.stream), splits[name].features
        for column, feature in (features or {}).items():
            if isinstance(feature, datasets.Image):
                rows = rows.cast_column(column, datasets.Image(decode=False))
        path = draft / "data" / f"{name}-00000-of-00001.parquet"
        path.parent.mkdir(exist_ok=True)
        datasets.Dataset.from_list(list(rows), features=features).to_parquet(path)
    try:
        draft.rename(kept)
    except OSError:  # another process was first
        shutil.rmtree(draft)
    return datasets.load_dataset(str(kept))


def broken_images(split: Split) -> list[int]:
    """Rows whose image file ends too early. Only files that do not end as their format says are decoded, so it is cheap to ask."""
    from datasets import Image

    found, table = [], split.rows.with_format("arrow")
    for start in range(0, len(split), ROWS):
        values = table[start : start + ROWS].column(split.column).combine_chunks()
        stored, paths = values.field("bytes"), values.field("path").to_pylist()
        firsts, lasts = (pc.binary_slice(stored, *part).to_pylist() for part in ((0, 2), (-2, None)))
        for row, (first, last, path) in enumerate(zip(firsts, lasts, paths, strict=True)):
            if first is None:
                first, last = _ends(Path(path))
            if not first or ENDS.get(first, last) != last:
                try:
                    Image().decode_example(values[row].as_py()).load()
                except OSError:
                    found.append(start + row)
    return found


def _ends(path: Path) -> tuple[bytes, bytes]:
    with path.open("rb") as file:
        start = file.read(2)
        file.seek(max(0, path.stat().st_size - 2))
        return start, file.read()


def told_of(data: TaskData) -> str | None:
    """What somebody should know of a task's training data before an hour is spent on it: classes that are rare or missing."""
    counts = data.train.labels.bincount(minlength=len(data.classes))
    rare = [i for i in counts.argsort().tolist() if counts[i] * UNEVEN < counts.max()]
    if not rare:
        return None
    named = ", ".join(f"{data.classes[i]!r} {int(counts[i])}" for i in rare[:4])
    more = f" and {len(rare) - 4} more" if len(rare) > 4 else ""
    return f"task {data.task.name!r}: rare classes in its {len(data.train)} training examples: {named}{more}; the largest has {int(counts.max())}; accuracy counts every input alike"


def _columns(task: Task) -> list[str]:
    """The columns that make an input: one, or those of a template."""
    if not task.templated:
        return [task.input]
    try:
        fields = [name for _, name, _, _ in Formatter().parse(task.template) if name is not None]
    except ValueError as error:
        raise SpecError(
            f"task {task.name!r}: {_told(task)!r} is no template: {error}; wanted columns in braces, like '{{question}} {{answer}}'"
        ) from None
    return [re.split(r"[.\[]", name)[0] for name in fields]


def _told(task: Task) -> str:
    return task.template.replace(CHOICE, " | ")


def _filled(task: Task, rows, split: str):
    """The rows with a column `input`, made of several by the task's template."""

    def fill(row: dict, number: int) -> dict[str, str]:
        try:
            text = task.template.format(**row)
            if text.count(CHOICE) != len(task.choices or ()):
                raise SpecError(f"task {task.name!r}: row {number} of split {split!r} {HELD}")
            return {"input": text}
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise SpecError(
                f"task {task.name!r}: row {number} of split {split!r} does not fit the template {_told(task)!r}: {type(error).__name__} {error}; correct the row, or the template"
            ) from None

    return rows.map(fill, with_indices=True, remove_columns=_columns(task), load_from_cache_file=False)


def _check_columns(task: Task, rows, split: str) -> None:
    for key, column in (*(("input", c) for c in _columns(task)), ("label", task.label)):
        if column not in rows.column_names:
            raise SpecError(
                f"task {task.name!r}: column {column!r} is not in split {split!r} of {task.data}{nearest(column, rows.column_names)}; "
                f"it has: {', '.join(rows.column_names)}; set {key} to one of them"
            )


def _classes(task: Task, feature: Any, columns: Iterable[list]) -> tuple[str, ...]:
    """The class names in label order: the task's own, those of the label column's feature, or what its columns hold."""
    import datasets

    if task.classes is not None:
        if isinstance(feature, datasets.ClassLabel) and feature.num_classes != len(task.classes):
            raise SpecError(
                f"task {task.name!r}: {len(task.classes)} classes given, but the data has {feature.num_classes} "
                f"({', '.join(feature.names[:8])}{', …' if feature.num_classes > 8 else ''}); give one name a class, in label order"
            )
        return tuple(task.classes)
    if isinstance(feature, datasets.ClassLabel):
        return tuple(feature.names)
    values = {v for column in columns for v in column} - {None}
    if values and all(_whole(v) for v in values):
        counted = min(values) == 0 and max(values) < 2 * len(values)  # a class or two may be missing
        return tuple(str(i) for i in (range(max(values) + 1) if counted else sorted(values)))
    return tuple(sorted(map(str, values)))


def _whole(label: object) -> bool:
    return isinstance(label, int) and not isinstance(label, bool)


def _said(task: Task, rows, split: str) -> list:
    """The label column: names, truth values or whole numbers, also where a missing one has made floats of them; None where there is none."""
    values = rows[task.label][:]
    # As the Hub has test splits of competitions.
    if set(map(str, values)) <= {"-1", "None"} and "-1" not in (task.classes or ()):
        raise SpecError(
            f"task {task.name!r}: split {split!r} of {task.data} has no labels (all are {values[0]}); wanted labelled examples; set train_split, validation_split or test_split to splits that have them"
        )
    for row, value in enumerate(values):
        if isinstance(value, float):
            value = values[row] = None if value != value else int(value) if value.is_integer() else value
        if not (value is None or isinstance(value, str | int)):
            raise SpecError(
                f"task {task.name!r}: row {row} of split {split!r} has label {value!r} in column {task.label!r}; wanted the name of a class, or its number; set label to such a column"
            )
    return values


def _labels(task: Task, rows, split: str, raw: list, classes: tuple[str, ...]) -> torch.Tensor:
    """Places among the classes, int64 [n], of what `_said` gave."""
    import datasets

    index = {name: i for i, name in enumerate(classes)}
    # Where the classes are numbers themselves (ratings from 1 to 5), a number is the name of one, and else its place.
    named = all(map(NUMBER.match, classes)) or not all(_whole(v) for v in raw if v is not None)
    places = isinstance(rows.features[task.label], datasets.ClassLabel) or not named
    labels = [v if places and _whole(v) else index.get(str(v), -1) for v in raw]
    for row, label in enumerate(labels):
        if not 0 <= label < len(classes):
            raise SpecError(
                f"task {task.name!r}: row {row} of split {split!r} has label {raw[row]!r}, which is outside its {len(classes)} classes "
                f"({', '.join(classes[:8])}{', …' if len(classes) > 8 else ''}){nearest(str(raw[row]), classes)}; correct the row or add the class"
            )
    return torch.tensor(labels, dtype=torch.int64)


def _as_inputs(task: Task, rows, split: str):
    """The rows, and their input column. Texts stay as they are; paths and bytes become images; paths are relative to the file that
    names them."""
    import datasets
    from datasets import Image, Value

    if task.templated:
        return _filled(task, rows, split), "input"
    feature = rows.features[task.input]
    if task.kind == "text":
        if not (isinstance(feature, Value) and feature.dtype in ("string", "large_string")):
            raise SpecError(
                f"task {task.name!r}: column {task.input!r} of {task.data} holds {feature}; wanted texts; set input to such a column"
            )
        values = rows.with_format("arrow")[:].column(task.input)
        if pc.any(pc.match_substring(values, CHOICE)).as_py():
            raise SpecError(f"task {task.name!r}: column {task.input!r} of split {split!r} {HELD}")
        if values.null_count:
            row = list(rows[task.input]).index(None)
            raise SpecError(
                f"task {task.name!r}: row {row} of split {split!r} has no text in column {task.input!r}; fill it, or drop the row"
            )
        return rows, task.input
    if isinstance(feature, Value) and feature.dtype in ("string", "large_string"):
        folder = Path(task.data).expanduser().parent
        paths = [str(p if Path(p).is_absolute() else folder / p) for p in rows[task.input][:]]
        for row, p in enumerate(paths):
            if not Path(p).is_file():
                raise SpecError(
                    f"task {task.name!r}: row {row} of {task.data} names image {p!r}, which does not exist; wanted a path relative to the file's folder"
                )
        rows = rows.remove_columns(task.input).add_column(task.input, paths)
        return rows.cast_column(task.input, Image()), task.input
    if isinstance(feature, Value) and feature.dtype in ("binary", "large_binary"):
        return rows.cast_column(task.input, Image()), task.input
    if isinstance(feature, dict) and set(feature) == {"bytes", "path"}:
        return rows.cast_column(task.input, datasets.Image()), task.input
    if not isinstance(feature, Image):
        raise SpecError(
            f"task {task.name!r}: column {task.input!r} of {task.data} holds {feature}; wanted images, image bytes or image paths; set input to such a column"
        )
    return rows, task.input


def _cut_missing(task: Task, parts: dict[str, Split], seed: int) -> dict[str, Split]:
    train = parts["train"]
    order = torch.randperm(
        len(train), generator=torch.Generator().manual_seed(derive_seed(seed, task.name, "split"))
    ).tolist()
    for kind, share in (("test", TEST_SHARE), ("validation", VALIDATION_SHARE)):
        if kind not in parts:
            n = round(share * len(train))
            if n == 0 or n >= len(order):
                raise SpecError(
                    f"task {task.name!r}: {len(train)} examples are too few to cut a {kind} split; wanted at least 10, or a split of its own; add data"
                )
            parts[kind], order = train.select(sorted(order[:n])), order[n:]
    if len(order) < len(train):
        parts["train"] = train.select(sorted(order))
    return parts


def encoded(split: Split) -> list:
    """The split's texts, or its images as stored bytes: small enough to travel, and independent of local files."""
    values = split.rows.with_format("arrow")[:].column(split.column).to_pylist()
    return [v if isinstance(v, str) else {"bytes": _content(v), "path": None} for v in values]


def decoded(values: list) -> list:
    """What `encoded` gave, as examples that a family reads."""
    from datasets import Image

    decode = Image().decode_example
    return [v if isinstance(v, str) else decode(v) for v in values]
