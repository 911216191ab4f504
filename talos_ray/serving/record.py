"""What a run lets be served, followed as it changes: a rollback, an approval or a new task shows within a second."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from talos_ray.api import Run, open_run
from talos_ray.errors import SpecError, TalosError, nearest
from talos_ray.storage.run_folder import tasks_of
from talos_ray.storage.version import Version
from talos_ray.trust import versions

FOLLOW_SECONDS = 1.0  # between two looks at a run's history


class Refused(TalosError):
    """A request that is not answered, and the HTTP status that says so: 404 no such task, version or edit; 409 a
    version that its gate keeps aside; 422 an input that cannot be read."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, kw_only=True)
class Canary:
    """A share (above 0, below 1) of the requests that name no version, which a version is tried on."""

    version: int
    share: float

    @classmethod
    def of(cls, words: str) -> Canary:
        """From `N=SHARE`, as a command line has it.

        Raises:
            SpecError: anything else.
        """
        number, _, share = words.partition("=")
        try:
            canary = cls(version=int(number), share=float(share))
        except ValueError:
            canary = None
        if canary is None or not 0 < canary.share < 1:
            raise SpecError(f"canary is {words!r}; wanted VERSION=SHARE, with a share between 0 and 1, like 4=0.1")
        return canary

    def takes(self, request: str) -> bool:
        """Whether the request of this id is among them. The same id is answered alike by every replica, each time; a
        further canary draws other ids."""
        # By a hash and not by lot: replicas know nothing of each other, and agree all the same.
        digest = hashlib.sha256(f"{self.version}/{request}".encode()).digest()
        return int.from_bytes(digest[:8]) < self.share * 2**64


class View:
    """A run between two events of its history."""

    def __init__(self, run: Run, mark: tuple[int, str]) -> None:
        self.run = run
        self.mark = mark  # of the newest event when this was made
        self.head = run.head
        self.tasks = tasks_of(run.info)
        self._versions: dict[int, Version] = {}

    @cached_property
    def classes(self) -> dict[str, list[str]]:
        """Task -> names of its classes, in label order."""
        return self.run.classes

    def settings(self, task: str) -> Mapping[str, Any]:
        """Of a task of the run.

        Raises:
            Refused: there is no such task.
        """
        if task not in self.tasks or task not in self.classes:
            raise Refused(
                404,
                f"task {task!r} is none of this run{nearest(task, self.classes)}; it has: {', '.join(self.classes)}",
            )
        return self.tasks[task]

    def version(self, number: int) -> Version:
        """A version that may be served: its gate holds, or somebody approved it.

        Raises:
            Refused: there is no such version, or it is kept aside.
        """
        # Versions never change, and what may be served changes with an event only: then there is a new view.
        if number in self._versions:
            return self._versions[number]
        folder = self.run.folder
        if number not in (known := folder.versions()):
            raise Refused(404, f"version {number} does not exist in this run; it has: {', '.join(map(str, known))}")
        version = folder.load_version(number)
        if versions.is_held(folder, version):
            assert version.gate is not None  # only a gate keeps a version aside
            raise Refused(
                409,
                f"version {number} is kept aside by its gate: {version.gate.why}; head is {self.head}; ask for "
                "another version, or let somebody approve it with `talos approve`",
            )
        self._versions[number] = version
        return version

    def delta(self, version: Version, task: str) -> str:
        """Fingerprint of the edit of a task that a version holds.

        Raises:
            Refused: it holds none, or has forgotten the task.
        """
        if not version.holds(task):
            edits = [name for name in version.deltas if version.holds(name)]
            raise Refused(
                404,
                f"version {version.number} holds no edit of task {task!r}{nearest(task, edits)}; it holds those "
                f"of: {', '.join(edits) or 'none'}",
            )
        return version.deltas[task]


class Record:
    """Which version answers a request.

    Args:
        path: of the run.
        version: that answers where a request names none; head, if not given, whatever that is at the time.
        canary: a version that takes a share of these requests.
        follow: seconds between two looks at the run's history.
        allow_code: modules whose `python:` models may run.

    Raises:
        TalosError: no run or no version there. Refused: a version that may not be served.
    """

    def __init__(
        self,
        path: str,
        *,
        version: int | None = None,
        canary: Canary | None = None,
        follow: float = FOLLOW_SECONDS,
        allow_code: Sequence[str] = (),
    ) -> None:
        self.path = path
        self.fixed = version
        self.canary = canary
        self.follow = follow
        self.allow_code = allow_code
        self._lock = threading.Lock()
        self._view = self._open()
        self.seen = time.monotonic()  # when the history was last read
        # What cannot be served is told when the server starts, and not to whoever asks first.
        for number in (version, None if canary is None else canary.version):
            if number is not None:
                self._view.version(number)

    def _open(self) -> View:
        run = open_run(self.path, allow_code=self.allow_code)
        # Marked before it is read: what comes in between is found by the next look.
        mark = run.folder.last_event()
        return View(open_run(self.path, allow_code=self.allow_code), mark)

    def view(self) -> View:
        """The run as it is now. Where its storage does not answer, as it was when it last did.

        Raises:
            CorruptError: the history was changed.
        """
        # One thread looks for all: the others wait for what it finds, and storage is asked once a second at most.
        with self._lock:
            if time.monotonic() - self.seen >= self.follow:
                try:
                    if self._view.run.folder.last_event() != self._view.mark:
                        self._view = self._open()
                    self.seen = time.monotonic()
                except OSError:  # a storage that is away for a while is no reason to stop
                    pass
            return self._view

    def number(self, view: View, version: int | None, request: str) -> int:
        """Of the version that answers a request.

        Args:
            version: that the request names.
            request: its id.
        """
        if version is not None:
            return version
        if self.canary is not None and self.canary.takes(request):
            return self.canary.version
        return view.head if self.fixed is None else self.fixed
