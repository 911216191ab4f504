"""A first spec from a mergekit configuration (its base, its models as tasks that were trained elsewhere, its method),
and a version as a configuration with its models.

mergekit merges with the weights that it is told; here coefficients are learned on data, and what comes out is scored.
So what a configuration cannot say is left to fill in: every task's data. mergekit itself is not needed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml

from talos_ray.config import HUGGING_FACE, ON_HUB
from talos_ray.core.segments import Blend
from talos_ray.errors import SpecError, nearest
from talos_ray.scaffold import comment, scalar
from talos_ray.storage.version import Version
from talos_ray.yaml_file import read_yaml

METHODS = {  # of mergekit -> here, and what is not the same
    "linear": ("linear", "an average of models; here changes from the base are added, as task_arithmetic does"),
    "task_arithmetic": ("linear", ""),
    "ties": ("ties", ""),
    "dare_linear": ("dare", ""),
    "dare_ties": ("dare", "it also elects signs, which dare here does not; ties does"),
}
NAMELESS = "task"
HUB_NAME = re.compile(r"\w[\w.-]*/[\w.-]+(@[\w./-]+)?")  # OWNER/NAME, and maybe a revision


def spec_of(file: Path) -> str:
    """A commented YAML spec of what a mergekit configuration merges.

    Raises:
        SpecError: no such file, a method or a form that has no counterpart here, or no base.
    """
    config = read_yaml(file, "mergekit")
    base = config.get("base_model")
    method = config.get("merge_method")
    if not isinstance(method, str) or method not in METHODS:
        hint = nearest(str(method), METHODS)
        raise SpecError(
            f"mergekit file {str(file)!r}: merge_method is {method!r}{hint}; wanted one of {', '.join(METHODS)}"
        )
    if not isinstance(config.get("models"), list) or not config["models"]:
        raise SpecError(
            f"mergekit file {str(file)!r} has no list of models; wanted `models:`, each with all of its layers; "
            f"slices have no counterpart here"
        )
    if not isinstance(base, str):
        raise SpecError(
            f"mergekit file {str(file)!r}: base_model is {base!r}; wanted the model that the others were fine-tuned "
            f"from: edits are changes from it; add it"
        )
    if "+" in base:
        raise SpecError(
            f"mergekit file {str(file)!r}: base_model {base!r} is a model with an adapter; wanted a model alone, as it "
            f"is loaded; merge the adapter into it, and name what comes out"
        )
    # Some configurations list the base among the models, with a weight of nothing, and maybe in other words.
    own_base = _model(base, file)
    models = [model for model in config["models"] if _model(_named(model, file), file) != own_base]
    if not models:
        raise SpecError(f"mergekit file {str(file)!r} names no model but its base; wanted one a task; add one")
    own, differs = METHODS[method]
    density, note = _density(models, config, file)
    tasks: list[str] = []
    for name, model in _unique(models, file):
        tasks += _task(name, model, base, file)
    return "\n".join(
        [
            f"# Made by `talos init --from-mergekit {comment(file.name)}`. CHANGE what is marked; `talos check` tells "
            "all that is wrong before anything runs.",
            f"model: {scalar(_model(base, file))}",
            "tasks:",
            *tasks,
            "# control:                    # what must hold: tasks that are looked at and never trained",
            "output: runs/merged",
            "mask: {strategy: all}         # as in mergekit, every weight that a task changed counts",
            *([f"# mergekit's {method}: {differs}"] if differs else []),
            f"search: {{merge: {{method: {own}{'' if density is None else f', density: {density:g}'}}}}}" + note,
            "",
        ]
    )


def weights_of(version: Version, blend: Blend, model: str) -> dict[str, float]:
    """Task -> mergekit's weight of its edit in a version.

    Args:
        blend: the version's coefficients. model: of the run, as its spec names it.

    Raises:
        SpecError: mergekit cannot say what the version is made of.
    """
    asked = f"version {version.number} as a mergekit configuration"
    instead = "export the whole model, or merge anew with it"
    if model.partition(":")[0] not in HUGGING_FACE:
        raise SpecError(
            f"{asked}: the run's model is {model!r}; wanted one of transformers (hf:), which mergekit reads; export "
            "the whole model"
        )
    if blend.granularity not in (None, "task") or set(blend.values) != set(version.deltas):
        segment = blend.granularity or "group of layers"
        raise SpecError(
            f"{asked}: it has a coefficient a {segment}; wanted one a task, which is all that mergekit "
            f"knows (search: {{granularity: task}}); {instead}"
        )
    if version.how.method != "linear":
        raise SpecError(
            f"{asked}: its merge method is {version.how.method!r}; wanted 'linear' (mergekit's others cut tensor by "
            f"tensor, not the whole edit); {instead}"
        )
    return {task: float(torch.as_tensor(blend.values[task])) for task in sorted(blend.values)}


def config_of(weights: Mapping[str, float], dtype: str, heading: str) -> str:
    """The configuration of a merge of the folders `tasks/TASK` on the folder `base` beside it.

    Args:
        dtype: of the models' weights; sums are made in float32. heading: the first line's comment.
    """
    # With a dot: mergekit takes TASKS/NAME for a repository, and would ask the Hub for it.
    models = [{"model": f"./tasks/{task}", "parameters": {"weight": weight}} for task, weight in weights.items()]
    told = {
        "merge_method": "task_arithmetic",
        "base_model": "./base",
        "models": models,
        "parameters": {"normalize": False},
        "dtype": "float32",
        "out_dtype": dtype,
    }
    return f"# {comment(heading)}\n{yaml.safe_dump(told, sort_keys=False)}"


def _named(model: Any, file: Path) -> str:
    """What a model is called. Raises SpecError if it is no name."""
    name = model.get("model") if isinstance(model, Mapping) else model
    if not isinstance(name, str) or not name.strip():
        raise SpecError(
            f"mergekit file {str(file)!r}: a model is {str(name)[:80]!r}; wanted a name or a path; write it as one"
        )
    return name


def _parameters(model: Any, config: Mapping[str, Any], file: Path) -> dict[str, Any]:
    """A model's own, on top of those of the whole. Raises SpecError if either are no mapping."""
    both: dict[str, Any] = {}
    for holder in (config, model):
        given = holder.get("parameters") if isinstance(holder, Mapping) else None
        if not isinstance(given, Mapping | None):
            raise SpecError(
                f"mergekit file {str(file)!r}: parameters are {str(given)[:80]!r}; wanted names and values, like "
                "{weight: 0.5}; write them as such"
            )
        both |= given or {}
    return both


