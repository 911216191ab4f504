"""A run of any model, made in seconds and without Ray: random edits of a random mask, answered by the workers' own bench and recorded."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

import talos_ray
from talos_ray.config import Merge
from talos_ray.core.delta import Delta
from talos_ray.core.layout import fingerprint
from talos_ray.core.mask import mask_from_flags, select
from talos_ray.core.merging import merged
from talos_ray.core.paired import Answers
from talos_ray.core.segments import Blend, segments_of
from talos_ray.models import base_tensors, layout_of, load_model
from talos_ray.models.heads import make_head
from talos_ray.orchestrate.worker import Arm, Shared, Workbench, freeze
from talos_ray.spec import make_spec
from talos_ray.storage.run_folder import RunFolder, answers_file
from talos_ray.tasks import load_task


def recorded_run(
    where: Path, model: str, tasks: Sequence[dict], control: Sequence[dict] = (), *, own: Sequence[str] = (), method: str = "linear",
    granularity: str = "row",
) -> talos_ray.Run:  # fmt: skip
    """Version 0 is the base, version 1 all edits with a coefficient an output row, and heads of their own for the tasks `own`."""
    spec = make_spec({"model": model, "tasks": list(tasks), "control": list(control), "output": str(where)})
    everything = (*spec.tasks, *spec.control)
    data = {t.name: load_task(t, spec.seed) for t in everything}
    family = load_model(spec.model)
    tensors = {n: t.clone() for n, t in base_tensors(family).items()}
    base, layout = fingerprint(tensors), layout_of(family)
    frozen = {name: make_head(family, d, spec.seed) for name, d in data.items()}
    mask = mask_from_flags(layout, select(layout, "random", 0.3, granularity=granularity))
    dice = torch.Generator().manual_seed(0)
    deltas = {}
    for t in spec.tasks:
        values = (0.3 * torch.randn(mask.k, generator=dice)).bfloat16()
        deltas[t.name] = Delta(t.name, values, base, mask.fingerprint, {"seconds": 0.0, "state_bytes": 0})
    heads = {}
    for name in own:
        features = family.features(family.preprocess(data[name].test.rows[:1][data[name].test.column]))
        heads[name] = torch.randn(len(data[name].classes), features.shape[1] + 1, generator=dice)

    run_folder = RunFolder(str(where))
    classes = {name: d.classes for name, d in data.items()}
    run_folder.begin(spec.model_dump(mode="json"), base, {"tasks": "recorded"}, frozen, classes)
    run_folder.save_mask(mask, base)
    run_folder.record("calibrate", ["mask.safetensors"])
    for delta in deltas.values():
        run_folder.save_delta(delta)

    how = Merge(method=method)
    wide, rows = merged(deltas, mask, **how.model_dump(exclude={"groups"}))
    segments = segments_of(wide, "row")
    blend = Blend({t: torch.rand(segments.count, generator=dice) for t in deltas}, "row")
    arrays = {name: head.numpy() for name, head in frozen.items()}
    bench = Workbench(Shared(spec, base, freeze(tensors), layout, arrays))
    marks = {name: d.test.fingerprint() for name, d in data.items()}
    labels = {name: d.test.labels for name, d in data.items()}
    used: dict[str, torch.Tensor] = {}  # heads that take the place of the frozen ones

    def answers() -> Answers:
        kinds = {name: bench.predicted(name, used.get(name)) for name in data}
        head = {name: "own" if name in used else "words" for name in kinds}
        now = {name: torch.from_numpy(k[head[name]].copy()) for name, k in kinds.items()}
        sure = {name: torch.from_numpy(k[f"{head[name]}_probability"].copy()) for name, k in kinds.items()}
        return Answers(now, labels, marks, sure)

    about = {
        "created": "2026-01-01T00:00:00+00:00",
        "base": base,
        "mask": mask.fingerprint,
        "merge": how.model_dump(),
        "targets": [t.name for t in spec.tasks],
        "controls": [t.name for t in spec.control],
        "scores": {},
    }
    first = {**about, "kind": "base", "deltas": {}, "coefficients": {}, "model": base}
    run_folder.add_version("version", lambda n, found=answers(): (first, dict([answers_file(n, found)])))
    bench.compose(Arm.of("sparse", wide.bits, rows), blend)
    used |= heads
    second = {
        **about,
        "kind": "addition",
        "deltas": {t: d.fingerprint for t, d in deltas.items()},
        "coefficients": blend.means(wide),
        "model": fingerprint(base_tensors(bench.family)),
        "learned": run_folder.save_learned(blend, heads, wide),
        **({"rows": run_folder.save_merged(wide, rows)[0]} if method != "linear" else {}),
    }
    run_folder.add_version("version", lambda n, found=answers(): (second, dict([answers_file(n, found)])))
    return talos_ray.open_run(str(where))
