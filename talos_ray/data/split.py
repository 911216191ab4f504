"""Which example is trained on, which is held out: splits that are cut from train, and inputs that stand in two of
them."""

from __future__ import annotations

import functools
import hashlib
import uuid
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import torch

from talos_ray.config import CHOICE, Task
from talos_ray.core.seeds import derive_seed
from talos_ray.errors import SpecError

ROWS = 512  # of a split that are looked at together
SHOWN = 300  # characters of an input that a message shows


@dataclass(frozen=True, eq=False)
class Split:
    """Examples of one split: a `datasets.Dataset` with the input column, and labels int64 [n]."""

    rows: Any
    column: str
    labels: torch.Tensor
    notes: tuple[str, ...] = ()  # what somebody should know of new data
    marks: torch.Tensor | None = None  # int64 [n], the same where inputs are, once that was asked

    def __len__(self) -> int:
        return len(self.labels)

    def select(self, index: Sequence[int]) -> Split:
        index = [int(i) for i in index]
        marks = None if self.marks is None else self.marks[index]
        rows = self.rows.select(index, new_fingerprint=_any_name())
        return Split(rows, self.column, self.labels[index], marks=marks)

    def drawn(self, most: int, *seed: object) -> Split:
        """At most so many examples, drawn by a seed of any parts, in the order of the draw."""
        generator = torch.Generator().manual_seed(derive_seed(*seed))
        return self.select(torch.randperm(len(self), generator=generator)[:most].tolist())

    def fingerprint(self, labels: bool = True) -> str:
        """SHA-256 over the inputs' bytes, in order, and the labels (unless `labels` is False)."""
        return self._fingerprints[int(labels)]

    @functools.cached_property
    def _fingerprints(self) -> tuple[str, str]:
        """Without and with the labels: asked for often, and found by reading every input."""
        digest = hashlib.sha256()
        for content in self.contents():
            digest.update(content)
        inputs = digest.hexdigest()
        digest.update(self.labels.numpy().tobytes())
        return inputs, digest.hexdigest()

    def contents(self) -> Iterable[bytes]:
        """Every input's bytes, in order."""
        # As Arrow gives them: decoded images are neither what is stored nor the same with every version of Pillow.
        table = self.rows.with_format("arrow")
        for start in range(0, len(self), ROWS):
            for value in table[start : start + ROWS].column(self.column).to_pylist():
                yield content_of(value)

    def digest(self, i: int) -> bytes:
        """SHA-256 of one input's bytes."""
        return hashlib.sha256(content_of(self._stored(i))).digest()

    def column_values(self) -> pa.ChunkedArray:
        return self.rows.with_format("arrow")[:].column(self.column)

    def sizes(self) -> list[int] | None:
        """Bytes of every image, without reading it; None of texts."""
        table = self.rows.with_format("arrow")
        kind = table[0:1].column(self.column).type
        if pa.types.is_string(kind) or pa.types.is_large_string(kind):
            return None
        sizes: list[int] = []
        for start in range(0, len(self), ROWS):
            values = table[start : start + ROWS].column(self.column).combine_chunks()
            # An image is stored as its bytes or, where these are missing, as the path of its file.
            lengths = pc.binary_length(values.field("bytes")).to_pylist()
            paths = values.field("path").to_pylist()
            for length, path in zip(lengths, paths, strict=True):
                sizes.append(length if length is not None else Path(path).stat().st_size)
        return sizes

    def words(self, i: int) -> str:
        """One input so that a person finds it: its text, its file, or its number."""
        value = self._stored(i)
        if isinstance(value, str):
            return value.replace(CHOICE, " | ")
        return value.get("path") or f"row {i}"

    def told(self, i: int) -> str:
        """One input in quotation marks, for a message: the beginning of a long text."""
        words = self.words(i)
        return repr(words if len(words) <= SHOWN else f"{words[:SHOWN]}…")

    def _stored(self, i: int) -> Any:
        return self.rows.with_format("arrow")[i : i + 1].column(self.column).to_pylist()[0]


