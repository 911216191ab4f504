"""From what a task calls its data to rows, a split each: the demo's sets, files, folders, streams, the Hugging Face
Hub."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import Formatter
from typing import Any

from talos_ray.config import CHOICE, Task
from talos_ray.data.folders import (
    IMAGES,
    METADATA,
    Images,
    files_below,
    has_tables,
    read_images,
    state_of,
    tables_in,
    told_some,
)
from talos_ray.data.tables import KINDS, Reading, read_table
from talos_ray.demo.tasks import RECIPES, cache_folder, materialize
from talos_ray.errors import SpecError, nearest

SAVED = ("dataset_info.json", "dataset_dict.json")  # of what save_to_disk wrote
CARD = "README.md"  # in whose first lines a data set may say which of its files are which split


def is_here(task: Task) -> bool:
    """Whether a task's data are the demo's, or a file or folder, and not a name of the Hugging Face Hub."""
    path = Path(task.data).expanduser()
    named = path.suffix.lower() in KINDS or task.data.startswith((".", "/", "~", "demo:"))
    return named or path.exists()


def state_of_data(task: Task) -> str:
    """Changes when a file of a task's data does. Of what is not here, nothing is known."""
    if task.data.startswith("demo:") or not is_here(task):
        return ""
    return hashlib.sha256(repr(state_of(Path(task.data).expanduser())).encode()).hexdigest()


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
    return [re.split(r"[.\[]", name)[0] for name in fields]


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
        if task.data not in RECIPES:
            raise SpecError(
                f"task {task.name!r}: demo data {task.data!r} does not exist{nearest(task.data, RECIPES)}; known: "
                f"{', '.join(RECIPES)}"
            )
        return datasets.load_dataset("parquet", data_files=materialize(task.data.removeprefix("demo:"))), []
    path = Path(task.data).expanduser()
    suffix, local = path.suffix.lower(), is_here(task)
    if task.stream is not None and (kept := _kept_stream(task)).exists():
        return datasets.load_dataset(str(kept)), []
    if local and not path.exists():
        raise SpecError(
            f"task {task.name!r}: data {task.data!r} does not exist; wanted a file or folder that can be read; check "
            "the path"
        )
    if local and path.is_file() and suffix not in KINDS:
        raise SpecError(
            f"task {task.name!r}: data {task.data!r} is a {suffix or 'nameless'} file; wanted one of "
            f"{', '.join(KINDS)} or an image folder"
        )
    try:
        if not local:
            how = {"streaming": True} if task.stream is not None else {}
            splits, notes = datasets.load_dataset(task.data, task.config, **how), []
        else:
            splits, notes = _local(task, path)
        return (splits if task.stream is None else _streamed(task, splits)), notes
    except SpecError as error:
        raise SpecError(f"task {task.name!r}: {error}") from None
    except Exception as error:  # the loaders raise many kinds; the user needs the task and the reason
        cause = error.__cause__ or error  # datasets wraps what a file's reader has said
        reason = str(cause).strip().splitlines()[0] if str(cause).strip() else type(cause).__name__
        kind = "cannot be read" if local else "is no Hugging Face dataset that can be reached, and no local file"
        raise SpecError(f"task {task.name!r}: data {task.data!r} {kind}: {reason[:300]}") from None


def _local(task: Task, path: Path) -> tuple[dict[str, Any], list[str]]:
    """What lies on this machine."""
    import datasets

    if path.is_file():
        return _tables(task, {task.train_split: [path]}), []
    if not holds_rows(path):
        found = read_images(path, task.classes or ())
        told = f"task {task.name!r}: folder(s) {told_some(found.empty)} of {task.data} hold no images"
        return _images(found), [told] if found.empty else []
    if any((path / name).is_file() for name in SAVED):
        splits = datasets.load_from_disk(str(path))
        return (splits if isinstance(splits, dict) else {task.train_split: splits}), []
    if has_tables(path):
        if _describes_itself(path):
            return datasets.load_dataset(str(path), task.config, cache_dir=_cache(task)), []
        return _tables(task, tables_in(path)), []
    return _listed_images(task, path), []


def holds_rows(path: Path) -> bool:
    """Whether a folder says itself what its rows are, by tables or as `datasets` saves them; else it is images."""
    saved = any((path / name).is_file() for name in SAVED)
    return saved or has_tables(path) or any(f.name in METADATA for f in files_below(path))


