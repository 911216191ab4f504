"""From what a user writes to a checked `Spec`: YAML files, mappings, and names of recipes."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from talos_ray.config import HUGGING_FACE, ON_HUB, Spec, Task, shortly, validated
from talos_ray.data import harness, zero_shot
from talos_ray.demo.tasks import RECIPES
from talos_ray.errors import Problems, SpecError, nearest
from talos_ray.shown import plain
from talos_ray.yaml_file import read_yaml

FOLDERS = tuple(f"{kind}:" for kind in (*HUGGING_FACE, "open_clip:local-dir"))  # what stands before a model's folder
MOST_EXTENDED = 20  # specs in a chain of `extends`
TEXT = {"kind": "text", "input": "text", "prompts": ("{}",)}  # what differs where the model reads text

# Protocols by name; what a spec says itself wins over them.
PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    # Iurada et al., 2025, and their code (iurada/talos-task-arithmetic): one coefficient for all tasks on a 21-point
    # grid, plain task arithmetic. The sensitivity is that of the sampled class's logit (vision/pruners.py), and a T5's
    # logits are sums of log-probabilities (nlp/pruners.py, nlp/eval/eval.py). Normalisation weights may change and no
    # embedding, as here (`core.layout`), of a T5 those outside the blocks, too; but every task has a mask of its own
    # there, while deltas are added up on one here.
    "paper": {
        "mask": {"keep": 0.1, "strategy": "least_sensitive", "granularity": "element"},
        "calibration": {"rounds": 4, "score": "logit", "stable": None},
        "search": {
            "method": "grid",
            "shared_points": 21,
            "low": 0.0,
            "high": 1.0,
            "heads": "words",
            "merge": {"method": "linear"},
        },
    },
    "auto": {"mask": {"keep": "auto", "strategy": "auto", "granularity": "auto", "layers": "auto"}},
}
# What data are called that bring a recipe along -> how it is found, and the setting that only they know: how many
# answers their rows have, or what their classes are called.
SCHEMES: dict[str, tuple[Callable[[str], dict[str, Any]], str]] = {
    harness.SCHEME: (harness.recipe, "choices"),
    zero_shot.SCHEME: (zero_shot.recipe, "classes"),
}
OF_TASKS: dict[str, dict[str, Any]] = {"paper": {"ranking": "sum"}}  # what tasks of text have under a preset


def _with_preset(values: dict[str, Any]) -> dict[str, Any]:
    name = values.pop("preset", None)
    if name is None:
        return values
    if not isinstance(name, str) or name not in PRESETS:
        raise SpecError(f"preset {name!r} does not exist{nearest(str(name), PRESETS)}; known: {', '.join(PRESETS)}")
    merged = {}
    for key, group in PRESETS[name].items():
        own = values.get(key)
        # Whole answers have no logit: who asks for these gets the score that they have, and not a refusal.
        if key == "calibration" and isinstance(own, dict) and own.get("labels") == "tokens":
            group = {**group, "score": "log_prob"}
        # What is no group of settings stays as it is, for the check of all settings to name.
        merged[key] = {**group, **(own or {})} if own is None or isinstance(own, dict) else own
    return {**values, **merged}


def resolve_task(
    item: str | dict[str, Any] | Task, text: bool = False, preset: Mapping[str, Any] | None = None
) -> Task:
    """A `Task`, the name of a recipe, or a mapping (which may name a `recipe` to start from).

    Args:
        text: the model reads text.
        preset: settings that a preset has for every task of a model that reads text.

    Raises:
        SpecError: no such recipe, or a setting is wrong.
    """
    if isinstance(item, Task):
        values = item.model_dump(exclude_unset=True)
    elif isinstance(item, str):
        values = {"recipe": item}
    elif isinstance(item, dict):
        values = dict(item)
    else:
        raise SpecError(
            f"a task of the spec is {shortly(item)}; wanted the name of a recipe, like 'demo:street_numbers', or keys "
            "and values; correct it"
        )
    recipe = values.pop("recipe", None)
    if recipe is None:
        recipe = _recipe_of_data(values)
    if recipe is not None:
        values = {**_recipe(recipe), **values}
    defaults = {**TEXT, **(preset or {})} if text else {}
    name = plain(str(values.get("name", "?"))[:100])
    task: Task = validated(Task, {**defaults, **values}, f"task {name}")
    if not Path(task.data).is_absolute() and is_there(task.data):
        task = task.model_copy(update={"data": str(Path(task.data).resolve())})  # workers have other working folders
    return task


def _recipe_of_data(values: Mapping[str, Any]) -> str | None:
    """The recipe that a task's data are, where the task does not say itself what only they know."""
    data = values.get("data")
    if not isinstance(data, str):
        return None
    for scheme, (_, unknown) in SCHEMES.items():
        if data.startswith(scheme) and not values.get(unknown):
            return data
    return None