def rows_of(table: pa.Table) -> Any:
    """A `datasets.Dataset` of a table."""
    import datasets

    return datasets.Dataset(table, fingerprint=_any_name())


def _any_name() -> str:
    """What datasets calls some rows: it would hash all of them for a name, and nothing is kept under it."""
    return uuid.uuid4().hex[:16]


def content_of(value: object) -> bytes:
    """What two inputs that are the same have in common: of an image its file's bytes, of a text its characters."""
    if isinstance(value, dict) and set(value) == {"bytes", "path"}:  # the stored form of an image
        content: bytes | None = value["bytes"]
        return content if content is not None else Path(value["path"]).read_bytes()
    return repr(value).encode()


def cut_missing(task: Task, parts: dict[str, Split], seed: int) -> dict[str, Split]:
    """Train, validation and test; what is missing is cut from train, by seed; validation from test, if the task says
    so.

    Raises:
        SpecError: too few examples.
    """
    whole = {"train": parts["train"]}
    orders = {"train": _order(task, parts["train"], seed)}
    # By content, the parts stay in the drawn order: the file's own may differ from one copy of it to another.
    by_content = task.split_by == "content"
    cut = (("test", "train", task.test_share), ("validation", task.validation_from or "train", task.validation_share))
    for kind, source, share in cut:
        if kind in parts:
            continue
        if source not in whole:
            whole[source] = parts[source]
            orders[source] = _order(task, parts[source], seed)
        rows = whole[source]
        order = orders[source]
        n = int(share * len(rows)) if task.split_by == "random_split" else round(share * len(rows))
        if kind == "validation":
            n = min(n, task.validation_most or n)
        if n == 0 or n >= len(order):
            raise SpecError(
                f"task {task.name!r}: {len(rows)} examples are too few to cut a {kind} split; wanted at least "
                "10, or a split of its own; add data"
            )
        taken = _stratified(order, rows.labels, n) if task.stratified else order[:n]
        parts[kind] = rows.select(taken if by_content else sorted(taken))
        gone = set(taken)
        orders[source] = [i for i in order if i not in gone]
    for source, order in orders.items():
        if by_content:
            parts[source] = whole[source].select(order)
        elif len(order) < len(whole[source]):
            parts[source] = whole[source].select(sorted(order))
    return parts


def _order(task: Task, train: Split, seed: int) -> list[int]:
    """All places, drawn by seed; by what stands there, where the file's order must not matter."""
    if task.split_by == "content":
        # A hash is as good as a draw, and the same wherever its input stands; equal inputs go by their labels.
        mark = f"{seed} {task.name} ".encode()
        keys = [hashlib.sha256(mark + content).digest() for content in train.contents()]
        return sorted(range(len(train)), key=lambda i: (keys[i], int(train.labels[i])))
    if task.split_by == "random_split":
        # What torch.utils.data.random_split gives the last of its parts comes first here, because it is cut first.
        generator = torch.Generator().manual_seed(seed)
        return torch.randperm(len(train), generator=generator).flip(0).tolist()
    generator = torch.Generator().manual_seed(derive_seed(seed, task.name, "split"))
    return torch.randperm(len(train), generator=generator).tolist()


def _stratified(order: Sequence[int], labels: torch.Tensor, n: int) -> list[int]:
    """The first `n` places of an order such that every class has its share; what is left over goes to those that lose
    most by it."""
    by_class: dict[int, list[int]] = {}
    for i in order:
        by_class.setdefault(int(labels[i]), []).append(i)
    exact = {label: n * len(places) / len(order) for label, places in by_class.items()}
    counts = {label: int(share) for label, share in exact.items()}
    left_over = n - sum(counts.values())
    by_loss = sorted(exact, key=lambda label: (counts[label] - exact[label], label))
    for label in by_loss[:left_over]:
        counts[label] += 1
    taken: set[int] = set()
    for label, places in by_class.items():
        taken.update(places[: counts[label]])
    return [i for i in order if i in taken]


