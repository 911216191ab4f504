"""A version as files that need no talos_ray: a whole model in its own library's layout, or only the weights that
changed.

With either goes a model card in the format of the Hugging Face Hub.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from talos_ray.config import HUGGING_FACE
from talos_ray.core.layout import fingerprint
from talos_ray.errors import CorruptError, MismatchError
from talos_ray.integrations import peft
from talos_ray.models import Family, base_tensors, build_model, checkpoint_tensors
from talos_ray.models.weights import check_file
from talos_ray.storage.run_folder import RunFolder
from talos_ray.storage.version import Version
from talos_ray.trust.card import DELTA, Form, card
from talos_ray.user_files import check_new_folder


def export(
    folder: RunFolder,
    version: Version,
    edited: Family,
    base: Mapping[str, torch.Tensor],
    to: Path,
    form: Form,
    *,
    beside: str = "",
    licence: str | None = None,
) -> list[str]:
    """Write a version into a new folder. Returns the names of its files.

    Args:
        edited: the model at that version. base: its tensors before any edit.
        beside: what the card says of files that will lie there, too.
        licence: of the base, where somebody knows it; else it is looked for beside the base's own files.

    Raises:
        SpecError: `to` holds something already, or the version cannot be an adapter.
    """
    check_new_folder(to)
    if form == "peft":  # first, because it may be refused
        save_adapter(folder, base, base_tensors(edited), to)
    to.mkdir(parents=True, exist_ok=True)
    if form == "delta":
        save_file(
            changed_weights(base, base_tensors(edited)),
            to / DELTA,
            {"base": version.base, "model": version.model},
        )
    elif form == "whole":
        edited.save(to)
    save_heads(folder, version, to)
    (to / "README.md").write_text(card(folder, version, edited, form, beside=beside, licence=licence))
    return sorted(p.name for p in to.iterdir())


def save_heads(folder: RunFolder, version: Version, to: Path) -> None:
    """Write `heads.safetensors`: every task's head in a version, with its kind and its classes."""
    _, classes = folder.load_heads()
    heads = folder.heads_of(version)
    kinds = {f"{task}/kind": kind for task, (kind, _) in heads.items()}
    tensors = {task: head.contiguous() for task, (_, head) in heads.items()}
    save_file(tensors, to / "heads.safetensors", {task: json.dumps(c) for task, c in classes.items()} | kinds)


def save_adapter(
    folder: RunFolder, base: Mapping[str, torch.Tensor], edited: Mapping[str, torch.Tensor], to: Path
) -> None:
    """Write what makes `edited` of `base`, tensors by name, as a SHiRA adapter.

    Raises:
        SpecError: as `integrations.peft.save_shira`.
    """
    model = folder.info()["spec"]["model"]
    kind, _, name = model.partition(":")
    written = peft.changed(base, edited)  # by merging, to prove the adapter; all else is the base's own memory

    def copy() -> nn.Module:
        return build_model(model, base, private=written).module

    peft.save_shira(copy, base, edited, to, name if kind in HUGGING_FACE else None)


def changed_weights(base: Mapping[str, torch.Tensor], now: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """`NAME/index` int64 (row-major positions) and `NAME/value` (the new weights, as they are) of every tensor that
    changed:
    `tensor.view(-1)[index] = value` makes the version from the base, bit by bit."""
    found: dict[str, torch.Tensor] = {}
    for name, before in base.items():
        # Not by value: adding a delta's 0.0 makes 0.0 of a base's -0.0, which pruning leaves many of.
        index = (peft.bits(now[name]) != peft.bits(before)).flatten().nonzero().flatten()
        if len(index):
            found[f"{name}/index"] = index
            found[f"{name}/value"] = now[name].flatten()[index].clone()
    return found


def with_changes(base: Mapping[str, torch.Tensor], folder: Path, what: str) -> dict[str, torch.Tensor]:
    """The weights by name that an export of changes makes of the base, checked against the fingerprints in it.

    Args:
        base: tensors by name; they stay as they are.
        folder: that holds `delta.safetensors`.
        what: what the export is called in an error.

    Raises:
        MismatchError: it belongs to another base. CorruptError: it makes another model than it says.
    """
    check_file(folder / DELTA, what)
    with safe_open(folder / DELTA, "pt") as file:
        told = file.metadata() or {}
    if (found := fingerprint(base)) != told.get("base"):
        raise MismatchError(
            f"{what} changes base {told.get('base', '?')[:12]}, and this model is {found[:12]}; wanted the model that "
            "it was made from, in the same dtype; name that one, or take an export of the whole model"
        )
    now = dict(base)
    changes = load_file(folder / DELTA)
    try:
        for name in sorted({key.rpartition("/")[0] for key in changes}):
            now[name] = base[name].clone()
            now[name].view(-1)[changes[f"{name}/index"]] = changes[f"{name}/value"]
    except (KeyError, IndexError, RuntimeError):
        raise CorruptError(
            f"{what}: {DELTA} has no fitting positions and values for tensor {name!r}; it was changed; take it again "
            "from where it came from"
        ) from None
    check_model(now, told.get("model", "?"), what)
    return now


def check_model(tensors: Mapping[str, torch.Tensor], wanted: str, what: str) -> None:
    """Raises CorruptError unless weights by name have the fingerprint that somebody says they have."""
    if (found := fingerprint(tensors)) != wanted:
        raise CorruptError(
            f"{what} makes model {found[:12]}, but says that it is {wanted[:12]}; it was changed; take it again from "
            "where it came from"
        )


def exported_weights(
    folder: Path, model: str, base: Mapping[str, torch.Tensor] | None, what: str
) -> dict[str, torch.Tensor]:
    """All weights by name of a model in a folder, under the names that a run of `model` has for them.

    Args:
        model: as a spec names it. base: its tensors; None where the folder holds a whole model.

    Raises:
        SpecError: there are none. MismatchError, CorruptError: as `with_changes`.
    """
    if (folder / DELTA).is_file():
        assert base is not None  # who gives none knows that the folder holds a whole model
        return with_changes(base, folder, what)
    kind = model.partition(":")[0]
    by_library = kind in HUGGING_FACE and (folder / "config.json").is_file()
    return checkpoint_tensors(f"{kind}:{folder}" if by_library else str(folder))
