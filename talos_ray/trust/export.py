"""A version as files that need no talos_ray: a whole model in its own library's layout, or only the weights that
changed.

With either goes a model card in the format of the Hugging Face Hub.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import torch
import yaml
from safetensors.torch import save_file
from torch import nn

from talos_ray import gate
from talos_ray.config import HUGGING_FACE
from talos_ray.errors import SpecError
from talos_ray.integrations import peft
from talos_ray.models import Family, base_tensors, build_model
from talos_ray.models.heads import LINEAR_WORDS
from talos_ray.shown import markdown
from talos_ray.storage import history
from talos_ray.storage.run_folder import RunFolder, kind_of

DELTA = "delta.safetensors"
Form = Literal["whole", "delta", "peft"]
FILES: dict[Form, str] = {  # what a card says of them
    "whole": "The whole model, in its own library's layout; it needs no talos_ray.",
    "delta": f"`{DELTA}`: for every tensor that changed `NAME/index` (row-major positions) and `NAME/value`; "
    "`tensor.view(-1)[index] = value` on the base's weights makes this model, bit by bit.",
    "peft": "`adapter_config.json` and `adapter_model.safetensors`: a SHiRA adapter; "
    "`PeftModel.from_pretrained(base, FOLDER).merge_and_unload()` makes this model, bit by bit, of the base in the "
    "dtype that it was edited in. It needs peft and no talos_ray.",
}


def export(
    folder: RunFolder, version: Mapping, edited: Family, base: Mapping[str, torch.Tensor], to: Path, form: Form
) -> list[str]:
    """Write a version into a new folder. Returns the names of its files.

    Args:
        edited: the model at that version. base: its tensors before any edit.

    Raises:
        SpecError: `to` holds something already, or the version cannot be an adapter.
    """
    check_empty(to)
    if form == "peft":  # first, because it may be refused
        save_adapter(folder, base, base_tensors(edited), to)
    to.mkdir(parents=True, exist_ok=True)
    if form == "delta":
        save_file(
            changed_weights(base, base_tensors(edited)),
            to / DELTA,
            {"base": version["base"], "model": version["model"]},
        )
    elif form == "whole":
        edited.save(to)
    _, classes = folder.load_heads()
    heads = folder.heads_of(version)
    kinds = {f"{t}/kind": kind for t, (kind, _) in heads.items()}
    tensors = {t: head.contiguous() for t, (_, head) in heads.items()}
    save_file(tensors, to / "heads.safetensors", {t: json.dumps(c) for t, c in classes.items()} | kinds)
    (to / "README.md").write_text(card(folder, version, edited.head_words, FILES[form]))
    return sorted(p.name for p in to.iterdir())


def check_empty(to: Path) -> None:
    """Raises SpecError if a folder holds something already."""
    if to.exists() and any(to.iterdir()):
        raise SpecError(f"export folder {str(to)!r} is not empty; wanted a new or empty folder; choose another")


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
    found = {}
    for name, before in base.items():
        index = (now[name] != before).flatten().nonzero().flatten()
        if len(index):
            found |= {f"{name}/index": index, f"{name}/value": now[name].flatten()[index].clone()}
    return found


def card(folder: RunFolder, version: Mapping, head_words: str, files: str) -> str:
    """A model card: base, tasks, data, scores with intervals, intended use, limits, and what proves where it comes
    from. `files` is what it says of the files beside it."""
    info, number = folder.info(), version["version"]
    spec, model = info["spec"], info["spec"]["model"]
    named = model.partition(":")[2] or model
    tasks = {t["name"]: t for t in (*spec["tasks"], *spec["control"])}
    linear = [t for t, (kind, _) in folder.heads_of(version).items() if kind == "linear"]
    linear_words = f"; of {', '.join(linear)} a {LINEAR_WORDS}" if linear else ""
    head = {
        "tags": ["talos", "task-arithmetic", "model-merging"],
        "library_name": "open_clip" if model.startswith(("open_clip", "demo")) else "transformers",
        **({"base_model": named} if model.partition(":")[0] in HUGGING_FACE and not Path(named).exists() else {}),
        "model-index": [
            {
                "name": f"{named}, version {number}",
                "results": [_result(t, tasks[t], s["merged"]) for t, s in version["scores"].items()],
            }
        ],
    }
    rows = [
        f"| {markdown(t)} | {kind_of(version, t)} | {_told(s['base'])} | {_told(s['merged'])} | {s['merged']['n']} | "
        f"{markdown(tasks[t]['data'])} |"
        for t, s in version["scores"].items()
    ]
    learnt = (
        ", ".join(f"{markdown(t)} ({a:g})" for t, a in version["coefficients"].items() if a) or "none: this is the base"
    )
    judged = version.get("gate")
    standing = "none" if not judged else f"{judged['result']}{''.join(f'; {s}' for s in gate.told(judged))}"
    return "\n".join(
        [
            "---",
            yaml.safe_dump(head, sort_keys=False).rstrip(),
            "---",
            f"# {markdown(named)}, edited: version {number} of "
            f"{markdown(folder.store.uri.rstrip('/').rsplit('/', 1)[-1])}",
            f"{markdown(model)}, in which "
            f"{sum(t['changed'] for t in version.get('impact', {}).get('tensors', {}).values()):,} weights differ "
            "from the base; every other weight is the base, bit by bit. Made by sparse fine-tuning on the weights to "
            "which the base is least sensitive, and task arithmetic ([TaLoS](https://arxiv.org/abs/2504.02620)).",
            "",
            "## Files",
            files,
            "`heads.safetensors`: what every task is scored with; class names, and its kind, are in the metadata. A "
            f"head is {head_words}{linear_words}.",
            "",
            "## Tasks and scores",
            f"Edits and their coefficients: {learnt}. Accuracy on test data, with 95 % intervals:",
            "",
            "| task | kind | base | this model | n | data |",
            "|---|---|---|---|---|---|",
            *rows,
            "",
            f"Gate: {markdown(standing)}.",
            "",
            "## Intended use",
            "The target tasks above, on inputs like those of their data. Control tasks are what must not get worse.",
            "",
            "## Limits",
            "Scores hold for these test sets; what the base could do beyond the control tasks above was not measured. "
            "Biases of the base remain. Forgetting lowers a task's answers; it is no proof that nothing of it can be "
            "recovered.",
            "",
            "## Licence",
            f"That of the base, {markdown(model)}, and of the data above: look there; talos_ray adds no terms.",
            "",
            "## Where it comes from",
            *(f"- {markdown(what)}: {markdown(value)}" for what, value in _provenance(folder, info, version).items()),
            "",
        ]
    )


def _result(name: str, task: Mapping, score: Mapping) -> dict:
    """One entry of a card's model-index."""
    return {
        "task": {"type": "image-classification" if task["kind"] == "image" else "text-classification"},
        "dataset": {"name": name, "type": task["data"]},
        "metrics": [{"type": "accuracy", "value": round(score["value"], 4)}],
    }


def _told(score: Mapping) -> str:
    return f"{score['value']:.3f} ({score['low']:.3f} to {score['high']:.3f})"


def _provenance(folder: RunFolder, info: Mapping, version: Mapping) -> dict[str, str]:
    event = next(
        e
        for e in history.events(folder.store)
        if e.get("version") == version["version"] and e["operation"] != "rollback"
    )
    return {
        "base": version["base"],
        "mask": version["mask"],
        "model": version["model"],
        "event": f"{event['number']} by {event['user']}@{event['host']}, {event['time']}",
        "events up to now": str(history.last(folder.store)["number"] + 1),
        "settings": json.dumps({k: info["spec"][k] for k in ("seed", "mask", "train")}, sort_keys=True),
        **{name: v for name, v in info["software"].items() if v != "absent"},
    }
