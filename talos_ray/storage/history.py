"""The append-only history: one event a file, each holding the hash of the one before and of every file that it brought.

An operation is whole. What it brings is first written under `pending/`, by content; then its event claims the next
number, which only one writer can; then the files get their names, and `head.json` names the event. Cut off before the
claim, nothing has happened; cut off after it, everything that is missing lies under `pending/`. Either way `settle`,
with which every command begins, makes it whole. `docs/formats.md` has the protocol for those who write another program.
"""

from __future__ import annotations

import getpass
import hashlib
import json
import random
import re
import shlex
import socket
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import PurePosixPath
from typing import Any

from talos_ray.errors import ConflictError, CorruptError, SpecError, StorageError, TalosError
from talos_ray.secrets import blotted
from talos_ray.storage.files import (
    MARK,
    PART,
    QUEUE,
    TICKET,
    JsonObject,
    Listing,
    Store,
    as_json,
    is_gone,
    mark_of,
    new_mark,
    who,
)

FIRST = "0" * 64  # what the first event names as its predecessor
PENDING = "pending"  # a folder an operation: what it brings, named by SHA-256, until it has its names
EVENT = "event.json"  # the event itself, before it has its number
PATIENCE = 20.0  # seconds, and LEAST tries, for which a writer gives way to those who come first
LEAST = 30

# Releases before the claim named an event by its number and its hash.
NAME = re.compile(r"(?P<number>\d{8})(?:-(?P<digest>[0-9a-f]{64}))?\.json")
# Files that come and go while a task trains. Each carries a digest of its own.
CHECKPOINT = re.compile(r"(?:baseline/)?checkpoints/[^/]+/step-\d{8}\.safetensors")
MOST = 10**9  # versions of a run: a number beyond is none that anything here has written
SEGMENT = 64  # events that are also kept together in an object store, where each file costs a request
TOGETHER = re.compile(r"(?P<first>\d{8})-(?P<last>\d{8})\.events\.json")
NOW = "now.json"  # how far the process is that works on the run; it is there only meanwhile
OURS = ("baseline", "baseline/checkpoints", "checkpoints", "history", PENDING, QUEUE)  # folders that may lie empty

# An event as its file has it. Only some keys are common to all; those of one operation are its own.
Event = JsonObject
Build = Callable[[Event], tuple[Mapping[str, bytes], Mapping[str, object]]]

# What the chain was when this process last looked, by store: events are never changed, so only new ones are read.
_known: dict[str, tuple[Listing, list[Event], list[str]]] = {}


def digest_of(event: Mapping[str, Any]) -> str:
    """SHA-256 of an event, which the next one names."""
    return hashlib.sha256(json.dumps(event, sort_keys=True).encode()).hexdigest()


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


# ---------------------------------------------------------------------------------- writing


def append(
    store: Store,
    operation: str,
    build: Build | None = None,
    holds: Iterable[str] = (),
    *,
    asked: list[Any] | None = None,
    patience: float | None = None,
    **details: Any,
) -> Event:
    """Add an event: what was done (`operation`, `details`), by whom (user, host, command) and when (UTC), with the
    files that it brings. All of it happens, or nothing.

    Args:
        build: called with the event before this one (`{}` if there is none), gives the files to write and more
            details. Called again if another writer came first; raises if the operation makes no sense any more.
        holds: names of files already on storage that belong to the event.
        asked: the command as it was given, by which a repeat of it is known.
        patience: seconds that storage may refuse the first write; as `Store.write`, if not given.

    Raises:
        ConflictError: other writers came first, again and again. Nothing was changed.
        StorageError: storage refuses; says whether the operation took effect.
    """
    # Once, outside the loop: files that are there already may be large, and are the same at every try.
    held = {name: store.sha256(name) for name in holds}
    mark = new_mark()
    started = time.monotonic()
    tries = 0
    while True:
        settle(store)
        # Everything below rests on the newest event as it is now. If another writer claims the number meanwhile, all of
        # it is made again from what that one left.
        events, previous = chain(store)
        before = events[-1] if events else {}
        writes, more = build(before) if build else ({}, {})
        written = {name: _sha256(data) for name, data in writes.items()}
        # What an operation says of itself comes last: it may move head, and count a version more.
        event = {
            "number": len(events),
            "previous": previous,
            "id": mark,
            "operation": operation,
            **_by_whom(asked),
            "head": before.get("head"),
            "versions": before.get("versions", 0),
            "files": {**held, **written},
            **details,
            **more,
        }
        if _commit(store, event, writes, patience):
            if not store.local and event["number"] % SEGMENT == SEGMENT - 1:
                _keep_together(store, [*events, event][-SEGMENT:])
            return event
        tries += 1
        if tries >= LEAST and time.monotonic() - started > PATIENCE:
            raise ConflictError(
                f"run {store.uri!r} is being written to by others, who came first {tries} times (the last was "
                f"{who(before.get('id', ''))}); "
                f"nothing was changed; run the same command again"
            )
        # Writers that met wait for different times, so that they do not meet again.
        longest = min(0.5, 0.02 * 2**tries)
        time.sleep(random.uniform(0, longest))