def _density(models: list[Any], config: Mapping[str, Any], file: Path) -> tuple[float | None, str]:
    """The share of a change that is kept, the mean where models differ, and what is said of it. Raises SpecError if
    that is no share."""
    densities = [_parameters(model, config, file).get("density") for model in models]
    given = [density for density in densities if density is not None]
    numbers = []
    for density in given:
        if isinstance(density, list | Mapping):  # by layer, or by part of a name
            continue
        if type(density) not in (int, float) or not 0 < density <= 1:
            raise SpecError(
                f"mergekit file {str(file)!r}: density is {density!r}; wanted a number above 0 and up to 1, the share "
                "of a change that is kept; correct it"
            )
        numbers.append(float(density))
    if not given:
        return None, ""
    if len(numbers) < len(given):
        return None, "  # mergekit's densities go by layer; here one holds for all: CHANGE density, if need be"
    return sum(numbers) / len(numbers), "  # the mean of mergekit's" if len(set(numbers)) > 1 else ""


def _model(name: str, file: Path) -> str:
    """A model as `model:` and `checkpoint:` name one; whole, where it lies here."""
    # Beside the configuration, as mergekit finds it: the spec may be written somewhere else.
    here = file.parent / Path(name).expanduser()
    return f"hf:{here.resolve() if here.is_dir() else name}"


def _adapter(name: str, file: Path) -> str:
    """The same for an adapter: a folder beside the configuration, or one of the Hub."""
    here = (file.parent / Path(name).expanduser()).resolve()
    on_hub = not here.is_dir() and HUB_NAME.fullmatch(name)
    return f"{ON_HUB}{name}" if on_hub else str(here)


def _unique(models: list[Any], file: Path) -> list[tuple[str, Any]]:
    """Each model with a task's name: the last part of its own, and a number where another has that already."""
    names: list[str] = []
    for model in models:
        # Only what a spec takes as a task's name, which is also a file's.
        plain = re.sub(r"[^A-Za-z0-9_.-]", "_", Path(_named(model, file)).name).lstrip("_.-")[:90] or NAMELESS
        name = plain
        number = 2
        while name in names:
            name = f"{plain}_{number}"
            number += 1
        names.append(name)
    return list(zip(names, models, strict=True))


def _task(name: str, model: Any, base: str, file: Path) -> list[str]:
    whole, plus, adapter = _named(model, file).partition("+")  # mergekit's MODEL+ADAPTER
    # An edit is a change from the run's base; one of another model would be added to weights that it does not know.
    if plus and _model(whole, file) != _model(base, file):
        raise SpecError(
            f"mergekit file {str(file)!r}: model {whole + plus + adapter!r} is an adapter on another model than the "
            f"base {base!r}; wanted one on the base; merge it first"
        )
    weight = _parameters(model, {}, file).get("weight")
    learned = f"    # mergekit's weight was {comment(str(weight))}; here coefficients are learned"
    return [
        f"  - name: {scalar(name)}",
        f"    checkpoint: {scalar(_adapter(adapter, file) if plus else _model(whole, file))}",
        *([] if weight is None else [learned]),
        "    data: CHANGE.csv            # rows with columns text and label, to learn coefficients on and to score",
    ]
