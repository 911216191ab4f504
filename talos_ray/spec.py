"""From what a user writes to a checked `Spec`: YAML files, mappings, and names of recipes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from talos_ray.config import HUGGING_FACE, Spec, Task, validated
from talos_ray.data.tables import decoded
from talos_ray.demo.tasks import RECIPES
from talos_ray.errors import Problems, SpecError, nearest

FOLDERS = tuple(f"{kind}:" for kind in (*HUGGING_FACE, "open_clip:local-dir"))  # what stands before a model's folder
TEXT = {"kind": "text", "input": "text", "prompts": ("{}",)}  # what differs where the model reads text

# Protocols by name; what a spec says itself wins over them.
PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    "paper": {  # Iurada et al., 2025: one coefficient for all tasks on a 21-point grid, plain task arithmetic
        "mask": {"keep": 0.1, "strategy": "least_sensitive", "granularity": "element"},
        "calibration": {"rounds": 4, "score": "log_prob", "stable": None},
        "search": {"method": "grid", "shared_points": 21, "low": 0.0, "high": 1.0, "parts": 1, "merge": {"method": "linear"}},
    },
    "auto": {"mask": {"keep": "auto", "strategy": "auto", "granularity": "auto", "layers": "auto"}},
}  # fmt: skip


def _with_preset(values: dict[str, Any]) -> dict[str, Any]:
    name = values.pop("preset", None)
    if name is None:
        return values
    if name not in PRESETS:
        raise SpecError(f"preset {name!r} does not exist{nearest(str(name), PRESETS)}; known: {', '.join(PRESETS)}")
    merged = {key: {**group, **(values.get(key) or {})} for key, group in PRESETS[name].items()}
    return {**values, **merged}


def resolve_task(item: str | dict[str, Any] | Task, text: bool = False) -> Task:
    """A `Task`, the name of a recipe, or a mapping (which may name a `recipe` to start from).

    Args:
        text: the model reads text.

    Raises:
        SpecError: no such recipe, or a setting is wrong.
    """
    values = (
        item.model_dump(exclude_unset=True)
        if isinstance(item, Task)
        else {"recipe": item}
        if isinstance(item, str)
        else dict(item)
    )
    if (recipe := values.pop("recipe", None)) is not None:
        if recipe not in RECIPES:
            raise SpecError(
                f"task recipe {recipe!r} does not exist{nearest(recipe, RECIPES)}; known: {', '.join(RECIPES)}"
            )
        values = {**RECIPES[recipe], **values}
    task = validated(Task, {**(TEXT if text else {}), **values}, f"task {values.get('name', '?')}")
    if not Path(task.data).is_absolute() and Path(task.data).exists():
        task = task.model_copy(update={"data": str(Path(task.data).resolve())})  # workers have other working folders
    return task


def make_spec(values: dict[str, Any]) -> Spec:
    """Validate a mapping. Tasks may be names of recipes, mappings or `Task`s; a mapping may start from a `recipe`, and the
    whole from a `preset`: with `preset: paper`, mask, calibration and search are as published.

    Raises:
        SpecError: one line for each problem found.
    """
    values = _with_preset(dict(values))
    model = str(values.get("model", ""))
    if "model" in values:
        values["model"] = _placed(model)
    problems, tasks = Problems(), {"tasks": [], "control": []}
    for group, found in tasks.items():
        items = values.get(group) or ()
        for item in (items,) if isinstance(items, str | dict | Task) else items:
            with problems:
                found.append(resolve_task(item, _reads_text(model)))
    if not values.get("tasks"):
        problems.lines.append(
            "spec key 'tasks' is empty; wanted at least one target task; add one, for example 'demo:street_numbers'"
        )
    # Where a task is wrong, another stands for it, so that the rest of the spec is checked all the same.
    stand_in = [Task(name="x", data="x")] if problems.lines and not tasks["tasks"] else []
    with problems:
        spec = validated(Spec, {**values, **tasks, "tasks": tuple(tasks["tasks"] or stand_in)})
    problems.tell()
    return spec


def _placed(model: str) -> str:
    """A model's name; where it has a path to what is here, a whole one: workers, and later commands, have other working folders."""
    folder = next((start for start in FOLDERS if model.startswith(start)), None)
    start = folder or "".join(model.partition("/")[:2])  # open_clip:ARCHITECTURE/
    place = Path(model.removeprefix(start)).expanduser()
    there = place.is_dir() if folder else model.startswith("open_clip:") and place.is_file()
    return f"{start}{place.resolve()}" if there and model != start else model


def _reads_text(model: str) -> bool:
    """What a task's inputs are where it does not say: by the model's configuration if it lies here, else by its name."""
    kind, _, named = model.partition(":")
    if kind not in HUGGING_FACE:
        return False
    known = Path(named) / "config.json"
    told = str(json.loads(known.read_text(encoding="utf-8")).get("model_type", "")) if known.is_file() else model
    return "clip" not in told.lower() and "siglip" not in told.lower()


def load_task_file(path: str | Path) -> dict[str, Any]:
    """What a YAML file says of one task. A relative data path is relative to the file's folder.

    Raises:
        SpecError: no such file, or not YAML.
    """
    return _with_files_beside(_read_yaml(Path(path), "task"), Path(path).parent)


def load_spec(path: str | Path, **overrides: Any) -> Spec:
    """Read a YAML spec; `overrides` replace top-level keys. Relative data paths are relative to the spec's folder. A spec may start
    from another, `extends: other.yaml`, and replace its top-level keys.

    Raises:
        SpecError: no such file, not YAML, or not a valid spec.
    """
    return make_spec({**_read_spec(Path(path)), **overrides})


def _read_spec(path: Path, within: tuple[Path, ...] = ()) -> dict[str, Any]:
    if path.resolve() in within:
        raise SpecError(f"spec file {str(path)!r} extends itself; wanted a chain that ends; correct `extends`")
    values = _read_yaml(path, "spec")
    for group in ("tasks", "control"):
        if group in values:
            values[group] = [_with_files_beside(t, path.parent) for t in _listed(values[group])]
    if (other := values.pop("extends", None)) is None:
        return values
    return {**_read_spec(path.parent / str(other), (*within, path.resolve())), **values}


def _listed(items: Any) -> Any:
    return items if isinstance(items, list) else [] if items is None else [items]


def _with_files_beside(task: Any, folder: Path) -> Any:
    if not isinstance(task, dict):
        return task
    given = {k: task[k] for k in ("data", "checkpoint") if isinstance(task.get(k), str)}
    there = {k: str(folder / v) for k, v in given.items() if not Path(v).is_absolute() and (folder / v).exists()}
    return {**task, **there}


class _Strict(yaml.SafeLoader):
    """YAML as `yaml.safe_load` reads it, but for keys that stand twice: of two, the first would vanish."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen = set()
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                continue
            key = key_node.value
            if key in seen and key != "<<":
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} stands twice; keep one of them", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


def _read_yaml(path: Path, what: str) -> dict[str, Any]:
    if not path.is_file():
        raise SpecError(f"{what} file {str(path)!r} does not exist; wanted a YAML file; see examples/ for some")
    text = decoded(path.read_bytes(), f"{what} file {str(path)!r}")
    try:
        values = yaml.load(text, _Strict)
    except yaml.YAMLError as error:
        raise SpecError(f"{what} file {str(path)!r} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise SpecError(
            f"{what} file {str(path)!r} holds {type(values).__name__}; wanted keys and values; see examples/ for some"
        )
    return values