def _by_whom(asked: list[Any] | None) -> Event:
    """When, by whom, where, and by which command an event comes about. No password of a command's URI stays in it."""
    command = {} if asked is None else {"asked": asked}
    return {
        "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "user": _user(),
        "host": socket.gethostname(),
        "command": blotted(shlex.join(sys.argv)),
        **command,
    }


def _commit(store: Store, event: Event, writes: Mapping[str, bytes], patience: float | None) -> bool:
    """Make an event and its files part of the run: whether it was this writer's turn."""
    number = f"history/{event['number']:08d}.json"
    folder = f"{PENDING}/{event['id']}"
    with store.alone():
        # Looked at again now that nobody else may write: what was built rests on an event that was the newest then.
        _, newest = chain(store)
        if newest != event["previous"]:
            return False
        contents = {event["files"][name]: data for name, data in writes.items()}
        claimed = False
        try:
            for digest, data in contents.items():
                store.write(f"{folder}/{digest}", data, patience)
            claimed = store.create(number, as_json(event), f"{folder}/{EVENT}")
        finally:
            # A claim whose answer was lost is a claim all the same. Where there is none, nothing is left behind.
            claimed = claimed or _is_ours(store, number, event)
            if not claimed:
                _drop(store, folder)
        if not claimed:
            return False
        # From the claim on the event is part of the run, whatever comes now: any later command can finish it.
        try:
            _put_in_place(store, event, contents)
        except StorageError as error:
            raise StorageError(
                f"{event['operation']} took effect as event {event['number']}, but not all of its files are in place: "
                f"{error.__cause__}. Free space or mend access: "
                f"the next command puts them there, and this one, given again, changes nothing more"
            ) from error
    return True


def _keep_together(store: Store, events: list[Event]) -> None:
    """Write events into one more file, for readers. Without it they read them one by one."""
    first = events[0]["number"]
    last = events[-1]["number"]
    with suppress(OSError, StorageError):
        store.write_json(f"history/{first:08d}-{last:08d}.events.json", {"events": events})


def _is_ours(store: Store, name: str, event: Event) -> bool:
    try:
        if not store.exists(name):
            return False
        claimed_by = store.read_json(name).get("id")
    except (OSError, TalosError):
        return False
    return bool(claimed_by == event["id"])


def _drop(store: Store, folder: str) -> None:
    with suppress(OSError):  # `settle` takes it away once storage allows it
        store.delete_folder(folder)


def _put_in_place(store: Store, event: Event, contents: Mapping[str, bytes]) -> None:
    """Give the files of a claimed event their names, and say that it is done. May be done twice."""
    for name, digest in event["files"].items():
        if digest in contents:
            store.write(name, contents[digest])
    store.write("head.json", _pointer(event, digest_of(event)))
    if "id" in event:  # events of release 0.1 have none, and nothing was pending for them
        _drop(store, f"{PENDING}/{event['id']}")


