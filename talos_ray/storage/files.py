"""A folder on any filesystem that pyarrow knows, with writes that are whole or absent."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import logging
import os
import random
import re
import shutil
import socket
import stat
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, Protocol, TypeVar
from urllib.parse import parse_qs, urlsplit

import pyarrow.fs as pafs
import torch
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors

from talos_ray.core.layout import fingerprint, key_of
from talos_ray.errors import ConflictError, CorruptError, SpecError, StorageError
from talos_ray.secrets import refuse_secrets

log = logging.getLogger(__name__)

JsonObject = dict[str, Any]
Names = list[str]
Result = TypeVar("Result")
Listing = list[tuple[str, int, int]]  # name, bytes, time of the last change in ns

WAIT = 60.0  # seconds that a writer waits for its turn
FINAL = (  # refusals that waiting does not mend
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG, errno.ENOTDIR,
)  # fmt: skip
OBJECT_STORES = ("s3", "gcs", "abfs")  # publish an object when its upload ends, and cannot rename
HEADER_LIMIT = 100 << 20  # bytes of a safetensors header, as in its own specification
LEASE = 600.0  # seconds after which a process of another machine, of which nothing was heard, counts as gone
DELAYED = "allow_delayed_open"  # what pyarrow calls it
QUEUE = "writing"  # on object stores: a ticket of every process that writes, or waits to
NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EMLINK)  # what file systems without hard links say

# What a process is on its way to write carries its mark: machine, process, and a number drawn at random.
OWNER = r"(?P<host>[A-Za-z0-9_]{1,24})-(?P<pid>\d+)"
MARK = rf"{OWNER}-[0-9a-f]{{8}}"
PART = re.compile(rf"\..+\.{MARK}\.part", re.DOTALL)
TICKET = re.compile(rf"{MARK}\.json")


def new_mark() -> str:
    """Names one write, or one operation, of this process."""
    return f"{_host()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"


def mark_of(part: re.Match[str]) -> str:
    """Of what `PART` found."""
    return f"{part['host']}-{part['pid']}"


def who(mark: str) -> str:
    """The process that made a mark, in words."""
    owner = re.match(OWNER, mark)
    return f"process {owner['pid']} on {owner['host']}" if owner else "another process"


def is_gone(mark: str, age: float, locked: bool = False) -> bool:
    """Whether the process that made a mark, `age` seconds ago, writes no more. Of another machine only time can tell.

    Args:
        locked: this process holds a lock that the other would have to hold, if it were on this machine.
    """
    owner = re.match(OWNER, mark)
    if owner is None or owner["host"] != _host():
        return age > LEASE
    if locked:
        return True
    # Signal 0 is none: it only asks whether there is such a process.
    try:
        os.kill(int(owner["pid"]), 0)
    except (ProcessLookupError, OverflowError):
        return True
    except OSError:  # it runs, and is somebody else's
        return False
    return False


def _host() -> str:
    return re.sub(r"[^A-Za-z0-9]", "_", socket.gethostname())[:24] or "_"


def _by_one_request(uri: str) -> str:
    """An S3 URI by which small objects are put in one request; else pyarrow begins, fills and ends an upload in parts
    for each, which is three."""
    if urlsplit(uri).scheme != "s3" or DELAYED in uri:
        return uri
    return f"{uri}{'&' if '?' in uri else '?'}{DELAYED}=true"


class _ConditionalClient(Protocol):
    """What is used of botocore's S3 client, which has no types."""

    def put_object(self, *, Bucket: str, Key: str, Body: bytes, IfNoneMatch: str) -> object: ...


@dataclass
class Patience:
    """Seconds for which this process asks storage again that refuses: by default only to write, for whoever reads from
    a terminal wants the error at once."""

    read: float = 0.0
    write: float = 60.0


PATIENCE = Patience()


def be_patient(seconds: float) -> None:
    """From now on, storage may refuse this process so long, to read as well as to write: it works for a run."""
    PATIENCE.read = seconds
    PATIENCE.write = seconds


@contextmanager
def patient(seconds: float) -> Iterator[None]:
    """The same for a while, in a process that is not only there for a run."""
    before = replace(PATIENCE)
    be_patient(seconds)
    try:
        yield
    finally:
        PATIENCE.read = before.read
        PATIENCE.write = before.write


