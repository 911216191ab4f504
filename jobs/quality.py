"""Are sparse edits better than dense task arithmetic? Several seeds of one spec, and the mean of each way to merge.

    python jobs/quality.py FOLDER                       # the demo, three seeds
    python jobs/quality.py FOLDER --spec SPEC.yaml      # any spec; for MiniLM write one with jobs/text_tasks.py
    python jobs/quality.py FOLDER --auto                # the mask is chosen too, as `preset: auto` does it
    python jobs/quality.py FOLDER --label-noise 0.2     # what wrong training labels cost

Every seed is a run with a dense baseline, searched twice: as the spec says, and by the paper's grid of one coefficient for
all tasks. Choices are made on validation data; the table shows test data.
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
from talos_ray.spec import PRESETS

DEMO = Path(__file__).resolve().parents[1] / "talos_ray/demo/spec.yaml"
GRID = {"method": "grid", "shared_points": 21, "parts": 1, "merge": {"method": "linear"}}
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
        talos_ray.edit(spec=spec)
        by_grid = type(spec.search).model_validate({"low": spec.search.low, "high": spec.search.high, "control_keep": spec.search.control_keep, **GRID})  # fmt: skip
        _, ours, grid, *_ = talos_ray.edit(
            spec=spec.model_copy(update={"search": by_grid})
        ).versions  # the first is the base
        dense = grid["baseline"]
        if choice := ours.get("choice"):
            choices.append(choice)
            add("time to choose, s", choice["seconds"])
        add("zero-shot", ours["summary"]["zero_shot"])
        add("single-task, dense", dense["summary"]["single"])
        add("single-task, sparse", ours["summary"]["single"])
        add("merged, dense, 21-point grid", dense["summary"]["merged"])
        add("merged, dense, the spec's search", ours["baseline"]["summary"]["merged"])
        add("merged, sparse, 21-point grid", grid["summary"]["merged"])
        add("merged, sparse, the spec's search", ours["summary"]["merged"])
        add("gain over dense with the grid", ours["summary"]["merged"] - dense["summary"]["merged"])
        add("size of the deltas / dense", ours["cost"]["delta_bytes"] / dense["cost"]["delta_bytes"])
        add("training time / dense", ours["cost"]["train_seconds"] / dense["cost"]["train_seconds"])
        for control in ours["controls"]:
            add(f"control {control} kept", ours["summary"]["control_kept"][control])
    table = Table("mean over targets, test data", *(f"seed {i}" for i in range(args.seeds)), "mean, 95 % interval")
    for name, values in rows.items():
        table.add_row(name, *(f"{v:.3f}" for v in values), told(values))
    Console(width=None if sys.stdout.isatty() else 130).print(table)
    if choices:
        _tell(choices)


def _tell(choices: list[dict]) -> None:
    """What was tried, by its merged validation accuracy after a short run; in brackets where a control task fell."""
    found: dict[str, dict[int, str]] = {}
    for seed, choice in enumerate(choices):
        for row in choice["tried"]:
            s = row["setting"]
            name = (
                f"{s['strategy']}, {s['granularity']}, {s['keep']:.0%}, {s['layers']:.0%} of layers, lr x {s['lr']:g}"
            )
            told = f"{row['merged']:.3f}" if row["held"] else f"({row['merged']:.3f})"
            found.setdefault(name, {})[seed] = told + (" chosen" if s == choice["chosen"] else "")
    table = Table("short run", *(f"seed {i}" for i in range(len(choices))))
    for name, cells in sorted(found.items()):
        table.add_row(name, *(cells.get(i, "") for i in range(len(choices))))
    Console(width=None if sys.stdout.isatty() else 130).print(table)


if __name__ == "__main__":
    main()
