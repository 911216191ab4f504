"""A first spec from a folder of data: every file or image folder in it becomes a task, with its columns guessed."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet

from talos_ray.errors import SpecError
from talos_ray.tasks import FILE_KINDS

MODELS = {"image": "open_clip:ViT-B-32/laion2b_s34b_b79k", "text": "hf:sentence-transformers/all-MiniLM-L6-v2"}
PROMPTS = {"image": "a photo of a {}.", "text": "{}"}
IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
LABELS = ("label", "labels", "class", "category", "kind", "target", "y")
SHOWN = 8  # classes that a comment names


@dataclass(frozen=True)
class Guess:
    """What one file or folder seems to be."""

    name: str
    data: str
    kind: str
    columns: dict[str, str]  # 'input' and 'label', where they are not the usual ones
    classes: list[str]


def scaffold(folder: Path, model: str | None = None) -> str:
    """A commented YAML spec of the tasks that lie in a folder.

    Raises:
        SpecError: there is no such folder, or nothing in it that could be a task.
    """
    if not folder.is_dir():
        raise SpecError(
            f"folder {str(folder)!r} does not exist; wanted one with a file or image folder a task; check the path"
        )
    found = [guess for path in sorted(folder.iterdir()) if (guess := _guess(path)) is not None]
    if not found:
        raise SpecError(
            f"folder {str(folder)!r} holds no {', '.join(FILE_KINDS)} with a label column, and no folder of images a class; wanted one a task"
        )
    kinds = [g.kind for g in found]
    kind = max(dict.fromkeys(kinds), key=kinds.count)
    return "\n".join(
        [
            "# Made by `talos init`. What is guessed is marked; `talos check` tells all that is wrong before anything runs.",
            f"model: {model or MODELS[kind]}",
            "tasks:",
            *(line for g in found if g.kind == kind for line in _lines(g)),
            *(f"# left out, because it holds {g.kind}s: {g.data}" for g in found if g.kind != kind),
            "# control:                    # what must hold: tasks that are looked at and never trained. Move one here, or name another",
            "output: runs/mine             # a local path, or s3://bucket/folder",
            "# preset: auto                # also try masks and learning rates, in short runs",
            "# gate: {control_keep: 0.95}  # a version that does not meet it is kept aside",
            "train: {steps: 500, batch_size: 64, lr: 1.0e-4, warmup_steps: 50}",
            "# cluster: {gpus_per_worker: 1}",
            "",
        ]
    )


def _lines(g: Guess) -> list[str]:
    shown = ", ".join(g.classes[:SHOWN]) + (", …" if len(g.classes) > SHOWN else "")
    return [
        f"  - name: {g.name}",
        f"    data: {g.data}",
        *(f"    {key}: {column}                # guessed" for key, column in g.columns.items()),
        f"    # {len(g.classes)} classes: {shown}",
        f'    prompts: ["{PROMPTS[g.kind]}"]   # {{}} stands for the class; say what it is in your own words',
    ]


def _guess(path: Path) -> Guess | None:
    name = re.sub(r"[^A-Za-z0-9_.-]", "_", path.stem).lstrip("_.-") or "task"
    if path.is_dir():
        classes = sorted(
            d.name for d in path.iterdir() if d.is_dir() and any(f.suffix.lower() in IMAGES for f in d.iterdir())
        )
        return Guess(name, path.name, "image", {}, classes) if len(classes) > 1 else None
    if path.suffix.lower() not in FILE_KINDS:
        return None
    try:
        table = _read(path)
    except (pa.ArrowException, OSError):
        return None
    few = {
        c: table.column(c).unique().to_pylist() for c in table.column_names if _countable(table.schema.field(c).type)
    }
    texts = [c for c in table.column_names if pa.types.is_string(table.schema.field(c).type)]
    images = [c for c in texts if str(table.column(c)[0]).lower().endswith(IMAGES)]
    images += [c for c in table.column_names if pa.types.is_struct(table.schema.field(c).type)]
    longest = max(texts, key=lambda c: sum(len(str(v)) for v in table.column(c).to_pylist()), default=None)
    source = images[0] if images else longest
    labels = {c: values for c, values in few.items() if c != source and 1 < len(values) <= len(table) / 2}
    if source is None or not labels:
        return None
    label = next((c for c in labels if c.lower() in LABELS), min(labels, key=lambda c: len(labels[c])))
    kind = "image" if images else "text"
    usual = {"input": kind, "label": "label"}
    columns = {key: c for key, c in (("input", source), ("label", label)) if c != usual[key]}
    return Guess(name, path.name, kind, columns, sorted(map(str, labels[label])))


def _countable(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_integer(kind)


def _read(path: Path) -> pa.Table:
    """A file's rows; an empty one is refused."""
    kind = FILE_KINDS[path.suffix.lower()]
    if kind == "parquet":
        table = pyarrow.parquet.read_table(path)
    elif kind == "json":
        table = pyarrow.json.read_json(path)
    else:
        split = pyarrow.csv.ParseOptions(
            delimiter="\t" if path.suffix.lower() == ".tsv" else ",", newlines_in_values=True
        )
        table = pyarrow.csv.read_csv(path, parse_options=split)
    if not len(table):
        raise OSError("no rows")
    return table
