"""A run of any model, made in seconds and without Ray: random edits of a random mask, answered by the workers' own
bench and recorded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from images import write_images
from texts import save_model, write_texts

import talos_ray
from talos_ray.config import Merge
from talos_ray.core.delta import Delta
from talos_ray.core.layout import fingerprint
from talos_ray.core.mask import Mask, mask_from_flags, select
from talos_ray.core.merging import merged
from talos_ray.core.paired import Answers
from talos_ray.core.segments import Blend, segments_of
from talos_ray.models import Family, base_tensors, layout_of, load_model
from talos_ray.models.heads import make_head
from talos_ray.orchestrate.worker import Arm, Shared, Workbench, freeze
from talos_ray.smoke import tiny_model
from talos_ray.spec import make_spec
from talos_ray.storage.run_folder import RunFolder, answers_file
from talos_ray.storage.version import Version
from talos_ray.tasks import TaskData, load_task

IMAGES = ("demo", "clip", "siglip")
WRITES = ("t5", "gpt2", "llama", "qwen3")  # what has no head but its words


def made(folder, kind: str, n: int = 40, **how) -> talos_ray.Run:
    """A run of a family, with two targets, of which the first has a head of its own, and a control task."""
    kind, _, half = kind.partition(" ")
    if kind in IMAGES:
        model = (
            "demo" if kind == "demo" else tiny_model(kind, ["a", "photo", "of", ".", "left", "right"], folder / "model")
        )
        first = {"name": "sides", "data": write_images(folder / "sides", n), "input": "file", "label": "side"}
        second = {**first, "name": "again", "data": write_images(folder / "again", n, seed=1)}
    else:
        model = "python:test_families:Bag" if kind == "python" else save_model(folder / "model", kind)
        first, second = (
            {**write_texts(folder, name, n), "kind": "text", "input": "text", "prompts": ["{}"]}
            for name in ("animals", "places")
        )
        if kind == "classifier":
            first, second = ({**t, "phrases": ["No", "Yes"]} for t in (first, second))
    model = model.replace("hf:", "hf-bf16:") if half else model
    own = () if kind in WRITES else (first["name"],)
    return recorded_run(folder / "run", model, [first, second], [{**second, "name": "held"}], own=own, **how)


def test_inputs(run: talos_ray.Run, task: str) -> tuple[list, torch.Tensor]:
    """Test inputs of a task and their labels."""
    split = load_task(talos_ray.Task.model_validate(run._tasks[task]), 0).test
    return list(split.rows[:][split.column]), split.labels


test_inputs.__test__ = False


def recorded_run(
    where: Path,
    model: str,
    tasks: Sequence[dict],
    control: Sequence[dict] = (),
    *,
    own: Sequence[str] = (),
    method: str = "linear",
    granularity: str = "row",
    shared_by: str = "row",
) -> talos_ray.Run:
    """Version 0 is the base, version 1 all edits, with a coefficient an output row (or whatever it is `shared_by`); tasks `own`
    have heads of their own. `granularity`: of the mask."""
    spec = make_spec({"model": model, "tasks": list(tasks), "control": list(control), "output": str(where)})
    data = {t.name: load_task(t, spec.seed) for t in (*spec.tasks, *spec.control)}
    family = load_model(spec.model)
    tensors = {n: t.clone() for n, t in base_tensors(family).items()}
    base, layout = fingerprint(tensors), layout_of(family)
    frozen = {name: make_head(family, d, spec.seed) for name, d in data.items()}
    mask = mask_from_flags(layout, select(layout, "random", 0.3, granularity=granularity))
    dice = torch.Generator().manual_seed(0)
    deltas = {t.name: random_delta(t.name, base, mask, dice) for t in spec.tasks}
    heads = {name: random_head(family, data[name], dice) for name in own}

    folder = RunFolder(str(where))
    classes = {name: d.classes for name, d in data.items()}
    folder.begin(spec.model_dump(mode="json"), base, {"tasks": "recorded"}, frozen, classes)
    folder.save_mask(mask, base)
    folder.record("calibrate", ["mask.safetensors"])
    for delta in deltas.values():
        folder.save_delta(delta)

    arrays = {name: head.numpy() for name, head in frozen.items()}
    bench = Workbench(Shared(spec, base, freeze(tensors), layout, arrays))
    add_versions(folder, bench, data, mask, deltas, heads, Merge(method=method), dice, shared_by)
    return talos_ray.open_run(str(where))


def random_delta(task: str, base: str, mask: Mask, dice: torch.Generator) -> Delta:
    values = (0.3 * torch.randn(mask.k, generator=dice)).bfloat16()
    return Delta(task, values, base, mask.fingerprint, {"seconds": 0.0, "state_bytes": 0})


def random_head(family: Family, data: TaskData, dice: torch.Generator) -> torch.Tensor:
    one = data.test.rows[:1][data.test.column]
    width = family.features(family.preprocess(one)).shape[1]
    return torch.randn(len(data.classes), width + 1, generator=dice)


def add_versions(
    folder: RunFolder,
    bench: Workbench,
    data: Mapping[str, TaskData],
    mask: Mask,
    deltas: Mapping[str, Delta],
    heads: Mapping[str, torch.Tensor],
    how: Merge,
    dice: torch.Generator,
    shared_by: str = "row",
) -> None:
    """The base, and all edits under one merge method, each with what the bench answers."""
    about = {
        "created": "2026-01-01T00:00:00+00:00",
        "base": bench.shared.base,
        "mask": mask.fingerprint,
        "merge": how.model_dump(),
        "targets": [t.name for t in bench.shared.spec.tasks],
        "controls": [t.name for t in bench.shared.spec.control],
        "scores": {},
    }
    first = {**about, "kind": "base", "deltas": {}, "coefficients": {}, "model": bench.shared.base}
    add_version(folder, Version(**first), answered(bench, data, {}))

    wide, rows = merged(deltas, mask, **how.model_dump(exclude={"groups"}))
    segments = segments_of(wide, shared_by)
    blend = Blend({t: torch.rand(segments.count, generator=dice) for t in deltas}, shared_by)
    bench.compose(Arm.of("sparse", wide.bits, rows), blend)
    second = {
        **about,
        "kind": "addition",
        "deltas": {t: d.fingerprint for t, d in deltas.items()},
        "coefficients": blend.means(wide),
        "model": fingerprint(base_tensors(bench.family)),
        "learned": folder.save_learned(blend, heads, wide),
        **({"rows": folder.save_merged(wide, rows)[0]} if how.method != "linear" else {}),
    }
    add_version(folder, Version(**second), answered(bench, data, heads))


def answered(bench: Workbench, data: Mapping[str, TaskData], heads: Mapping[str, torch.Tensor]) -> Answers:
    """What workers would send."""
    predicted, probability = {}, {}
    for name in data:
        seen = bench.predicted(name, heads.get(name))
        kind = "own" if name in heads else "words"
        predicted[name] = torch.from_numpy(seen[kind].copy())
        probability[name] = torch.from_numpy(seen[f"{kind}_probability"].copy())
    labels = {name: d.test.labels for name, d in data.items()}
    marks = {name: d.test.fingerprint() for name, d in data.items()}
    return Answers(predicted, labels, marks, probability)


def add_version(folder: RunFolder, version: Version, answers: Answers) -> None:
    folder.add_version("version", lambda number: (version, dict([answers_file(number, answers)])))
