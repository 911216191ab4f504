"""The published protocol on a spec, in the layout of the papers' tables: task addition and task negation, for each method.

    python jobs/reproduce.py FOLDER --spec examples/clip_vit_b32_eight_tasks.yaml     # with GPUs
    python jobs/reproduce.py FOLDER                                                   # the demo

Addition: one coefficient for all tasks, on a grid of 21 points, chosen on validation data by the mean normalized accuracy; test
data are shown (Ilharco et al., 2023). Negation: every task alone, from the base, as low as 95 % of every control task allows;
only where the spec has control tasks. Every method gets the same tasks, steps and batches. Finished parts are not repeated.
"""

import argparse
import json
import shutil
import statistics
import sys
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from negation import forgotten

import talos_ray
from talos_ray.config import Spec
from talos_ray.core.probe import linear_probe
from talos_ray.inputs import Examples
from talos_ray.models import load_model
from talos_ray.orchestrate.cluster import connect
from talos_ray.spec import PRESETS
from talos_ray.tasks import Split, load_task

DEMO = Path(__file__).resolve().parents[1] / "talos_ray/demo/spec.yaml"
KEEP = 0.95
PROBED = 2000  # training inputs of a task that a linear probe sees
BATCH = 64


def protocol(spec: Spec, output: Path, merge: str, **changes) -> Spec:
    """The spec with mask, calibration and search as published; the control tasks do not decide in addition."""
    search = {
        **PRESETS["paper"]["search"],
        "merge": {**PRESETS["paper"]["search"].get("merge", {}), "method": merge},
        "control_keep": 0.0,
    }
    values = {
        **spec.model_dump(),
        **{k: v for k, v in PRESETS["paper"].items() if k != "search"},
        "search": search,
        "output": str(output.resolve()),
        **changes,
    }
    return Spec.model_validate(values)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the runs are written")
    parser.add_argument("--spec", type=Path, default=DEMO)
    parser.add_argument("--json", type=Path, help="also write the tables there")
    args = parser.parse_args()
    spec = talos_ray.load_spec(args.spec)
    connect(spec.cluster, verbose=False)
    sparse_at, dense_at = args.folder / "sparse", args.folder / "dense"
    talos = protocol(
        spec, sparse_at, "linear", baseline={"enabled": True, "lr": spec.baseline.lr}, gate={"control_keep": None}
    )
    addition = []
    first = talos_ray.edit(spec=talos).newest
    addition += [("TaLoS", first.summary), ("dense task arithmetic", first.baseline.summary)]
    # The same dense deltas as a run of their own, for what is done to them; content-addressed, so nothing is trained again.
    if not dense_at.exists():
        shutil.copytree(sparse_at / "baseline/deltas", dense_at / "deltas")
    lr = {"train": {**spec.train.model_dump(), "lr": spec.baseline.lr or spec.train.lr, "delta_dtype": "float32"}}
    dense = {"mask": {"strategy": "all"}, "baseline": {"enabled": False}, "gate": {"control_keep": None}, **lr}
    addition.append(
        (
            "TaLoS + TIES",
            talos_ray.edit(
                spec=protocol(spec, sparse_at, "ties", baseline={"enabled": False}, gate={"control_keep": None})
            ).newest.summary,
        )
    )
    addition.append(("dense + TIES", talos_ray.edit(spec=protocol(spec, dense_at, "ties", **dense)).newest.summary))
    found = {
        "addition": [
            {"method": m, **{k: getattr(s, k) for k in ("single", "merged", "normalized")}} for m, s in addition
        ]
    }
    found["zero-shot"], found["linear probe"] = first.summary.zero_shot, probes(talos)
    _show("Task addition, mean over tasks, test data", ["method", "single", "absolute", "normalized"], [
        ["zero-shot", "", f"{found['zero-shot']:.3f}", ""],
        ["linear probe, each task its own", f"{found['linear probe']:.3f}", "", ""],
        *[[r["method"], *(f"{r[k]:.3f}" for k in ("single", "merged", "normalized"))] for r in found["addition"]],
    ])  # fmt: skip
    if spec.control:
        found["negation"] = [negation("TaLoS", sparse_at), negation("dense task arithmetic", dense_at)]
        _show(f"Task negation, mean over tasks, test data; every control keeps {KEEP:.0%}", ["method", "target, base", "target", "control, base", "control"], [
            [r["method"], *(f"{r[k]:.3f}" for k in ("target_base", "target", "control_base", "control"))] for r in found["negation"]
        ])  # fmt: skip
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n")


def negation(method: str, path: Path) -> dict:
    """Mean accuracy of the forgotten task and of the controls, before and after, over tasks."""
    rows = []
    for task, version in forgotten(str(path), KEEP):
        s = version.scores
        for_control = [statistics.mean(getattr(s[c], m).value for c in version.controls) for m in ("base", "merged")]
        rows.append([s[task].base.value, s[task].merged.value, *for_control])
    means = [statistics.mean(column) for column in zip(*rows, strict=True)]
    return {"method": method, **dict(zip(("target_base", "target", "control_base", "control"), means, strict=True))}


@torch.no_grad()
def probes(spec: Spec) -> float:
    """Mean test accuracy of a linear classifier on the base's features, a task each."""
    family = load_model(spec.model)

    def features(split: Split) -> tuple[torch.Tensor, torch.Tensor]:
        examples, index = Examples(split, family.preprocess), torch.arange(min(len(split), PROBED))
        rows = [family.features(examples.batch(part)[0]) for part in index.split(BATCH)]
        return torch.cat(rows), split.labels[: len(index)]

    shares = []
    for task in spec.tasks:
        data = load_task(task, spec.seed)
        (train, labels), (test, wanted) = features(data.train), features(data.test)
        right, n = linear_probe(train, labels, test, wanted)
        shares.append(right / n)
    return statistics.mean(shares)


def _show(title: str, head: list[str], rows: list[list[str]]) -> None:
    table = Table(*head, title=title, title_justify="left")
    for row in rows:
        table.add_row(*row)
    Console(width=None if sys.stdout.isatty() else 110).print(table)


if __name__ == "__main__":
    main()
