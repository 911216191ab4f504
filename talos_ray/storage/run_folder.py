"""A run's folder: mask, deltas, checkpoints, trials, versions, history. `docs/formats.md` says what is in each file."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from talos_ray.core.delta import Delta
from talos_ray.core.layout import Layout, fingerprint
from talos_ray.core.mask import Mask, mask_from_packed
from talos_ray.errors import CorruptError, MismatchError, SpecError, TalosError
from talos_ray.storage import history
from talos_ray.storage.files import Store

FORMAT = 1
PACKAGES = ("talos-ray", "torch", "ray", "open_clip_torch", "transformers", "datasets", "safetensors", "optuna")


def software() -> dict[str, str]:
    """Versions of the packages that decide a result."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "absent"
    return found


class RunFolder:
    """Reads and writes the files of one run; knows formats and names, not what they mean."""

    def __init__(self, uri: str) -> None:
        self.store = Store(uri)

    # -------------------------------------------------------------------------------- the run itself

    def check_new(self, base: str | None = None, identity: Mapping[str, object] | None = None) -> None:
        """Raises SpecError unless the folder is empty, absent, or holds the run described by `identity`.

        `identity` is what a run cannot change without becoming another one: the base and the mask's inputs.
        """
        if not self.store.exists("run.json"):
            if self.store.exists() and (self.store.list() or self.store.exists("versions")):
                raise SpecError(
                    f"output {self.store.uri!r} holds other files and no run; wanted a new or empty folder; choose another output"
                )
            return
        if identity is None:
            return
        found = self.info()["identity"]
        for key, wanted in identity.items():
            if found.get(key) != wanted:
                raise SpecError(
                    f"output {self.store.uri!r} holds another run: its {key} is {_short(found.get(key))}, this spec's is {_short(wanted)}; "
                    f"choose another output"
                )

    def info(self) -> dict:
        """run.json.

        Raises:
            TalosError: no run here. CorruptError: a format that this version cannot read.
        """
        if not self.store.exists("run.json"):
            raise TalosError(
                f"{self.store.uri!r} holds no run (no run.json); wanted a folder that `talos edit` wrote; check the path"
            )
        info = self.store.read_json("run.json")
        if info.get("format") != FORMAT:
            raise CorruptError(
                f"{self.store.path('run.json')} has format {info.get('format')!r}; this talos_ray reads {FORMAT}; use the version that wrote it"
            )
        return info

    def write_info(self, spec: Mapping, base: str, identity: Mapping[str, object]) -> None:
        info = {"format": FORMAT, "spec": spec, "base": base, "identity": identity, "software": software()}
        self.store.write_json("run.json", info, patience=0)  # the first write of a run: better refused now

    # -------------------------------------------------------------------------------- base

    def save_base(self, base: str, tensors: Mapping[str, torch.Tensor]) -> str:
        """The base as one safetensors file, for nodes to read, unless it is there. Returns its name."""
        name = f"base/{base}.safetensors"
        if not self.store.exists(name):
            with tempfile.TemporaryDirectory() as scratch:
                save_file({n: t.contiguous() for n, t in tensors.items()}, Path(scratch) / "base.safetensors")
                self.store.upload(Path(scratch) / "base.safetensors", name)
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
            f"{path} does not hold the base that it names; the file was changed; delete it and run the same command again"
        )

    # -------------------------------------------------------------------------------- mask

    def save_mask(self, mask: Mask, base: str) -> None:
        shapes = {n: list(s) for n, s in zip(mask.layout.names, mask.layout.shapes, strict=True)}
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
        names = [f"deltas/{task}.safetensors"]
        if fingerprint is not None:
            names.append(f"deltas/archive/{task}-{fingerprint[:16]}.safetensors")
        for name in names:
            if self.store.exists(name):
                tensors, info = self.store.read_tensors(name)
                delta = Delta(info["task"], tensors["values"], info["base"], info["mask"], info)
                if fingerprint in (None, delta.fingerprint):
                    return delta
        return None

    # -------------------------------------------------------------------------------- checkpoints

    def save_checkpoint(self, task: str, key: str, step: int, state: Mapping[str, torch.Tensor]) -> None:
        """Two alternate, so that a broken write always leaves the one before."""
        self.store.write_tensors(f"checkpoints/{task}/step-{step:08d}.safetensors", state, {"key": key, "step": step})
        for name in self.store.list(f"checkpoints/{task}")[:-2]:
            self.store.delete(f"checkpoints/{task}/{name}")

    def load_checkpoint(self, task: str, key: str) -> tuple[int, dict[str, torch.Tensor]] | None:
        """(step, state) of the newest whole checkpoint made under the same settings (`key`)."""
        for name in reversed(self.store.list(f"checkpoints/{task}")):
            try:
                state, info = self.store.read_tensors(f"checkpoints/{task}/{name}")
            except CorruptError:
                continue
            if info["key"] == key:
                return info["step"], state
        return None

    def drop_checkpoints(self, task: str) -> None:
        self.store.delete_folder(f"checkpoints/{task}")

    # -------------------------------------------------------------------------------- trials

    def load_trial(self, key: str) -> tuple[dict, dict[str, torch.Tensor]] | None:
        """One evaluated candidate: what `save_trial` was given. A broken file counts as absent: it is evaluated again."""
        name = f"trials/{key}.safetensors"
        if not self.store.exists(name):
            return None
        try:
            logits, info = self.store.read_tensors(name)
        except CorruptError:
            return None
        return info, logits

    def save_trial(self, key: str, info: Mapping, logits: Mapping[str, torch.Tensor]) -> None:
        self.store.write_tensors(f"trials/{key}.safetensors", logits, info)

    # -------------------------------------------------------------------------------- versions

    def versions(self) -> list[int]:
        return [int(n.removesuffix(".json")) for n in self.store.list("versions")]

    def load_version(self, number: int) -> dict:
        name = f"versions/{number:04d}.json"
        if not self.store.exists(name):
            raise TalosError(
                f"version {number} does not exist in {self.store.uri!r}; it has: {', '.join(map(str, self.versions()))}"
            )
        return self.store.read_json(name)

    def add_version(self, version: Mapping, operation: str, **details: object) -> int:
        """Write the next version, its event, and move head to it: in this order, so that what head shows is always recorded."""
        number = len(self.versions())
        self.store.write_json(f"versions/{number:04d}.json", {"version": number, **version})
        self.set_head(number, operation, **details)
        return number

    @property
    def head(self) -> int | None:
        return self.store.read_json("head.json")["version"] if self.store.exists("head.json") else None

    def set_head(self, number: int, operation: str, **details: object) -> None:
        version = self.load_version(number)
        history.append(
            self.store,
            operation,
            version=number,
            model=version["model"],
            coefficients=version["coefficients"],
            software=software(),
            **details,
        )
        self.store.write_json("head.json", {"version": number})


def kind_of(version: Mapping, task: str) -> str:
    """'target', 'forgotten', 'control', or 'other': of the run, but no part of this version."""
    if task in version.get("forgotten", ()):
        return "forgotten"
    return "target" if task in version["targets"] else "control" if task in version["controls"] else "other"


def load_mask(store: Store, name: str, base: str) -> Mask:
    """Read a mask file and check it.

    Raises:
        MismatchError: it belongs to another base. CorruptError: it was changed.
    """
    packed, info = store.read_tensors(name)
    if info["base"] != base:
        raise MismatchError(
            f"mask {store.path(name)} belongs to base {info['base'][:12]}, but this model is {base[:12]}; use the mask of this model, or calibrate anew"
        )
    names = tuple(sorted(info["shapes"]))
    layout = Layout(names, tuple(tuple(info["shapes"][n]) for n in names))
    extra = {k: v for k, v in info.items() if k not in ("base", "fingerprint", "k", "shapes")}
    return mask_from_packed(layout, packed, extra)


def _short(value: object) -> str:
    text = str(value)
    return text[:12] if len(text) == 64 else text