def settle(store: Store) -> tuple[Event | None, list[str]]:
    """Make whole what a process that was cut off left behind. Returns the event that was completed, if there was one,
    and the operations that were discarded, because they had not taken effect.

    Raises:
        StorageError: storage refuses. ConflictError: others write, for long.
    """
    if _is_settled(store):
        return None, []
    with store.alone():  # so whoever had begun something has ended it by now, or is gone
        try:
            events, digests = _chain(store)
        except CorruptError:  # for `verify` to name
            return None, []
        finished = None
        discarded = []
        newest = events[-1] if events else {}
        for mark in store.folders(PENDING):
            if mark == newest.get("id") or not re.fullmatch(MARK, mark):
                continue
            # Where a lock keeps the processes of this machine apart, what lies here of one of them lies here for good.
            if is_gone(mark, store.age(f"{PENDING}/{mark}"), locked=store.local):
                store.delete_folder(f"{PENDING}/{mark}")
                discarded.append(mark)
        if newest and not _is_done(store, events, digests):
            _put_in_place(store, newest, _staged(store, newest))
            finished = newest
            store.sweep()
        return finished, discarded


def _staged(store: Store, event: Event) -> dict[str, bytes]:
    """What a claimed event brings, by SHA-256. A file that was cut off while it was written has another one, and is
    left out."""
    if "id" not in event:
        return {}
    folder = f"{PENDING}/{event['id']}"
    contents: dict[str, bytes] = {}
    for name in store.list(folder):
        if name == EVENT:
            continue
        data = store.read(f"{folder}/{name}")
        if _sha256(data) == name:  # its own name says what it has to hold
            contents[name] = data
    return contents


def _is_settled(store: Store) -> bool:
    """Whether nothing was left behind: no look at more than a list, and two small files."""
    # Folders that no operation names so are for `verify`, and must not make every command wait for a lock.
    if any(re.fullmatch(MARK, mark) for mark in store.folders(PENDING)):
        return False
    try:
        events, digests = _chain(store)
    except CorruptError:
        return True
    return not events or _is_done(store, events, digests)


def _is_done(store: Store, events: list[Event], digests: list[str]) -> bool:
    """Whether the newest event's files have their names. head.json tells; one that no operation wrote is for `verify`
    to name."""
    # Files first, then head.json, then the folder goes: whichever of them is behind says where the writer was cut off.
    newest = events[-1]
    if "id" in newest and store.exists(f"{PENDING}/{newest['id']}"):
        return False
    if not store.exists("head.json"):
        return len(events) > 1
    try:
        data = store.read("head.json")
        number = store.parse_json("head.json", data).get("event")
    except CorruptError:
        return True
    if not isinstance(number, int) or not 0 <= number < len(events) - 1:
        return True
    return data != _pointer(events[number], digests[number])


def _pointer(event: Event, digest: str) -> bytes:
    """Content of head.json: the version in force, and the event that says so."""
    return as_json({"version": event["head"], "event": event["number"], "hash": digest})


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # containers without a passwd entry
        return "unknown"


# ---------------------------------------------------------------------------------- reading


def chain(store: Store) -> tuple[list[Event], str]:
    """All events, oldest first, each checked, and the hash of the newest (`FIRST` if there is none).

    Raises:
        CorruptError: names the first event that was changed, removed, added or reordered.
    """
    events, digests = _chain(store)
    return events, digests[-1] if digests else FIRST


def _chain(store: Store) -> tuple[list[Event], list[str]]:
    """All events, as `chain`, and the hash of each."""
    listing = _listing(store)
    seen, events, digests = _known.get(store.uri, ([], [], []))
    # What lay there at the last look, unchanged in name, size and time, was checked then.
    same = 0
    while same < min(len(seen), len(listing)) and seen[same] == listing[same]:
        same += 1
    events = events[:same]
    digests = digests[:same]
    names = [name for name, *_ in listing]
    previous = digests[-1] if digests else FIRST
    new = list(_links(store, names, same, previous, _together(store, len(listing), same)))
    if any(isinstance(event, CorruptError) for event, _ in new):
        new = list(_links(store, names, same, previous))  # what is kept together may be what was changed
    for event, digest in new:
        if isinstance(event, CorruptError):
            raise event
        events.append(event)
        digests.append(digest)
    _known[store.uri] = (listing, events, digests)
    return list(events), digests


def _together(store: Store, count: int, first: int) -> dict[int, bytes]:
    """Events by number, from number `first` on, as files of many have them; nothing on a disk, where reading one file
    is as cheap. Not to be trusted before `_links` has found that they follow one another."""
    contents: dict[int, bytes] = {}
    if store.local or count - first < SEGMENT:
        return contents
    for name, *_ in store.listing("history"):
        if (named := TOGETHER.fullmatch(name)) and int(named["last"]) >= first:
            with suppress(CorruptError, OSError, TypeError):
                listed = store.read_json(f"history/{name}").get("events")
                if isinstance(listed, list):
                    for number, event in enumerate(listed, int(named["first"])):
                        contents[number] = as_json(event)
    return contents


