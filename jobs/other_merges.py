"""Peers, as their own packages merge: TIES and DARE by mergekit, TSV-M by FusionBench, on the dense checkpoints of a finished run.

    python3.11 -m venv peers && peers/bin/pip install mergekit fusion_bench   # an environment of their own
    python jobs/quality.py FOLDER --peers peers

Every method gives one task vector for all tasks; its scale is chosen on validation data, among 21 points and under the same hold
on the control tasks as ours. The merged model is scored by the words' heads and by heads of the tasks' own, fitted as ours are.

AdaMerging and RegMean are left out: FusionBench has them for the CLIP and GPT-2 classes of transformers, whose forward passes they
call, and the demo's model is none of those.
"""

from __future__ import annotations

import subprocess
import tempfile
import time
from pathlib import Path

import torch
import yaml
from safetensors.torch import load_file, save_file

from talos_ray.config import Spec
from talos_ray.core.delta import Delta
from talos_ray.core.segments import Blend
from talos_ray.orchestrate.joint import by_own_head
from talos_ray.orchestrate.learning import pool_of
from talos_ray.orchestrate.plan import DENSE, arms_of, prepare
from talos_ray.orchestrate.worker import Arm, Shared, Workbench, freeze
from talos_ray.progress import Progress
from talos_ray.storage.run_folder import RunFolder

SCALES = [i / 20 for i in range(21)]
# As their papers have them: 20 % of a task vector are kept, or dropped at random and the rest made larger.
PARAMETERS = {"weight": 1.0, "density": 0.2}
METHODS = {"TIES (mergekit)": "ties", "DARE (mergekit)": "dare_linear", "TSV-M (FusionBench)": None}
FUSION_BENCH = """
import sys
from pathlib import Path
import torch
from fusion_bench import BaseModelPool
from fusion_bench.method import TaskSingularVectorMerging
from safetensors.torch import load_file, save_file

class Weights(torch.nn.Module):
    def __init__(self, path):
        super().__init__()
        for name, tensor in load_file(path).items():
            self.register_parameter(name.replace(".", "/"), torch.nn.Parameter(tensor))

base, out, *tuned = sys.argv[1:]
pool = {"_pretrained_": Weights(base), **{f"task_{i}": Weights(path) for i, path in enumerate(tuned)}}
merged = TaskSingularVectorMerging().run(BaseModelPool(pool))
save_file({n.replace("/", "."): t.contiguous() for n, t in merged.state_dict().items()}, out)
"""


def peers(uri: str, environment: Path) -> dict[str, dict[str, float]]:
    """Method -> what its merged model scores on test data: mean accuracy of the targets by the words' heads (`words`) and by heads of
    their own (`own`), the least share that a control task keeps (`kept`), the scale that validation data chose, and the seconds of
    the package's own command."""
    folder = RunFolder(uri)
    found = folder.info()["spec"]
    spec = Spec.model_validate({**found, "output": uri, "baseline": {**found["baseline"], "enabled": True}})
    prepared = prepare(spec, Progress())
    bench = Workbench(Shared(spec, prepared.base, freeze(prepared.tensors), prepared.layout, prepared.heads))
    arm = next(a for a in arms_of(prepared, folder.load_mask(prepared.base)) if a.name == DENSE)
    deltas = {d.task: d for d in arm.finished()}
    base = {n: prepared.tensors[n].clone() for n in prepared.layout.names}
    found = {}
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)
        save_file(base, place / "base.safetensors")
        for task, delta in deltas.items():
            parts = prepared.layout.split(delta.values.float())
            tuned = {n: base[n] + parts[n].view_as(base[n]) for n in base}
            save_file(tuned, place / f"{task}.safetensors")
        tuned = [place / f"{task}.safetensors" for task in sorted(deltas)]
        for method, name in METHODS.items():
            started = time.perf_counter()
            merged = _merged(environment, place, tuned, name)
            seconds = time.perf_counter() - started
            vector = torch.cat([(merged[n].float() - base[n]).reshape(-1) for n in prepared.layout.names])
            together = Arm.of(
                "peer", arm.mask.bits, {"peer": Delta("peer", vector, prepared.base, arm.mask.fingerprint)}
            )
            found[method] = {**scored(bench, prepared, together), "seconds": seconds}
    return found


def _merged(environment: Path, place: Path, tuned: list[Path], method: str | None) -> dict[str, torch.Tensor]:
    """What a package makes of checkpoints: mergekit by its name of a method, or FusionBench."""
    base, out = place / "base.safetensors", place / "out"
    if method is None:
        command = [environment / "bin/python", "-c", FUSION_BENCH, base, place / "merged.safetensors", *tuned]
        subprocess.run(list(map(str, command)), check=True, capture_output=True)
        return load_file(place / "merged.safetensors")
    config = {
        "merge_method": method,
        "base_model": str(base),
        "models": [{"model": str(path), "parameters": PARAMETERS} for path in tuned],
        "parameters": {"normalize": False},
        "dtype": "float32",
    }
    (place / "config.yml").write_text(yaml.safe_dump(config))
    command = [environment / "bin/mergekit-pytorch", place / "config.yml", out, "--random-seed", "0"]
    subprocess.run(list(map(str, command)), check=True, capture_output=True)
    parts = [load_file(path) for path in sorted(out.glob("*.safetensors"))]
    return {name: tensor for part in parts for name, tensor in part.items()}


def scored(bench: Workbench, prepared, arm: Arm) -> dict[str, float]:
    """Choose the scale of the one task vector of an arm, and score what comes out."""
    spec, targets, controls = prepared.spec, prepared.targets, prepared.controls

    def right(task: str, split: str) -> float:
        return float(bench.answered(bench.examples(task, split), task).right().float().mean())

    best = None
    for scale in SCALES:
        bench.compose(arm, Blend({"peer": scale}))
        held = [right(c, "validation") for c in controls]
        if scale == 0.0:
            before = held
        kept = min((h / b for h, b in zip(held, before, strict=True)), default=1.0)
        reached = sum(right(t, "validation") for t in targets) / len(targets)
        if kept >= spec.search.control_keep and (best is None or reached > best[0]):
            best = (reached, scale)
    bench.compose(arm, Blend({"peer": 0.0}))
    base = [right(c, "test") for c in controls]
    bench.compose(arm, Blend({"peer": best[1]}))
    sizes = {t: (len(prepared.data[t].train), len(prepared.data[t].validation)) for t in targets}
    own = [by_own_head(bench, t, pool_of(spec, t, *sizes[t])) for t in targets]
    return {
        "words": sum(right(t, "test") for t in targets) / len(targets),
        "own": sum(own) / len(own),
        "kept": min((right(c, "test") / b for c, b in zip(controls, base, strict=True)), default=1.0),
        "scale": best[1],
    }
