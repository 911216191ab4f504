"""How good is one merged model? Several seeds of one spec, beside what one could have instead.

    python jobs/quality.py FOLDER                       # the demo, three seeds
    python jobs/quality.py FOLDER --spec SPEC.yaml      # any spec; for MiniLM write one with jobs/text_tasks.py
    python jobs/quality.py FOLDER --joint               # also joint training of the same mask on all data
    python jobs/quality.py FOLDER --peers ENVIRONMENT   # also what mergekit and FusionBench make of the dense edits (jobs/other_merges.py)
    python jobs/quality.py FOLDER --auto                # the mask is chosen too, as `preset: auto` does it
    python jobs/quality.py FOLDER --label-noise 0.2     # what wrong training labels cost

Every seed is a run with a dense baseline, merged twice: as the spec says, and by the paper's grid of one coefficient for
all tasks. Beside it stand the linear probe on the untouched base, which needs no edit at all, and the single edits, of which one
needs one a task. Choices are made on validation data; the table shows test data.
"""

import argparse
import math
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import talos_ray
from jobs.other_merges import peers
from talos_ray.orchestrate.joint import train_jointly
from talos_ray.spec import PRESETS
from talos_ray.storage.version import Choice

DEMO = Path(__file__).resolve().parents[1] / "talos_ray/demo/spec.yaml"
GRID = {"method": "grid", "shared_points": 21, "heads": "words", "merge": {"method": "linear"}}
T95 = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78}  # two-sided 95 % quantiles of Student's t, by the number of seeds


def told(values: Sequence[float]) -> str:
    """Mean, and half of its 95 % interval over seeds."""
    mean = statistics.mean(values)
    if len(values) not in T95:
        return f"{mean:.3f}"
    return f"{mean:.3f} ± {T95[len(values)] * statistics.stdev(values) / math.sqrt(len(values)):.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the runs are written; finished ones are not repeated")
    parser.add_argument("--spec", type=Path, default=DEMO)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--auto", action="store_true", help="choose mask and learning rate in short runs")
    parser.add_argument("--joint", action="store_true", help="also train one edit on the data of all tasks")
    parser.add_argument(
        "--no-labels", action="store_true", help="also merge without reading a label of the training data"
    )
    parser.add_argument(
        "--peers", type=Path, metavar="ENVIRONMENT", help="a virtual environment with mergekit and fusion_bench"
    )
    parser.add_argument(
        "--label-noise", type=float, default=0.0, metavar="SHARE", help="of the training labels that are made wrong"
    )
    args = parser.parse_args()
    choices = []
    rows: dict[str, list[float]] = {}

    def add(name: str, value: float) -> None:
        rows.setdefault(name, []).append(value)

    for seed in range(args.seeds):
        spec = talos_ray.load_spec(args.spec, output=str((args.folder / f"seed-{seed}").resolve()), seed=seed)
        if not spec.baseline.enabled:
            spec = spec.model_copy(update={"baseline": spec.baseline.model_copy(update={"enabled": True})})
        if args.label_noise:
            noisy = spec.train.model_copy(update={"label_noise": args.label_noise})
            spec = spec.model_copy(update={"train": noisy})
        if args.auto:
            spec = type(spec).model_validate({**spec.model_dump(), **PRESETS["auto"]})
        ours = talos_ray.edit(spec=spec).versions[1]  # the first is the base
        by_grid = type(spec.search).model_validate({"low": spec.search.low, "high": spec.search.high, "control_keep": spec.search.control_keep, **GRID})  # fmt: skip
        grid = talos_ray.edit(spec=spec.model_copy(update={"search": by_grid})).versions[2]
        dense, means = ours.baseline, ours.summary
        if ours.choice is not None:
            choices.append(ours.choice)
            add("time to choose, s", ours.choice.seconds)
        add("zero-shot", means.zero_shot)
        if means.probe is not None:
            add("linear probe on the base", means.probe)
        for name, found in (("sparse", means), ("dense", dense.summary)):
            add(f"single, {name}", found.single)
            add(f"single, {name}, words' heads", found.single if found.single_words is None else found.single_words)
        for name, found in (("sparse", means), ("dense", dense.summary)):
            add(f"merged, {name}", found.merged)
            add(f"merged, {name}, words' heads", found.merged if found.merged_words is None else found.merged_words)
            for control in ours.controls:
                add(f"control {control} kept, {name}", found.control_kept[control])
        for name, found in (("sparse", grid), ("dense", grid.baseline)):
            add(f"merged, {name}, 21-point grid", found.summary.merged)
        add("merged / single", means.merged / means.single)
        if args.no_labels:
            unlabelled = spec.search.model_copy(update={"teacher": "edits"})
            alone = spec.baseline.model_copy(update={"enabled": False})
            found = talos_ray.edit(spec=spec.model_copy(update={"search": unlabelled, "baseline": alone})).versions[3]
            add("merged, sparse, no labels in the merge", found.summary.merged)
        if args.joint:
            found = train_jointly(spec.output)
            add("joint training of the same mask", statistics.mean(found.own.values()))
            add("joint training, words' heads", statistics.mean(found.words.values()))
            if found.kept is not None:
                add("control kept, joint training", found.kept)
        for method, found in (peers(spec.output, args.peers) if args.peers else {}).items():
            add(f"{method}, dense", found["own"])
            add(f"{method}, dense, words' heads", found["words"])
            add(f"{method}, control kept", found["kept"])
        add("size of the deltas / dense", ours.cost.delta_bytes / dense.cost.delta_bytes)
        add("training time / dense", ours.cost.train_seconds / dense.cost.train_seconds)
    table = Table("mean over targets, test data", *(f"seed {i}" for i in range(args.seeds)), "mean, 95 % interval")
    for name, values in rows.items():
        table.add_row(name, *(f"{v:.3f}" for v in values), told(values))
    Console(width=None if sys.stdout.isatty() else 130).print(table)
    if choices:
        _tell(choices)


def _tell(choices: list[Choice]) -> None:
    """What was tried, by its merged validation accuracy after a short run; in brackets where a control task fell."""
    found: dict[str, dict[int, str]] = {}
    for seed, choice in enumerate(choices):
        for row in choice.tried:
            s = row.setting
            name = f"{s.strategy}, {s.granularity}, {s.keep:.0%}, {s.layers:.0%} of layers, lr x {s.lr:g}"
            told = f"{row.merged:.3f}" if row.held else f"({row.merged:.3f})"
            found.setdefault(name, {})[seed] = told + (" chosen" if s == choice.chosen else "")
    table = Table("short run", *(f"seed {i}" for i in range(len(choices))))
    for name, cells in sorted(found.items()):
        table.add_row(name, *(cells.get(i, "") for i in range(len(choices))))
    Console(width=None if sys.stdout.isatty() else 130).print(table)


if __name__ == "__main__":
    main()