def _recipe(name: object) -> dict[str, Any]:
    """The settings that a recipe stands for.

    Raises:
        SpecError: there is none.
    """
    if isinstance(name, str):
        for scheme, (recipe, _) in SCHEMES.items():
            if name.startswith(scheme):
                return recipe(name)
        if name in RECIPES:
            return RECIPES[name]
    raise SpecError(
        f"task recipe {shortly(name)} does not exist{nearest(str(name), RECIPES)}; known: {', '.join(RECIPES)}"
    )


def make_spec(values: dict[str, Any]) -> Spec:
    """Validate a mapping. Tasks may be names of recipes, mappings or `Task`s; a mapping may start from a `recipe`, and
    the whole from a `preset`: with `preset: paper`, mask, calibration and search are as published.

    Raises:
        SpecError: one line for each problem found.
    """
    preset = values.get("preset")
    values = _with_preset(dict(values))
    of_tasks = OF_TASKS.get(preset or "", {})
    model = values.get("model", "")
    model = model if isinstance(model, str) else ""
    if model.startswith(ON_HUB):  # as a checkpoint there is called
        model = f"hf:{model.removeprefix(ON_HUB)}"
    if model:
        values["model"] = _placed(model)
    problems = Problems()
    tasks: dict[str, list[Task]] = {"tasks": [], "control": []}
    for group, resolved in tasks.items():
        items = values.get(group)
        items = () if items is None else items if isinstance(items, list | tuple) else (items,)
        for item in items:
            with problems:
                resolved.append(resolve_task(item, reads_text(model), of_tasks))
    if values.get("tasks") in (None, [], ()):
        problems.lines.append(
            "spec key 'tasks' is empty; wanted at least one target task; add one, for example 'demo:street_numbers'"
        )
    # Where a task is wrong, another stands for it, so that the rest of the spec is checked all the same.
    stand_in = [Task(name="x", data="x")] if problems.lines and not tasks["tasks"] else []
    with problems:
        spec: Spec = validated(Spec, {**values, **tasks, "tasks": tuple(tasks["tasks"] or stand_in)})
    problems.tell()
    return spec


def _placed(model: str) -> str:
    """A model's name; where it has a path to what is here, a whole one: workers, and later commands, have other
    working folders."""
    folder = next((start for start in FOLDERS if model.startswith(start)), None)
    start = folder or "".join(model.partition("/")[:2])  # open_clip:ARCHITECTURE/
    if not is_there(model.removeprefix(start)):
        return model
    place = Path(model.removeprefix(start)).expanduser()
    is_model = place.is_dir() if folder else model.startswith("open_clip:") and place.is_file()
    return f"{start}{place.resolve()}" if is_model and model != start else model


def is_there(path: str) -> bool:
    """Whether something lies at a path that somebody wrote; nothing lies at what cannot be one."""
    try:
        return Path(path).expanduser().exists()
    except (OSError, ValueError, RuntimeError):  # too long, with a byte 0, or of a user that there is not
        return False


def reads_text(model: str) -> bool:
    """What a task's inputs are where it does not say: by the model's configuration if it lies here, else by its
    name."""
    kind, _, named = model.partition(":")
    if kind not in HUGGING_FACE:
        return False
    words = model
    if is_there(f"{named}/config.json"):
        try:
            config = json.loads((Path(named) / "config.json").read_text(encoding="utf-8"))
            words = str(config["model_type"])
        except (
            OSError,
            ValueError,
            RecursionError,
            KeyError,
            TypeError,
        ):  # whoever loads the model names what is wrong
            pass
    # The image models that transformers reads here are these two; all its others read text.
    return "clip" not in words.lower() and "siglip" not in words.lower()