def events(store: Store) -> Iterator[Event]:
    """All events, oldest first; raises as `chain`."""
    yield from chain(store)[0]


def last(store: Store) -> Event:
    """The newest event; `{}` if there is none. Raises as `chain`."""
    whole, _ = chain(store)
    return whole[-1] if whole else {}


def recorded(store: Store) -> dict[str, str]:
    """Every file that an event names, and its SHA-256 as the newest such event has it."""
    return _newest_digests(events(store))


def _newest_digests(events: Iterable[Event]) -> dict[str, str]:
    """Every file that one of the events names, and its SHA-256 as the last that does has it."""
    digests: dict[str, str] = {}
    for event in events:
        digests.update(event["files"])
    return digests


def _listing(store: Store) -> Listing:
    """Events by name, with bytes and time of the last change. Whatever else lies there is for `verify` to name."""
    return [entry for entry in store.listing("history") if NAME.fullmatch(entry[0])]


def _links(
    store: Store, names: list[str], first: int = 0, previous: str = FIRST, known: Mapping[int, bytes] | None = None
) -> Iterator[tuple[Event | CorruptError, str]]:
    """Each event of `names` from number `first` on, or what is wrong with it; and its hash. `previous`: hash of the
    one before; `known`: content of some, which is not read again."""
    for number, name in enumerate(names[first:], first):
        file = f"history/{name}"
        # Of one that cannot be read nobody knows the hash, so the next one is not held against it.
        try:
            data = (known or {}).get(number) or store.read(file)
            event = store.parse_json(file, data)
        except CorruptError as error:
            yield error, ""
            previous = ""
            continue
        digest = digest_of(event)
        named = NAME.fullmatch(name)
        assert named is not None  # `_listing` gives no other names
        # From what has a cause that can be named to what only shows that something is not as it was written.
        if int(named["number"]) < number and number > 0:
            problem = (
                f"{file} is a second event of that number: writers of an early release met, or it was added; "
                f"take away the one that the next event does not name as `previous`, after you have kept a copy"
            )
        elif int(named["number"]) != number or named["digest"] not in (None, digest) or data != as_json(event):
            problem = f"{file} is not event {number} as it was written; the history was changed; restore it from a copy"
        elif wrong := _misfit(event, number):
            problem = f"{file} is no event: its {wrong}; the history was changed; restore it from a copy"
        elif previous and event["previous"] != previous:
            problem = (
                f"{file} follows event {event['previous'][:12]}, but the one before it, "
                f"history/{names[number - 1] if number else ''}, is {previous[:12]}; "
                f"one of them was changed, or an event removed or added; restore both from a copy"
            )
        else:
            problem = None
        yield event if problem is None else CorruptError(problem), digest
        previous = digest


def follow(events: list[Any], what: str) -> str:
    """Hash of the newest of events that were taken along from a run, all of them from the first on.

    Args:
        what: holds them, for an error.

    Raises:
        CorruptError: names the first that is none, or that does not follow the one before it.
    """
    previous = FIRST
    for number, event in enumerate(events):
        wrong = _misfit(event, number) if isinstance(event, dict) else "content is no object"
        if wrong is None and event["previous"] != previous:
            wrong = f"previous is {event['previous'][:12]}, wanted {previous[:12]}"
        if wrong:
            raise CorruptError(
                f"{what}: event {number} does not follow the one before it: its {wrong}; the record was changed; take "
                "it again from where it came from"
            )
        previous = digest_of(event)
    return previous


