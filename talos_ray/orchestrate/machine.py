"""What this machine must have before Ray can start on it, or a cluster be joined: looked at before any work, and told
in a line.

Ray itself says most of it after half a minute, in the words of whichever of its processes failed first.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import tempfile
from pathlib import Path

from talos_ray.demo.tasks import cache_folder
from talos_ray.errors import SpecError
from talos_ray.orchestrate.ray_internals import running_here

SOCKET = "ray/session_2026-01-01_00-00-00_000000_0000000/sockets/plasma_store.0"  # as Ray names its longest one
LONGEST = 107  # bytes of the path of a socket on Linux
SHARED = Path("/dev/shm")
LEAST = 200 << 20  # bytes for Ray's object store
ANSWERS = 5.0  # seconds that a cluster has to answer a knock
HOST = re.compile(r"(?:ray://)?(\[[^\]]+\]|[^:/]+):(\d+)$")
OTHERS = re.compile(r"(?!https?:|ray:)[A-Za-z][\w.]*://")  # addresses of what others plug into Ray, which they judge


def check_machine(address: str | None) -> None:
    """Raises SpecError unless Ray can start here, or something answers at the address of a cluster."""
    if address is None:
        _check_temporary()
    else:
        _check_answers(address)


def temporary_folder() -> Path:
    """Where a Ray that starts here puts its session."""
    return Path(os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp")


def check_caches() -> None:
    """Raises SpecError unless caches can be written."""
    from datasets import config

    if (named := os.environ.get("TALOS_CACHE", "")).startswith("~"):
        try:
            cache_folder()
        except RuntimeError:
            raise SpecError(
                f"TALOS_CACHE is {named!r}, and there is no such user here; wanted a folder that can be written; write "
                "its path in full"
            ) from None
    try:
        own = cache_folder()
        theirs = Path(os.environ.get("HF_DATASETS_CACHE") or config.HF_DATASETS_CACHE)
        theirs.expanduser()
    except RuntimeError:
        raise SpecError(
            "no home folder is known (HOME is not set), so there is no place for caches; set HOME, or TALOS_CACHE and "
            "HF_HOME, to folders that can be written"
        ) from None
    for name, folder in (("TALOS_CACHE", own), ("HF_HOME", theirs)):
        if (why := _unwritable(folder)) is not None:
            raise SpecError(
                f"the cache {str(folder)!r} cannot be written: {why}; set {name} to a folder that can be, or mend "
                "access"
            )


def _unwritable(folder: Path) -> str | None:
    """Why nothing can be written into a folder that is there, or is to be made."""
    there = next(p for p in (folder, *folder.absolute().parents) if p.exists())
    if not there.is_dir():
        return f"{str(there)!r} is a file"
    try:  # a file without a name: permissions alone do not tell, of a system's own folders or for its administrator
        tempfile.TemporaryFile(dir=there).close()
    except OSError as error:
        return f"no file can be made in {str(there)!r} ({error.strerror})"
    return None


def _check_temporary() -> None:
    folder = temporary_folder()
    if not folder.is_absolute():
        raise SpecError(
            f"Ray cannot start: its folder {str(folder)!r} (from {_named()}) is relative, and its processes have other "
            "working folders; wanted a whole path, like /tmp; correct it"
        )
    if (length := len(os.fsencode(folder / SOCKET))) > LONGEST:
        raise SpecError(
            f"Ray cannot start: its sockets below {str(folder)!r} (from {_named()}) would have paths of {length} "
            f"bytes, and the system takes {LONGEST}; set RAY_TMPDIR to a short path, like /tmp"
        )
    if (why := _unwritable(folder)) is not None:
        raise SpecError(
            f"Ray cannot start: its folder {str(folder)!r} (from {_named()}) cannot be written: {why}; set RAY_TMPDIR "
            "to a folder that can be"
        )
    room = {str(p): shutil.disk_usage(p).free for p in (SHARED, folder) if p.is_dir()}
    if room and max(room.values()) < LEAST:
        found = " and ".join(f"{free >> 20} MB in {name}" for name, free in room.items())
        raise SpecError(
            f"Ray cannot start: there are {found}, and its object store wants {LEAST >> 20} MB; free space in "
            f"{SHARED} (docker: --shm-size), or set RAY_TMPDIR to a disk with room"
        )


def _named() -> str:
    return next((name for name in ("RAY_TMPDIR", "TMPDIR") if os.environ.get(name)), "the system's default")


def _check_answers(address: str) -> None:
    """Knock where a cluster is said to be."""
    place: str | None = address
    if address == "auto":
        named = os.environ.get("RAY_ADDRESS")  # which Ray prefers
        place = named if named and named != "auto" else running_here()
    if place is None:
        raise SpecError(
            "no Ray runs on this machine that the address 'auto' could mean; start one with `ray start --head`, or "
            "leave cluster.address out and unset RAY_ADDRESS"
        )
    if place == "auto" or OTHERS.match(place):
        return
    if (found := HOST.match(place)) is None:
        raise SpecError(
            f"{place!r} is no address of a Ray cluster; wanted HOST:PORT, 'ray://HOST:PORT' or 'auto'; correct "
            "cluster.address, or RAY_ADDRESS if that is not set"
        )
    try:
        socket.create_connection((found[1].strip("[]"), int(found[2])), timeout=ANSWERS).close()
    except (OSError, OverflowError, UnicodeError) as error:
        raise SpecError(
            f"no Ray cluster answers at {place!r}: {error}; start one with `ray start --head`, or leave "
            "cluster.address out and unset RAY_ADDRESS"
        ) from None
