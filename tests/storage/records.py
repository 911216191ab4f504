"""Runs for the tests of the record: one that release 0.1 wrote, and what is done to it by people who mean harm or lose power."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import tarfile
from collections.abc import Callable
from pathlib import Path

from talos_ray.storage import history
from talos_ray.storage.files import as_json
from talos_ray.storage.run_folder import RunFolder
from talos_ray.storage.version import Version

PLAIN = Version(model="m", coefficients={})
RELEASE_0_1 = Path(__file__).parent / "release_0_1.tar.gz"
CALLS = ("fsync", "replace", "link", "unlink", "rmdir", "mkdir")  # how a process changes a disk, besides writing bytes


def old_run(where: Path) -> Path:
    """A run of release 0.1: a base, a version that was in force, one that its gate kept aside, two rollbacks."""
    with tarfile.open(RELEASE_0_1) as packed:
        packed.extractall(where, filter="data")
    return where / "release_0_1"


def small_run(where: Path) -> RunFolder:
    """Three versions with a page each, without anything else."""
    folder = RunFolder(str(where))
    for _ in range(3):
        folder.add_version("version", lambda n: (PLAIN, {f"report/{n:04d}.html": b"page %d" % n}))
    return folder


def killed_at(call: int, work: Callable[[], object]) -> bool:
    """Do `work` in a process of its own, which is killed right after its `call`-th change of the disk. Whether it was killed."""
    if (child := os.fork()) == 0:
        left = [call]

        def counted(real):
            def done(*args, **kwargs):
                result = real(*args, **kwargs)
                left[0] -= 1
                if left[0] == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                return result

            return done

        for name in CALLS:
            setattr(os, name, counted(getattr(os, name)))
        try:
            work()
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status)


def rehash(folder: Path) -> None:
    """What somebody does who can write the folder and knows the format: every hash made anew."""
    names = sorted(os.listdir(folder / "history"))
    events = [json.loads((folder / "history" / name).read_text()) for name in names]
    newest = {name: i for i, event in enumerate(events) for name in event["files"]}
    previous = history.FIRST
    for i, (old, event) in enumerate(zip(names, events, strict=True)):
        for name in event["files"]:
            if newest[name] == i and (folder / name).is_file():
                event["files"][name] = hashlib.sha256((folder / name).read_bytes()).hexdigest()
        event["previous"] = previous
        previous = hashlib.sha256(json.dumps(event, sort_keys=True).encode()).hexdigest()
        (folder / "history" / old).unlink()
        (folder / "history" / f"{i:08d}.json").write_bytes(as_json(event))
    pointer = {"version": events[-1]["head"], "event": len(events) - 1, "hash": previous}
    (folder / "head.json").write_bytes(as_json(pointer))
