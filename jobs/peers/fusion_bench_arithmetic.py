"""fusion-bench's task arithmetic in one process, on models in memory: `... FOLDER OUT REPEATS`, prints times (ms) as JSON."""

import json
import sys
import time
from pathlib import Path

import torch
from fusion_bench.method.task_arithmetic.task_arithmetic import task_arithmetic_merge
from safetensors.torch import load_file, save_file
from torch import nn


def model(path: Path) -> nn.Module:
    module = nn.Module()
    for name, tensor in load_file(path).items():
        module.register_parameter(name.replace(".", "/"), nn.Parameter(tensor))
    return module


@torch.no_grad()
def main(folder: Path, out: Path, repeats: int) -> None:
    base = model(folder / "base.safetensors")
    tuned = [model(p) for p in sorted(folder.glob("task*.safetensors"))]
    save_file(
        {n.replace("/", "."): p for n, p in task_arithmetic_merge(base, tuned, 0.3, inplace=False).named_parameters()},
        out,
    )
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        task_arithmetic_merge(base, tuned, 0.3, inplace=True)
        times.append((time.perf_counter() - start) * 1e3)
    print(json.dumps(times))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
