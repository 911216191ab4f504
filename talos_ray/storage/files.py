"""A folder on any filesystem that pyarrow knows, with writes that are whole or absent."""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import time
import uuid
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

import pyarrow.fs as pafs
import torch
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors

from talos_ray.core.layout import fingerprint, key_of
from talos_ray.errors import CorruptError, SpecError, StorageError

log = logging.getLogger(__name__)

PATIENCE = 60.0  # seconds that storage may refuse a write before the run gives up
FINAL = (errno.ENOSPC, errno.EACCES, errno.EPERM, errno.EROFS)  # refusals that waiting does not mend
OBJECT_STORES = ("s3", "gcs", "abfs")  # publish an object when its upload ends, and cannot rename
HEADER_LIMIT = 100 << 20  # bytes of a safetensors header, as in its own specification


class Store:
    """A folder named by a local path or a URI (`s3://…`, `gs://…`, `hdfs://…`). Names inside use '/'.

    Raises:
        SpecError: the URI's scheme is not known to pyarrow.
    """

    def __init__(self, uri: str) -> None:
        try:
            if "://" in uri:
                self.fs, self.root = pafs.FileSystem.from_uri(uri)
            else:
                self.fs, self.root = pafs.LocalFileSystem(), str(Path(uri).expanduser().resolve())
        except (ValueError, OSError) as error:
            raise SpecError(
                f"output {uri!r} cannot be opened: {error}; wanted a local path or a URI like s3://bucket/run"
            ) from None
        self.local = self.fs.type_name == "local"
        self.uri = uri if "://" in uri else self.root  # absolute, because workers have other working folders

    def path(self, name: str) -> str:
        return str(PurePosixPath(self.root) / name)

    def exists(self, name: str = "") -> bool:
        return self.fs.get_file_info(self.path(name)).type != pafs.FileType.NotFound

    def list(self, folder: str = "") -> list[str]:
        """Names of the finished files in a folder, sorted; half-written ones (leading dot) are left out."""
        found = self.fs.get_file_info(pafs.FileSelector(self.path(folder), allow_not_found=True))
        return sorted(i.base_name for i in found if i.type == pafs.FileType.File and not i.base_name.startswith("."))

    def walk(self) -> list[str]:
        """Names of all finished files in the folder and those below, sorted; as `list`."""
        found = self.fs.get_file_info(pafs.FileSelector(self.root, recursive=True, allow_not_found=True))
        names = (str(PurePosixPath(i.path).relative_to(self.root)) for i in found if i.type == pafs.FileType.File)
        return sorted(n for n in names if not PurePosixPath(n).name.startswith("."))

    def read(self, name: str) -> bytes:
        with self.fs.open_input_stream(self.path(name)) as stream:
            return stream.read()

    def write(self, name: str, data: bytes, patience: float | None = None) -> None:
        """Put `data` under `name`, whole or not at all: a reader sees the old file or the new one.

        Object stores publish an object when its upload ends. Elsewhere the bytes go to a temporary name in
        the same folder, are flushed, and renamed. Storage that refuses is asked again for `patience` seconds
        (PATIENCE, if not given), unless it is full or the folder is not ours.

        Raises:
            StorageError: it still refuses then, or it is full.
        """
        started, pause, patience = time.monotonic(), 0.25, PATIENCE if patience is None else patience
        while True:
            try:
                return self._write(name, data)
            except OSError as error:
                if error.errno in FINAL or time.monotonic() - started >= patience:
                    raise StorageError(
                        f"{self.path(name)} ({len(data)} bytes) cannot be written: {error}; free space or mend access, and "
                        f"run the same command again"
                    ) from error
                log.warning("%s cannot be written, trying again: %s", self.path(name), error)
                time.sleep(pause)
                pause = min(2 * pause, 5.0)

    def _write(self, name: str, data: bytes) -> None:
        target = self.path(name)
        folder, base = target.rsplit("/", 1)
        if self.local or self.fs.type_name == "hdfs":
            self.fs.create_dir(folder, recursive=True)
        if self.fs.type_name in OBJECT_STORES:
            with self.fs.open_output_stream(target) as stream:
                stream.write(data)
            return
        work = f"{folder}/.{base}.{uuid.uuid4().hex[:8]}"
        try:
            if self.local:
                with open(work, "wb") as stream:
                    stream.write(data)
                    stream.flush()
                    os.fsync(stream.fileno())
                os.replace(work, target)
            else:
                with self.fs.open_output_stream(work) as stream:
                    stream.write(data)
                self.fs.move(work, target)
        except BaseException:
            if self.fs.get_file_info(work).type != pafs.FileType.NotFound:
                self.fs.delete_file(work)
            raise

    def upload(self, path: Path, name: str) -> None:
        """Put a local file under `name`, piece by piece, whole or not at all."""
        target = self.path(name)
        folder, base = target.rsplit("/", 1)
        if self.fs.type_name in OBJECT_STORES:
            return self._copy(pafs.LocalFileSystem(), str(path), self.fs, target)
        self.fs.create_dir(folder, recursive=True)
        work = f"{folder}/.{base}.{uuid.uuid4().hex[:8]}"
        self._copy(pafs.LocalFileSystem(), str(path), self.fs, work)
        self.fs.move(work, target)

    def on_this_node(self, name: str, cache: Path) -> Path:
        """A local path of the file: its own, or a copy in `cache` that all processes of this node share."""
        if self.local:
            return Path(self.path(name))
        here = cache / PurePosixPath(name).name
        cache.mkdir(parents=True, exist_ok=True)
        with (cache / f".{here.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # the first process fetches, the others wait for it
            if not here.exists():
                work = cache / f".{here.name}.part"
                self._copy(self.fs, self.path(name), pafs.LocalFileSystem(), str(work))
                os.replace(work, here)
        return here

    @staticmethod
    def _copy(source: pafs.FileSystem, a: str, target: pafs.FileSystem, b: str) -> None:
        pafs.copy_files(a, b, source_filesystem=source, destination_filesystem=target, chunk_size=16 << 20)

    def delete(self, name: str) -> None:
        if self.exists(name):
            self.fs.delete_file(self.path(name))

    def delete_folder(self, name: str) -> None:
        if self.exists(name):
            self.fs.delete_dir(self.path(name))

    # ---------------------------------------------------------------------------- JSON and safetensors

    def read_json(self, name: str) -> dict:
        """Raises CorruptError, naming the file, if it does not hold a JSON object."""
        return self.parse_json(name, self.read(name))

    def parse_json(self, name: str, data: bytes) -> dict:
        """A file's content that was read already, as `read_json`."""
        try:
            value = json.loads(data)
        except ValueError as error:
            raise CorruptError(
                f"{self.path(name)} is not JSON ({error}); the file was changed; restore it from a copy"
            ) from None
        if not isinstance(value, dict):
            raise CorruptError(
                f"{self.path(name)} holds {type(value).__name__}; wanted a JSON object; restore it from a copy"
            )
        return value

    def write_json(self, name: str, value: Mapping, patience: float | None = None) -> None:
        self.write(name, as_json(value), patience)

    def read_tensors(self, name: str) -> tuple[dict[str, torch.Tensor], dict]:
        """Tensors and the JSON in the metadata key `talos`, both checked against the `digest` beside it.

        Raises:
            CorruptError: not a safetensors file of this project, cut off, or changed.
        """
        data = self.read(name)
        try:
            size = int.from_bytes(data[:8], "little")
            if not 2 <= size <= min(HEADER_LIMIT, len(data) - 8):
                raise ValueError(f"header of {size} bytes in a file of {len(data)}")
            metadata = json.loads(data[8 : 8 + size])["__metadata__"]
            tensors, info = load_safetensors(data), json.loads(metadata["talos"])
            if key_of([info, fingerprint(tensors)]) != metadata["digest"]:
                raise ValueError("its digest does not fit its content")
            return tensors, info
        except Exception as error:  # whatever the parser met, the user needs the file's name
            raise CorruptError(
                f"{self.path(name)} is not a whole talos_ray safetensors file ({type(error).__name__}: {error}); restore it from a copy"
            ) from None

    def write_tensors(self, name: str, tensors: Mapping[str, torch.Tensor], info: Mapping) -> None:
        self.write(name, as_tensors(tensors, info))


def as_json(value: Mapping) -> bytes:
    """A JSON file's content."""
    return (json.dumps(value, indent=1, sort_keys=True) + "\n").encode()


def as_tensors(tensors: Mapping[str, torch.Tensor], info: Mapping) -> bytes:
    """A safetensors file's content, with `info` and a digest of everything in its metadata."""
    plain, taken = {}, set()
    for name, tensor in tensors.items():
        plain[name] = tensor.detach().cpu().contiguous()
        if (
            memory := plain[name].untyped_storage().data_ptr()
        ) in taken:  # the format wants each name's bytes for itself
            plain[name] = plain[name].clone()
        taken.add(memory)
    info = json.loads(json.dumps(info, sort_keys=True))
    metadata = {"talos": json.dumps(info, sort_keys=True), "digest": key_of([info, fingerprint(plain)])}
    return save_safetensors(plain, metadata)
