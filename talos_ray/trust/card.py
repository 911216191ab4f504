"""The model card that goes with an export, in the format of the Hugging Face Hub."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from yaml import YAMLError

from talos_ray.config import Task
from talos_ray.data.harness import is_harness
from talos_ray.data.readers import is_here
from talos_ray.data.zero_shot import is_zero_shot_set, repository_of
from talos_ray.models import Family, hub_name
from talos_ray.models.family import AnswerFamily
from talos_ray.models.heads import LINEAR_WORDS
from talos_ray.storage import history
from talos_ray.storage.run_folder import RunFolder
from talos_ray.storage.schema import fits
from talos_ray.storage.version import Score, Version
from talos_ray.templates import template
from talos_ray.trust import versions

if TYPE_CHECKING:
    from huggingface_hub import EvalResult, ModelCardData

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


LIBRARY: dict[Form, str] = {"delta": "talos_ray", "peft": "peft"}  # that reads the files; of a whole model, its own
TAGS = ["merge", "talos_ray", "task-arithmetic"]
PLACE = re.compile(r"(?P<kind>.*?[:/])(?P<place>[/~].*)", re.DOTALL)  # a model that is a path of this machine


def card(
    folder: RunFolder, version: Version, edited: Family, form: Form, *, beside: str = "", licence: str | None = None
) -> str:
    """A model card: what the Hub reads of it (`ModelCardData`), and for people base, tasks, data, scores with
    intervals, intended use, limits, and what proves where it comes from. Paths of this machine are not told.

    Args:
        form, beside, licence: as in `export`.
    """
    info = folder.info()
    spec = info["spec"]
    tasks = {t["name"]: t for t in (*info.get("set_aside", ()), *spec["tasks"], *spec["control"])}
    model = model_shown(spec["model"])
    licence = licence or licence_beside(spec["model"])
    judged = version.gate
    held = versions.is_held(folder, version)
    of_kind: dict[str, list[str]] = {"linear": [], "sums": [], "words": []}
    for task, (kind, _) in sorted(folder.heads_of(version).items()):  # the order of tensors in a file is any
        of_kind[kind].append(task)
    return template("talos_ray.trust", "card.md.jinja").render(
        metadata=_metadata(spec["model"], version, tasks, edited, form, licence).to_yaml(),
        version=version,
        name=model.partition(":")[2] or model,
        run=folder.store.uri.rstrip("/").rsplit("/", 1)[-1],
        model=model,
        licence=licence,
        files=FILES[form],
        head_words=edited.head_words,
        linear=of_kind["linear"],
        sums=of_kind["sums"],
        tokens=spec.get("tokens"),
        linear_words=LINEAR_WORDS,
        beside=beside,
        coefficients={task: alpha for task, alpha in version.coefficients.items() if alpha},
        data={task: data_shown(tasks[task]) for task in version.scores},
        gate="none" if judged is None else "; ".join([judged.result, *judged.told]),
        held=held,
        approval=None if held else folder.approval(versions.number_of(version)),
        provenance=_provenance(folder, info, version),
    )


def _metadata(
    model: str,
    version: Version,
    tasks: Mapping[str, Mapping[str, Any]],
    edited: Family,
    form: Form,
    licence: str | None,
) -> ModelCardData:
    """What the Hub reads of a card, in its own library's form."""
    from huggingface_hub import ModelCardData

    named = (_data_on_hub(tasks[t]) for t in version.scores)
    data = {name for name in named if name is not None}
    shown = model_shown(model)
    own_library = {"open_clip": "open_clip", "demo": "open_clip", "hf": "transformers", "hf-bf16": "transformers"}
    return ModelCardData(
        base_model=hub_name(model),
        tags=TAGS,
        library_name=LIBRARY.get(form) or own_library.get(model.partition(":")[0]),
        license=licence,
        datasets=sorted(data) or None,
        pipeline_tag=_pipeline_tag(edited, [t["kind"] for t in tasks.values()]),
        metrics=sorted({_metric(task) for task in tasks.values()}),
        model_name=f"{shown.partition(':')[2] or shown}, version {version.number}",
        eval_results=[_result(t, tasks[t], s.merged) for t, s in version.scores.items()] or None,
    )


def _pipeline_tag(edited: Family, kinds: list[str]) -> str:
    """What the Hub calls that which the model does: its words are read as classes, or it writes."""
    if "image" in kinds:
        return "zero-shot-image-classification"
    return "text-generation" if isinstance(edited, AnswerFamily) else "text-classification"


def _result(name: str, task: Mapping[str, Any], score: Score) -> EvalResult:
    """One entry of a card's model-index. Data that lie on no hub go by the name of their task."""
    from huggingface_hub import EvalResult

    on_hub = _data_on_hub(task)  # where they are the Hub's, its pages link to them
    return EvalResult(
        task_type="image-classification" if task["kind"] == "image" else "text-classification",
        dataset_type=on_hub or name,
        dataset_name=name,
        dataset_config=task.get("config") if on_hub else None,
        dataset_split="test",
        metric_type=_metric(task),
        metric_value=round(score.value, 4),
        metric_name=f"{_metric(task).replace('_', ' ')} on {name}",
        metric_args={"low": round(score.low, 4), "high": round(score.high, 4), "n": score.n},
    )


def _metric(task: Mapping[str, Any]) -> str:
    """What a task's score is; runs of earlier releases knew accuracy alone."""
    metric: str = task.get("metric", "accuracy")
    return metric


def _data_on_hub(task: Mapping[str, Any]) -> str | None:
    """What the Hub calls a task's data, if they are its."""
    name: str = task["data"]
    if is_zero_shot_set(name):
        return repository_of(name)
    return None if is_harness(name) or is_here(fits(Task, "run.json", task)) else name


def data_shown(task: Mapping[str, Any]) -> str:
    """A task's data without the folders of this machine."""
    data: str = task["data"]
    return Path(data).name if Path(data).is_absolute() or data.startswith(("~", ".")) else data


def model_shown(model: str) -> str:
    """A model's name without the folders of this machine."""
    found = PLACE.fullmatch(model)
    return f"{found['kind']}{Path(found['place']).name}" if found else model


def licence_beside(model: str) -> str | None:
    """What the card beside a base's own files says of its licence; the demo's model is part of talos_ray."""
    if model == "demo":
        return "mit"
    found = PLACE.fullmatch(model)
    return licence_in(Path(found["place"]).expanduser()) if found else None


def licence_in(folder: Path) -> str | None:
    """What the card (README.md) of a folder says of the licence of what lies there."""
    from huggingface_hub.repocard import metadata_load

    own = folder / "README.md"
    try:
        told = metadata_load(own) if own.is_file() else None
    except (OSError, ValueError, YAMLError):  # somebody else's card, that is none
        return None
    licence = (told or {}).get("license")
    return licence if isinstance(licence, str) else None


def _provenance(folder: RunFolder, info: Mapping[str, Any], version: Version) -> dict[str, str]:
    """What a model was made of, by whom, and with which settings and software."""
    of_version = (e for e in history.events(folder.store) if e.get("version") == version.number)
    event = next(e for e in of_version if e["operation"] != "rollback")
    return {
        "base": version.base,
        "mask": version.mask,
        "model": version.model,
        "event": f"{event['number']} by {event['user']}@{event['host']}, {event['time']}",
        "events up to now": str(history.last(folder.store)["number"] + 1),
        "settings": json.dumps({k: info["spec"][k] for k in ("seed", "mask", "train")}, sort_keys=True),
        **{name: v for name, v in info["software"].items() if v != "absent"},
    }
