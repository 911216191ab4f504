"""How far can a run's base forget each of its tasks? Task negation from the base, task by task, on a copy of the run.

    python jobs/negation.py runs/demo
    python jobs/negation.py runs/demo --keep 0.9

Coefficients are learned on training data and chosen on validation data; accuracies are those on test data. The probe is a linear classifier on the
features: what the model still knows, whatever it answers; "again" is the accuracy after a tenth of the task's training.
"""

import argparse
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import talos_ray
from talos_ray.orchestrate.cluster import connect
from talos_ray.storage.version import Version


def forgotten(path: str, keep: float) -> Iterator[tuple[str, Version]]:
    """Every task of a run with a version that has forgotten it as far as possible, each from the base, on a copy of the run."""
    with tempfile.TemporaryDirectory() as scratch:
        run = talos_ray.open_run(shutil.copytree(path, Path(scratch) / "run").as_posix())
        for task in [task.name for task in run.spec.tasks]:
            if run.head:
                run.rollback(0)
            yield task, run.forget(task, keep, at_most=1.0).newest


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="a finished run, in a local folder")
    parser.add_argument("--keep", type=float, default=0.95, help="share of its score that every control task must keep")
    args = parser.parse_args()
    connect(talos_ray.open_run(args.run).spec.cluster, verbose=False)  # once for all tasks
    table = Table(
        "task",
        "chance",
        "base",
        "now",
        "coefficient",
        "at chance",
        "controls keep",
        "probe, base",
        "probe, now",
        "again, base",
        "again, now",
    )
    for task, version in forgotten(args.run, args.keep):
        told, s = version.negation, version.scores[task]
        table.add_row(
            task, f"{told.chance:.3f}", f"{s.base.value:.3f}", f"{s.merged.value:.3f}", version.coefficient_of(task) or "0.00",
            "yes" if told.after <= told.aim else "no", ", ".join(f"{k:.1%}" for k in version.summary.control_kept.values()),
            *(f"{told.beyond[m].probe.value:.3f}" for m in ("base", "now")),
            *(f"{told.beyond[m].retrained.value:.3f}" for m in ("base", "now")),
        )  # fmt: skip
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
