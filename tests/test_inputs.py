"""Inputs are decoded once a node, whoever asks first, and are the same bits wherever they come from."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from images import write_images

from talos_ray import SpecError, inputs
from talos_ray.config import Task
from talos_ray.inputs import Examples, Node
from talos_ray.tasks import load_rows, load_task


class Reader:
    """Preprocesses, and counts what it was given."""

    def __init__(self):
        self.seen = 0

    def __call__(self, images: list) -> torch.Tensor:
        self.seen += len(images)
        return torch.stack([torch.from_numpy(np.asarray(i).copy()).float() for i in images])


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    return {
        "name": "sides",
        "data": write_images(tmp_path_factory.mktemp("sides"), 120),
        "input": "file",
        "label": "side",
    }


@pytest.fixture(scope="module")
def split(task):
    return load_task(Task(**task), 0).train


@pytest.fixture(scope="module")
def wanted(split):
    return Reader()(split.rows[:][split.column])


def parts(n: int) -> tuple[torch.Tensor, ...]:
    return torch.randperm(n, generator=torch.Generator().manual_seed(0)).split(10)


def same(examples: Examples, wanted: torch.Tensor, loaders: int) -> bool:
    index = parts(len(wanted))
    found = list(examples.each(index, loaders))
    assert len(found) == len(index)
    return all(
        torch.equal(x, wanted[i]) and torch.equal(y, examples.split.labels[i])
        for i, (x, y) in zip(index, found, strict=True)
    )


@pytest.mark.parametrize("loaders", [0, 2])
@pytest.mark.parametrize("kept", ["on the node", "in memory", "nowhere"])
def test_inputs_are_the_same_whoever_prepares_and_keeps_them(kept, loaders, split, wanted, tmp_path, monkeypatch):
    monkeypatch.setattr(inputs, "MEMORY_BYTES", 1 << 30 if kept == "in memory" else 1000)
    node = Node(tmp_path / "inputs", 1 << 30, "reader") if kept == "on the node" else None
    examples = Examples(split, Reader(), node=node)
    assert same(examples, wanted, loaders) and same(examples, wanted, loaders)
    assert (examples.kept is None) == (kept == "nowhere")
    if kept == "on the node":
        assert bool(examples.kept[1].all())


def test_another_process_decodes_nothing_again(task, split, wanted, tmp_path):
    node = Node(tmp_path / "inputs", 1 << 30, "reader")
    examples, first, again = Examples(split, Reader(), node=node), Reader(), Reader()
    half = torch.arange(len(split) // 2)
    assert torch.equal(examples.batch(half)[0], wanted[half])
    script = f"""
import sys; sys.path[:0] = {[str(Path(__file__).parent)]!r}
import torch
from pathlib import Path
from test_inputs import Reader
from talos_ray.config import Task
from talos_ray.inputs import Examples, Node
from talos_ray.tasks import load_rows, load_task
read = Reader()
examples = Examples(load_task(Task(**{task!r}), 0).train, read, node=Node(Path({str(node.folder)!r}), {node.most}, "reader"))
examples.batch(torch.arange(len(examples)))
print(read.seen, len(examples))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=300)
    seen, n = map(int, done.stdout.split())
    assert seen == n - len(half) + 2  # the first and the last, that tell whether the reader is the same
    assert torch.equal(examples.batch(torch.arange(n))[0], wanted) and examples.preprocess.seen == len(half) + 2
    for reader, name in ((first, "reader"), (again, "another")):
        assert same(Examples(split, reader, node=Node(node.folder, node.most, name)), wanted, 0)
    assert first.seen == 2 and again.seen == n + 2


def test_a_reader_that_changed_does_not_find_what_it_made_before(split, wanted, tmp_path):
    node = Node(tmp_path / "inputs", 1 << 30, "reader")
    assert same(Examples(split, Reader(), node=node), wanted, 0)
    assert same(Examples(split, lambda images: 2 * Reader()(images), node=node), 2 * wanted, 0)


def test_a_folder_has_its_limit(split, wanted, tmp_path, monkeypatch):
    folder, size = tmp_path / "inputs", wanted.nbytes + len(wanted)
    folder.mkdir()
    earlier = folder / f"01234567-89ab-cdef-0123-456789abcdef-{'0' * 64}"
    earlier.write_bytes(b"x")
    (folder / "notes of somebody").mkdir()
    made = [Examples(split, Reader(), node=Node(folder, 2 * size, f"reader {i}")) for i in range(3)]
    for i, examples in enumerate(made):
        assert same(examples, wanted, 0)
        for path in folder.glob("*-*"):
            os.utime(path, (i, i)) if path.stat().st_mtime > 10 else None
    assert sum(p.stat().st_size for p in folder.glob("*-*")) == 2 * size
    assert not earlier.exists() and (folder / "notes of somebody").is_dir()
    assert all(same(e, wanted, 0) for e in made)  # a file that is gone stays with whoever has it
    assert Examples(split, Reader(), node=Node(folder, size - 1, "reader 0")).kept[2] is False
    monkeypatch.setattr(inputs, "DISK_PART", 1 << 60)  # a full disk
    assert Examples(split, Reader(), node=Node(folder, 2 * size, "reader 9")).kept[2] is False


def test_where_nothing_may_be_written_a_process_keeps_its_own(split, wanted, tmp_path):
    (tmp_path / "inputs").write_text("no folder")
    examples = Examples(split, Reader(), node=Node(tmp_path / "inputs", 1 << 30, "reader"))
    assert same(examples, wanted, 2) and examples.kept[2] is False


def test_an_input_that_cannot_be_decoded_is_named(tmp_path):
    path = Path(write_images(tmp_path, 40))
    (tmp_path / "7.png").write_bytes(b"\x89PNG, and nothing that belongs there\x60\x82")
    split = load_rows(Task(name="t", data="x", input="file", label="side").model_dump(), str(path), ("left", "right"))
    with pytest.raises(SpecError, match=r"input '.*7\.png' \(row 7\): it cannot be decoded"):
        Examples(split, Reader()).batch(torch.arange(10))
