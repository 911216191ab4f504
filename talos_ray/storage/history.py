"""The append-only history: one event a file, each holding the hash of the one before and of every file that it brought.

An event is written before its effect is visible: first the event, then the files it names, then `head.json`, which names the
event. So whatever is in force has been recorded, and `verify` can say of every file of a run whether it is as it was written.
"""

from __future__ import annotations

import getpass
import hashlib
import json
import random
import shlex
import socket
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime

from talos_ray.errors import ConflictError, CorruptError
from talos_ray.storage.files import Store, as_json

FIRST = "0" * 64  # what the first event names as its predecessor
ATTEMPTS = 8  # before another writer is given way
UNRECORDED = "checkpoints"  # folders whose files come and go while a task trains; each carries a digest of its own

Build = Callable[[dict], tuple[Mapping[str, bytes], Mapping[str, object]]]


def _digest(event: Mapping) -> str:
    return hashlib.sha256(json.dumps(event, sort_keys=True).encode()).hexdigest()


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def append(
    store: Store, operation: str, build: Build | None = None, holds: Iterable[str] = (), **details: object
) -> dict:
    """Add an event: what was done (`operation`, `details`), by whom (user, host, command) and when (UTC); then write the files
    that it brings.

    Args:
        build: called with the event before this one (`{}` if there is none), gives the files to write and more details. Called
            again if another writer came first; raises if the operation makes no sense any more.
        holds: names of files already on storage that belong to the event.

    Raises:
        ConflictError: other writers came first, again and again. Nothing was written.
    """
    held = {name: _sha256(store.read(name)) for name in holds}
    for attempt in range(ATTEMPTS):
        names = store.list("history")
        before = _newest(store, names)
        writes, more = build(before) if build else ({}, {})
        event = {
            "number": len(names),
            "previous": names[-1].removesuffix(".json").split("-")[1] if names else FIRST,
            "operation": operation,
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "user": _user(),
            "host": socket.gethostname(),
            "command": shlex.join(sys.argv),
            "head": before.get("head"),
            "versions": before.get("versions", 0),
            "files": {**held, **{name: _sha256(data) for name, data in writes.items()}},
            **details,
            **more,
        }
        digest = _digest(event)
        mine = f"{event['number']:08d}-{digest}.json"
        store.write_json(f"history/{mine}", event)
        # Whoever sees another event of the same number steps back: so at most one stays, on any storage that lists what it holds.
        if any(n != mine and n.startswith(mine[:9]) for n in store.list("history")):
            store.delete(f"history/{mine}")
            time.sleep(random.uniform(0, 0.05 * 2**attempt))
            continue
        for name, data in writes.items():
            store.write(name, data)
        store.write("head.json", _pointer(event, digest))
        return event
    raise ConflictError(
        f"run {store.uri!r} is being written to by another process; nothing was changed; run the same command again"
    )


def _pointer(event: Mapping, digest: str) -> bytes:
    """Content of head.json: the version in force, and the event that says so."""
    return as_json({"version": event["head"], "event": event["number"], "hash": digest})


def last(store: Store) -> dict:
    """The newest event; `{}` if there is none."""
    return _newest(store, store.list("history"))


def _newest(store: Store, names: list[str]) -> dict:
    return store.read_json(f"history/{names[-1]}") if names else {}


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # containers without a passwd entry
        return "unknown"


def _checked(store: Store) -> Iterator[dict | CorruptError]:
    """Every event, oldest first, or what is wrong with it."""
    previous = FIRST
    for number, name in enumerate(store.list("history")):
        found = f"history/{name}"
        try:
            event = store.parse_json(found, data := store.read(found))
        except CorruptError as error:
            yield error
            continue
        digest = _digest(event)
        if name != f"{number:08d}-{digest}.json" or data != as_json(event):
            yield CorruptError(
                f"{found} is not event {number} as it was written; the history was changed; restore it from a copy"
            )
        elif event.get("previous") != previous:
            yield CorruptError(
                f"{found} follows event {str(event.get('previous'))[:12]}, but the one before it is {previous[:12]}; an event was removed or added"
            )
        else:
            yield event
        previous = digest


def events(store: Store) -> Iterator[dict]:
    """All events, oldest first, each checked against its hash, its number and its predecessor.

    Raises:
        CorruptError: names the first event file that was changed, removed, added or reordered.
    """
    for event in _checked(store):
        if isinstance(event, CorruptError):
            raise event
        yield event


def recorded(store: Store) -> dict[str, str]:
    """Every file that an event names, and its SHA-256 as the newest such event has it."""
    return {name: digest for event in events(store) for name, digest in event["files"].items()}


def verify(store: Store) -> list[str]:
    """What is not as the history says, each with its file's name: changed, removed, or added. Empty if all is well.

    Reads every file once. Checkpoints of tasks in training are left out.
    """
    found = list(_checked(store))
    problems = [str(e) for e in found if isinstance(e, CorruptError)]
    whole = [e for e in found if not isinstance(e, CorruptError)]
    wanted = {name: digest for event in whole for name, digest in event["files"].items()}
    there = [n for n in store.walk() if n != "head.json" and not {"history", UNRECORDED} & set(n.split("/")[:-1])]
    for name in sorted({*wanted, *there}):
        if name not in there:
            problems.append(f"{name} is missing; restore it from a copy")
        elif name not in wanted:
            problems.append(
                f"{name} is in no event: it was added by hand, or the run was cut off; delete it, or run the run's command again"
            )
        elif _sha256(store.read(name)) != wanted[name]:
            problems.append(f"{name} was changed since it was recorded; restore it from a copy")
    return problems + _pointed(store, whole)


def _pointed(store: Store, whole: list[dict]) -> list[str]:
    """What is wrong with head.json. It may name an event before the last (its writer was cut off), but one that exists."""
    if not whole:
        return ["history/ holds no event"]
    if not store.exists("head.json"):
        return ["head.json is missing; restore it from a copy"]
    data = store.read("head.json")
    if any(data == _pointer(event, _digest(event)) for event in whole):
        return []
    return ["head.json names no event of the history: it was changed, or the newest events were removed; restore both"]