def apart(task: Task, parts: Mapping[str, Split], names: Mapping[str, str]) -> tuple[dict[str, Split], str | None]:
    """The splits, and a word on inputs that stand in two of them; without these, if the task says so.

    Args:
        names: of the splits that were not cut. One that is named twice is meant to be the same.

    Raises:
        SpecError: there are some, and the task refuses them.
    """
    doubles = _doubles(parts, names)
    remaining = dict(parts)
    if not doubles:
        return remaining, None
    counts = []
    for kind, rows in doubles.items():
        others = {"train": "validation or test", "validation": "test"}[kind]
        counts.append(f"{len(rows)} of {len(parts[kind])} inputs of {kind} stand in {others}, too")
    kind, rows = next(iter(doubles.items()))
    message = f"task {task.name!r}: {'; '.join(counts)}; one is {parts[kind].told(rows[0])}"
    if task.duplicates == "refuse":
        raise SpecError(f"{message}; wanted splits without common inputs; take them out, or set duplicates: drop")
    if task.duplicates == "warn":
        return remaining, f"{message}; scores on them say nothing (duplicates: drop leaves them out)"
    for kind, rows in doubles.items():
        gone = set(rows)
        remaining[kind] = parts[kind].select([i for i in range(len(parts[kind])) if i not in gone])
        if not len(remaining[kind]):
            raise SpecError(
                f"{message}; nothing is left of {kind} without them; wanted at least 1; give it examples of its own"
            )
    return remaining, f"{message}; they are left out (duplicates: drop)"


def _doubles(parts: Mapping[str, Split], names: Mapping[str, str]) -> dict[str, list[int]]:
    """Split -> its rows whose input stands in one that is scored later, too. Test data keep theirs: a score on what
    was trained on is the one that would mislead."""
    inputs = 1 + max(int(_marks(part).max()) for part in parts.values())
    doubles = {}
    for kind, later in (("validation", ["test"]), ("train", ["test", "validation"])):
        held = torch.zeros(inputs, dtype=torch.bool)
        for other in later:
            if names.get(other, other) != names.get(kind, kind):
                held[_marks(parts[other])] = True
        rows = torch.nonzero(held[_marks(parts[kind])]).flatten().tolist()
        if rows:
            doubles[kind] = rows
    return doubles


def _marks(split: Split) -> torch.Tensor:
    assert split.marks is not None  # `marked` has given it some
    return split.marks


def marked(splits: Sequence[Split]) -> list[Split]:
    """The splits with a number for every input that is the same where inputs are. Most images differ in size already,
    and need not be read."""
    sizes = [split.sizes() for split in splits]
    if sizes[0] is None:
        chunks: list[pa.Array] = []
        for split in splits:
            chunks += split.column_values().chunks
        encoded = pa.chunked_array(chunks).combine_chunks().dictionary_encode()
        numbers = encoded.indices.to_numpy(zero_copy_only=False)
        marks = torch.from_numpy(numbers.astype("int64"))
    else:
        marks = torch.tensor(_image_marks(splits, [given for given in sizes if given is not None]))
    parts = marks.split([len(split) for split in splits])
    return [replace(split, marks=part) for split, part in zip(splits, parts, strict=True)]


def _image_marks(splits: Sequence[Split], sizes: Sequence[list[int]]) -> list[int]:
    """The numbers of all images, split by split, from the bytes that each has."""
    often: Counter[int] = Counter()
    for sizes_of_split in sizes:
        often.update(sizes_of_split)
    known: dict[object, int] = {}
    marks = []
    for number, (split, sizes_of_split) in enumerate(zip(splits, sizes, strict=True)):
        for i, size in enumerate(sizes_of_split):
            # An image of a size that no other has is like none: where it stands tells it from all others.
            identity = split.digest(i) if often[size] > 1 else (number, i)
            marks.append(known.setdefault(identity, len(known)))
    return marks