def _misfit(event: Mapping[str, Any], number: int) -> str | None:
    """What of an event is not as the format has it, in words."""
    if event.get("number") != number or isinstance(event["number"], bool):
        return f"number is {event.get('number')!r}, wanted {number}"
    for key in ("previous", "operation", "time", "user", "host"):
        if not isinstance(event.get(key), str):
            return f"{key} is {event.get(key)!r}, wanted a text"
    for key in ("head", "version", "versions"):
        value = event.get(key)
        is_number = isinstance(value, int) and not isinstance(value, bool)  # to Python True is a 1
        if value is not None and (not is_number or not 0 <= value < MOST):
            return f"{key} is {str(value)[:40]}, wanted a number from 0"
    files = event.get("files")
    if not isinstance(files, dict):
        return f"files is {type(files).__name__}, wanted names and hashes"
    # Names are opened, written and deleted by what an event says: one that leads out of the folder is refused here.
    for name, digest in files.items():
        parts = PurePosixPath(name).parts
        if not parts or name.startswith("/") or ".." in parts or "\0" in name or str(PurePosixPath(name)) != name:
            return f"files names {name!r}, wanted a name below the run's folder"
        if not isinstance(digest, str) or not re.fullmatch("[0-9a-f]{64}", digest):
            return f"hash of {name!r} is {digest!r}, wanted a SHA-256"
    if "id" in event and not (isinstance(event["id"], str) and re.fullmatch(MARK, event["id"])):
        return f"id is {event['id']!r}, wanted machine, process and a number"
    return None


# ---------------------------------------------------------------------------------- proving


def verify(store: Store) -> list[str]:
    """What is not as the history says, each with its file's name: changed, removed, or added, whatever it is called.
    Empty if all is well.

    Reads every file once, and follows no link. Checkpoints of tasks in training are held against their own digest.
    """
    problems = _look(store)
    if not problems:
        return problems
    try:
        with store.alone():  # a writer may have been between two of its files: now there is none
            return _look(store)
    except (StorageError, ConflictError):  # a folder that can only be read
        return problems


def missing(store: Store, expected: str) -> list[str]:
    """What is wrong if no event has the hash that was kept elsewhere: the history was cut off, or made anew.

    Raises:
        SpecError: it is no hash.
    """
    expected = expected.strip().lower()
    if not re.fullmatch("[0-9a-f]{16,64}", expected):
        raise SpecError(
            f"hash {expected[:80]!r} is none; wanted the 64 digits that `talos verify` prints, or at least the first 16"
        )
    try:
        events, digests = _chain(store)
    except CorruptError:  # `verify` names what is wrong
        return []
    if any(digest.startswith(expected) for digest in digests):
        return []
    return [
        f"history/ has no event {expected[:16]}…, of {len(events)}: events were cut off, or all of it was made anew "
        "since that hash was kept"
    ]


def second_events(store: Store) -> list[tuple[str, str | None]]:
    """Events that share their number with one that counts, and that one: the next event names it as `previous`, or, of
    the last ones, head.json does. None, where nothing tells."""
    by_number: dict[int, dict[str, str]] = {}
    for name, *_ in _listing(store):
        named = NAME.fullmatch(name)
        assert named is not None  # `_listing` gives no other names
        event = store.read_json(f"history/{name}")
        of_this_number = by_number.setdefault(int(named["number"]), {})
        of_this_number[f"history/{name}"] = digest_of(event)
    found: list[tuple[str, str | None]] = []
    wanted = {store.read_json("head.json").get("hash")} if store.exists("head.json") else set()
    for number in sorted(by_number, reverse=True):
        there = by_number[number]
        counts = next((name for name, digest in there.items() if digest in wanted), None)
        if len(there) > 1:
            found += [(name, counts) for name in there if name != counts]
        stays = [counts] if counts is not None else list(there)
        wanted = {store.read_json(name).get("previous") for name in stays}
    return found


def point(store: Store, event: Event) -> None:
    """Have head.json name an event."""
    store.write("head.json", _pointer(event, digest_of(event)))


def strays(store: Store) -> list[str]:
    """Files that no event names, and that need none."""
    known = recorded(store)
    return [name for name, kind in sorted(store.tree()) if kind == "file" and name not in known and _stray(store, name)]


def changed(store: Store) -> list[str]:
    """Files that an event names, and that are missing, or other ones."""
    known = recorded(store)
    files = {name for name, kind in store.tree() if kind == "file"}
    return [name for name, digest in sorted(known.items()) if name not in files or store.sha256(name) != digest]