def _patiently(path: str, seconds: float, action: Callable[[], Result]) -> Result:
    """What `action` gives, tried again for so many seconds where waiting may mend what it meets.

    Raises:
        OSError: as `action`, at last or for good.
    """
    started = time.monotonic()
    pause = 0.25  # seconds; a storage that many workers ask again at once would refuse the more
    while True:
        try:
            return action()
        except OSError as error:
            for_good = isinstance(error, FileNotFoundError | IsADirectoryError) or error.errno in FINAL
            if for_good or time.monotonic() - started >= seconds:
                raise
            log.warning("%s: storage refuses, trying again: %s", path, error)
            time.sleep(pause)
            pause = min(2 * pause, 5.0)


class Store:
    """A folder named by a local path or a URI (`s3://…`, `gs://…`, `hdfs://…`). Names inside use '/'.

    Raises:
        SpecError: the URI's scheme is not known to pyarrow, or there is a secret in it.
    """

    def __init__(self, uri: str) -> None:
        refuse_secrets(uri, "output")
        self.fs: pafs.FileSystem
        self.root: str
        try:
            if "://" in uri:
                self.fs, self.root = pafs.FileSystem.from_uri(_by_one_request(uri))
            else:
                self.fs = pafs.LocalFileSystem()
                self.root = str(Path(uri).expanduser().resolve())
        except (ValueError, OSError, RuntimeError) as error:  # the last: a home of nobody, links in a circle
            raise SpecError(
                f"output {uri!r} cannot be opened: {error}; wanted a local path or a URI like s3://bucket/run"
            ) from None
        self.local: bool = self.fs.type_name == "local"
        if self.local:
            self.root = os.path.realpath(self.root)
        self.uri = uri if "://" in uri else self.root  # absolute, because workers have other working folders

    def path(self, name: str) -> str:
        return str(PurePosixPath(self.root) / name)

    def exists(self, name: str = "") -> bool:
        about = self._asked(name, lambda path: self.fs.get_file_info(path))
        return bool(about.type != pafs.FileType.NotFound)

    def _asked(self, name: str, ask: Callable[[str], Result]) -> Result:
        """What storage says of a path; asked again where it refuses, as `PATIENCE.read` has it."""
        path = self.path(name)
        return _patiently(path, PATIENCE.read, lambda: ask(path))

    def list(self, folder: str = "") -> Names:
        """Names of the finished files in a folder, sorted; half-written ones (leading dot) are left out."""
        return [name for name, _, _ in self.listing(folder)]

    def listing(self, folder: str = "") -> Listing:
        """What `list` names, with size and time: one request."""
        entries = self._asked(folder, self._entries)
        listing = []
        for entry in entries:
            if entry.type == pafs.FileType.File and not entry.base_name.startswith("."):
                listing.append((entry.base_name, entry.size, entry.mtime_ns or 0))
        return sorted(listing)

    def _entries(self, path: str) -> Sequence[pafs.FileInfo]:
        entries: Sequence[pafs.FileInfo] = self.fs.get_file_info(pafs.FileSelector(path, allow_not_found=True))
        return entries

    def folders(self, folder: str) -> Names:
        """Names of the folders in a folder, sorted; links are none."""
        if self.local:
            if os.path.islink(self.path(folder)) or not os.path.isdir(self.path(folder)):
                return []
            with os.scandir(self.path(folder)) as entries:
                return sorted(entry.name for entry in entries if entry.is_dir(follow_symlinks=False))
        listed = self._asked(folder, self._entries)
        return sorted(entry.base_name for entry in listed if entry.type == pafs.FileType.Directory)

    def age(self, name: str) -> float:
        """Seconds since a file, or what lies in a folder, was last changed, by this machine's clock; 0 if there is
        nothing."""
        if self.local:
            try:
                return time.time() - os.stat(self.path(name)).st_mtime
            except FileNotFoundError:
                return 0.0
        changed = [changed_at for _, _, changed_at in self.listing(name)]  # nanoseconds since 1970
        return time.time() - max(changed) / 1e9 if changed else 0.0

    def walk(self) -> Names:
        """Names of all finished files in the folder and those below, sorted; as `list`. Links are not followed."""
        names = (name for name, kind in self.tree() if kind == "file")
        return sorted(name for name in names if not PurePosixPath(name).name.startswith("."))

    def tree(self, under: str = "") -> Iterator[tuple[str, str]]:
        """(name, kind) of everything below the folder (or `under` a folder in it), whatever it is called. `kind`:
        "file", "empty folder", or, on this machine, "link" (never followed), "pipe", "socket", "device", or "folder
        that cannot be read"."""
        if not self.local:
            yield from self._remote_tree(under)
            return
        waiting = [under]
        while waiting:  # no recursion: a tree may be deeper than Python's stack
            folder = waiting.pop()
            try:
                inside = []
                with os.scandir(os.path.join(self.root, folder)) as entries:
                    for entry in entries:
                        name = f"{folder}/{entry.name}" if folder else entry.name
                        inside.append((name, entry.stat(follow_symlinks=False)))
            except FileNotFoundError:  # another process took it away meanwhile
                continue
            except OSError:
                yield folder, "folder that cannot be read"
                continue
            if not inside and folder:
                yield folder, "empty folder"
            for name, about in inside:
                if stat.S_ISDIR(about.st_mode):
                    waiting.append(name)
                else:
                    yield name, _kind(about.st_mode)

    def _remote_tree(self, under: str) -> Iterator[tuple[str, str]]:
        """`tree` by one listing, for storage where a request costs more than what it returns."""
        top = self.path(under) if under else self.root
        entries = self.fs.get_file_info(pafs.FileSelector(top, recursive=True, allow_not_found=True))
        kinds = {str(PurePosixPath(entry.path).relative_to(self.root)): entry.type for entry in entries}
        # A folder is empty if no other entry names it as one of its parents: object stores list folders only where
        # somebody left a marker for them.
        full: set[str] = set()
        for name in kinds:
            full.update(str(parent) for parent in PurePosixPath(name).parents)
        for name, kind in kinds.items():
            if kind == pafs.FileType.File:
                yield name, "file"
            elif name not in full:
                yield name, "empty folder"

    def read(self, name: str) -> bytes:
        """Raises CorruptError if something lies there that is no file: a pipe would never end."""

        def whole(path: str) -> bytes:
            with self._opened(name) if self.local else self.fs.open_input_stream(path) as stream:
                data: bytes = stream.read()
            return data

        return self._asked(name, whole)

    def size(self, name: str) -> int:
        """Bytes of a file, without reading it."""
        return int(self._asked(name, lambda path: self.fs.get_file_info(path)).size)

    def sha256(self, name: str) -> str:
        """Of a file's content, read piece by piece."""

        def digest(path: str) -> str:
            hasher = hashlib.sha256()
            with self._opened(name) if self.local else self.fs.open_input_stream(path) as stream:
                while piece := stream.read(16 << 20):
                    hasher.update(piece)
            return hasher.hexdigest()

        return self._asked(name, digest)

    def _opened(self, name: str) -> BinaryIO:
        # A pipe that somebody put there would block an `open` for ever, so it is opened without waiting and then asked
        # what it is.
        descriptor = os.open(self.path(name), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise CorruptError(f"{self.path(name)} is no file; wanted one; the run was changed; restore it from a copy")
        return open(descriptor, "rb")

    def write(self, name: str, data: bytes, patience: float | None = None) -> None:
        """Put `data` under `name`, whole or not at all: a reader sees the old file or the new one.

        Object stores publish an object when its upload ends. Elsewhere the bytes go to a temporary name in
        the same folder, are flushed, and renamed; then the folder is. Storage that refuses is asked again for
        `patience` seconds (PATIENCE.write, if not given), unless it is full or the folder is not ours.

        Raises:
            StorageError: it still refuses then, or it is full.
        """
        seconds = PATIENCE.write if patience is None else patience
        try:
            _patiently(self.path(name), seconds, lambda: self._write(name, data))
        except OSError as error:
            raise StorageError(
                f"{self.path(name)} ({len(data)} bytes) cannot be written: {error}; free space or mend access, and run "
                "the same command again"
            ) from error

    def _write(self, name: str, data: bytes) -> None:
        target = self.path(name)
        folder, base = target.rsplit("/", 1)
        if self.local or self.fs.type_name == "hdfs":
            self.fs.create_dir(folder, recursive=True)
        # Somebody may have put a link there since the run began, and nothing of a run is written outside of it.
        if self.local and os.path.realpath(folder) != folder:
            raise CorruptError(
                f"{folder} is a link to {os.path.realpath(folder)!r}; wanted a folder of the run; nothing was written"
            )
        if self.fs.type_name in OBJECT_STORES:
            with self.fs.open_output_stream(target) as stream:
                stream.write(data)
            return
        work = f"{folder}/.{base[:120]}.{new_mark()}.part"
        try:
            if self.local:
                with open(work, "wb") as stream:
                    stream.write(data)
                    stream.flush()
                    os.fsync(stream.fileno())
                # The bytes are on the disk before the name is, and then the name: a power cut leaves no empty file.
                os.replace(work, target)
                _flush_folder(folder)
            else:
                with self.fs.open_output_stream(work) as stream:
                    stream.write(data)
                self.fs.move(work, target)
        except BaseException:
            if self.fs.get_file_info(work).type != pafs.FileType.NotFound:
                self.fs.delete_file(work)
            raise

    def create(self, name: str, data: bytes, staged: str) -> bool:
        """Put `data` under `name` unless something is there: whether it was put. Of all who try at once one succeeds.

        On this machine the bytes are first written, whole, to `staged`, and get their name by `link`. S3 is asked to
        refuse what exists (`If-None-Match: *`), where botocore is installed. What is left can only look first, and
        relies on `alone`.

        Raises:
            StorageError: as `write`.
        """
        if self.local:
            self.write(staged, data)
            folder = self.path(name).rsplit("/", 1)[0]
            try:
                os.makedirs(folder, exist_ok=True)
                try:
                    os.link(self.path(staged), self.path(name))
                except FileExistsError:
                    return False
                except OSError as error:
                    if error.errno not in NO_LINKS:
                        raise
                    # A file system without links: the lock of `alone` is what keeps others from coming between.
                    if os.path.lexists(self.path(name)):
                        return False
                    os.rename(self.path(staged), self.path(name))
                _flush_folder(folder)
            except OSError as error:
                raise StorageError(
                    f"{self.path(name)} cannot be written: {error}; free space or mend access"
                ) from error
            return True
        if self._conditional is not None:
            return self._create_on_s3(self._conditional, name, data)
        if self.exists(name):
            return False
        self.write(name, data)
        return True

    @cached_property
    def _conditional(self) -> _ConditionalClient | None:
        """A client that can ask S3 to refuse what exists; None where there is none, as pyarrow's own cannot."""
        if self.fs.type_name != "s3":
            return None
        try:
            import botocore.session
        except ImportError:
            return None
        # It has to reach the same server as pyarrow's client does, so it reads the same settings from the URI.
        query = parse_qs(urlsplit(self.uri).query)
        settings = {key: values[-1] for key, values in query.items()}
        place = settings.get("endpoint_override")
        endpoint = f"{settings.get('scheme', 'https')}://{place}" if place else None
        region = settings.get("region") or self.fs.region
        client: _ConditionalClient = botocore.session.get_session().create_client(
            "s3",
            region_name=region,
            endpoint_url=endpoint,
        )
        return client

    def _create_on_s3(self, client: _ConditionalClient, name: str, data: bytes) -> bool:
        from botocore.exceptions import BotoCoreError, ClientError

        bucket, _, key = self.path(name).partition("/")
        try:
            client.put_object(Bucket=bucket, Key=key, Body=data, IfNoneMatch="*")
        except ClientError as error:
            if error.response["ResponseMetadata"]["HTTPStatusCode"] in (409, 412):  # it exists, or another is at it
                return False
            raise StorageError(f"{self.path(name)} cannot be written: {error}; mend access") from error
        except BotoCoreError as error:
            raise StorageError(f"{self.path(name)} cannot be written: {error}; mend access") from error
        return True

    @contextmanager
    def alone(self, patience: float | None = None) -> Iterator[None]:
        """While this lasts, nobody else who asks for it writes: they wait. A process that dies holds nobody up.

        On this machine the kernel holds a lock on the folder, and lets go of it when the process ends. Object stores
        have no locks: there a process leaves a ticket, and goes on if it then sees no other; if it does, it takes its
        ticket back and tries again a little later. As listings are of what was written before, no two can see only
        themselves. A ticket of a process that is gone is thrown away.

        Raises:
            ConflictError: others write for longer than `patience` (WAIT, if not given), and who.
        """
        until = time.monotonic() + (WAIT if patience is None else patience)
        turn = self._locked(until) if self.local else self._queued(until)
        with turn:
            yield

    @contextmanager
    def _locked(self, until: float) -> Iterator[None]:
        try:
            os.makedirs(self.root, exist_ok=True)
            folder = os.open(self.root, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise StorageError(f"{self.root} cannot be opened: {error}; mend access") from error
        # Not waiting in the kernel, where no time could be set and no interrupt would end it with a message.
        try:
            while True:
                try:
                    fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > until:
                        raise self._busy(self.folders("pending")) from None
                    time.sleep(random.uniform(0.002, 0.02))
                except OSError:  # a network file system without such locks: events are still claimed one by one
                    break
            yield
        finally:
            os.close(folder)

    @contextmanager
    def _queued(self, until: float) -> Iterator[None]:
        # The ticket before the look: with the look first two processes could each see nobody, and both go on.
        mine = f"{new_mark()}.json"
        pause = 0.02
        while True:
            ticket = as_json({"host": socket.gethostname(), "pid": os.getpid()})
            self.write(f"{QUEUE}/{mine}", ticket, patience=0)
            others = [other for other in self._tickets() if other != mine]
            if not others:
                break
            self.delete(f"{QUEUE}/{mine}")
            if time.monotonic() > until:
                raise self._busy(others)
            time.sleep(random.uniform(0, pause))
            pause = min(2 * pause, 1.0)
        try:
            yield
        finally:
            self.delete(f"{QUEUE}/{mine}")

    def _tickets(self) -> Names:
        """Of the processes that write, or wait to. Those of processes that are gone are thrown away."""
        tickets = []
        for name, _, changed in self.listing(QUEUE):
            if TICKET.fullmatch(name) and is_gone(name, time.time() - changed / 1e9):
                self.delete(f"{QUEUE}/{name}")
            else:
                tickets.append(name)
        return tickets

    def _busy(self, marks: Names) -> ConflictError:
        others = ", ".join(sorted(set(map(who, marks)))) or "another process"
        return ConflictError(
            f"run {self.uri!r} is being written to by {others}; nothing was changed; wait for it, or run the same "
            "command again"
        )

    def sweep(self, under: str = "") -> Names:
        """Delete what processes that are gone had begun to write under a temporary name. Returns the names."""
        gone: Names = []
        if not self.local:  # an object store holds whole objects only
            return gone
        for name, kind in self.tree(under):
            part = PART.fullmatch(PurePosixPath(name).name)
            if part and kind == "file" and is_gone(mark_of(part), self.age(name)):
                self.delete(name)
                gone.append(name)
        return gone

    def upload(self, path: Path, name: str) -> None:
        """Put a local file under `name`, piece by piece, whole or not at all."""
        target = self.path(name)
        folder, base = target.rsplit("/", 1)
        if self.fs.type_name in OBJECT_STORES:
            return self._copy(pafs.LocalFileSystem(), str(path), self.fs, target)
        self.fs.create_dir(folder, recursive=True)
        work = f"{folder}/.{base[:120]}.{new_mark()}.part"
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
        """Nothing may be there: another process may have deleted it a moment ago."""
        with suppress(FileNotFoundError, NotADirectoryError):
            self.fs.delete_file(self.path(name))

    def delete_folder(self, name: str) -> None:
        """As `delete`, with all that is in it."""
        if self.local:
            while os.path.lexists(self.path(name)):  # again, where another process is at the same
                with suppress(FileNotFoundError):
                    shutil.rmtree(self.path(name))
        else:
            with suppress(FileNotFoundError):
                self.fs.delete_dir(self.path(name))

    # ---------------------------------------------------------------------------- JSON and safetensors

    def read_json(self, name: str) -> JsonObject:
        """Raises CorruptError, naming the file, if it does not hold a JSON object."""
        return self.parse_json(name, self.read(name))

    def parse_json(self, name: str, data: bytes) -> JsonObject:
        """A file's content that was read already, as `read_json`."""
        try:
            value = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise CorruptError(
                f"{self.path(name)} is not JSON ({error}); the file was changed; restore it from a copy"
            ) from None
        if not isinstance(value, dict):
            raise CorruptError(
                f"{self.path(name)} holds {type(value).__name__}; wanted a JSON object; restore it from a copy"
            )
        return value

    def write_json(self, name: str, value: Mapping[str, object], patience: float | None = None) -> None:
        self.write(name, as_json(value), patience)

    def read_tensors(self, name: str) -> tuple[dict[str, torch.Tensor], JsonObject]:
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
            tensors = load_safetensors(data)
            info: JsonObject = json.loads(metadata["talos"])
            if key_of([info, fingerprint(tensors)]) != metadata["digest"]:
                raise ValueError("its digest does not fit its content")
            return tensors, info
        except Exception as error:  # whatever the parser met, the user needs the file's name
            raise CorruptError(
                f"{self.path(name)} is not a whole talos_ray safetensors file ({type(error).__name__}: {error}); "
                "restore it from a copy"
            ) from None

    def read_info(self, name: str) -> JsonObject:
        """The JSON alone of what `read_tensors` reads, from the file's header: for those who look at many files, and
        want no tensor. Nothing says that it fits the tensors.

        Raises:
            CorruptError: not a safetensors file of this project, or cut off.
        """
        try:
            size, text = self._asked(name, lambda path: self._header(name, path))
            header = json.loads(text)
            info: JsonObject = json.loads(header.pop("__metadata__")["talos"])
            # Tensors lie behind the header, one after another: the last one's end is the file's.
            end = max((entry["data_offsets"][1] for entry in header.values()), default=0)
            wanted = 8 + size + end
            if (found := self.size(name)) != wanted:
                raise ValueError(f"{found} bytes where its header wants {wanted}")
            return info
        except Exception as error:  # as in `read_tensors`
            raise CorruptError(
                f"{self.path(name)} is not a whole talos_ray safetensors file ({type(error).__name__}: {error}); "
                "restore it from a copy"
            ) from None

    def _header(self, name: str, path: str) -> tuple[int, bytes]:
        """Length and text of a safetensors file's header; no more of the file is read."""
        with self._opened(name) if self.local else self.fs.open_input_file(path) as stream:
            size = int.from_bytes(stream.read(8), "little")
            if not 2 <= size <= HEADER_LIMIT:
                raise ValueError(f"header of {size} bytes")
            return size, stream.read(size)

    def write_tensors(self, name: str, tensors: Mapping[str, torch.Tensor], info: Mapping[str, object]) -> None:
        self.write(name, as_tensors(tensors, info))


def _kind(mode: int) -> str:
    """What lies there, in a word."""
    if stat.S_ISREG(mode):
        return "file"
    if stat.S_ISLNK(mode):
        return "link"
    if stat.S_ISFIFO(mode):
        return "pipe"
    return "socket" if stat.S_ISSOCK(mode) else "device"


def _flush_folder(folder: str) -> None:
    """A new name survives a power cut only once its folder is on the disk."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network file systems cannot flush a folder
            raise
    finally:
        os.close(descriptor)


def as_json(value: Mapping[str, object]) -> bytes:
    """A JSON file's content."""
    return (json.dumps(value, indent=1, sort_keys=True) + "\n").encode()


def as_tensors(tensors: Mapping[str, torch.Tensor], info: Mapping[str, object]) -> bytes:
    """A safetensors file's content, with `info` and a digest of everything in its metadata."""
    plain: dict[str, torch.Tensor] = {}
    taken: set[int] = set()
    for name, tensor in tensors.items():
        plain[name] = tensor.detach().cpu().contiguous()
        memory = plain[name].untyped_storage().data_ptr()
        if memory in taken:  # the format wants each name's bytes for itself
            plain[name] = plain[name].clone()
        taken.add(memory)
    # The digest is of what a reader will parse: there tuples are lists, and keys are texts.
    text = json.dumps(info, sort_keys=True)
    parsed = json.loads(text)
    metadata = {"talos": json.dumps(parsed, sort_keys=True), "digest": key_of([parsed, fingerprint(plain)])}
    return save_safetensors(plain, metadata)
