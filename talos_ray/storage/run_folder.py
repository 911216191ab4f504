"""A run's folder: mask, deltas, checkpoints, trials, versions, history. `docs/formats.md` says what is in each file."""

from __future__ import annotations

import hashlib
import re
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache, cached_property, partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pyarrow.fs as pafs
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from talos_ray.config import scoring
from talos_ray.core.delta import Delta
from talos_ray.core.layout import Layout, fingerprint
from talos_ray.core.mask import Mask, mask_from_packed
from talos_ray.core.paired import Answers
from talos_ray.core.segments import Blend
from talos_ray.errors import ConflictError, CorruptError, MismatchError, SpecError, StorageError, TalosError
from talos_ray.shown import plain
from talos_ray.storage import history
from talos_ray.storage.files import JsonObject, Store, as_json, as_tensors, who
from talos_ray.storage.schema import Shape, delta_of, finite, fits, mask_of, run_of
from talos_ray.storage.version import Learned, Version

FORMAT = 3  # of run.json; 2 named events by number and hash
READS = (2, 3)
HEADS = "heads.safetensors"
CHOICE = "choice.json"  # what was tried where the spec left the mask open; written before the run begins
SCRATCH = "choice"  # what short runs leave until that is written
# All that they leave.
TRIAL = re.compile(
    rf"{SCRATCH}/((trials|base|merged)/\.?[0-9a-f]+|checkpoints/merge-[0-9a-f]+/\.?step-\d{{8}})"
    r"\.safetensors(\.[0-9a-f]+)?$"
)
DRAFT = re.compile(
    r"\.(run|choice)\.json\.[0-9a-f]{8}$"
)  # of a marker, from a process that was killed while it wrote it
BASELINE = "baseline"
STEP = re.compile(r"step-\d{8}\.safetensors$")
MARKS = {"format", "spec", "base", "identity"}  # keys by which a run.json is one of ours
SCORES = {"asked", "tasks", "chosen", "tried"}  # and a choice.json
WORKERS_WRITE = ("deltas/", "baseline/", "base/", "trials/", "merged/", "learned/")
DELTA = re.compile(r"(?:baseline/)?deltas/(?:archive/)?[^/]+\.safetensors")
NEAR_ZERO = 0.01  # coefficients below it count as next to nothing
PACKAGES = ("talos-ray", "torch", "ray", "open_clip_torch", "transformers", "datasets", "safetensors", "optuna")


def software() -> dict[str, str]:
    """Versions of the packages that decide a result."""
    return {name: _installed(name) for name in PACKAGES}