def _look(store: Store) -> list[str]:
    names = [name for name, *_ in _listing(store)]
    links = [link for link, _ in _links(store, names)]
    # A broken event is a problem of its own; the files are held against what all others say.
    problems = [str(link) for link in links if isinstance(link, CorruptError)]
    whole = [link for link in links if not isinstance(link, CorruptError)]
    wanted = _newest_digests(whole)
    files: set[str] = set()
    for name, kind in sorted(store.tree()):
        if kind == "file":
            files.add(name)
        elif kind == "empty folder" and name not in OURS:
            problems.append(f"{name} is an empty folder and in no event: it was added by hand; delete it")
        elif kind not in ("file", "empty folder"):
            problems.append(
                f"{name} is a {kind}; wanted files only; it was not followed; delete it, or restore what it was"
            )
    for name in sorted({*wanted, *files}):
        if name not in files:
            problems.append(f"{name} is missing; restore it from a copy")
        elif name in wanted:
            try:
                if store.sha256(name) != wanted[name]:
                    problems.append(f"{name} was changed since it was recorded; restore it from a copy")
            except (OSError, CorruptError) as error:
                problems.append(f"{name} cannot be read: {error}")
        elif stray := _stray(store, name):
            problems.append(stray)
    return problems + pointed(store, whole)


def _stray(store: Store, name: str) -> str | None:
    """What is wrong with a file that no event names; nothing, if it is one of those that have to be there."""
    folder, _, base = name.rpartition("/")
    together = TOGETHER.fullmatch(base) if folder == "history" else None
    if (
        name == "head.json"
        or (folder == "history" and NAME.fullmatch(base))
        or (together is not None and _is_copy(store, name, together))
        or (folder == QUEUE and TICKET.fullmatch(base))
    ):
        return None
    if folder.startswith(f"{PENDING}/") and re.fullmatch(MARK, mark := folder.split("/")[1]):
        return f"{name} is of an operation of {who(mark)} that is going on, or was cut off; any command makes it whole"
    if found := PART.fullmatch(base):
        return (
            f"{name} was left by {who(mark_of(found))}, which was cut off while it wrote; delete it, or run the run's "
            "command again"
        )
    if name == NOW:
        return None if read_now(store) is not None else f"{name} does not hold what a run tells of itself; delete it"
    if CHECKPOINT.fullmatch(name):
        try:
            store.read_tensors(name)
        except CorruptError as error:
            return str(error)
        return None
    if together is not None:
        return f"{name} does not hold the events that it names; it was changed; delete it: they are there one by one"
    return (
        f"{name} is in no event: it was added by hand, or the run was cut off; delete it, or run the run's command "
        "again"
    )


def read_now(store: Store) -> JsonObject | None:
    """What the process that works on the run told last, as `Progress.news` has it and with its `time`; None where
    there is none, or where something else lies there."""
    try:
        found = store.read_json(NOW)
        kinds = {"stages": dict, "tasks": dict, "lines": list}
        if not all(isinstance(found[key], kind) for key, kind in kinds.items()):
            return None
        return {**found, "time": float(found["time"])}
    except (FileNotFoundError, CorruptError, KeyError, TypeError, ValueError):
        return None


def _is_copy(store: Store, name: str, named: re.Match[str]) -> bool:
    """Whether a file of many events, by the numbers in its name, holds them as their own files do."""
    try:
        together = store.read_json(name).get("events")
        numbers = range(int(named["first"]), int(named["last"]) + 1)
        return bool(together == [store.read_json(f"history/{number:08d}.json") for number in numbers])
    except (OSError, CorruptError):
        return False


def pointed(store: Store, whole: list[Event]) -> list[str]:
    """What is wrong with head.json. It may name an event before the last (its writer was cut off), but one that
    exists."""
    if not whole:
        return ["history/ holds no event"]
    if not store.exists("head.json"):
        return ["head.json is missing; restore it from a copy"]
    try:
        data = store.read("head.json")
    except (OSError, CorruptError) as error:
        return [f"head.json cannot be read: {error}"]
    pointing = [event for event in whole if {"head", "number"} <= event.keys()]  # others had their keys changed
    if any(data == _pointer(event, digest_of(event)) for event in pointing):
        return []
    return [
        "head.json names no event of the history: it was changed, or the newest event, "
        f"history/{whole[-1]['number']:08d}.json, was, or "
        f"events were removed; restore both"
    ]
