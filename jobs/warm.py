"""What Ray costs beside the work itself: the demo's eight tasks, with a Ray that `edit()` starts, on one that is already there,
and on the same one again, whose processes have made an edit before.

    python jobs/warm.py FOLDER

Prints the time from the call of `edit()` to the first training step, and wall time of calibration, training and search over what
their workers were busy for, shared out over the workers at once (`jobs/benchmark.py` says the same of any finished run).
"""

import argparse
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import talos_ray
from jobs.finished_run import overhead
from talos_ray.orchestrate.cluster import connect

DEMO = Path(__file__).resolve().parents[1] / "talos_ray/demo/spec.yaml"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the runs are written")
    parser.add_argument("--spec", type=Path, default=DEMO)
    args = parser.parse_args()
    table = Table("Ray", "first training step", "wall", "work", "wall / work")
    for name in ("cold", "warm", "again"):
        spec = talos_ray.load_spec(args.spec, output=str((args.folder / name).resolve()))
        if name == "warm":
            connect(spec.cluster, verbose=False)
        run = talos_ray.edit(spec=spec)
        found, version = next(overhead(run.folder, run.newest)), run.newest
        first = version.stages.first_step
        table.add_row(
            name, "" if first is None else f"{first:.1f} s", f"{found.ours:.1f} s", f"{found.other:.1f} s", f"{found.ratio:.2f}"
        )  # fmt: skip
    Console(width=None if sys.stdout.isatty() else 100).print(table)


if __name__ == "__main__":
    main()