def _tables(task: Task, files: Mapping[str, Sequence[Path]]) -> dict[str, Any]:
    """Tables of one kind, read strictly; Parquet, which cannot slide, by datasets, which maps it into memory."""
    import datasets

    how = Reading(task.label, {*columns_of(task), task.label}, task.quotes, task.missing_words)
    found = {}
    for split, paths in files.items():
        if KINDS[paths[0].suffix.lower()] == "parquet":
            read = datasets.load_dataset(
                "parquet", data_files={"rows": [str(p) for p in paths]}, cache_dir=_cache(task)
            )
            found[split] = read["rows"]
            continue
        parts = [datasets.Dataset(read_table(path, how)) for path in paths]
        if odd := [
            p for p, rows in zip(paths, parts, strict=True) if set(rows.column_names) != set(parts[0].column_names)
        ]:
            raise SpecError(
                f"{str(odd[0])!r} has other columns ({', '.join(parts[paths.index(odd[0])].column_names)}) than "
                f"{str(paths[0])!r} ({', '.join(parts[0].column_names)}); "
                f"wanted the same in all files of a split; rename them"
            )
        found[split] = _joined(task, parts) if len(parts) > 1 else parts[0]
    return found


def _joined(task: Task, parts: list) -> Any:
    """Files of one split as one. Where a label column holds numbers in one file only, all of them are texts."""
    import datasets

    if len({str(p.features.get(task.label)) for p in parts}) > 1:
        parts = [p.cast_column(task.label, datasets.Value("string")) for p in parts]
    return datasets.concatenate_datasets(parts)


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
    return text.startswith("---") and re.search(r"^configs:", text.split("\n---", 1)[0], re.MULTILINE) is not None


def _images(found: Images) -> dict[str, Any]:
    import datasets

    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=list(found.classes))})
    return {
        split: datasets.Dataset.from_dict(
            {"image": [str(f) for f, _ in files], "label": [label for _, label in files]}, features=features
        )
        for split, files in found.splits.items()
    }


def _listed_images(task: Task, path: Path) -> dict[str, Any]:
    """Images with a table (metadata.csv) that says what they show. Every image has to be in it."""
    import datasets

    splits = datasets.load_dataset("imagefolder", data_dir=str(path), cache_dir=_cache(task), drop_labels=True)
    read = set()
    for rows in splits.values():
        for column, feature in rows.features.items():
            if isinstance(feature, datasets.Image):
                stored = rows.with_format("arrow")[:].column(column).to_pylist()
                read |= {os.path.realpath(v["path"]) for v in stored if v and v["path"]}
    there = [f for f in files_below(path) if f.suffix.lower() in IMAGES]
    if lost := [f for f in there if os.path.realpath(f) not in read]:
        raise SpecError(
            f"{str(path)!r}: {len(lost)} of {len(there)} images are not in its metadata, {told_some(lost)}; wanted a "
            "row each; add them or move them away"
        )
    return splits


# ------------------------------------------------------------------------------------------- streams


def _kept_stream(task: Task) -> Path:
    """Where this machine keeps what it has read of a stream."""
    told = [
        task.data,
        state_of_data(task),
        task.config,
        task.stream,
        task.train_split,
        task.validation_split,
        task.test_split,
    ]
    if task.quotes or task.missing_words:
        told += [task.quotes, task.missing_words]
    return cache_folder() / "streams" / hashlib.sha256(repr(told).encode()).hexdigest()[:16]


def _streamed(task: Task, splits: Mapping[str, Any]) -> dict[str, Any]:
    """Some rows of the splits that the task reads, kept as Parquet files: a stream can be read once only, from its
    beginning."""
    import datasets

    kept = _kept_stream(task)
    wanted = (task.train_split, task.validation_split or "validation", task.test_split or "test")
    kept.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(dir=kept.parent, prefix="."))
    for name in [n for n in wanted if n in splits]:
        rows, features = splits[name], splits[name].features
        if isinstance(rows, datasets.Dataset):
            rows = rows.to_iterable_dataset()
        rows = rows.shuffle(seed=0, buffer_size=task.stream).take(task.stream)
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
