"""A split's inputs, decoded and preprocessed once a node: the first process that needs one leaves it in a file that
all of them map."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import re
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.utils.data
from PIL import Image

from talos_ray.data.pixels import as_rgb, decoding
from talos_ray.errors import SpecError
from talos_ray.tasks import Split

MEMORY_BYTES = 1 << 30  # inputs of one split that a process keeps, on its GPU or, where no file can, in memory
GPU_PART = 8  # inputs are kept in at most one such part of a GPU's memory
DISK_PART = 4  # and in at most one of what is free on a node's disk
MADE = re.compile(r"[0-9a-f-]{36}-[0-9a-f]{64}$")  # names of what is kept on a node: boot and content
BOOT = Path("/proc/sys/kernel/random/boot_id")  # what was not flushed before a crash must not be read after it


@dataclass(frozen=True)
class Node:
    """Where this node's processes keep inputs together: a folder, its largest size in bytes, and what preprocesses (a
    model's name)."""

    folder: Path
    most: int
    reader: str


class Examples:
    """Preprocessed batches of a split; `node` says where its inputs are kept for other processes too."""

    on_gpu = 0  # bytes that all splits of this process keep there

    def __init__(
        self,
        split: Split,
        preprocess: Callable[[list[Any]], torch.Tensor],
        device: torch.device | str = "cpu",
        node: Node | None = None,
    ) -> None:
        self.split = split
        self.preprocess = preprocess
        self.device = torch.device(device)
        self.node = node

    def __len__(self) -> int:
        return len(self.split)

    @functools.cached_property
    def _first(self) -> torch.Tensor:
        """The first input [1, ...], which says how large all of them are."""
        return self.fresh([0])

    @functools.cached_property
    def kept(self) -> tuple[torch.Tensor, torch.Tensor, bool] | None:
        """Room for all inputs, which of them are there (uint8 [n]), and whether other processes see it; None if there
        is none."""
        one = self._first
        # A file that all processes of the node map is best; this process's own memory, if it is not much; else nothing
        # is kept, and each input is prepared anew whenever it is wanted.
        if self.node and (shared := self._on_this_node(self.node, one)):
            return shared
        if one.nbytes * len(self) > MEMORY_BYTES:
            return None
        return one.new_empty(len(self), *one.shape[1:]), torch.zeros(len(self), dtype=torch.uint8), False

    @functools.cached_property
    def near(self) -> tuple[torch.Tensor, torch.Tensor] | None:
        """The same on the GPU, where that is a small part of its memory."""
        if self.device.type != "cuda":
            return None
        one = self._first
        size = one.nbytes * len(self)
        most = torch.cuda.mem_get_info(self.device)[1] // GPU_PART
        if size > min(MEMORY_BYTES, most - Examples.on_gpu):
            return None
        Examples.on_gpu += size
        weakref.finalize(self, _given_back, size)
        room = torch.empty(len(self), *one.shape[1:], dtype=one.dtype, device=self.device)
        return room, torch.zeros(len(self), dtype=torch.bool)

    def each(self, parts: Sequence[torch.Tensor], loaders: int = 0) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """`batch` of every part, in order. Inputs that are not here yet are prepared ahead by so many processes."""
        # Loaders are processes: what they would put into memory of this one's own stayed with them.
        if not loaders or self._private or self._here(parts):
            yield from map(self.batch, parts)
            return
        ahead: torch.utils.data.DataLoader[torch.Tensor] = torch.utils.data.DataLoader(
            _Ahead(self), batch_sampler=[part.tolist() for part in parts], num_workers=loaders, collate_fn=_as_it_is,
            pin_memory=self.device.type == "cuda",
        )  # fmt: skip
        for part, inputs in zip(parts, ahead, strict=True):
            yield inputs.to(self.device, non_blocking=True), self.split.labels[part].to(self.device)

    @property
    def _private(self) -> bool:
        """Whether other processes do not see what is kept."""
        return self.kept is not None and not self.kept[2]

    def _here(self, parts: Sequence[torch.Tensor]) -> bool:
        return self.kept is not None and all(bool(self.kept[1][part].all()) for part in parts)

    def batch(self, index: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(inputs [n, ...], labels int64 [n]) of the given positions (int64 [n])."""
        labels = self.split.labels[index].to(self.device, non_blocking=True)
        if self.near is None:
            return self.fetch(index).to(self.device), labels
        # Which are there is known on the host, so that nothing waits for the GPU to find out.
        room, present = self.near
        if len(missing := index[~present[index]]):
            room[missing.to(self.device)] = self.fetch(missing).to(self.device)
            present[missing] = True
        return room[index.to(self.device, non_blocking=True)], labels

    def fetch(self, index: torch.Tensor) -> torch.Tensor:
        """Inputs [n, ...] of some positions, on the host: decoded now, unless they are kept."""
        if self.kept is None:
            return self.fresh(index.tolist())
        room, present, _ = self.kept
        if len(missing := index[present[index] == 0]):
            room[missing] = self.fresh(missing.tolist())
            present[missing] = 1  # after the input itself: whoever sees the byte in a shared file may read it
        return room[index]

    def fresh(self, index: list[int]) -> torch.Tensor:
        """Inputs [n, ...] of some positions, decoded and preprocessed now.

        Raises:
            SpecError: an image that cannot be decoded, by its name.
        """
        try:
            return self.preprocess(self.split.rows[index][self.split.column])
        except Exception:  # if it is an image's fault, by which of them; anything else goes on as it is
            for i in index:
                self._check_decodes(i)
            raise

    def _check_decodes(self, i: int) -> None:
        try:
            with decoding():
                value = self.split.rows[[i]][self.split.column][0]
                if isinstance(value, Image.Image):
                    as_rgb(value)
        except SpecError as error:
            raise SpecError(f"input {self.split.words(i)!r} (row {i}): {error}") from None

    def _on_this_node(self, node: Node, one: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, bool] | None:
        """A file with all inputs and a byte for each that is there. What is in it is a function of its name: the
        inputs, who reads them, and what that makes of the first and the last. Two processes that write one input write
        the same bytes."""
        inputs = len(self)
        size = one.nbytes * inputs
        whole_size = size + inputs
        if whole_size > node.most or not BOOT.exists():
            return None
        marks = [node.reader, self.split.fingerprint(labels=False), str(one.dtype), *one.shape[1:]]
        # Code that prepares inputs may change without any name changing, which its results then show.
        ends = b"".join(tensor.numpy().tobytes() for tensor in (one, self.fresh([inputs - 1])))
        digest = hashlib.sha256(repr(marks).encode() + ends).hexdigest()
        boot = BOOT.read_text().strip()
        path = node.folder / f"{boot}-{digest}"
        try:
            node.folder.mkdir(parents=True, exist_ok=True)
            if not path.exists():
                if whole_size > shutil.disk_usage(node.folder).free // DISK_PART:
                    return None
                _make_room(node.folder, node.most - whole_size, boot)
                _allocate(path, whole_size)
            os.utime(path)  # what was not asked for the longest goes first, when there is no more room
            whole = torch.from_numpy(np.memmap(path, np.uint8, "r+"))
        except OSError:  # no room, or nothing may be written: every process for itself
            return None
        return whole[:size].view(one.dtype).view(inputs, *one.shape[1:]), whole[size:], True


def _allocate(path: Path, size: int) -> None:
    """A file of zeros, whole when it appears. Its blocks are reserved now: a page that finds no room later would end
    the process."""
    number, draft = tempfile.mkstemp(dir=path.parent, prefix=".")
    try:
        os.posix_fallocate(number, 0, size)
        with contextlib.suppress(FileExistsError):  # another process was first
            os.link(draft, path)
    finally:
        os.close(number)
        os.unlink(draft)


def _make_room(folder: Path, most: int, boot: str) -> None:
    """Remove what an earlier boot left, and then what was not asked for the longest, until at most so many bytes are
    left. Who has a file mapped keeps it."""
    # Others in the folder are drafts, or no inputs of ours.
    files = [(path, path.stat()) for path in folder.iterdir() if MADE.match(path.name)]
    files.sort(key=lambda file: (file[0].name.startswith(boot), file[1].st_mtime))
    total = sum(stat.st_size for _, stat in files)
    for path, stat in files:
        if path.name.startswith(boot) and total <= most:
            break
        path.unlink(missing_ok=True)
        total -= stat.st_size


def _given_back(size: int) -> None:
    Examples.on_gpu -= size


@dataclass(frozen=True)
class _Ahead(torch.utils.data.Dataset[torch.Tensor]):
    """What a DataLoader wants of a data set."""

    examples: Examples

    def __len__(self) -> int:
        return len(self.examples)

    def __getitems__(self, index: list[int]) -> torch.Tensor:
        return self.examples.fetch(torch.tensor(index))


def _as_it_is(inputs: Any) -> Any:
    return inputs
