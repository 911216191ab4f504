"""What a user calls: `edit()` makes a run, `open_run()` opens one, and a `Run` answers for it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from talos_ray.config import Spec, Task
from talos_ray.core.compose import Composer
from talos_ray.core.delta import Delta
from talos_ray.core.layout import fingerprint
from talos_ray.core.mask import Mask
from talos_ray.core.merging import merged
from talos_ray.errors import MismatchError, TalosError
from talos_ray.models import Family, base_tensors, load_model
from talos_ray.spec import load_spec, make_spec
from talos_ray.storage import history
from talos_ray.storage.run_folder import RunFolder


def edit(
    tasks: Sequence[Task | str | dict] | None = None, *, model: str = "demo", control: Sequence[Task | str | dict] = (),
    output: str = "runs/run", spec: Spec | str | Path | None = None, verbose: bool = False, **settings: Any,
) -> Run:  # fmt: skip
    """Calibrate, train, merge and verify, on the Ray cluster at hand or on this machine.

    Args:
        tasks: target tasks: `Task`s, names of recipes (`"demo:street_numbers"`), or mappings.
        model: `"demo"`, `"open_clip:ARCHITECTURE/PRETRAINED"`, or `"hf:NAME"` (a text encoder).
        control: tasks that must hold.
        output: the run's folder, local or a URI.
        spec: a `Spec` or the path of a YAML spec, instead of all the others.
        verbose: show Ray's own messages too.
        settings: further sections of the spec, like `train={"lr": 1e-3}` or `mask={"keep": 0.05}`.

    Returns:
        The run, at its new version. Calling again with the same arguments does nothing and returns it.

    Raises:
        SpecError: bad input, before any work. MismatchError: the folder's mask or deltas are another base's.
        TalosError: a stage could not be finished; what was finished is kept.
    """
    from talos_ray.orchestrate.driver import run_edit

    if spec is None:
        spec = make_spec({"tasks": tasks or (), "model": model, "control": control, "output": output, **settings})
    elif not isinstance(spec, Spec):
        spec = load_spec(spec)
    run_edit(spec, verbose=verbose)
    return Run(spec.output)


def open_run(path: str) -> Run:
    """Open the run in a folder.

    Raises:
        TalosError: there is no run. CorruptError: a file of it was changed.
    """
    return Run(path)


class Run:
    """One run: its spec, mask, deltas, versions and history. Everything shown is read from storage."""

    def __init__(self, path: str) -> None:
        self.folder = RunFolder(path)
        self.info = self.folder.info()

    def __repr__(self) -> str:
        return f"Run({self.folder.store.uri!r}, head={self.head})"

    @property
    def path(self) -> str:
        return self.folder.store.uri

    @property
    def head(self) -> int:
        """Number of the version that is in force.

        Raises:
            TalosError: the run has no version yet.
        """
        head = self.folder.head
        if head is None:
            raise TalosError(f"run {self.path!r} has no version yet; run the same command again to finish it")
        return head

    @property
    def versions(self) -> list[dict]:
        """All versions, oldest first."""
        return [self.folder.load_version(n) for n in self.folder.versions()]

    @property
    def version(self) -> dict:
        """The version at head."""
        return self.folder.load_version(self.head)

    @property
    def scores(self) -> dict[str, dict]:
        """Test scores at head: task -> {"base" | "single" | "merged": {value, n, low, high}}."""
        return self.version["scores"]

    @property
    def coefficients(self) -> dict[str, float]:
        """Scaling coefficient of every task at head; empty at the base."""
        return self.version["coefficients"]

    @cached_property
    def mask(self) -> Mask:
        """The weights that may change."""
        mask = self.folder.load_mask(self.info["base"])
        if mask is None:
            raise TalosError(f"run {self.path!r} has no mask yet; run the same command again to finish it")
        return mask

    @property
    def deltas(self) -> dict[str, Delta]:
        """The deltas (task vectors) that head is made of; at the base, those on storage."""
        wanted = self.version["deltas"] or {t["name"]: None for t in self.info["spec"]["tasks"]}
        found = {}
        for task, mark in wanted.items():
            delta = self.folder.load_delta(task, mark)
            if delta is None:
                raise TalosError(
                    f"run {self.path!r} misses the delta {(mark or '')[:12]} of task {task!r}; restore deltas/ from a copy"
                )
            delta.check(self.info["base"], self.mask.fingerprint)
            found[task] = delta
        return found

    def model(self) -> Family:
        """The model at head: `.module` is the edited network, checked bitwise against the version's fingerprint.

        Raises:
            MismatchError: the model named in the spec is not the base that this run was made from.
        """
        family = load_model(self.info["spec"]["model"])
        base = fingerprint(base_tensors(family))
        if base != self.info["base"]:
            raise MismatchError(
                f"model {self.info['spec']['model']!r} is now {base[:12]}, but run {self.path!r} was made from {self.info['base'][:12]}; restore the original weights"
            )
        version = self.version
        rows = merged(self.deltas, self.mask, **version.get("merge", {}))
        Composer(family.module, self.mask, list(rows.values()), base).compose(version["coefficients"])
        found = fingerprint(base_tensors(family))
        if found != version["model"]:
            raise MismatchError(
                f"version {version['version']} composes to {found[:12]}, but was recorded as {version['model'][:12]}; mask or deltas were changed"
            )
        return family

    def rollback(self, version: int | None = None, reason: str | None = None) -> Run:
        """Move head to an earlier version (the one before, if none is named). Exact: the model is recomposed from the
        base's bytes, never subtracted from. Recorded in the history; rolling back can be rolled back.

        Raises:
            TalosError: no such version.
        """
        head = self.head
        number = head - 1 if version is None else version
        if number < 0:
            raise TalosError(
                f"version {head} is the first of run {self.path!r}; there is nothing before it to roll back to"
            )
        self.folder.set_head(number, "rollback", was=head, reason=reason)
        return self

    def add(self, task: Task | str | dict, *, verbose: bool = False) -> Run:
        """Train one more task on the run's mask, and find all coefficients anew. The other deltas stay as they are.

        Raises:
            SpecError: the task, before any work.
        """
        spec = self.info["spec"]
        edit(spec=make_spec({**spec, "output": self.path, "tasks": [*spec["tasks"], task]}), verbose=verbose)
        self.info = self.folder.info()
        return self

    def merge(self, tasks: Sequence[str], *, reason: str | None = None, verbose: bool = False) -> Run:
        """A version of some of the tasks, with coefficients of its own; trains nothing.

        Raises:
            TalosError: no such task.
        """
        from talos_ray.orchestrate import operations

        operations.merge(self.path, tasks, reason=reason, verbose=verbose)
        return self

    def remove(self, task: str, *, reason: str | None = None, verbose: bool = False) -> Run:
        """A version without one task, exactly as if its delta had never been there; the others keep their coefficients.

        Raises:
            TalosError: head holds no edit of this task.
        """
        from talos_ray.orchestrate import operations

        operations.remove(self.path, task, reason=reason, verbose=verbose)
        return self

    def forget(
        self, task: str, keep: float = 0.95, *, at_most: float | None = None, reason: str | None = None, verbose: bool = False,
    ) -> Run:  # fmt: skip
        """A version that has forgotten one task (a coefficient of 0 or below), while all control tasks and all that head has
        learnt keep `keep` of their scores.

        Args:
            at_most: validation accuracy that counts as forgotten; by default 0.05 above chance.

        Raises:
            TalosError: not reachable; shows the best that is, and the curve. Nothing is changed.
        """
        from talos_ray.orchestrate import operations

        operations.forget(self.path, task, keep=keep, at_most=at_most, reason=reason, verbose=verbose)
        return self

    def history(self) -> list[dict]:
        """Every event, oldest first; raises CorruptError if one was changed, removed or reordered."""
        return list(history.events(self.folder.store))