def schema() -> dict[str, Any]:
    """JSON Schema (2020-12) of a spec as users write it: what `Spec` says of every key, and what `load_spec` reads
    beside it: recipes, presets, `extends`, one task where a list is wanted. Conditions between keys are not in it."""
    whole = Spec.model_json_schema()
    task = whole["$defs"]["Task"]
    recipe = {
        "anyOf": [
            {"enum": sorted(RECIPES)},
            {"type": "string", "pattern": f"^({harness.SCHEME}|{zero_shot.SCHEME})."},
        ],
        "description": (
            "a task to start from: of the embedded demo, lm_eval:TASK of the lm-evaluation-harness, or "
            "clip_benchmark:SET of LAION's CLIP benchmark"
        ),
    }
    prompt = {"type": "string", "description": "one template"}
    task["properties"] |= {
        "recipe": recipe,
        "train": {"$ref": "#/$defs/Train", "description": task["properties"]["train"]["description"]},
        "prompts": {"anyOf": [task["properties"]["prompts"], prompt]},
    }
    task["anyOf"] = [{"required": task.pop("required")}, {"required": ["recipe"]}]
    one = {"anyOf": [{"$ref": "#/$defs/Task"}, recipe]}
    tasks, control = (whole["properties"][group] | {"items": one} for group in ("tasks", "control"))
    keys = {
        "tasks": {"anyOf": [tasks, one]},
        "control": {"anyOf": [control, one, {"type": "null"}]},
        "preset": {"enum": sorted(PRESETS), "description": "a protocol by name; what the spec itself says wins"},
        "extends": {"type": "string", "description": "another spec, whose keys hold where this one has none"},
        "more_tasks": {
            "anyOf": [tasks, one],
            "description": "target tasks that come after those of the spec that this one extends",
        },
    }
    whole["properties"] |= keys
    whole["anyOf"] = [{"required": whole.pop("required")}, {"required": ["extends"]}]
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **whole, "title": "talos_ray spec"}


def load_task_file(path: str | Path) -> dict[str, Any]:
    """What a YAML file says of one task. A relative data path is relative to the file's folder.

    Raises:
        SpecError: no such file, or not YAML.
    """
    values: dict[str, Any] = _with_files_beside(read_yaml(Path(path), "task"), Path(path).parent)
    return values


def load_spec(path: str | Path, **overrides: Any) -> Spec:
    """Read a YAML spec; `overrides` replace top-level keys. Relative data paths are relative to the spec's folder. A
    spec may start from another, `extends: other.yaml`, and replace its top-level keys; `more_tasks` are added to its
    tasks.

    Raises:
        SpecError: no such file, not YAML, or not a valid spec.
    """
    return make_spec({**_read_spec(Path(path)), **overrides})


def spec_from(given: Spec | Mapping[str, Any] | str | Path) -> Spec:
    """A `Spec` as it is; what a mapping, or the YAML file of a path, says.

    Raises:
        SpecError: as `load_spec`, or nothing that could be a spec.
    """
    if isinstance(given, Spec):
        return given
    if isinstance(given, Mapping):
        return make_spec(dict(given))
    if isinstance(given, str | Path):
        return load_spec(given)
    raise SpecError(
        f"spec is {shortly(given)}; wanted a Spec, the path of a YAML file, or keys and values; give one of them"
    )


def _read_spec(path: Path, within: tuple[Path, ...] = ()) -> dict[str, Any]:
    if len(within) > MOST_EXTENDED:
        raise SpecError(
            f"spec file {plain(path)!r} ends a chain of {len(within)} `extends`; wanted {MOST_EXTENDED} at most"
        )
    # Behind links, too: by two names of one file a circle would go on for ever.
    if path.resolve() in within:
        raise SpecError(f"spec file {str(path)!r} extends itself; wanted a chain that ends; correct `extends`")
    values = read_yaml(path, "spec")
    # Before the files are put together: each one's paths are relative to its own folder.
    for group in ("tasks", "more_tasks", "control"):
        if group in values:
            values[group] = [_with_files_beside(task, path.parent) for task in _listed(values[group])]
    if (other := values.pop("extends", None)) is None:
        return values
    if not isinstance(other, str):
        raise SpecError(f"spec key 'extends' is {shortly(other)}; wanted the path of another spec; correct it")
    whole = {**_read_spec(path.parent / other, (*within, path.resolve())), **values}
    if more := whole.pop("more_tasks", None):
        whole["tasks"] = [*_listed(whole.get("tasks")), *more]
    return whole


def _listed(items: Any) -> Any:
    return items if isinstance(items, list) else [] if items is None else [items]


def _with_files_beside(task: Any, folder: Path) -> Any:
    if not isinstance(task, dict):
        return task
    # What does not lie there may be a name of the Hub, or of the demo: it stays as it is written.
    beside = {}
    for key in ("data", "checkpoint"):
        name = task.get(key)
        if isinstance(name, str) and not Path(name).is_absolute() and is_there(str(folder / name)):
            beside[key] = str(folder / name)
    return {**task, **beside}
