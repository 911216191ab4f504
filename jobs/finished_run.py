"""What a finished run tells about the search and about Ray's own share of the time: rows of `jobs/benchmark.py --run`."""

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import optuna

from jobs.measuring import Row, row
from talos_ray.config import Spec
from talos_ray.core.merging import merged
from talos_ray.core.metrics import MergeObjective
from talos_ray.orchestrate.evaluation import sample
from talos_ray.orchestrate.plan import SPARSE, prepare
from talos_ray.orchestrate.proposals import probes
from talos_ray.orchestrate.worker import Arm, Shared, Workbench, freeze
from talos_ray.progress import Progress
from talos_ray.storage.run_folder import RunFolder

OPTUNA_BAR = 0.1  # of the evaluations that Optuna needs; it is stopped where this holds


def look(uri: str) -> Iterator[Row]:
    folder = RunFolder(uri)
    spec = Spec.model_validate({**folder.info()["spec"], "output": uri})
    version = folder.load_version(folder.versions()[-1])
    yield from _search(folder, spec, version)
    yield from overhead(folder, version)


def _search(folder: RunFolder, spec: Spec, version: dict) -> Iterator[Row]:
    """The run's search against every point of the paper's grid, each evaluated on all validation data."""
    prepared = prepare(spec, Progress())
    shared = Shared(spec, prepared.base, freeze(prepared.tensors), prepared.layout, prepared.heads)
    bench, mask = Workbench(shared), folder.load_mask(prepared.base)
    deltas = {t: folder.load_delta(t) for t in prepared.targets}
    linear, chosen = (
        Arm.of(f"{SPARSE} {name}", on.bits, rows)
        for name, (on, rows) in (("linear", (mask, deltas)), ("chosen", merged(deltas, mask, **version["merge"])))
    )
    everything = [*prepared.targets, *prepared.controls]

    def scores(
        coefficients: dict[str, float], tasks: Sequence[str] = everything, arm: Arm = linear
    ) -> dict[str, float]:
        bench.compose(arm, coefficients)
        return {t: right / n for t in tasks for right, n in [bench.correct(t, "validation")[0]]}

    single = {t: scores({t: 1.0}, [t])[t] for t in prepared.targets}
    objective = MergeObjective(single, scores({}, prepared.controls), spec.search.control_keep)
    s, points = spec.search, 21
    started = time.perf_counter()
    grid = [
        objective(scores(dict.fromkeys(single, s.low + i * (s.high - s.low) / (points - 1)))) for i in range(points)
    ]
    each = (time.perf_counter() - started) / points
    found, methods = objective(scores(version["coefficients"], arm=chosen)), version["search"]["methods"]
    inputs = {t: len(bench.examples(t, "validation")) for t in everything}
    sampled = sum(len(sample(spec, t, n)) for t, n in inputs.items()) / sum(inputs.values())
    looks, a_look = version["search"]["looks"], len(single) * sampled
    first = len(methods) * len(probes(spec, prepared.targets)) * sampled
    looked = first + a_look * sum(map(len, looks.values()))
    used = version["search"]["evaluated"] + looked
    asked = sorted(version["search"]["candidates"], key=lambda c: c["number"])
    place = next((i for i, c in enumerate(asked, 1) if c["objective"] >= max(grid)), math.inf)
    before = sum(n < place for n in looks[version["merge"]["method"]])
    reached = first + len(methods) * (place + before * a_look)  # the other method was searched as far
    print(
        f"search: {found:.4f} with a coefficient a task after {version['search']['evaluated']} candidates under {len(methods)} merge method(s) and probes "
        f"worth {looked:.1f} evaluations; the best of the grid {max(grid):.4f}, which candidate {place} of its method reached; {each:.1f} s an evaluation. Both need the {len(single)} single edits and the base before"
    )
    other = [points * len(methods)], "evaluations", f"the {points}-point grid of one coefficient, a merge method"
    yield row("search_evals_vs_grid", [reached], *other, "<= 0.334")
    measured = row("search_evals_vs_grid_whole", [used], *other, "<= 1.0")
    yield measured if found >= max(grid) else replace(measured, holds=False)

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=spec.seed))
    most = math.ceil(used / OPTUNA_BAR)

    def trial(t: optuna.Trial) -> float:
        return objective(scores({n: t.suggest_float(n, s.low, s.high) for n in single}, arm=chosen))

    study.optimize(trial, most, callbacks=[lambda study, _: study.stop() if study.best_value >= found else None])
    needed = len(study.trials)
    print(
        f"search: Optuna from scratch, with a coefficient a task and the same merge method, has {study.best_value:.4f} after {needed} evaluations"
        + ("" if study.best_value >= found else ", where it was stopped: below the search's result")
    )
    yield row(
        "search_evals_vs_optuna",
        [used],
        [needed],
        "evaluations",
        "Optuna's TPE from scratch, until its result is as good",
        f"<= {OPTUNA_BAR}",
    )


def overhead(folder: RunFolder, version: dict) -> Iterator[Row]:
    """Wall time of the stages against what their workers were busy for, shared out over the workers at once."""
    walls, slots = version["stages"]["seconds"], version["stages"]["slots"]
    deltas = version["targets"]
    dense = RunFolder(f"{folder.store.uri.rstrip('/')}/baseline")
    arms = [folder, *([dense] if version["baseline"] else [])]
    train = sum(float(a.load_delta(t).info["seconds"]) for a in arms for t in deltas)
    trials = sum(
        folder.load_trial(Path(n).stem)[0]["seconds"] for n in folder.store.list("trials") if n.endswith(".safetensors")
    )
    work = {
        "calibrate": folder.load_mask(version["base"]).info.get("work_seconds", 0.0) / slots["calibrate"],
        "train": train / min(slots["train"], len(arms) * len(deltas)),
        "search": trials / slots["search"],
    }
    wall = {stage: sum(s for n, s in walls.items() if n.split()[0] == stage) for stage in work}
    if (first := version["stages"]["first_step"]) is not None:
        print(f"  the first training step came {first:.1f} s after the start")
    print(f"  a candidate costs {1000 * version['stages']['candidate_overhead']:.0f} ms beyond its evaluation (median)")
    print(f"  the object stores of all nodes held {version['stages']['object_store_peak'] / 1e6:.0f} MB at most")
    for stage in work:
        print(f"  {stage}: {wall[stage]:.1f} s, of which work {work[stage]:.1f} s with {slots[stage]} at once")
    yield row(
        "orchestration_overhead", [sum(wall.values())], [sum(work.values())], "s", "the stages' own work", "<= 1.15"
    )
