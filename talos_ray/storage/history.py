"""The append-only history: one event a file, each holding the hash of the one before."""

from __future__ import annotations

import getpass
import hashlib
import json
import socket
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime

from talos_ray.errors import CorruptError
from talos_ray.storage.files import Store

FIRST = "0" * 64  # what the first event names as its predecessor


def _digest(event: Mapping) -> str:
    return hashlib.sha256(json.dumps(event, sort_keys=True).encode()).hexdigest()


def append(store: Store, operation: str, **details: object) -> dict:
    """Add an event: what was done (`operation`, `details`), by whom (user, host) and when (UTC)."""
    names = store.list("history")
    event = {
        "number": len(names),
        "previous": names[-1].removesuffix(".json").split("-")[1] if names else FIRST,
        "operation": operation,
        "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "user": _user(),
        "host": socket.gethostname(),
        **details,
    }
    store.write_json(f"history/{event['number']:08d}-{_digest(event)}.json", event)
    return event


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # containers without a passwd entry
        return "unknown"


def events(store: Store) -> Iterator[dict]:
    """All events, oldest first, each checked against its hash, its number and its predecessor.

    Raises:
        CorruptError: names the first event file that was changed, removed, added or reordered.
    """
    previous = FIRST
    for number, name in enumerate(store.list("history")):
        event = store.read_json(f"history/{name}")
        digest = _digest(event)
        found = f"history/{name}"
        if name != f"{number:08d}-{digest}.json":
            raise CorruptError(
                f"{found} is not event {number} as it was written; the history was changed; restore it from a copy"
            )
        if event.get("previous") != previous:
            raise CorruptError(
                f"{found} follows event {str(event.get('previous'))[:12]}, but the one before it is {previous[:12]}; an event was removed or added"
            )
        previous = digest
        yield event