@cache
def _installed(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "absent"


class RunFolder:
    """Reads and writes the files of one run; knows formats and names, not what they mean."""

    def __init__(self, uri: str) -> None:
        self.store = Store(uri)
        self.finished: history.Event | None = (
            None  # an operation that had been cut off and was completed here: see `settle`
        )

    # -------------------------------------------------------------------------------- cuts, and changed files

    def settle(self, asked: list[Any] | None = None) -> bool:
        """Complete or discard what a process that was cut off left behind, and say so in a line. What can only be read
        is read as it is. Returns whether the command `asked` is what was completed: then there is nothing left to do,
        and the line says that."""
        notes = []
        try:
            finished, discarded = history.settle(self.store)
        except StorageError as error:
            finished = None
            discarded = []
            notes.append(f"was left unfinished, and cannot be finished here: {error}")
        self.finished = finished or self.finished
        completed = self.finished or {}
        repeated = asked is not None and completed.get("asked") == asked
        if repeated:
            notes.append(
                f"this command took effect before it was cut off, as event {completed['number']}; nothing more "
                "was changed"
            )
        elif finished:
            notes.append(f"event {finished['number']} ({finished['operation']}) had been cut off and was completed")
        if discarded:
            owners = ", ".join(who(mark) for mark in discarded)
            notes.append(f"what {owners} had begun had not taken effect and was discarded")
        if notes:
            print(plain(f"run {self.store.uri!r}: {'; '.join(notes)}"), file=sys.stderr)
        if asked is not None:
            self.finished = None
        return repeated

    def read(self, name: str) -> bytes:
        """A file that an event names, held against that event's hash.

        Raises:
            CorruptError: it is missing, was changed, or is in no event.
        """
        problem = ""
        for _ in range(2):
            wanted = history.recorded(self.store).get(name)
            try:
                data = self.store.read(name)
            except FileNotFoundError:
                problem = "is missing" if wanted else "does not exist"
            else:
                if hashlib.sha256(data).hexdigest() == wanted:
                    return data
                problem = "was changed since it was recorded" if wanted else "is in no event of the history"
            self.settle()  # a writer may be between its event and its files: wait for it, and look again
        raise CorruptError(
            f"{self.store.path(name)} {problem}; restore it from a copy; `talos verify` names all there is"
        )

    def check(self, *names: str) -> None:
        """Raises CorruptError unless these files are as they were recorded."""
        for name in names:
            self.read(name)

    # -------------------------------------------------------------------------------- the run itself

    def check_new(self, base: str | None = None, identity: Mapping[str, object] | None = None) -> None:
        """Raises SpecError unless the folder is absent, without any entry, or holds the run described by `identity`.

        `identity` is what a run cannot change without becoming another one: the base and the mask's inputs.
        """
        self.settle()
        foreign = self._foreign()
        if foreign:
            raise SpecError(
                f"output {self.store.uri!r} holds other files{'' if self.is_ours else ' and no run'} "
                f"({', '.join(map(repr, foreign[:3]))}); "
                "wanted a new folder, or one without any entry; choose another output, or move them away"
            )
        if not self.is_ours or identity is None:
            return
        stored = self.info()["identity"]
        # What is left out at its default may stand on either side alone.
        for key in {**identity, **stored}:
            wanted = identity.get(key)
            if stored.get(key) != wanted:
                raise SpecError(
                    f"output {self.store.uri!r} holds another run: its {key} is {_short(stored.get(key))}, this spec's "
                    f"is {_short(wanted)}; "
                    f"choose another output"
                )

    @property
    def is_ours(self) -> bool:
        """Whether run.json says that everything here was made by a run. Nothing is deleted in a folder of which it
        does not."""
        return self.store.exists("run.json") and set(self.store.read_json("run.json")) >= MARKS

    @cached_property
    def _marked(self) -> bool:
        """The same, asked once; the dense baseline's folder lies in its run's."""
        root, _, last = self.store.uri.rstrip("/").rpartition("/")
        return self.is_ours or (last == BASELINE and RunFolder(root).is_ours)

    def _foreign(self) -> list[str]:
        """Entries, hidden ones and empty folders too, that no run has made. Before a run begins, short runs may have
        left what they were about to choose by."""
        root = self.store.root.rstrip("/")
        entries = self.store.fs.get_file_info(pafs.FileSelector(root, allow_not_found=True))
        names = {entry.base_name for entry in entries if not DRAFT.match(entry.base_name)}
        if self.is_ours:  # what is called like these is read, or cleaned up, as if a run had made it
            names &= {SCRATCH, CHOICE}
        if CHOICE in names and set(self.load_choice() or ()) >= SCORES:
            names.remove(CHOICE)
        if SCRATCH in names:
            below = self.store.fs.get_file_info(pafs.FileSelector(f"{root}/{SCRATCH}", recursive=True))
            files = [entry.path.removeprefix(f"{root}/") for entry in below if entry.type == pafs.FileType.File]
            if files and all(map(TRIAL.match, files)):
                names.remove(SCRATCH)
        return sorted(names)

    def info(self) -> JsonObject:
        """run.json.

        Raises:
            TalosError: no run here. CorruptError: a format that this version cannot read.
        """
        if not self.store.exists("run.json"):
            raise TalosError(
                f"{self.store.uri!r} holds no run (no run.json); wanted a folder that `talos edit` wrote; check the "
                "path"
            )
        info = self.store.parse_json("run.json", self.store.read("run.json"))
        known = info.get("format")
        if known not in READS or isinstance(known, bool):
            newer = isinstance(known, int) and known > FORMAT
            raise CorruptError(
                f"{self.store.path('run.json')} has format {known!r}{', of a newer talos_ray' if newer else ''}; this "
                f"one reads {FORMAT} and before; "
                f"use the version that wrote it"
            )
        self.check("run.json")
        info = run_of(self.store.path("run.json"), info)
        # Runs of earlier releases did not write all of these; whoever reads a run finds them.
        defaults = {"model": "", "seed": 0, "tasks": [], "control": []}
        spec = {**defaults, **info["spec"]}
        spec["search"] = _search_today(spec.get("search") or {})
        return {**info, "spec": spec}

    def stored(self, settings: type[Shape], found: Mapping[str, object], name: str = "run.json") -> Shape:
        """Settings as a file of the run holds them.

        Raises:
            CorruptError: names file and field, where they are none that a spec may have.
        """
        return fits(settings, self.store.path(name), found)

    def begin(
        self,
        spec: JsonObject,
        base: str,
        identity: Mapping[str, object],
        heads: Mapping[str, torch.Tensor],
        classes: Mapping[str, Sequence[str]],
        keys: Mapping[str, str] | None = None,
    ) -> None:
        """Write run.json and every task's frozen head (with `keys`, what each was made of), and that the run begins or
        goes on.

        Tasks that the spec names no more are set aside, with their heads: earlier versions hold them, and somebody may
        add them again.
        """
        info: JsonObject = {"format": FORMAT, "spec": spec, "base": base, "identity": identity, "software": software()}
        heads = dict(heads)
        classes = {task: list(names) for task, names in classes.items()}
        keys = dict(keys or {})
        again = self.store.exists("run.json")
        if again:
            # Heads as they were: another machine would make other last bits of them.
            info["set_aside"] = self._set_aside(spec)
            before, known = self._read_heads()
            for settings in info["set_aside"]:
                task = settings["name"]
                if task in before:
                    heads[task] = before[task]
                    classes[task] = known["classes"][task]
                    if task in known.get("keys", {}):
                        keys[task] = known["keys"][task]
        about = {"classes": classes, "keys": keys}
        writes = {"run.json": as_json(info), HEADS: as_tensors(heads, about)}
        history.append(
            self.store,
            "resume" if again else "start",
            lambda before: (writes, {}),
            [CHOICE] if self.store.exists(CHOICE) else [],
            patience=0,  # the first write of a run: better refused now
            base=base,
            spec=spec,
            software=software(),
        )

    def _set_aside(self, spec: JsonObject) -> list[JsonObject]:
        """Settings of tasks that the run has had, and that a spec does not name."""
        # The newest settings of a name come last, and are the ones that stay.
        before = self.store.read_json("run.json")
        had = [*before.get("set_aside", ()), *_tasks_in(before["spec"])]
        named = {task["name"] for task in _tasks_in(spec)}
        latest = {task["name"]: task for task in had if task["name"] not in named}
        return list(latest.values())

    def _read_heads(self) -> tuple[dict[str, torch.Tensor], JsonObject]:
        """The file of frozen heads as it is; nothing, where there is none yet."""
        return self.store.read_tensors(HEADS) if self.store.exists(HEADS) else ({}, {})

    def load_choice(self) -> JsonObject | None:
        """What was tried, and what was chosen, where the spec left the mask open."""
        return self.store.read_json(CHOICE) if self.store.exists(CHOICE) else None

    def load_heads(self) -> tuple[dict[str, torch.Tensor], dict[str, list[str]]]:
        """Task -> head, and task -> class names in its order."""
        heads, info = self.store.read_tensors(HEADS)
        return heads, info["classes"]

    def kept_heads(self) -> dict[str, torch.Tensor]:
        """Heads by their keys. None from a file that is broken: it is written again."""
        try:
            heads, info = self._read_heads()
        except CorruptError:
            return {}
        return {key: heads[task] for task, key in info.get("keys", {}).items()}

    def record(
        self, operation: str, files: Iterable[str] = (), writes: Mapping[str, bytes] | None = None, **details: Any
    ) -> history.Event:
        """An event that leaves head where it is, with `files` of it already on storage and others that it `writes`,
        and whatever workers have left there. Returns it."""
        held = sorted({*files, *self._unrecorded()})
        return history.append(self.store, operation, lambda before: (writes or {}, {}), held, **details)

    def _unrecorded(self) -> list[str]:
        """Files of the kinds that workers write, which no event names yet."""
        self.store.sweep()
        known = history.recorded(self.store)
        written = [name for name in self.store.walk() if name.startswith(WORKERS_WRITE)]
        return [name for name in written if "/checkpoints/" not in name and name not in known]

    # -------------------------------------------------------------------------------- base

    def save_base(self, base: str, tensors: Mapping[str, torch.Tensor]) -> str:
        """The base as one safetensors file, for nodes to read, unless it is there. Returns its name."""
        name = f"base/{base}.safetensors"
        if not self.store.exists(name):
            with tempfile.TemporaryDirectory() as scratch:
                # By a file and not in memory, where the base may have no room a second time.
                file = Path(scratch) / "base.safetensors"
                save_file({tensor_name: tensor.contiguous() for tensor_name, tensor in tensors.items()}, file)
                self.store.upload(file, name)
        return name

    def load_base(self, name: str, cache: Path) -> dict[str, torch.Tensor]:
        """The base's tensors, mapped from a file of this node, so that processes share its pages.

        Raises:
            CorruptError: the file does not hold the base that it names.
        """
        path = self.store.on_this_node(name, cache)
        try:
            if fingerprint(tensors := load_file(path)) == Path(name).stem:
                return tensors
        except SafetensorError:
            pass
        raise CorruptError(
            f"{path} does not hold the base that it names; the file was changed; delete it and run the same command "
            "again"
        )

    # -------------------------------------------------------------------------------- mask

    def save_mask(self, mask: Mask, base: str) -> None:
        pairs = zip(mask.layout.names, mask.layout.shapes, strict=True)
        shapes = {name: list(shape) for name, shape in pairs}
        info = {**mask.info, "base": base, "fingerprint": mask.fingerprint, "k": mask.k, "shapes": shapes}
        self.store.write_tensors("mask.safetensors", mask.packed(), info)

    def load_mask(self, base: str) -> Mask | None:
        return load_mask(self.store, "mask.safetensors", base) if self.store.exists("mask.safetensors") else None

    # -------------------------------------------------------------------------------- deltas

    def save_delta(self, delta: Delta) -> None:
        """Store a task's delta. One that it replaces moves to `deltas/archive/`, because versions may need it."""
        name = f"deltas/{delta.task}.safetensors"
        if self.store.exists(name):
            old = self.store.read(name)
            _, info = self.store.read_tensors(name)
            # Copied first, byte for byte: events hold the file's hash, and a run that is killed here has both.
            if info["fingerprint"] != delta.fingerprint:
                self.store.write(f"deltas/archive/{delta.task}-{info['fingerprint'][:16]}.safetensors", old)
        info = {
            **delta.info,
            "task": delta.task,
            "base": delta.base,
            "mask": delta.mask,
            "fingerprint": delta.fingerprint,
        }
        self.store.write_tensors(name, {"values": delta.values}, info)

    def load_delta(self, task: str, fingerprint: str | None = None) -> Delta | None:
        """The task's delta, or the one with this fingerprint from the archive; None if there is none."""
        # The archive is asked only for a certain one: the newest of a task is never there.
        names = [f"deltas/{task}.safetensors"]
        if fingerprint is not None:
            names.append(f"deltas/archive/{task}-{fingerprint[:16]}.safetensors")
        for name in names:
            if self.store.exists(name):
                tensors, info = self.store.read_tensors(name)
                values = delta_of(self.store.path(name), tensors, info)
                delta = Delta(info["task"], values, info["base"], info["mask"], info)
                if fingerprint in (None, delta.fingerprint):
                    return delta
        return None

    def delta_info(self, task: str, fingerprint: str | None = None) -> JsonObject | None:
        """What is told of the delta that `load_delta` would give (its settings, training curve, seconds), without
        reading it; None if there is none.

        Raises:
            CorruptError: the file is cut off, or none of this project.
        """
        names = [f"deltas/{task}.safetensors"]
        if fingerprint is not None:
            names.append(f"deltas/archive/{task}-{fingerprint[:16]}.safetensors")
        for name in names:
            if self.store.exists(name):
                info = self.store.read_info(name)
                if fingerprint in (None, info.get("fingerprint")):
                    return info
        return None

    def check_delta(self, task: str, fingerprint: str) -> None:
        """Raises CorruptError unless the file that `load_delta` would give, if there is one, was recorded once. A
        later training may have moved it to the archive, and not have come to its event yet."""
        names = (f"deltas/{task}.safetensors", f"deltas/archive/{task}-{fingerprint[:16]}.safetensors")
        recorded: set[str] = set()
        for event in history.events(self.store):
            recorded.update(event["files"][name] for name in names if name in event["files"])
        for name in names:
            if not self.store.exists(name):
                continue
            _, info = self.store.read_tensors(name)
            if info.get("fingerprint") != fingerprint:
                continue
            if self.store.sha256(name) not in recorded:
                raise CorruptError(
                    f"{self.store.path(name)} was changed since it was recorded; restore it from a copy; `talos "
                    "verify` names all there is"
                )
            return

    def save_merged(self, mask: Mask, rows: Mapping[str, Delta]) -> tuple[str, int]:
        """Store what a merge method made of the deltas, where it cannot be made again to the bit. Returns the file's
        name, and its bytes."""
        tensors = {f"mask/{tensor}": bits for tensor, bits in mask.packed().items()}
        tensors |= {f"rows/{task}": delta.values for task, delta in rows.items()}
        name = f"merged/{fingerprint(tensors)}.safetensors"
        if not self.store.exists(name):  # as in `save_learned`
            self.store.write_tensors(name, tensors, {"base": next(iter(rows.values())).base})
        return name, self.store.size(name)

    def load_merged(self, name: str, layout: Layout) -> tuple[Mask, dict[str, Delta]]:
        """What `save_merged` stored."""
        tensors, info = self.store.read_tensors(name)
        mask = mask_from_packed(layout, {name: tensors[f"mask/{name}"] for name in layout.names})
        tasks = sorted(name.removeprefix("rows/") for name in tensors if name.startswith("rows/"))
        return mask, {task: Delta(task, tensors[f"rows/{task}"], info["base"], mask.fingerprint) for task in tasks}

    def save_learned(self, blend: Blend, heads: Mapping[str, torch.Tensor], mask: Mask) -> Learned:
        """Store the coefficients of a version's segments and the heads that its tasks have of their own, in a file
        named by its content. Returns what the version says of it."""
        # Named by what is in it: versions that share coefficients share the file, and none can be changed unseen.
        coefficients = blend.by_segment
        groups = blend.groups if blend.granularity == "group" else None
        tensors = {f"head/{task}": head.float().contiguous() for task, head in heads.items()}
        tensors |= {f"coefficient/{task}": values.float().contiguous() for task, values in coefficients.items()}
        name = f"learned/{fingerprint(tensors)}.safetensors"
        # Where another version has the same, the file stays: its bytes are recorded, and a header's order may differ.
        if not self.store.exists(name):
            about = {"granularity": blend.granularity, "groups": groups, "mask": mask.fingerprint}
            self.store.write_tensors(name, tensors, about)
        longest = max(map(len, coefficients.values()), default=0)
        return Learned(
            file=name,
            granularity=blend.granularity,
            groups=groups,
            count=longest if blend.granularity else 1,
            heads=sorted(heads),
            range={task: [float(values.min()), float(values.max())] for task, values in coefficients.items()},
            near_zero={task: _near_zero(values) for task, values in coefficients.items()},
        )

    def load_learned(self, version: Version) -> tuple[Blend, dict[str, torch.Tensor]]:
        """How much of each delta a version is made of, and the heads that its tasks have of their own, by task.

        Raises:
            CorruptError: the file is not the one that the version was made with.
        """
        learned = version.learned
        if learned is None:
            return Blend(version.coefficients), {}
        tensors, _ = self.store.read_tensors(learned.file)
        if f"learned/{fingerprint(tensors)}.safetensors" != learned.file:
            raise CorruptError(
                f"{self.store.path(learned.file)} does not hold the coefficients that it names; it was changed; "
                "restore it from a copy"
            )
        heads = {name.removeprefix("head/"): head for name, head in tensors.items() if name.startswith("head/")}
        if learned.granularity is None:
            return Blend(version.coefficients), heads
        values = {}
        for name, tensor in tensors.items():
            if name.startswith("coefficient/"):
                values[name.removeprefix("coefficient/")] = tensor
        return Blend(values, learned.granularity, learned.groups or 4), heads

    def heads_of(self, version: Version | None) -> dict[str, tuple[str, torch.Tensor]]:
        """What each task of the run is scored with at a version: task -> (kind of head, head). None: the heads that
        the run began with."""
        frozen, _ = self.load_heads()
        kinds = {}
        for name, settings in tasks_of(self.info()).items():
            kinds[name] = scoring(settings.get("head", "words"), settings.get("ranking", "mean"))
        own: dict[str, torch.Tensor] = {}
        if version is not None:
            _, own = self.load_learned(version)
        heads = {}
        for task, head in frozen.items():
            heads[task] = ("linear", own[task]) if task in own else (kinds[task], head)
        return heads

    # -------------------------------------------------------------------------------- checkpoints

    def save_checkpoint(self, task: str, key: str, step: int, state: Mapping[str, torch.Tensor]) -> None:
        """Two alternate, so that a broken write always leaves the one before."""
        self.store.write_tensors(f"checkpoints/{task}/step-{step:08d}.safetensors", state, {"key": key, "step": step})
        if not self._marked:  # nothing is deleted where nobody can be sure that a run made it
            return
        for name in self._checkpoints(task)[:-2]:
            self.store.delete(f"checkpoints/{task}/{name}")

    def load_checkpoint(self, task: str, key: str) -> tuple[int, dict[str, torch.Tensor]] | None:
        """(step, state) of the newest whole checkpoint made under the same settings (`key`)."""
        # The newest may have been cut off while it was written, and the one before is whole.
        for name in reversed(self._checkpoints(task)):
            try:
                state, info = self.store.read_tensors(f"checkpoints/{task}/{name}")
            except CorruptError:
                continue
            if info["key"] == key:
                return info["step"], state
        return None

    def drop_checkpoints(self, task: str) -> None:
        """Delete them, and their folder if nothing else is in it."""
        if not self._marked:
            return
        for name in self._checkpoints(task):
            self.store.delete(f"checkpoints/{task}/{name}")
        self.store.sweep(f"checkpoints/{task}")  # what a worker that was killed had begun
        folder = self.store.path(f"checkpoints/{task}")
        if self.store.exists(f"checkpoints/{task}") and not self.store.fs.get_file_info(pafs.FileSelector(folder)):
            self.store.delete_folder(f"checkpoints/{task}")

    def _checkpoints(self, task: str) -> list[str]:
        """Names of a task's checkpoints, oldest first: files that are called as `save_checkpoint` calls them, and no
        others."""
        return [name for name in self.store.list(f"checkpoints/{task}") if STEP.match(name)]

    # -------------------------------------------------------------------------------- trials

    def load_trial(self, key: str) -> tuple[JsonObject, dict[str, torch.Tensor]] | None:
        """One evaluated candidate: what `save_trial` was given. A broken file counts as absent: it is evaluated
        again."""
        name = f"trials/{key}.safetensors"
        if not self.store.exists(name):
            return None
        try:
            tensors, info = self.store.read_tensors(name)
        except CorruptError:
            return None
        return info, tensors

    def stored_trial(self, key: str) -> tuple[JsonObject, dict[str, torch.Tensor]]:
        """A candidate that has to be there, because something was built on it.

        Raises:
            CorruptError: it is gone, or broken.
        """
        trial = self.load_trial(key)
        if trial is None:
            raise CorruptError(
                f"{self.store.path(f'trials/{key}.safetensors')} is gone or broken; wanted what the search wrote "
                "there; run the same command again"
            )
        return trial

    def save_trial(self, key: str, info: Mapping[str, object], logits: Mapping[str, torch.Tensor]) -> None:
        self.store.write_tensors(f"trials/{key}.safetensors", logits, info)

    # -------------------------------------------------------------------------------- versions

    def versions(self) -> list[int]:
        """Their numbers, as recorded. Whatever else lies in `versions/` is for `verify` to name."""
        recorded = history.recorded(self.store)
        files = [name for name in self.store.list("versions") if f"versions/{name}" in recorded]
        named = [re.fullmatch(r"(\d{4,})\.json", name) for name in files]
        return sorted(int(match[1]) for match in named if match is not None)

    def load_version(self, number: int) -> Version:
        """Raises TalosError if there is no such version, CorruptError if its file was changed or does not hold what it
        should."""
        name = version_name(number)
        if name not in history.recorded(self.store) and not self.store.exists(name):
            raise TalosError(
                f"version {number} does not exist in {self.store.uri!r}; it has: {', '.join(map(str, self.versions()))}"
            )
        return Version.read(self.store.path(name), self.store.parse_json(name, self.read(name)), number)

    def misfits(self) -> list[str]:
        """Files that are as they were recorded, and yet do not hold what their format says: a score above 1, a delta
        that is NaN, a field that is missing. Whoever can make all hashes anew can write such ones."""
        # All of them, and not the first: whoever repairs a run wants to know how much of it is left.
        problems: list[str] = []

        def tried(check: Callable[[], object]) -> None:
            try:
                check()
            except TalosError as error:
                problems.append(str(error))

        def tensors_fit(name: str) -> None:
            tensors, info = self.store.read_tensors(name)
            if DELTA.fullmatch(name):
                delta_of(self.store.path(name), tensors, info)
            finite(self.store.path(name), tensors)

        def mask_fits(name: str) -> None:
            _, info = self.store.read_tensors(name)
            mask_of(self.store.path(name), info)

        tried(self.info)
        for number in self.versions():
            tried(partial(self.load_version, number))
        for name in self.store.walk():
            if DELTA.fullmatch(name) or name.startswith(("learned/", "merged/")) or name == HEADS:
                tried(partial(tensors_fit, name))
            elif name == "mask.safetensors":
                tried(partial(mask_fits, name))
        return problems

    def add_version(
        self,
        operation: str,
        render: Callable[[int], tuple[Version | JsonObject, Mapping[str, bytes]]],
        *,
        in_force: bool = True,
        at: int | None = None,
        **details: Any,
    ) -> int:
        """Add the next version and put it in force, or keep it aside. Returns its number.

        Args:
            render: number -> (the version, or its content as a mapping; more files that belong to it).
            at: head when the work on it began, if it was made from head.

        Raises:
            ConflictError: head is another by now, or others are writing.
        """

        def build(before: history.Event) -> tuple[dict[str, bytes], dict[str, object]]:
            self._check_head(at, before)
            # Counted in the history and not in the folder: a number is given once, even if its file is lost.
            number = before.get("versions", 0)
            content, files = render(number)
            version = Version.of(content)
            stored = version.with_fields(version=number)
            writes = {version_name(number): as_json(stored.as_dict()), **files}
            more = {"version": number, "versions": number + 1, **_facts(version)}
            if in_force:
                more["head"] = number
            return writes, more

        event = history.append(self.store, operation, build, self._unrecorded(), **details)
        return int(event["version"])

    def set_head(
        self, number: int, operation: str, files: Mapping[str, bytes] | None = None, *, at: int | None = None,
        asked: list[Any] | None = None, **details: Any,
    ) -> None:  # fmt: skip
        """Put a version in force that is already here. `files`: those that show what is in force; `at`: as in
        `add_version`; `asked`: as in `history.append`.

        Raises:
            TalosError: no such version. ConflictError: as in `add_version`.
        """
        version = self.load_version(number)

        def build(before: history.Event) -> tuple[Mapping[str, bytes], dict[str, object]]:
            self._check_head(at, before)
            return files or {}, {"version": number, "head": number, **_facts(version)}

        history.append(self.store, operation, build, asked=asked, **details)

    def _check_head(self, at: int | None, before: history.Event) -> None:
        if at is not None and before.get("head") != at:
            raise ConflictError(
                f"head of run {self.store.uri!r} was version {at} when this began and is {before.get('head')} now "
                f"({before.get('operation')} by "
                f"{before.get('user')}@{before.get('host')}); nothing was changed; look at it with `talos status`, "
                "and run the command again"
            )

    def load_answers(self, number: int) -> Answers:
        """What a version answered on test data when it was made; only those of tasks that the run had then."""
        name = answers_name(number)
        self.check(name)
        tensors, info = self.store.read_tensors(name)
        tasks = info["data"]
        return Answers(
            predicted={task: tensors[f"{task}/predicted"] for task in tasks},
            labels={task: tensors[f"{task}/label"] for task in tasks},
            data=tasks,
            # Earlier releases kept none.
            probability={task: tensors[f"{task}/probability"] for task in tasks if f"{task}/probability" in tensors},
            metrics=info.get("metrics", {}),
        )

    @property
    def head(self) -> int | None:
        """Number of the version in force: what the newest event says."""
        return history.last(self.store).get("head")

    def last_event(self) -> tuple[int, str]:
        """How many events the history has, and the hash of the newest."""
        events, digest = history.chain(self.store)
        return len(events), digest if events else ""

    def approval(self, number: int) -> history.Event | None:
        """The event by which somebody put this version in force although its gate was not met."""
        events = history.events(self.store)
        return next((event for event in events if event["operation"] == "approve" and event["version"] == number), None)

    def load_robustness(self, number: int) -> JsonObject | None:
        """What a version scores on corrupted test data, if that was measured."""
        name = robustness_name(number)
        return self.store.parse_json(name, self.read(name)) if name in history.recorded(self.store) else None


def tasks_of(info: JsonObject) -> dict[str, JsonObject]:
    """Settings of every target and control task that a run has had, by name. `info`: its run.json."""
    spec = info["spec"]
    tasks = [*info.get("set_aside", ()), *spec["tasks"], *spec["control"]]
    return {task["name"]: task for task in tasks}


def _tasks_in(spec: JsonObject) -> list[JsonObject]:
    """Settings of the target and control tasks of a stored spec."""
    return [*spec.get("tasks", ()), *spec.get("control", ())]


def version_name(number: int) -> str:
    return f"versions/{number:04d}.json"


def robustness_name(number: int) -> str:
    return f"robustness/{number:04d}.json"


def answers_name(number: int) -> str:
    return f"predictions/{number:04d}.safetensors"


def answers_file(number: int, answers: Answers) -> tuple[str, bytes]:
    """Name and content of what a version answered, as `RunFolder.load_answers` reads it."""
    tensors = {f"{task}/predicted": classes.int() for task, classes in answers.predicted.items()}
    tensors |= {f"{task}/label": labels.int() for task, labels in answers.labels.items()}
    tensors |= {f"{task}/probability": values.float() for task, values in answers.probability.items()}
    # Only where it says something: files of earlier releases, and of most runs, are the same to the byte.
    metrics = {"metrics": dict(answers.metrics)} if answers.metrics else {}
    return answers_name(number), as_tensors(tensors, {"data": dict(answers.data), **metrics})


def _near_zero(coefficients: torch.Tensor) -> float:
    """The share of coefficients that leave next to nothing of what they stand before."""
    return float((coefficients.abs() < NEAR_ZERO).float().mean())


def _facts(version: Version) -> dict[str, object]:
    """What an event tells of a version."""
    return {"model": version.model, "coefficients": version.coefficients, "software": software()}


def mask_at(path: str, base: str) -> Mask:
    """The mask in a file of its own: a local path or a URI.

    Raises:
        SpecError: there is no such file. MismatchError, CorruptError: as `load_mask`.
    """
    # What stands behind a URI's question mark says how its store is reached.
    place, mark, query = path.partition("?") if "://" in path else (path, "", "")
    folder, _, name = place.rpartition("/")
    store = Store(f"{folder or ('/' if path.startswith('/') else '.')}{mark}{query}")
    if not name or name not in store.list():
        raise SpecError(
            f"mask.path {path!r} does not exist; wanted a mask.safetensors; check the path, or leave it out to "
            "calibrate"
        )
    return load_mask(store, name, base)


def load_mask(store: Store, name: str, base: str) -> Mask:
    """Read a mask file and check it.

    Raises:
        MismatchError: it belongs to another base. CorruptError: it was changed.
    """
    packed, info = store.read_tensors(name)
    info = mask_of(store.path(name), info)
    if info["base"] != base:
        raise MismatchError(
            f"mask {store.path(name)} belongs to base {info['base'][:12]}, but this model is {base[:12]}; use the "
            "mask of this model, or calibrate anew"
        )
    names = tuple(sorted(info["shapes"]))
    layout = Layout(names, tuple(tuple(info["shapes"][name]) for name in names))
    extra = {key: value for key, value in info.items() if key not in ("base", "fingerprint", "k", "shapes")}
    return mask_from_packed(layout, packed, extra)


def _search_today(search: JsonObject) -> JsonObject:
    """The search of a spec as settings are called now: before coefficients were learned, a surrogate or Optuna
    proposed them."""
    if "probe" not in search:  # every spec of those releases has it, and no later one
        return dict(search)
    gone = ("probe", "probe_inputs", "parts", "generation", "trials", "method")
    kept = {key: value for key, value in search.items() if key not in gone}
    return {**kept, "method": "grid" if search["method"] == "grid" else "learned"}


def _short(value: object) -> str:
    text = str(value)
    return text[:12] if len(text) == 64 else text
